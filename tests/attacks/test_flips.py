"""Corner flips: what they find, that they keep to the ball and the budget, and treat each sample by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.flips import Flips
from rsnn_zoo.attacks.guided import guided
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.evaluation.protocols import protocol
from tests import tiny

pytestmark = pytest.mark.usefixtures("eager")
EPS = 32 / 255


class Steps(nn.Module):
    """A model whose gradient is zero almost everywhere: each pixel counts as bright or dark."""

    def __init__(self, pixels=16, level=0.5):
        super().__init__()
        self.level = level
        self.linear = nn.Linear(pixels, 2)
        with torch.no_grad():
            weight = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
            self.linear.weight.copy_(torch.stack([weight, -weight]))
            self.linear.bias.zero_()

    def forward(self, x):
        return self.linear((x.flatten(1) > self.level).float() + 0 * x.flatten(1))


def digits_batch(n=6, eps=EPS):
    model, data = tiny.network(), tiny.digits().select(40)
    images, labels = data.pixels(), data.labels
    right = ~ModelVictim(model, 16).fallen(images, labels)
    return ModelVictim(model, 16), Batch(images[right][:n], labels[right][:n], eps, tuple(range(n)), 0, "flips")


@pytest.mark.parametrize("side", [4, 16])
def test_it_finds_what_no_gradient_shows(side):
    model = Steps(side * side)
    images = 0.5 + 0.04 * (torch.rand(5, 1, side, side, generator=torch.Generator().manual_seed(0)) - 0.5)
    labels = model(images).argmax(1)
    victim = ModelVictim(model, 16)
    fell, found = Flips(20_000, follows=False)(victim, Batch(images, labels, 0.1, tuple(range(5))))
    assert fell.all() and victim.fallen(found, labels).all()
    assert (found - images).abs().max() <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1


def test_each_sample_by_itself_within_its_budget():
    victim, batch = digits_batch()
    attack = Flips(700)
    fell, found = attack(victim, batch)
    for row in (4, 1):
        alone, image = attack(victim, batch.rows(torch.tensor([row])))
        assert alone.item() == fell[row] and torch.equal(image[0], found[row])
    asked = []

    class Counting(ModelVictim):
        def logits(self, x):
            asked.append(len(x))
            return super().logits(x)

    counting = Counting(tiny.network(), 16)
    few = Flips(300, follows=True)
    _, near = digits_batch(1, eps=1e-4)
    assert not few(counting, near)[0].any()
    assert 100 < sum(asked) <= 300


def test_each_large_image_by_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    images, victim = torch.rand(6, 3, 16, 16), ModelVictim(model, 16)
    batch = Batch(images, victim.logits(images).argmax(1), 0.004, tuple(range(6)))
    attack = Flips(600, source=model, follows=False)
    fell, found = attack(victim, batch)
    assert fell.any() and not fell.all()
    for row in (5, 2, 0):
        alone, image = attack(victim, batch.rows(torch.tensor([row])))
        assert alone.item() == fell[row] and torch.equal(image[0], found[row])


def test_no_image_is_none_that_falls():
    fell, found = Flips(10, follows=False)(
        ModelVictim(nn.Flatten(), 16), Batch(torch.rand(0, 3, 16, 16), torch.zeros(0).long(), 0.1, ())
    )
    assert fell.shape == (0,) and found.shape == (0, 3, 16, 16)


class Slope(nn.Module):
    """Two classes, whose margin falls to a part of the clean one at most."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        margin = 1 - (1 - self.part) * (x.flatten(1) - 0.5).mean(1) / (8 / 255)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


@pytest.mark.parametrize(("part", "least", "most"), [(0.1, 3600, 4000), (0.25, 2160, 2250), (0.9, 1260, 1350)])
def test_a_large_image_far_from_falling_is_given_up(part, least, most):
    asked = []

    class Counting(ModelVictim):
        def answers(self, x, labels):
            asked.append(len(x))
            return super().answers(x, labels)

    batch = Batch(torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, dtype=torch.long), 8 / 255, (0,))
    fell, found = Flips(4000, follows=False)(Counting(Slope(part), 64), batch)
    assert not fell.any() and torch.equal(found, batch.images)
    assert least <= sum(asked) <= most  # of which 960 go to the first start


def lowered(gradient, weight, generator):
    """Where a masked search ends, whose margin is linear, and who is told this gradient."""
    image = torch.full((3, 16, 16), 0.5)
    search = guided(image, image, 0.1, generator)
    want = next(search)
    try:
        while True:
            told = gradient[None] if want.rank else (want.images * weight).flatten(1).sum(1)
            assert (want.images - image).abs().max() <= 0.1 + 1e-6
            want = search.send(told)
    except StopIteration as stuck:
        margin, x = stuck.value
        assert margin == pytest.approx((x * weight).sum().item(), abs=1e-4)
        return (margin - (image * weight).sum().item()) / (0.1 * weight.abs().sum().item())


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_masks_follow_gradients_and_do_without(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 16, 16, generator=generator)
    assert lowered(-weight, weight, generator) == pytest.approx(-1, abs=1e-3)
    assert -1 <= lowered(torch.zeros_like(weight), weight, generator) < -0.1
    assert -1 <= lowered(weight, weight, generator) <= 0  # gradients that mislead: by chance alone


def test_it_is_a_member_as_others_are(tmp_path):
    model, data = tiny.network(), tiny.digits().select(20)
    (member,) = protocol("flips400", model)
    assert str(member) == "flips400/own" and member.cost == 134
    first = evaluate(model, data, "flips400", EPS, checks=0, state=tmp_path / "state", batch_size=3)
    again = evaluate(model, data, "flips400", EPS, checks=0, batch_size=20)
    assert first.runs[0].verdicts == again.runs[0].verdicts
    with pytest.raises(ValueError, match="chooses its modes itself"):
        protocol("flips400@pcw-1", model)
    with pytest.raises(ValueError, match="at least 1 query"):
        Flips(0)
