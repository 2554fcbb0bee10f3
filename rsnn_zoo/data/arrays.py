"""Images and labels out of an ``.npz`` file, in the forms in which people keep them."""

import logging
import math
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from rsnn_zoo._utils.archives import UNREADABLE, check_swelling
from rsnn_zoo._utils.files import open_regular
from rsnn_zoo.data.checks import CHANNELS, check_labels
from rsnn_zoo.spec.datasets import Augmentation, DatasetInfo

__all__ = ["Arrays", "read_npz"]

_log = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray]
"""uint8 images (N, H, W) or (N, H, W, C), integer labels (N,)."""

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_ALIASES = dict(zip(NPZ_KEYS, ("x_train", "y_train", "x_test", "y_test"), strict=True))  # Keras'
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DARK = 64  # of pixels from 0 to 255, the largest in a whole data set is above


def read_npz(path: Path, info: DatasetInfo | None, train: bool) -> tuple[DatasetInfo, Arrays]:
    """Record, and images and labels of one part; without ``info`` the record is made from the arrays.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read, or is no regular file.
        ValueError: If it is damaged, or holds other arrays.
    """
    arrays = {key: value for key, value in zip(NPZ_KEYS, _arrays(path), strict=True)}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
            found = f"{images.dtype} {images.shape}"
            raise ValueError(
                f"{path}: {part}_images must be uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), not {found}; "
                "of pixels in [0, 1] save (255 * images).round().astype('uint8')"
            )
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            found = f"{labels.dtype} {labels.shape}"
            raise ValueError(
                f"{path}: {part}_labels must be {len(images)} integers, one an image, not {found}; of one-hot rows "
                "save labels.argmax(1)"
            )
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _channels_last(images), labels
    _check_levels(path, info, *(int(arrays[f"{part}_images"].max()) for part in ("train", "test")))
    if info is None:
        info = _record_from(path, arrays)
    else:
        arrays |= _relabelled(path, info, arrays)
    part = "train" if train else "test"
    return info, (arrays[f"{part}_images"], arrays[f"{part}_labels"])


def _arrays(path: Path) -> list[np.ndarray]:
    """Read the arrays under ``NPZ_KEYS``, or under Keras' names.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If it is damaged, or lacks some.
    """
    with open_regular(path) as file:
        return _named(path, file)


def _named(path: Path, file: BinaryIO) -> list[np.ndarray]:
    try:
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("no zip archive")
        with zipfile.ZipFile(file) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist()]
            names = [key if key in there else _ALIASES[key] for key in NPZ_KEYS]
            missing = [key for key, name in zip(NPZ_KEYS, names, strict=True) if name not in there]
            members = [f"{name}.npy" for name in names]
            check_swelling(archive, members)
            found = [] if missing else [_read_array(archive, member) for member in members]
    except (*UNREADABLE, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not what numpy.savez writes: {error}") from error
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it has {', '.join(there) or 'nothing'}. Keras' x_train, y_train, ... "
            "do as well"
        )
    return found


def _read_array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """An array, once it is seen to be as large as it says.

    Raises:
        ValueError: If it is not.
    """
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member} is of version {version} of NumPy's format")
        shape, _, dtype = _HEADERS[version](file)
        held, said = archive.getinfo(member).file_size - file.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{member} holds objects, which would be pickles: a pickle can run code")
    if held != said:
        raise ValueError(f"{member} says that it has {said:,} bytes of {dtype}, and has {held:,}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _channels_last(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) to (N, H, W, C); what is so already is left."""
    if images.ndim == 4 and images.shape[3] not in CHANNELS and images.shape[1] in CHANNELS:
        return np.moveaxis(images, 1, 3)
    return images


def _check_levels(path: Path, info: DatasetInfo | None, *highest: int) -> None:
    """Refuse images of 0 and 1, be it in one part, which would count as nearly black, and doubt merely dark ones."""
    levels = 255 if info is None else info.levels
    if 1 in highest or max(highest) == 0:
        raise ValueError(
            f"{path}: pixels run from 0 to {min(highest)} where 0 is black and {levels} white; were they scaled to "
            f"[0, 1]? Multiply by {levels}"
        )
    if levels == 255 and max(highest) < _DARK:
        _log.warning("%s: pixels run from 0 to %d where 255 is white: are they of another scale?", path, max(highest))


def _relabelled(path: Path, info: DatasetInfo, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The labels as the record counts them; those that cannot be its own are refused or doubted."""
    keys = ("train_labels", "test_labels")
    found = np.union1d(*(arrays[key] for key in keys))
    if info.name == "svhn" and found[0] == 1 and found[-1] == 10:
        _log.info("%s: labels run from 1 to 10, as in the published files, where 10 is the digit 0", path)
        return {key: arrays[key] % 10 for key in keys}
    if info.name == "cifar100" and any(np.array_equal(np.unique(arrays[key]), np.arange(20)) for key in keys):
        raise ValueError(
            f"{path}: labels run from 0 to 19, as the 20 coarse ones of {info.title} do: save the fine ones, of 100 "
            "classes, or leave out dataset= (--dataset)"
        )
    for key in keys:  # whichever part is wanted
        check_labels(torch.from_numpy(arrays[key].astype(np.int64)), info.num_classes)
    if len(found) < info.num_classes:
        _log.warning("%s: labels are of %d of the %d classes of %s", path, len(found), info.num_classes, info.title)
    return {}


def _record_from(path: Path, arrays: dict[str, np.ndarray]) -> DatasetInfo:
    """Make the record of an unnamed data set from its arrays, statistics from the training images."""
    classes = np.union1d(arrays["train_labels"], arrays["test_labels"])
    if not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(f"{path}: labels must be 0, 1, 2, ... without a gap; relabel, or name the record by dataset=")
    images = arrays["train_images"]
    images = images[..., None] if images.ndim == 3 else images
    channels = (torch.from_numpy(np.ascontiguousarray(images[..., k])) for k in range(images.shape[-1]))
    spread = [torch.std_mean(channel / 255, correction=0) for channel in channels]
    return DatasetInfo(
        name=path.stem,
        title=path.name,
        img_size=images.shape[1],
        in_chans=images.shape[-1],
        class_names=tuple(map(str, classes)),
        mean=tuple(round(mean.item(), 4) for _, mean in spread),
        std=tuple(round(std.item(), 4) or 1.0 for std, _ in spread),  # 1 where a channel is constant
        augmentation=Augmentation(),
        citation="",
        terms="",
    )
