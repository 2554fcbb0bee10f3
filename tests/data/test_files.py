"""Data files as people have them: read alike, or refused with cause and remedy, but never believed in silence."""

import gzip
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from rsnn_zoo.data.checks import check_images
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.spec.datasets import DATASETS
from tests.data.conftest import DIGITS
from tests.data.test_npz import digits_npz
from tests.data.test_sources import WNIDS, digits_rgb, write_cifar, write_fmnist, write_svhn, write_tinyimagenet

GOOD = digits_npz()
KERAS = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}


def colour_npz(**changes):
    arrays = {
        "train_images": digits_rgb(32, 60),
        "train_labels": DIGITS.target[:60],
        "test_images": digits_rgb(32, 72)[60:],
        "test_labels": DIGITS.target[60:72],
    }
    return arrays | changes


def columns(arrays):
    return {key: value[:, None] if "labels" in key else value for key, value in arrays.items()}


def channels_first(arrays):
    return {key: value.transpose(0, 3, 1, 2) if "images" in key else value for key, value in arrays.items()}


def keras(arrays):
    return {KERAS[key]: value for key, value in columns(arrays).items()}


@pytest.mark.parametrize("form", [columns, channels_first, keras, lambda arrays: keras(channels_first(arrays))])
@pytest.mark.parametrize("dataset", [None, "cifar10"])
def test_the_forms_of_an_npz_are_read_alike(tmp_path, form, dataset):
    np.savez(tmp_path / "plain.npz", **colour_npz())
    np.savez(tmp_path / "other.npz", **form(colour_npz()))
    plain, other = (load_dataset(tmp_path / f"{name}.npz", dataset=dataset) for name in ("plain", "other"))
    assert plain.sha256 == other.sha256 and plain.info.mean == other.info.mean


def test_grey_images_may_come_with_their_channel_on_either_side(tmp_path):
    np.savez(tmp_path / "plain.npz", **GOOD)
    for number, place in enumerate((1, 3)):
        images = {key: np.expand_dims(GOOD[key], place) for key in ("train_images", "test_images")}
        np.savez(tmp_path / f"{number}.npz", **digits_npz(**images))
        found = load_dataset(tmp_path / f"{number}.npz", dataset="digits")
        assert found.sha256 == load_dataset(tmp_path / "plain.npz", dataset="digits").sha256


def test_upper_case_suffix_and_home_folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "small.npz", **GOOD)
    (tmp_path / "small.npz").rename(tmp_path / "SMALL.NPZ")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_dataset("~/SMALL.NPZ")) == 50
    write_tinyimagenet(tmp_path / "tiny-imagenet-200", official=True)
    assert len(load_dataset("tinyimagenet", root="~")) == len(load_dataset("~/tiny-imagenet-200")) == 9


def test_svhn_s_ten_is_the_digit_0(tmp_path):
    tens = {key: np.where(value == 0, 10, value) for key, value in colour_npz().items() if "labels" in key}
    np.savez(tmp_path / "svhn.npz", **colour_npz(**tens))
    assert load_dataset(tmp_path / "svhn.npz", dataset="svhn").labels.tolist() == DIGITS.target[60:72].tolist()
    with pytest.raises(ValueError, match="span 1 to 10, but 10 classes"):  # of another data set they mean another thing
        load_dataset(tmp_path / "svhn.npz", dataset="cifar10")


def test_coarse_labels_are_refused_and_absent_classes_doubted(tmp_path, caplog):
    coarse = {"train_labels": np.arange(60)[::-1] % 20, "test_labels": np.arange(12)[::-1]}
    np.savez(tmp_path / "coarse.npz", **colour_npz(**coarse))
    with pytest.raises(ValueError, match=r"20 coarse ones of CIFAR-100 do: save the fine ones"):
        load_dataset(tmp_path / "coarse.npz", dataset="cifar100")
    assert load_dataset(tmp_path / "coarse.npz").info.num_classes == 20
    assert not caplog.text
    np.savez(tmp_path / "few.npz", **colour_npz())
    load_dataset(tmp_path / "few.npz", dataset="cifar100")
    assert "labels are of 10 of the 100 classes of CIFAR-100" in caplog.text


