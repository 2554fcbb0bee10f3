"""Augmentation of a batch of images, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rsnn_zoo.spec.datasets import Augmentation

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """Random crop, mirroring and cutout of a batch, each sample by itself, on the batch's device.

    Attributes:
        augmentation: What to do; ``info.augmentation`` is a data set's default.

    Example:
        >>> augment = Augment(Augmentation(crop_padding=4, flip=True))
        >>> augment(torch.rand(8, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """

    augmentation: Augmentation

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, C, H, W) of any dtype, black being 0.
            generator: Draws all that is random, on its own device: one on the CPU draws the same for every device.

        Returns:
            New images of the same shape, dtype and device.
        """
        batch, _, height, width = images.shape
        padding, cutout = self.augmentation.crop_padding, self.augmentation.cutout

        def draw(below: int) -> Tensor:
            return torch.randint(below, (batch,), generator=generator, device=generator.device).to(images.device)

        if padding:
            # Every crop of every image, as a view: (B, C, 2 padding + 1, 2 padding + 1, H, W).
            crops = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            samples = torch.arange(batch, device=images.device)
            images = crops[samples, :, draw(2 * padding + 1), draw(2 * padding + 1)]
        if self.augmentation.flip:
            images = torch.where(draw(2).bool()[:, None, None, None], images.flip(3), images)
        if cutout:  # its centre is anywhere in the image (DeVries and Taylor, 2017), so the border may cut it

            def inside(side: int) -> Tensor:
                offset = torch.arange(side, device=images.device) - draw(side)[:, None] + cutout // 2
                return (offset >= 0) & (offset < cutout)

            rows, columns = inside(height), inside(width)
            images = images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
        return images
