"""Augmentation: each sample by itself, evenly, and from one generator."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsnn_zoo.data.augment import Augment
from rsnn_zoo.data.images import check_images
from rsnn_zoo.spec.datasets import DATASETS, Augmentation
from tests.data.conftest import needs_cuda

# Augmentation.


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    side=st.integers(4, 9),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    integers=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_sample_becomes_a_crop_of_itself_perhaps_mirrored(batch, channels, side, padding, flip, integers, seed):
    images = torch.randint(1, 256, (batch, channels, side, side), generator=generator(seed)).byte()
    images = images if integers else images / 255
    found = Augment(Augmentation(padding, flip))(images, generator(seed))
    assert found.dtype == images.dtype and found.shape == images.shape
    for image, result in zip(images, found, strict=True):
        padded = torch.nn.functional.pad(image, (padding,) * 4)
        shifts = range(2 * padding + 1)
        crops = [padded[:, y : y + side, x : x + side] for y in shifts for x in shifts]
        candidates = crops + [crop.flip(2) for crop in crops] * flip
        assert any(torch.equal(result, candidate) for candidate in candidates)


def test_samples_draw_their_crops_and_mirrors_by_themselves_and_evenly():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    results = Augment(Augmentation(1, True))(image.expand(3600, -1, -1, -1), generator())
    counts = Counter(result.numpy().tobytes() for result in results)
    assert len(counts) == 9 * 2
    assert all(150 < count < 250 for count in counts.values())  # 200 expected, standard deviation 13.7


@pytest.mark.parametrize("cutout", [3, 4])
def test_cutout_blackens_one_square_in_all_channels(cutout):
    images = torch.ones(500, 3, 12, 12)
    black = Augment(Augmentation(cutout=cutout))(images, generator()) == 0
    assert torch.equal(black[:, 0], black[:, 1]) and torch.equal(black[:, 0], black[:, 2])
    heights, widths = black[:, 0].any(2).sum(1), black[:, 0].any(1).sum(1)
    assert torch.equal(black[:, 0].sum((1, 2)), heights * widths)  # a full rectangle
    assert heights.max() == widths.max() == cutout and heights.min() >= cutout // 2
    assert black[:, 0].any(0).all()  # every pixel falls now and then
    assert (images == 1).all()  # the input is left alone


def test_the_generator_s_state_repeats_the_augmentation():
    augment = Augment(Augmentation(4, True, 8))
    images, source = torch.rand(16, 3, 32, 32), generator(5)
    augment(images, source)
    state = source.get_state()
    next_one = augment(images, source)
    assert not torch.equal(next_one, augment(images, source))
    resumed = torch.Generator()
    resumed.set_state(state)
    torch.manual_seed(99)  # the global generator plays no part
    assert torch.equal(next_one, augment(images, resumed))


def test_the_default_augmentation_leaves_images_valid(digits):
    for info in DATASETS.values():
        images = torch.rand(4, info.in_chans, info.img_size, info.img_size)
        check_images(Augment(info.augmentation)(images, generator()), info.in_chans, info.img_size)
    assert torch.equal(Augment(Augmentation())(digits.images, generator()), digits.images)


@needs_cuda
def test_a_cpu_generator_draws_the_same_for_the_gpu():
    augment, images = Augment(Augmentation(4, True, 8)), torch.rand(16, 3, 32, 32)
    assert torch.equal(augment(images, generator()), augment(images.cuda(), generator()).cpu())