@pytest.mark.parametrize("dataset", [None, "cifar10"])
def test_images_of_another_scale_are_refused_or_doubted(tmp_path, caplog, dataset):
    images = {key: value for key, value in colour_npz().items() if "images" in key}
    for name, scale in (("binary", 128), ("dark", 16)):
        np.savez(tmp_path / f"{name}.npz", **colour_npz(**{key: value // scale for key, value in images.items()}))
    with pytest.raises(ValueError, match=r"pixels run from 0 to 1 where .* 255 white.* Multiply by 255"):
        load_dataset(tmp_path / "binary.npz", dataset=dataset)
    load_dataset(tmp_path / "dark.npz", dataset=dataset)
    assert "pixels run from 0 to 15 where 255 is white" in caplog.text


@pytest.mark.parametrize(
    ("name", "factory", "write", "file"),
    [
        ("cifar10", tv.CIFAR10, write_cifar, "cifar-10-batches-py"),
        ("cifar100", tv.CIFAR100, write_cifar, "cifar-100-python"),
        ("svhn", tv.SVHN, write_svhn, "test_32x32.mat"),
        ("fmnist", tv.FashionMNIST, write_fmnist, "FashionMNIST"),
    ],
)
def test_torchvision_s_files_can_be_the_source(tmp_path, monkeypatch, name, factory, write, file):
    write(tmp_path, factory, monkeypatch)
    expected = load_dataset(name, root=tmp_path)
    for source, dataset in ((tmp_path, None), (str(tmp_path), name), (tmp_path / file, None)):
        found = load_dataset(source, dataset=dataset)
        assert found.info is DATASETS[name] and found.sha256 == expected.sha256
    with pytest.raises(ValueError, match="not digits; give another source"):
        load_dataset(tmp_path, dataset="digits")


def test_keras_s_fashion_mnist_is_read(tmp_path, monkeypatch):
    write_fmnist(tmp_path, tv.FashionMNIST, monkeypatch)
    expected = load_dataset("fmnist", root=tmp_path)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for file in (tmp_path / "FashionMNIST" / "raw").iterdir():
        with gzip.open(folder / f"{file.name}.gz", "wb") as packed:
            packed.write(file.read_bytes())
    assert load_dataset(folder).sha256 == expected.sha256
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        load_dataset(folder)


def test_an_idx_file_that_swells_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("rsnn_zoo.data.folders._MOST_IDX", 10_000)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        with gzip.open(tmp_path / f"{name}.gz", "wb") as packed:
            packed.write(bytes(20_000))
    with pytest.raises(ValueError, match="it unpacks to more than 10,000 bytes"):
        load_dataset(tmp_path)


def test_an_idx_file_with_a_flipped_bit_is_refused(tmp_path):
    """The decompressor has errors of its own."""
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        data = bytearray(gzip.compress(bytes(range(256)) * 20))
        data[10:14] = b"\xff" * 4
        (tmp_path / f"{name}.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz is damaged"):
        load_dataset(tmp_path)


# Tiny ImageNet as it lies about on disks.


@pytest.fixture
def tiny(tmp_path):
    write_tinyimagenet(tmp_path, official=True)
    return tmp_path


def test_what_editors_and_archivers_leave_behind_is_passed_over(tiny):
    expected = load_dataset(tiny).sha256, load_dataset(tiny, "train", validation=0).sha256
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text("\n" + annotations.read_text().replace("\n", "\n\n") + "  \n")
    (tiny / "val" / "images" / "._val_0.JPEG").write_bytes(b"\0\5\x16\7")
    (tiny / "train" / WNIDS[0] / "images" / f"._{WNIDS[0]}_0.JPEG").write_bytes(b"\0\5\x16\7")
    for part in ("train", "val"):
        (tiny / part / ".ipynb_checkpoints").mkdir()
        (tiny / part / ".ipynb_checkpoints" / "copy-checkpoint.JPEG").write_bytes(b"image")
    assert (load_dataset(tiny).sha256, load_dataset(tiny, "train", validation=0).sha256) == expected


@pytest.mark.parametrize("moved", [1, 9])
def test_a_half_moved_validation_folder_is_read_as_before(tiny, moved):
    expected = load_dataset(tiny).sha256
    rows = [line.split("\t")[:2] for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines()]
    for file, wnid in rows[:moved]:
        (tiny / "val" / wnid).mkdir(exist_ok=True)
        shutil.move(tiny / "val" / "images" / file, tiny / "val" / wnid / file)
    assert load_dataset(tiny).sha256 == expected


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda val: (val / "val_annotations.txt").unlink(), FileNotFoundError, r"val_annotations\.txt is missing"),
        (
            lambda val: (val / "val_annotations.txt").write_bytes(b"\xff\xfe"),
            ValueError,
            r"annotations\.txt is damaged",
        ),
        (
            lambda val: (val / "val_annotations.txt").write_text("val_0.JPEG\n"),
            ValueError,
            "'val_0.JPEG' names no class",
        ),
        (
            lambda val: (val / "val_annotations.txt").write_text(""),
            ValueError,
            r"does not say the class of val_0\.JPEG",
        ),
        (
            lambda val: shutil.copytree(val / "images", val / WNIDS[0]),
            ValueError,
            r"val_0\.JPEG, .* twice, in images/ and in a class",
        ),
    ],
)
def test_a_damaged_validation_folder_says_what_to_do(tiny, damage, error, said):
    damage(tiny / "val")
    with pytest.raises(error, match=f"{said}.*unpack the archive again"):
        load_dataset(tiny)


