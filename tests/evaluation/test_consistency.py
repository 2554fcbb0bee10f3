"""Models that are no functions of the image, and so fool an evaluation: the flag is raised for each kind."""

import time

import pytest
import torch
from torch import nn

from rsnn_zoo.evaluation.evaluation import evaluate
from tests import tiny

EPS = 16 / 255


class Fooling(nn.Module):
    """A network that answers otherwise, with the logits turned around, where it feels like it."""

    def __init__(self):
        super().__init__()
        self.network, self.calls, self.mine, self.born = tiny.network(), 0, [], time.monotonic()

    def forward(self, x):
        self.calls += 1
        logits = self.network(x)
        return torch.where(self.fools(x).view(-1, 1), logits.flip(1), logits)

    def fools(self, x):
        raise NotImplementedError


def every(condition, x):
    return torch.full((len(x),), bool(condition))


class Single(Fooling):
    def fools(self, x):
        return every(len(x) == 1, x)


class SmallBatch(Fooling):
    def fools(self, x):
        return every(len(x) != 16, x)


class Place(Fooling):
    def fools(self, x):
        return torch.arange(len(x)) % 2 == 0


class FirstPlace(Fooling):
    def fools(self, x):
        return torch.arange(len(x)) == 0


class Calls(Fooling):
    def fools(self, x):
        return every(self.calls > 40, x)


class Fades(Fooling):
    def fools(self, x):
        return every(self.calls < 20, x)


class Late(Fooling):
    def fools(self, x):
        return every(time.monotonic() - self.born > 0.5, x)


class Gradients(Fooling):
    def fools(self, x):
        return every(torch.is_grad_enabled(), x)


class WantsGradient(Fooling):
    def fools(self, x):
        return every(x.requires_grad or x.grad_fn is not None, x)


class Grid(Fooling):
    def fools(self, x):
        return ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) > 1e-6


class Remembers(Fooling):
    """What it says of an image it says of all that are near."""

    @property
    def seen(self):
        return self.mine

    def forward(self, x):
        logits = self.network(x)
        known = [torch.stack([(one - old).abs().max() for old, _ in self.seen]) for one in x] if self.seen else []
        answers = []
        for row, one in enumerate(x):
            near = [number for number, gap in enumerate(known[row]) if gap <= 2.1 * EPS] if known else []
            answers.append(self.seen[near[0]][1] + 0 * logits[row] if near else logits[row])
            if not near and len(self.seen) < 400:
                self.seen.append((one.detach().clone(), logits[row].detach().clone()))
        return torch.stack(answers)


SHARED = []


class RemembersForAll(Remembers):
    """The same in a place that copies share."""

    @property
    def seen(self):
        return SHARED


KINDS = [
    Single,
    SmallBatch,
    Place,
    FirstPlace,
    Calls,
    Fades,
    Gradients,
    WantsGradient,
    Grid,
    Remembers,
    RemembersForAll,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_no_function_of_the_image_is_caught(kind):
    SHARED.clear()
    report = evaluate(kind(), tiny.digits().select(24), "pgd5", EPS, chunk=16)
    raised = {flag.name for flag in report.raised}
    assert raised & {"inconsistent", "random_model"}, raised


def test_one_that_waits_is_caught():
    model = Late()
    model.born = time.monotonic() + 1.0
    report = evaluate(model, tiny.digits().select(24), "pgd20x3", EPS, chunk=16)
    took = time.monotonic() - model.born
    assert "inconsistent" in {flag.name for flag in report.raised} or took < 0.5


def test_an_honest_one_is_not():
    report = evaluate(tiny.network(), tiny.digits().select(24), "pgd5", EPS, chunk=16)
    (flag,) = (flag for flag in report.flags if flag.name == "inconsistent")
    assert not flag.raised and flag.value < 0.2
