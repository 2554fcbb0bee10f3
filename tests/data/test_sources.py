"""Data sets as torchvision and Tiny ImageNet lay them on a disk."""

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.spec.datasets import DATASETS
from tests.data.conftest import DIGITS


def digits_rgb(size: int, n: int) -> np.ndarray:
    """The first digits as uint8 (n, size, size, 3), enlarged; the channels differ, so that a mixed-up order shows."""
    grey = DIGITS.images[:n].astype(np.uint8) * 15
    big = np.kron(grey, np.ones((1, size // 8, size // 8), np.uint8))
    margin = (size - big.shape[1]) // 2
    big = np.pad(big, ((0, 0), (margin, margin), (margin, margin)))
    return np.stack([big, 255 - big, big // 2], axis=-1)


# torchvision's layouts, written small; only the checksums that torchvision pins for the full files are replaced.


def write_cifar(root: Path, factory: type, monkeypatch) -> np.ndarray:
    """60 training and 12 test images; the files' labels are the digits."""
    images = digits_rgb(32, 72)
    rows = images.transpose(0, 3, 1, 2).reshape(72, -1)
    files = [name for name, _ in factory.train_list + factory.test_list]
    cuts = [*np.linspace(0, 60, len(factory.train_list) + 1, dtype=int).tolist(), 72]
    key = "labels" if factory is tv.CIFAR10 else "fine_labels"
    contents = {
        name: {"data": rows[a:b], key: DIGITS.target[a:b].tolist()}
        for name, a, b in zip(files, cuts, cuts[1:], strict=False)
    }
    contents[factory.meta["filename"]] = {factory.meta["key"]: []}
    folder = root / factory.base_folder
    folder.mkdir(parents=True)
    md5 = {}
    for name, content in contents.items():
        (folder / name).write_bytes(raw := pickle.dumps(content))
        md5[name] = hashlib.md5(raw).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(factory, attribute, [[name, md5[name]] for name, _ in getattr(factory, attribute)])
    monkeypatch.setattr(factory, "meta", {**factory.meta, "md5": md5[factory.meta["filename"]]})
    return images


def write_svhn(root: Path, factory: type, monkeypatch) -> np.ndarray:
    from scipy.io import savemat

    images, split_list = digits_rgb(32, 72), {}
    labels = np.where(DIGITS.target == 0, 10, DIGITS.target)  # SVHN calls the digit 0 ten
    for part, chosen in (("train", slice(0, 60)), ("test", slice(60, 72))):
        file = root / f"{part}_32x32.mat"
        savemat(file, {"X": images[chosen].transpose(1, 2, 3, 0), "y": labels[chosen, None]})
        split_list[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(factory, "split_list", split_list)
    return images


def write_fmnist(root: Path, factory: type, monkeypatch) -> np.ndarray:
    images, folder = digits_rgb(28, 72)[..., :1], root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, chosen in (("train", slice(0, 60)), ("t10k", slice(60, 72))):
        pixels, labels = images[chosen], DIGITS.target[chosen].astype(np.uint8)
        header = b"".join(n.to_bytes(4, "big") for n in (2051, len(pixels), 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(n.to_bytes(4, "big") for n in (2049, len(labels)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return images


@pytest.mark.parametrize(
    ("name", "factory", "write"),
    [
        ("cifar10", tv.CIFAR10, write_cifar),
        ("cifar100", tv.CIFAR100, write_cifar),
        ("svhn", tv.SVHN, write_svhn),
        ("fmnist", tv.FashionMNIST, write_fmnist),
    ],
)
def test_a_data_set_through_torchvision(tmp_path, monkeypatch, name, factory, write):
    with pytest.raises(FileNotFoundError, match=r"missing or damaged.*pass download=True.*or an \.npz"):
        load_dataset(name, root=tmp_path)
    images = write(tmp_path, factory, monkeypatch)
    test, train = load_dataset(name, root=tmp_path), load_dataset(name, "train", root=tmp_path, validation=0)
    assert test.info is DATASETS[name] and (len(train), len(test)) == (60, 12)
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), images[60:])
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), images[:60])
    assert train.labels.tolist() + test.labels.tolist() == DIGITS.target[:72].tolist()


def test_a_file_that_is_sorted_by_class_is_noted(tmp_path, caplog):
    for name, labels in (("sorted", [0, 0, 1, 1, 2, 2]), ("mixed", [0, 1, 2, 0, 1, 2]), ("one", [0] * 6)):
        arrays = {
            f"{split}_{what}": value
            for split in ("train", "test")
            for what, value in (("images", digits_rgb(8, 6)), ("labels", np.array(labels)))
        }
        np.savez(tmp_path / f"{name}.npz", **arrays)
        load_dataset(tmp_path / f"{name}.npz", "test")
    assert [message.split(": ")[0] for message in caplog.messages] == [str(tmp_path / "sorted.npz")]


# Tiny ImageNet's folder.

WNIDS = DATASETS["tinyimagenet"].class_names


def write_tinyimagenet(root: Path, official: bool) -> None:
    """Four training and three validation images of each of three classes, as PNG bytes, which lose nothing."""
    images = digits_rgb(64, 21)
    lines = []
    for k, wnid in enumerate((WNIDS[0], WNIDS[150], WNIDS[199])):
        train = root / "train" / wnid / "images"
        train.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(images[4 * k + i]).save(train / f"{wnid}_{i}.JPEG", format="PNG")
        val = root / "val" / ("images" if official else wnid)
        val.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            file = f"val_{3 * i + k}.JPEG"
            Image.fromarray(images[12 + 3 * k + i]).save(val / file, format="PNG")
            lines.append(f"{file}\t{wnid}\t0\t0\t62\t62\n")
    if official:
        (root / "val" / "val_annotations.txt").write_text("".join(lines))


def test_tinyimagenet_is_the_same_in_either_layout(tmp_path):
    for layout, official in (("tiny-imagenet-200", True), ("sorted", False)):
        write_tinyimagenet(tmp_path / layout, official)
    by_root = load_dataset("tinyimagenet", root=tmp_path)
    by_path = load_dataset(tmp_path / "sorted")
    assert by_root.sha256 == by_path.sha256 == load_dataset(tmp_path / "tiny-imagenet-200").sha256
    assert by_path.info is DATASETS["tinyimagenet"]
    assert by_path.labels.tolist() == [0, 150, 199] * 3
    assert np.array_equal(by_path.images[0].permute(1, 2, 0).numpy(), digits_rgb(64, 21)[12])
    train = load_dataset(tmp_path / "sorted", "train", validation=0.25)
    held_out = load_dataset(tmp_path / "sorted", "validation", validation=0.25)
    assert Counter(train.labels.tolist()) == {0: 3, 150: 3, 199: 3}
    assert train.labels.tolist() != sorted(train.labels.tolist())  # the first of them are to be of many classes
    assert Counter(held_out.labels.tolist()) == {0: 1, 150: 1, 199: 1}


def test_tinyimagenet_grey_jpegs_become_colour(tmp_path):
    write_tinyimagenet(tmp_path, official=True)
    grey = Image.fromarray(digits_rgb(64, 1)[0]).convert("L")
    grey.save(tmp_path / "val" / "images" / "val_0.JPEG", quality=95)
    image = load_dataset(tmp_path).images[0].float()
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    assert (image[0] - torch.from_numpy(np.array(grey)).float()).abs().mean() < 3  # JPEG's loss


def test_a_bad_tinyimagenet_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No images in .*unpack"):
        load_dataset("tinyimagenet", root=tmp_path)
    write_tinyimagenet(tmp_path, official=True)
    first = tmp_path / "val" / "images" / "val_0.JPEG"
    whole = first.read_bytes()

    first.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"val_0.JPEG is no readable 64 x 64 image"):
        load_dataset(tmp_path)
    Image.new("RGB", (32, 64)).save(first, format="PNG")
    with pytest.raises(ValueError, match=r"val_0.JPEG is no readable 64 x 64 image"):
        load_dataset(tmp_path)
    first.unlink()
    with pytest.raises(ValueError, match=r"val_0.JPEG is no readable 64 x 64 image"):
        load_dataset(tmp_path)

    (tmp_path / "train" / WNIDS[0]).rename(tmp_path / "train" / "n00000000")
    with pytest.raises(ValueError, match="classes that Tiny ImageNet lacks: n00000000"):
        load_dataset(tmp_path, "train")
