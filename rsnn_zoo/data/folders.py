"""Images of the named data sets, out of scikit-learn or of the folders that torchvision, Keras and archives make."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from rsnn_zoo._utils.files import ConfigError, read_text
from rsnn_zoo._utils.progress import bar
from rsnn_zoo.data.arrays import Arrays
from rsnn_zoo.spec.datasets import DatasetInfo

__all__ = ["READERS", "data_set_in"]

_MARKS = {  # what tells a data set in a folder: name of a file or folder in it
    "cifar-10-batches-py": "cifar10",
    "cifar-100-python": "cifar100",
    "train_32x32.mat": "svhn",
    "test_32x32.mat": "svhn",
    "FashionMNIST": "fmnist",
}
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MOST_IDX = 2**26  # bytes: 60,000 images of 28 x 28 are three quarters of it
_MOST_ANNOTATIONS = 2**24


def data_set_in(path: Path, wanted: str | None) -> tuple[str, Path] | None:
    """Name of the data set that a folder (or one of its files) holds, and the folder as its reader needs it.

    Args:
        path: A folder or file as torchvision, Keras or an archive made it; another folder is Tiny ImageNet's.
        wanted: Which it must be, where there are several.
    """
    if path.name in _MARKS and path.exists():
        return _MARKS[path.name], path.parent
    if not path.is_dir():
        return None
    found = [_MARKS[mark] for mark in _MARKS if (path / mark).exists()]
    if any(_idx_file(path, name) for name in _IDX):
        found.append("fmnist")
    if wanted in found or found:
        return (wanted if wanted in found else found[0]), path
    return "tinyimagenet", path


def stratified(labels: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the samples kept and of those held out: a share or a number, drawn class by class.

    The member of a class that has no other is kept.

    Args:
        labels: Integers from 0, (N,).
        held_out: A share in (0, 1), or a number of samples.
        seed: Draws them.

    Raises:
        ValueError: If so many cannot be held out of every class.
    """
    from sklearn.model_selection import train_test_split

    alone = np.bincount(labels, minlength=1)[labels] == 1 if len(labels) else np.zeros(0, bool)
    several = np.flatnonzero(~alone)
    try:
        kept, held = train_test_split(several, test_size=held_out, random_state=seed, stratify=labels[several])
    except ValueError as error:
        raise ValueError(
            f"Cannot hold out {held_out} of {len(labels)} samples class by class ({error}): take another share, as "
            "validation=0, or more images"
        ) from error
    return np.sort(np.concatenate([kept, np.flatnonzero(alone)])), np.sort(held)


def _read_digits(info: DatasetInfo, root: Path, train: bool, download: bool) -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Fixed once and for all: whatever seed a model is trained with, it never sees a test image.
    chosen = stratified(digits.target, 360, seed=0)[0 if train else 1]
    return digits.images[chosen].astype(np.uint8), digits.target[chosen]


def _read_torchvision(info: DatasetInfo, root: Path, train: bool, download: bool) -> Arrays:
    from torchvision import datasets

    factory = getattr(datasets, "FashionMNIST" if info.name == "fmnist" else info.name.upper())
    part = {"split": "train" if train else "test"} if info.name == "svhn" else {"train": train}
    try:
        images, labels = zip(*factory(root, download=download, **part), strict=True)
    except (RuntimeError, AssertionError, LookupError, TypeError, ValueError, EOFError) as error:  # of files cut short
        if download:
            raise OSError(f"{info.title} could not be downloaded into {root}/: {error}; try again") from error
        raise FileNotFoundError(
            f"{info.title} is missing or damaged in the folder {root}/: pass download=True (--download) to fetch it, "
            "or an .npz file as source (--data FILE.npz)"
        ) from error
    return np.stack(images), np.array(labels)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_fmnist(info: DatasetInfo, root: Path, train: bool, download: bool) -> Arrays:
    """Keras' four files, or through torchvision."""
    files = [_idx_file(root, name) for name in (_IDX[:2] if train else _IDX[2:])]
    if not all(files):
        return _read_torchvision(info, root, train, download)
    images, labels = (_idx(path, sides) for path, sides in zip(files, ((28, 28), ()), strict=True))
    if len(images) != len(labels):
        raise ValueError(f"{files[0]} has {len(images)} images and {files[1]} {len(labels)} labels")
    return images, labels


