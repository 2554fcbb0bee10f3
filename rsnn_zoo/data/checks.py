"""What is no batch of images, or no vector of labels, is refused before anything is computed."""

import math

import torch
from torch import Tensor

__all__ = ["CHANNELS", "check_images", "check_labels"]

CHANNELS = (1, 3)  # of grey and of colour images
_SMALLEST = 8  # side of the smallest images of a data set, the digits: below, a first dimension is taken for channels


def check_images(images: Tensor, channels: int | None = None, size: int | None = None) -> None:
    """Refuse what is not a batch of images as every model here takes it: floating point (B, C, H, W) in [0, 1].

    Args:
        images: The batch.
        channels: The C that is needed; None for any.
        size: The H and W that are needed; None for any.

    Raises:
        TypeError: If ``images`` is no tensor of floating point.
        ValueError: If the shape is another, or a value is NaN or outside [0, 1].
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        remedy = "divide uint8 by 255" if isinstance(images, Tensor) else "use torch.as_tensor"
        raise TypeError(f"Images must be a floating-point tensor, not {_dtype_name(images)}; {remedy}")
    if images.ndim != 4 or not images.numel():
        raise ValueError(
            f"Images must be (B, C, H, W), with none of these 0, not {tuple(images.shape)}; those of one channel are "
            "(B, 1, H, W)"
        )
    _, found, height, width = images.shape
    if found not in (channels, *CHANNELS) and found >= _SMALLEST and height == found and width in CHANNELS:
        raise ValueError(
            f"Images must be (B, C, H, W), and {tuple(images.shape)} looks like (B, H, W, C); use "
            "images.permute(0, 3, 1, 2)"
        )
    if channels not in (None, found):
        raise ValueError(f"Images have {found} channels where {channels} are needed; are they of another data set?")
    if size is not None and (height, width) != (size, size):
        raise ValueError(f"Images are {height} x {width} where {size} x {size} is needed; resize them")
    low, high = (bound.item() for bound in images.detach().aminmax())
    if math.isnan(low):
        raise ValueError("Images hold NaN; find out where it comes from")
    if low < 0 or high > 1:
        raise ValueError(f"Images span {low:.4g} to {high:.4g}, not [0, 1]; do not normalise: the models do it inside")


def check_labels(labels: Tensor, num_classes: int | None = None) -> None:
    """Refuse what is not a vector of class numbers: integers (B,) from 0 to ``num_classes - 1``.

    Args:
        labels: The labels, integers of any kind.
        num_classes: Number of classes; None where it is not known.

    Raises:
        TypeError: If ``labels`` is no tensor of integers.
        ValueError: If it is no vector, or a label is out of range.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"Labels must be a tensor of integers, not {_dtype_name(labels)}; use torch.as_tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Labels must be a tensor of integers, not {_dtype_name(labels)}; use labels.long()")
    if labels.ndim != 1:
        raise ValueError(f"Labels must be a vector (B,), not {tuple(labels.shape)}; flatten them")
    if not len(labels):
        return
    low, high = (bound.item() for bound in labels.long().aminmax())  # which not every unsigned type has
    if low < 0 or (num_classes is not None and high >= num_classes):
        classes = "classes" if num_classes is None else f"{num_classes} classes"
        last = "" if num_classes is None else f" to {num_classes - 1}"
        raise ValueError(
            f"Labels span {low} to {high}, but {classes} are numbered from 0{last}; are they of another data set?"
        )


def _dtype_name(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
