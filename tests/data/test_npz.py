"""Data sets in an .npz file: what is read, and what of damaged and hostile files is refused."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.spec.datasets import DATASETS
from tests.data.conftest import DIGITS, SHARED


def digits_npz(**changes: object) -> dict[str, np.ndarray]:
    images, labels = DIGITS.images.astype(np.uint8), DIGITS.target
    arrays = {
        "train_images": images[:200],
        "train_labels": labels[:200],
        "test_images": images[200:250],
        "test_labels": labels[200:250],
    }
    return {key: array for key, array in {**arrays, **changes}.items() if array is not None}


# Files.


@pytest.fixture(scope="module")
def cifar_npz(tmp_path_factory) -> Path:
    """A small .npz of real CIFAR-10 images: 40 of each of the first three classes, of which 10 are the test."""
    folder = SHARED / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip("the CIFAR-10 mosaics are not beside this checkout")
    mosaics = [np.asarray(Image.open(folder / f"test_0{label}.webp").convert("RGB")) for label in range(3)]
    rows, columns = (side // 32 for side in mosaics[0].shape[:2])
    images = np.stack(mosaics).reshape(3, rows, 32, columns, 32, 3).swapaxes(2, 3).reshape(3, -1, 32, 32, 3)[:, :40]
    labels = np.arange(3, dtype=np.uint8).repeat(40).reshape(3, 40)
    path = tmp_path_factory.mktemp("cifar") / "few.npz"
    np.savez(
        path,
        train_images=images[:, :30].reshape(-1, 32, 32, 3),
        train_labels=labels[:, :30].ravel(),
        test_images=images[:, 30:].reshape(-1, 32, 32, 3),
        test_labels=labels[:, 30:].ravel(),
    )
    return path


def test_an_npz_of_colour_images(cifar_npz):
    arrays = np.load(cifar_npz)
    named = load_dataset(cifar_npz, dataset="cifar10")
    assert named.info is DATASETS["cifar10"]
    assert np.array_equal(named.images.permute(0, 2, 3, 1).numpy(), arrays["test_images"])
    assert named.labels.tolist() == arrays["test_labels"].tolist() and named.labels.dtype == torch.int64

    generic = load_dataset(str(cifar_npz)).info
    assert (generic.name, generic.in_chans, generic.img_size, generic.num_classes) == ("few", 3, 32, 3)
    assert generic.mean == pytest.approx(arrays["train_images"].mean((0, 1, 2)) / 255, abs=1e-4)
    assert generic.std == pytest.approx(arrays["train_images"].std((0, 1, 2)) / 255, abs=1e-4)

    held_out = load_dataset(cifar_npz, "validation", validation=0.2)
    assert held_out.labels.bincount().tolist() == [6, 6, 6]
    assert np.array_equal(held_out.images.permute(0, 2, 3, 1).numpy(), arrays["train_images"][held_out.index.numpy()])


def test_an_npz_of_grey_images(tmp_path):
    np.savez(tmp_path / "d.npz", **digits_npz())
    data = load_dataset(tmp_path / "d.npz", dataset="digits")
    assert torch.equal(data.pixels()[:, 0].double(), torch.from_numpy(DIGITS.images[200:250] / 16))
    assert load_dataset(tmp_path / "d.npz").info.in_chans == 1


def test_a_channel_that_is_constant_does_not_divide_by_zero(tmp_path):
    np.savez(tmp_path / "black.npz", **digits_npz(train_images=np.zeros((200, 8, 8), np.uint8)))
    assert load_dataset(tmp_path / "black.npz").info.std == (1.0,)


GOOD = digits_npz()


@pytest.mark.parametrize(
    ("changes", "dataset", "message"),
    [
        ({"test_labels": None, "train_images": None}, None, "lacks train_images, test_labels; it has"),
        ({"test_images": GOOD["test_images"] / 16}, None, "test_images must be uint8"),
        ({"train_images": GOOD["train_images"].reshape(200, 64)}, None, "train_images must be uint8 .* not uint8"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, int)}, None, "must be uint8"),
        ({"test_labels": GOOD["test_labels"][:-1]}, None, "test_labels must be 50 integers, one an image"),
        ({"test_labels": GOOD["test_labels"] / 2}, None, "test_labels must be 50 integers"),
        ({"test_labels": np.eye(10, dtype=int)[GOOD["test_labels"]]}, None, r"not int64 \(50, 10\)"),
        ({"test_labels": GOOD["test_labels"] - 1}, None, "0, 1, 2, ... without a gap"),
        ({"test_labels": GOOD["test_labels"] + 10**12}, None, "0, 1, 2, ... without a gap"),
        ({"test_labels": GOOD["test_labels"] + 1}, "digits", "span 1 to 10, but 10 classes are numbered from 0 to 9"),
        ({"test_images": GOOD["test_images"] * 2}, "digits", "pixels run from 0 to 16"),
        ({"test_images": GOOD["test_images"][:, :, :4]}, None, "are they of another data set"),
        ({}, "cifar10", "CIFAR-10.* are they of another data set"),
        ({}, "cifar", "Unknown data set 'cifar' .did you mean cifar10"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path, changes, dataset, message):
    np.savez(tmp_path / "bad.npz", **digits_npz(**changes))
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "bad.npz", dataset=dataset)


class Evil:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_a_pickle_inside_an_npz_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("evil.npz", **digits_npz(test_labels=np.array([Evil()] * 50, object)))
    with pytest.raises(ValueError, match=r"damaged or not what numpy.savez writes"):
        load_dataset("evil.npz")
    Path("evil.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"damaged or not what numpy.savez writes"):
        load_dataset("evil.npz")
    assert not Path("unpickled").exists()


@pytest.fixture(scope="module")
def whole_npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("npz") / "whole.npz"
    np.savez_compressed(path, **digits_npz())
    return path


@settings(max_examples=60, deadline=None)
@example(position=-73, bit=1, cut=False)  # an unknown compression method
@given(position=st.integers(-5000, -1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_npz_is_refused_or_reads_the_same(whole_npz, position, bit, cut):
    content = bytearray(whole_npz.read_bytes())
    position %= len(content)
    if cut:
        del content[position:]
    else:
        content[position] ^= 1 << bit
    damaged = whole_npz.with_name("damaged.npz")
    damaged.write_bytes(content)
    try:
        found = load_dataset(damaged).sha256
    except ValueError as error:
        assert "damaged.npz" in str(error)
    else:  # the bit was in a date or the like
        assert found == load_dataset(whole_npz).sha256


def lying_npz(path: Path, shape: tuple[int, ...]) -> None:
    """An archive whose first array says that it has another shape than it has."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in digits_npz().items():
            packed = io.BytesIO()
            said = shape if name == "train_images" else array.shape
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": said}
            np.lib.format.write_array_header_1_0(packed, header)
            archive.writestr(f"{name}.npy", packed.getvalue() + array.tobytes())


