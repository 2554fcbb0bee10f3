"""Nothing depends on the unit of the membrane: thresholds and the currents before them times any number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, SpikingNeuron
from rsnn_zoo.neurons.modes import MODES, Relu, backward_mode, current_mode, current_units, surrogate_units
from rsnn_zoo.training.recipe import Stage
from rsnn_zoo.training.updates import Updates

pytestmark = pytest.mark.usefixtures("eager")
T = 3
SCALES = st.lists(st.floats(0.2, 50.0), min_size=2, max_size=2)


class Net(nn.Module):
    """Two layers of neurons, with a way around the second."""

    def __init__(self, scales=(1.0, 1.0)):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.neuron1, self.neuron2 = (SpikingNeuron(T, 0.5 * scale) for scale in scales)
        with torch.no_grad():
            for layer, scale in zip((self.first, self.second), scales, strict=True):
                layer.weight *= 3 * scale
                layer.bias *= 3 * scale
            self.last.bias -= self.last(torch.full((1, 4), 0.5))[0]  # no class is the first of all images

    def forward(self, x):
        steps = 1 if isinstance(current_mode(), Relu) else T
        x = self.neuron1(self.first(x).repeat(steps, 1, 1, 1))
        x = x + self.neuron2(self.second(x))
        return self.last(x.mean((2, 3))).unflatten(0, (steps, -1)).mean(0)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(12, 1, 6, 6, generator=generator)
    with torch.no_grad():
        return images, Net()(images).argmax(1)


def update(net, batch, objective, units="threshold"):
    stage = Stage(objective, eps=0.1, weight=2.0, batch_size=12, lr=0.0, attack="pgd", attack_steps=3, units=units)
    return Updates(net, stage, Ranks.current())(*batch, torch.Generator().manual_seed(0), 0.0, 1.0)


@given(scales=SCALES, mode=st.sampled_from([None, *MODES.values()]))
@settings(max_examples=60, deadline=None)
def test_no_rescaling_of_a_layer_changes_a_gradient_of_the_images(batch, scales, mode):
    images, labels = (part.double() if part.is_floating_point() else part for part in batch)
    found, expected = (InputGradient(Net(each).double(), mode)(images, labels) for each in (scales, (1.0, 1.0)))
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=0.0, atol=1e-4 * there.abs().max().item())
    assert expected[0].abs().sum() > 0


def fates(net, batch):
    """What an evaluation and a training step make of a network: verdicts, and losses by objective."""
    attack = "pgd2@ensemble+apgd3-ce@assg+pgd2@pdsg+pgd2@hart-1+pgd2@rga+pgd2"
    verdicts = evaluate(net, batch, attack, 0.05, checks=0, chunk=12).runs[0].verdicts
    return verdicts, [update(net, batch, objective) for objective in ("natural", "at", "trades", "mart")]


@pytest.fixture(scope="module")
def unscaled(batch):
    return fates(Net(), batch)


@given(powers=st.lists(st.integers(-2, 6), min_size=2, max_size=2).filter(any))
@settings(max_examples=2, deadline=None)
def test_no_rescaling_of_a_layer_changes_verdicts_or_losses(batch, unscaled, powers):
    """Powers of two, which round nothing, so that no spike hangs on it."""
    (verdicts, losses), (expected, expected_losses) = fates(Net([2.0**power for power in powers]), batch), unscaled
    assert verdicts == expected and set(verdicts) != {-1}
    for found, wanted in zip(losses, expected_losses, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


def test_absolute_widths_depend_on_it_and_are_reachable(batch):
    images, labels = batch
    gradients = []
    for scale in (1.0, 32.0):
        with backward_mode(None, units="absolute"):
            assert current_units() == "absolute"
            gradients.append(InputGradient(Net((scale, 1.0)))(images, labels)[0])
    assert not torch.allclose(*gradients, atol=1e-3)
    losses = [update(Net((32.0, 32.0)), batch, "at", units=units) for units in ("threshold", "absolute")]
    assert losses[0] != losses[1]
    assert evaluate(Net(), batch, "pgd2", 0.1, checks=0, units="absolute").settings["units"] == "absolute"
    assert evaluate(Net(), batch, "pgd2", 0.1, checks=0).settings["units"] == "threshold"
    with pytest.raises(ValueError, match="must be one of threshold, absolute"), surrogate_units("relative"):
        pass


@pytest.mark.parametrize("how", [{"leak": 0.7}, {"reset": "soft"}, {"reset": "soft", "leak": 0.7, "initial": 0.5}])
@pytest.mark.parametrize("shared", [False, True])
def test_nor_where_neurons_leak_or_keep_their_rest_or_are_one_module(batch, how, shared):
    def net(scale):
        made = Net((scale, scale if shared else 2 * scale))
        for neuron in (made.neuron1, made.neuron2):
            vars(neuron).update(how)
        made.neuron2 = made.neuron1 if shared else made.neuron2
        return made

    for mode in (None, MODES["assg"], MODES["rga"], MODES["pdsg"], MODES["hart-1"], MODES["rate"], MODES["relu"]):
        found, expected = (InputGradient(net(scale), mode)(*batch) for scale in (64.0, 1.0))
        for here, there in zip(found, expected, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learned", [1e-6, 0.0, -3.0])
def test_a_threshold_that_was_learned_away_acts_and_measures_at_its_least(batch, learned):
    least, gone = Net((MIN_THRESHOLD / 0.5, 1.0)), Net((MIN_THRESHOLD / 0.5, 1.0))
    gone.neuron1.threshold.data.fill_(learned)
    for mode in (None, MODES["assg"], MODES["rate"], MODES["relu"]):
        found, expected = (InputGradient(each, mode)(*batch) for each in (gone, least))
        assert all(
            torch.equal(here, there) and here.isfinite().all() for here, there in zip(found, expected, strict=True)
        )


def test_a_layer_has_one_threshold(batch):
    net = Net()
    net.neuron1.threshold = nn.Parameter(torch.ones(4, 1, 1))
    with pytest.raises(ValueError, match=r"one threshold, not \(4, 1, 1\)"):
        net(batch[0])