# Odd sets.


def test_the_only_member_of_a_class_stays_in_training(tmp_path):
    labels = GOOD["train_labels"].copy()
    labels[:] = np.arange(200) % 9
    labels[17] = 9
    np.savez(tmp_path / "rare.npz", **digits_npz(train_labels=labels))
    kept, held = (load_dataset(tmp_path / "rare.npz", part, dataset="digits") for part in ("train", "validation"))
    assert 17 in kept.index.tolist() and len(kept) + len(held) == 200 and 9 not in held.labels


def test_images_with_channels_last_are_told_so():
    for channels in (3, None):
        with pytest.raises(ValueError, match=r"looks like \(B, H, W, C\); use images\.permute\(0, 3, 1, 2\)"):
            check_images(torch.rand(2, 32, 32, 3), channels)
    check_images(torch.rand(2, 32, 32, 3), 32)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_dtype_and_device_change_nothing(device):
    expected = load_dataset("digits", "validation")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(device)
    try:
        found = load_dataset("digits", "validation")
        assert found.sha256 == expected.sha256 and found.pixels().dtype == torch.float32
        assert found.index.tolist() == expected.index.tolist()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_nothing_is_said_of_a_good_file(tmp_path, caplog):
    np.savez(tmp_path / "good.npz", **colour_npz())
    with caplog.at_level(logging.INFO):
        load_dataset(tmp_path / "good.npz", dataset="cifar10")
    assert not caplog.text


def test_an_image_of_another_size_is_refused_before_it_is_unpacked(tiny, monkeypatch):
    monkeypatch.setattr("PIL.Image.Image.convert", lambda *_: pytest.fail("it was unpacked"))
    Image.new("RGB", (65, 64)).save(tiny / "val" / "images" / "val_0.JPEG")
    with pytest.raises(ValueError, match=r"val_0\.JPEG is no readable 64 x 64 image: it has 65 x 64 pixels"):
        load_dataset(tiny)


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_part_of_another_kind_is_refused_too(tmp_path, part):
    rng = np.random.default_rng(0)
    arrays = {
        f"{one}_{what}": rng.integers(0, high, (200, *size)).astype(np.uint8)
        for one in ("train", "test")
        for what, high, size in (("images", 256, (32, 32, 3)), ("labels", 100, ()))
    }
    for what, other, said in (
        ("images", arrays[f"{part}_images"] // 128, r"pixels run from 0 to 1"),
        ("labels", np.arange(200) % 20, "the 20 coarse ones"),
    ):
        np.savez(tmp_path / "it.npz", **arrays | {f"{part}_{what}": other})
        with pytest.raises(ValueError, match=said):
            load_dataset(tmp_path / "it.npz", dataset="cifar100")


def test_a_home_that_nobody_has_is_told():
    with pytest.raises(OSError, match="write the path out"):
        load_dataset("~nobody_of_this_name/it.npz")
