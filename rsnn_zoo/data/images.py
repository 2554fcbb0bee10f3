"""Images in memory: loading and checking them.

Example:
    >>> data = load_dataset("digits", "test")
    >>> data.pixels().shape, data.info.num_classes
    (torch.Size([360, 1, 8, 8]), 10)
"""

import hashlib
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rsnn_zoo.spec.datasets import DATASETS, Augmentation, DatasetInfo
from rsnn_zoo.spec.names import near_matches

_log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")

_Arrays = tuple[np.ndarray, np.ndarray]  # uint8 images (N, H, W) or (N, H, W, C), integer labels (N,)


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
        raise TypeError(f"Images must be a floating-point tensor, not {_kind(images)}; {remedy}")
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"Images must be (B, C, H, W), none of them 0, not {tuple(images.shape)}")
    _, found, height, width = images.shape
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
        raise TypeError(f"Labels must be a tensor of integers, not {_kind(labels)}; use torch.as_tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Labels must be a tensor of integers, not {_kind(labels)}; use labels.long()")
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


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


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
            ``train_labels``, ``test_images`` and ``test_labels`` (uint8 (N, H, W, C) or (N, H, W), integers
            (N,)); or the Tiny ImageNet folder, with ``train/WNID/images/*`` and either ``val/images/*`` and
            ``val/val_annotations.txt`` or ``val/WNID/*``.
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
    train, path, root = split != "test", Path(source), Path(root)
    record = None if dataset is None else _record(dataset)

    if path.suffix == ".npz":
        info, (images, labels) = _read_npz(path, record, train)
    else:
        name, root = ("tinyimagenet", path) if source not in DATASETS and path.is_dir() else (str(source), root)
        info = _record(name)
        if record not in (None, info):
            raise ValueError(f"{source} is {info.title}, not {dataset}; give another source, or leave out dataset=")
        images, labels = _READERS[name](info, root, train, download)

    labels = labels.astype(np.int64)
    if (np.diff(labels) >= 0).all() and np.ptp(labels):
        _log.warning(
            "%s: sorted by class, so the first images, which conversion and attacks take, are of few: shuffle", path
        )
    data = ImageData(_nchw(images), torch.from_numpy(labels), info, split, torch.arange(len(labels)))
    if not train or not validation:
        return data
    kept, held_out = _stratified(labels, validation, seed)
    return data.select(torch.from_numpy(held_out if split == "validation" else kept))


def _record(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}{near_matches(name, DATASETS)}, or an .npz file or folder on disk")
    return DATASETS[name]


def _nchw(images: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(images)
    return tensor.unsqueeze(1) if images.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _stratified(labels: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the samples kept and of those held out: a share or a number, drawn class by class."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"Cannot hold out {held_out} of {len(labels)} samples class by class: {error}") from error
    return np.sort(kept), np.sort(held)


def _read_digits(info: DatasetInfo, root: Path, train: bool, download: bool) -> _Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Fixed once and for all: whatever seed a model is trained with, it never sees a test image.
    chosen = _stratified(digits.target, 360, seed=0)[0 if train else 1]
    return digits.images[chosen].astype(np.uint8), digits.target[chosen]


def _read_torchvision(info: DatasetInfo, root: Path, train: bool, download: bool) -> _Arrays:
    from torchvision import datasets

    factory = getattr(datasets, "FashionMNIST" if info.name == "fmnist" else info.name.upper())
    part = {"split": "train" if train else "test"} if info.name == "svhn" else {"train": train}
    try:
        images, labels = zip(*factory(root, download=download, **part), strict=True)
    except RuntimeError as error:
        if download:
            raise
        raise FileNotFoundError(
            f"{info.title} is missing or damaged in the folder {root}/: pass download=True (--download) to fetch it, "
            "or an .npz file as source (--data FILE.npz)"
        ) from error
    return np.stack(images), np.array(labels)


def _read_tinyimagenet(info: DatasetInfo, root: Path, train: bool, download: bool) -> _Arrays:
    base = (root if (root / "train").is_dir() else root / "tiny-imagenet-200") / ("train" if train else "val")
    if (base / "images").is_dir():  # val as in the archive
        rows = (line.split("\t") for line in (base / "val_annotations.txt").read_text().splitlines())
        files = [(base / "images" / file, wnid) for file, wnid, *_ in rows]
    else:
        found = (path for path in base.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
        files = [(path, path.relative_to(base).parts[0]) for path in found]
    if not files:
        raise FileNotFoundError(
            f"No images in {base}: unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip and pass its folder"
        )
    files.sort(key=lambda file: file[0].name)  # so that a sample's index is the same in every layout
    if train:  # which are named by class: the first so many would be of a few
        np.random.default_rng(0).shuffle(files)
    numbers = {wnid: number for number, wnid in enumerate(info.class_names)}
    if unknown := {wnid for _, wnid in files} - numbers.keys():
        raise ValueError(f"{base} has classes that {info.title} lacks: {', '.join(sorted(unknown)[:5])}")
    images = np.empty((len(files), info.img_size, info.img_size, 3), np.uint8)
    for pixels, (path, _) in zip(images, tqdm(files, desc=f"{info.title}, {base.name}", unit="image"), strict=True):
        try:
            with Image.open(path) as image:
                pixels[:] = np.asarray(image.convert("RGB"))  # some are grey
        except (OSError, ValueError) as error:
            size = f"{info.img_size} x {info.img_size}"
            raise ValueError(f"{path} is no readable {size} image: {error}; unpack the archive again") from error
    return images, np.array([numbers[wnid] for _, wnid in files])


_READERS: dict[str, Callable[[DatasetInfo, Path, bool, bool], _Arrays]] = {
    "digits": _read_digits,
    "tinyimagenet": _read_tinyimagenet,
    **dict.fromkeys(("cifar10", "cifar100", "svhn", "fmnist"), _read_torchvision),
}


def _read_npz(path: Path, info: DatasetInfo | None, train: bool) -> tuple[DatasetInfo, _Arrays]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no zip archive")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not what numpy.savez writes: {error}") from error
    if missing := [key for key in NPZ_KEYS if key not in arrays]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(arrays) or 'nothing'}")
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
            found = f"{images.dtype} {images.shape}"
            raise ValueError(f"{path}: {part}_images must be uint8 (N, H, W) or (N, H, W, C), not {found}")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            found = f"{labels.dtype} {labels.shape}"
            raise ValueError(f"{path}: {part}_labels must be {len(images)} integers, one an image, not {found}")
    part = "train" if train else "test"
    return info or _record_from(path, arrays), (arrays[f"{part}_images"], arrays[f"{part}_labels"])


def _record_from(path: Path, arrays: dict[str, np.ndarray]) -> DatasetInfo:
    """Make the record of an unnamed data set from its arrays, statistics from the training images."""
    classes = np.union1d(arrays["train_labels"], arrays["test_labels"])
    if not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(f"{path}: labels must be 0, 1, 2, ... without a gap; relabel, or name the record by dataset=")
    images = _nchw(arrays["train_images"])
    spread = [torch.std_mean(channel / 255, correction=0) for channel in images.unbind(1)]
    return DatasetInfo(
        name=path.stem,
        title=path.name,
        img_size=images.shape[2],
        in_chans=images.shape[1],
        class_names=tuple(map(str, classes)),
        mean=tuple(round(mean.item(), 4) for _, mean in spread),
        std=tuple(round(std.item(), 4) or 1.0 for std, _ in spread),  # 1 where a channel is constant
        augmentation=Augmentation(),
        citation="",
        terms="",
    )
