"""However users hold their images, and whatever torch's defaults are, the verdicts are the same."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from rsnn_zoo import convert, evaluate, load_dataset
from rsnn_zoo._utils.provenance import digest
from rsnn_zoo.evaluation.energy import energy
from rsnn_zoo.evaluation.inputs import labelled
from tests.conftest import small_network

pytestmark = pytest.mark.usefixtures("eager")
HOW = {"attack": "pgd3", "eps": 32 / 255, "checks": 0}


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits").select(24)


@pytest.fixture(scope="module")
def pair(data):
    return data.pixels(), data.labels


class Pairs(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


class Stream(IterableDataset):
    def __init__(self, images, labels):
        self.pairs = list(zip(images, labels, strict=True))

    def __iter__(self):
        return iter(self.pairs)


def verdicts(report):
    return report.correct, report.runs[0].verdicts, report.index


FORMS = {
    "arrays": lambda images, labels: (images.numpy(), labels.numpy()),
    "float64": lambda images, labels: (images.double().numpy(), labels.tolist()),
    "Dataset": lambda images, labels: TensorDataset(images, labels),
    "arrays in a Dataset": lambda images, labels: Pairs(images.numpy(), labels.numpy()),
    "IterableDataset": Stream,
    "DataLoader": lambda images, labels: DataLoader(Pairs(images, labels), batch_size=7),
    "shuffling DataLoader": lambda images, labels: DataLoader(Pairs(images, labels), batch_size=7, shuffle=True),
    "of a stream": lambda images, labels: DataLoader(Stream(images, labels), batch_size=5),
    "own collate": lambda images, labels: DataLoader(
        Pairs(images, labels),
        batch_size=5,
        shuffle=True,
        collate_fn=lambda pairs: [torch.stack([i for i, _ in pairs]), torch.tensor([t for _, t in pairs])],
    ),
    "batches of its own": lambda images, labels: DataLoader(Pairs(images, labels), batch_sampler=[[*range(24)]]),
}


def test_every_form_gives_the_same_verdicts(pair):
    model = small_network()
    expected = verdicts(evaluate(model, pair, **HOW))
    assert len({*expected[1]}) > 1  # some stand, some do not
    for name, form in FORMS.items():
        if name in ("arrays", "shuffling DataLoader"):
            assert verdicts(evaluate(model, form(*pair), **HOW)) == expected
        images, labels = labelled(form(*pair))
        assert torch.equal(images.float(), pair[0]) and torch.equal(labels, pair[1]), name


def test_a_part_of_image_data_keeps_its_index(data):
    for form in (
        data,
        DataLoader(data, batch_size=5, shuffle=True),
        Subset(data, range(24)),
        DataLoader(Subset(data, range(24))),
    ):
        assert labelled(form).index.tolist() == data.index.tolist()
    part = labelled(DataLoader(Subset(data, [4, 9, 2]), sampler=SubsetRandomSampler([2, 0])))
    assert part.index.tolist() == [4, 2] and part.sha256 == data.select([4, 2]).sha256


@pytest.mark.parametrize(
    ("form", "error", "said"),
    [
        (lambda images, labels: [images], TypeError, "pass an ImageData, .* not list"),
        (lambda images, labels: "digits", TypeError, "not str"),
        (lambda images, labels: images, TypeError, "not Tensor"),
        (lambda images, labels: Pairs([object()] * 3, labels[:3]), TypeError, "not object; of PIL images .*ToTensor"),
        (lambda images, labels: [{"image": i} for i in images], TypeError, "pass an ImageData"),
        (lambda images, labels: TensorDataset(images), TypeError, "pairs of an image and a label"),
        (lambda images, labels: TensorDataset(images[:0], labels[:0]), ValueError, "TensorDataset holds no images"),
        (lambda images, labels: Pairs([images[0], images[1, :, :4]], labels[:2]), ValueError, "differ in size"),
        (lambda images, labels: (np.array(["a"] * 24), labels), TypeError, "tensors or arrays of numbers"),
        (lambda images, labels: ((255 * images).byte().numpy(), labels), TypeError, "divide uint8 by 255"),
        (
            lambda images, labels: DataLoader(
                Pairs(images, labels), sampler=RandomSampler(labels, replacement=True, num_samples=9)
            ),
            ValueError,
            "shows other images each time; pass its data set",
        ),
        (lambda images, labels: (images.permute(0, 2, 3, 1), labels), ValueError, r"use images\.permute\(0, 3, 1, 2\)"),
    ],
)
def test_what_cannot_be_taken_says_what_to_pass(pair, form, error, said):
    with pytest.raises(error, match=f"(?s){said}"):
        evaluate(small_network(), form(*pair), **HOW)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_the_defaults_of_torch_change_no_verdict(data, dtype, device):
    model = small_network()
    expected, before = verdicts(evaluate(model, data, **{**HOW, "attack": "pgd3x2"})), digest(model)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        found = verdicts(evaluate(model, data, **{**HOW, "attack": "pgd3x2"}))
        assert found == expected and digest(model) == before
        assert torch.get_default_dtype() == dtype and torch.get_default_device().type == device
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def loaders(pairs):
    """Loaders that show all images, though not each in the order of the data set."""
    n = len(pairs)
    yield DataLoader(pairs, batch_size=n // 4, shuffle=True, drop_last=True)  # which drops none
    yield DataLoader(pairs, batch_size=None)
    yield DataLoader(pairs, batch_size=None, shuffle=True)
    yield DataLoader(pairs, batch_sampler=BatchSampler(RandomSampler(pairs), 5, False))


def test_every_loader_gives_its_images_in_the_order_of_its_data_set(pair):
    images, labels = pair
    for loader in loaders(Pairs(*pair)):
        found, numbers = labelled(loader)
        assert torch.equal(found, images) and torch.equal(numbers, labels)


def test_a_loader_s_own_batches_are_what_it_shows(pair):
    pairs = Pairs(*pair)
    part = DataLoader(pairs, batch_sampler=BatchSampler(SubsetRandomSampler([5, 3]), 2, False))
    assert torch.equal(labelled(part)[0], pair[0][[3, 5]])
    first = DataLoader(pairs, batch_sampler=BatchSampler(SequentialSampler(pairs), 5, True))
    assert torch.equal(labelled(first)[0], pair[0][: len(pairs) // 5 * 5])


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 5, "shuffle": True, "drop_last": True},
        {"batch_size": 5, "sampler": WeightedRandomSampler([1.0] * 24, 24)},
        {"batch_sampler": BatchSampler(RandomSampler(range(24)), 5, True)},
    ],
)
def test_a_loader_that_shows_other_images_each_time_is_refused(pair, how):
    with pytest.raises(ValueError, match="shows other images each time; pass its data set"):
        labelled(DataLoader(Pairs(*pair), **how))


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 8, device="meta"), torch.zeros(2, 1, 8, 8).to_sparse()])
def test_tensors_without_values_are_refused(images):
    with pytest.raises(TypeError, match="must be dense and hold values"):
        labelled((images, torch.zeros(2, dtype=torch.long)))


def test_energy_and_conversion_mind_no_default(data, ann):
    images = data.pixels(slice(0, 4))
    expected = energy(ann, images)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert energy(ann, images) == expected
        snn = convert(ann, 2, images)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert digest(snn) == digest(convert(ann, 2, images))