@pytest.mark.parametrize("shape", [(10**6, 32, 32), (2**60, 8), (-200, -8, 8), (199, 8, 8), ()])
def test_an_array_that_is_not_as_large_as_it_says_is_not_allocated(tmp_path, shape):
    lying_npz(tmp_path / "lies.npz", shape)
    with pytest.raises(ValueError, match=r"lies\.npz is damaged or not what numpy.savez writes"):
        load_dataset(tmp_path / "lies.npz")


def test_an_archive_that_swells_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("rsnn_zoo._utils.archives.SMALL", 10_000)
    monkeypatch.setattr("numpy.lib.format.read_array", lambda *_, **__: pytest.fail("it was unpacked"))
    arrays = digits_npz(train_images=np.zeros((5000, 8, 8), np.uint8), train_labels=np.zeros(5000, np.uint8))
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    with pytest.raises(ValueError, match=r"would unpack to .* more than 16 times as many: .* write it uncompressed"):
        load_dataset(tmp_path / "small.npz")


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_is_packed_in_an_unusual_way_is_refused(tmp_path, packed):
    np.savez(tmp_path / "plain.npz", **digits_npz())
    with zipfile.ZipFile(tmp_path / "plain.npz") as plain, zipfile.ZipFile(tmp_path / "odd.npz", "w", packed) as odd:
        for name in plain.namelist():
            odd.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"packed in a way that is not read: write it uncompressed"):
        load_dataset(tmp_path / "odd.npz")


def test_an_array_renamed_to_npz_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", GOOD["test_images"])
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(ValueError, match="no zip archive"):
        load_dataset(tmp_path / "array.npz")
