"""Images in memory: loading and checking them.

Example:
    >>> data = load_dataset("digits", "test")
    >>> data.pixels().shape, data.info.num_classes
    (torch.Size([360, 1, 8, 8]), 10)
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsnn_zoo._utils.files import at_home
from rsnn_zoo.data.arrays import read_npz
from rsnn_zoo.data.checks import check_images, check_labels
from rsnn_zoo.data.folders import READERS, data_set_in, stratified
from rsnn_zoo.spec.datasets import DATASETS, SPLITS, DatasetInfo
from rsnn_zoo.spec.names import near_matches

__all__ = ["SPLITS", "ImageData", "check_images", "check_labels", "load_dataset"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images of one split, in memory.

    Attributes:
        images: uint8 (N, C, H, W), from 0 to ``info.levels``.
        labels: int64 (N,).
        info: Record of the data set.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        index: int64 (N,), each sample's place in the official split it comes from (for a validation sample the
            training split), by which whatever is random about the sample can be seeded.

    Raises:
        ValueError: If the parts do not fit each other or ``info``.
    """

    images: Tensor
    labels: Tensor
    info: DatasetInfo
    split: str
    index: Tensor

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        info, n = self.info, len(self.labels)
        shape = (n, info.in_chans, info.img_size, info.img_size)
        if self.images.dtype != torch.uint8 or self.images.shape != shape or self.index.shape != (n,):
            raise ValueError(
                f"{info.title}: {n} labels need {n} indices and uint8 images {shape}, not {len(self.index)} and"
                f" {self.images.dtype} {tuple(self.images.shape)}; are they of another data set?"
            )
        if n and self.images.max() > info.levels:
            raise ValueError(f"{info.title}: pixels run from 0 to {info.levels}, not to {self.images.max()}")
        check_labels(self.labels, info.num_classes)
        object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """Return one sample, pixels (C, H, W) in [0, 1] and label, for a ``torch.utils.data.DataLoader``.

        Raises:
            IndexError: If there is none at that position.
        """
        return self.images[position].float() / self.info.levels, int(self.labels[position])

    def select(self, indices: int | slice | Sequence[int] | Tensor) -> "ImageData":
        """Return the samples at the given positions, or the first so many.

        Raises:
            ValueError: If fewer than 1 or more samples than there are is asked for.
            IndexError: If a position is out of range.
        """
        if isinstance(indices, int):
            if not 1 <= indices <= len(self):
                raise ValueError(f"Cannot take {indices} of {len(self)} samples; ask for 1 to {len(self)}")
            indices = range(indices)
        elif isinstance(indices, slice):
            indices = range(len(self))[indices]
        at = torch.as_tensor(indices, device=self.labels.device)
        return replace(self, images=self.images[at], labels=self.labels[at], index=self.index[at])

    def to(self, device: torch.device | str) -> "ImageData":
        """Return the same data on another device."""
        images, labels, index = (part.to(device) for part in (self.images, self.labels, self.index))
        return replace(self, images=images, labels=labels, index=index)

    def pixels(self, indices: Tensor | slice | None = None) -> Tensor:
        """Return the images, all or those at ``indices``, as models take them: float32 (B, C, H, W) in [0, 1]."""
        return (self.images if indices is None else self.images[indices]).float() / self.info.levels

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, over shape, images and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in (self.images, self.labels):
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()


def load_dataset(
    source: str | Path,
    split: str = "test",
    *,
    dataset: str | None = None,
    root: str | Path = "data",
    download: bool = False,
    validation: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Load one split of a data set into memory.

    Args:
        source: A name of ``rsnn_zoo.spec.datasets.DATASETS``; or an ``.npz`` file with ``train_images``,
            ``train_labels``, ``test_images`` and ``test_labels``, or Keras' ``x_train``, ``y_train``, ``x_test`` and
            ``y_test`` (uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), integers (N,) or (N, 1)); or a folder that
            torchvision or Keras keeps such a data set in; or the Tiny ImageNet folder, with ``train/WNID/images/*``
            and either ``val/images/*`` and ``val/val_annotations.txt`` or ``val/WNID/*``. ``~`` is the home folder.
        split: ``"test"`` is the official test split (of Tiny ImageNet the official validation split, since the labels
            of its test split are secret; scikit-learn's digits have no official split, so 360 images that this
            package fixes once and for all); ``"validation"`` is carved from the other images, and ``"train"`` is the
            rest of them.
        dataset: Name of the record that the data must fit; without it an ``.npz`` gets one made from its arrays.
        root: Folder of the named data sets on disk.
        download: Whether torchvision may download a named data set that is not in ``root``.
        validation: Share of the official training split that is held out, class by class, in [0, 1).
        seed: Draws the held-out samples; it never moves a sample between training and test.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If an argument is unknown, or the data are damaged or do not fit their record.

    Example:
        >>> len(load_dataset("digits", "train")), len(load_dataset("digits", "validation"))
        (1293, 144)
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}{near_matches(split, SPLITS)}")
    if not 0 <= validation < 1 or (split == "validation" and not validation):
        raise ValueError(f"validation must be a share of the training split, such as 0.1, not {validation}")
    train, path, root = split != "test", at_home(source), at_home(root)
    record = None if dataset is None else _known(dataset)

    if path.suffix.lower() == ".npz":
        info, (images, labels) = read_npz(path, record, train)
    else:
        on_disk = None if source in DATASETS else data_set_in(path, dataset)
        name, root = on_disk or (str(source), root)
        info = _known(name)
        if record not in (None, info):
            raise ValueError(f"{source} is {info.title}, not {dataset}; give another source, or leave out dataset=")
        images, labels = READERS[name](info, root, train, download)

    labels = labels.astype(np.int64)
    if (np.diff(labels) >= 0).all() and np.ptp(labels):
        _log.warning(
            "%s: sorted by class, so the first images, which conversion and attacks take, are of few: shuffle", path
        )
    index = torch.arange(len(labels), device="cpu")  # whatever the default device
    data = ImageData(_nchw(images), torch.from_numpy(labels), info, split, index)
    if not train or not validation:
        return data
    kept, held_out = stratified(labels, validation, seed)
    return data.select(torch.from_numpy(held_out if split == "validation" else kept))


def _known(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}{near_matches(name, DATASETS)}, or an .npz file or folder on disk")
    return DATASETS[name]


def _nchw(images: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.unsqueeze(1) if images.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