def _idx(path: Path, sides: tuple[int, ...]) -> np.ndarray:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            raw = file.read(_MOST_IDX + 1)
        if len(raw) > _MOST_IDX:
            raise ValueError(f"it unpacks to more than {_MOST_IDX:,} bytes")
        counts = np.frombuffer(raw, ">u4", 2 + len(sides))
        if counts[0] != 2049 + len(sides) or tuple(counts[2:]) != sides:
            raise ValueError("its first bytes are another file's")
        return np.frombuffer(raw, np.uint8, offset=counts.nbytes).reshape(counts[1], *sides).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}; get it again") from error


def _read_tinyimagenet(info: DatasetInfo, root: Path, train: bool, download: bool) -> Arrays:
    base = (root if (root / "train").is_dir() else root / "tiny-imagenet-200") / ("train" if train else "val")
    files = _tinyimagenet_files(base)
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
    shown = bar(files, desc=f"{info.title}, {base.name}", unit="image")
    for pixels, (path, _) in zip(images, shown, strict=True):
        try:
            with Image.open(path) as image:
                if image.size != (info.img_size, info.img_size):  # before it is unpacked
                    raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels")
                pixels[:] = np.asarray(image.convert("RGB"))  # some are grey
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            size = f"{info.img_size} x {info.img_size}"
            raise ValueError(f"{path} is no readable {size} image: {error}; unpack the archive again") from error
    return images, np.array([numbers[wnid] for _, wnid in files])


def _tinyimagenet_files(base: Path) -> list[tuple[Path, str]]:
    """The images of a part and their classes, in the archive's layout, sorted into folders, or between the two."""
    flat = base / "images"  # of the validation part in the archive
    found = [
        path
        for path in base.rglob("*")
        if path.suffix.lower() in (".jpeg", ".jpg", ".png")
        and not any(part.startswith(".") for part in path.relative_to(base).parts)  # of macOS and Jupyter
    ]
    sorted_in = [(path, path.relative_to(base).parts[0]) for path in found if path.parent != flat]
    left = {path.name for path in found if path.parent == flat}
    annotations = base / "val_annotations.txt"
    if not left and (sorted_in or not annotations.is_file()):
        return sorted_in
    moved = {path.name for path, _ in sorted_in}
    classes = _annotated(annotations)
    if unsaid := sorted(left - classes.keys()):
        raise ValueError(f"{annotations} does not say the class of {', '.join(unsaid[:5])}; unpack the archive again")
    if twice := sorted(left & moved):
        raise ValueError(
            f"{base} has {', '.join(twice[:5])} twice, in images/ and in a class; unpack the archive again"
        )
    return sorted_in + [(flat / name, wnid) for name, wnid in classes.items() if name not in moved]


def _annotated(path: Path) -> dict[str, str]:
    """Class of each validation image."""
    try:
        rows = [line.split("\t") for line in read_text(path, _MOST_ANNOTATIONS).splitlines() if line.strip()]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing, which says the class of each of {path.parent / 'images'}; unpack the archive again"
        ) from None
    except ConfigError as error:
        raise ValueError(f"{path} is damaged: {error}; unpack the archive again") from error
    if short := [row for row in rows if len(row) < 2]:
        raise ValueError(f"{path}: {short[0][0]!r:.80} names no class; unpack the archive again")
    return {row[0].strip(): row[1].strip() for row in rows}


READERS: dict[str, Callable[[DatasetInfo, Path, bool, bool], Arrays]] = {
    "digits": _read_digits,
    "tinyimagenet": _read_tinyimagenet,
    "fmnist": _read_fmnist,
    **dict.fromkeys(("cifar10", "cifar100", "svhn"), _read_torchvision),
}
"""By data set: record, folder, whether the training part, and whether to download, to images and labels."""
