"""Sanity flags: each is raised by a model that must trip it, and none by ordinary ones."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rsnn_zoo.attacks import gradients
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation import checks, evaluation, flags
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.evaluation.protocols import protocol
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import published_names
from rsnn_zoo.models.fold import fold
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.neurons.modes import Relu, parse_mode
from rsnn_zoo.report.report import Run
from tests.attacks.test_odd_models import GRAPHLESS, Wrapped
from tests.tiny import Dense, digits, fit, network


class Front(nn.Module):
    """Something in front of a trained network."""

    def __init__(self, front, network):
        super().__init__()
        self.front, self.network = front, network

    def forward(self, x):
        return self.network(self.front(x))


class Trap(nn.Module):
    """For black and white digits: wrong where the mean over pixels of a landscape of the change exceeds 0.6."""

    def __init__(self, landscape):
        super().__init__()
        self.network, self.landscape = network(binary=True), landscape

    def forward(self, x):
        change = torch.where(x < 0.5, x, 1 - x)
        return self.network(x.round()) / 20 * (0.6 - self.landscape(change).flatten(1).mean(1, keepdim=True))


class Hidden(torch.autograd.Function):
    """Lets images pass, and no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class Blind(nn.Module):
    """Says the same about every image."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.arange(10.0))

    def forward(self, x):
        return self.logits.expand(len(x), 10) + 0 * x.mean()


def hat(change):
    return (1.001 - (change - 0.1).abs() / 0.1).clamp(min=0)


def valley(change):
    """Up to a bump at 0.01, down again, and only then up to 1 at 0.1: short steps do not come across."""
    return torch.maximum(
        0.2 * (1.001 - (change - 0.01).abs() / 0.01).clamp(min=0), ((change - 0.04) / 0.06).clamp(0, 1)
    )


def found(model, attack="pgd10", eps=16 / 255, data=None, **settings):
    report = evaluate(model, data or digits().select(48), attack, eps, chunk=16, **settings)
    return report, {flag.name for flag in report.raised}


def binary_digits():
    data = digits().select(48)
    return data.pixels().round(), data.labels


@pytest.mark.parametrize("spiking", [False, True])
def test_ordinary_networks_raise_none(spiking):
    report, raised = found(network(spiking), "ensemble-pgd10", [8 / 255, 16 / 255])
    assert not raised
    assert {flag.name for flag in report.flags} == flags.MESSAGES.keys()
    assert not any(flag.message for flag in report.flags)


def test_quantised_input_masks_gradients():
    _, raised = found(Front(lambda x: (16 * x).round() / 16, network()), eps=[16 / 255, 32 / 255])
    assert {"zero_gradients", "gradient_free", "above_chance"} <= raised


class HiddenFar(torch.autograd.Function):
    """Lets no gradient pass of what no camera could have taken."""

    @staticmethod
    def forward(ctx, x):
        ctx.off = ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) > 1e-6
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (~ctx.off)[:, None, None, None]


def test_gradients_that_are_hidden_from_perturbed_images_alone():
    data = digits().select(48)
    images = (data.pixels() * 255).round() / 255
    assert "zero_gradients" in found(Front(HiddenFar.apply, network()), "fgsm", data=(images, data.labels))[1]


class Sharpened(nn.Module):
    """Sharpens its images first, unless it is folded."""

    folded = False

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return self.network(x if self.folded else x + 2 * (x - nn.functional.avg_pool2d(x, 3, 1, 1)))


def test_a_folded_network_that_is_another_one_is_caught(monkeypatch):
    def other(model):
        model = fold(model)
        model.folded = True
        return model

    monkeypatch.setattr(gradients, "fold", other)
    data = digits().select(200)
    report, raised = found(Sharpened(), "pgd10", 8 / 255, data, precision="folded")
    assert report.extra["agreement"]["fell"] > 5 and "other_network" in raised
    assert "other_network" not in found(network(), "pgd10", 8 / 255, precision="folded")[1]


def test_saturated_input_masks_gradients():
    _, raised = found(Front(lambda x: torch.sigmoid(200 * (x - 0.47)), network(binary=True)))
    assert "zero_gradients" in raised


def test_a_random_model_is_attacked_by_expectation():
    model = Front(lambda x: x + 0.1 * torch.randn_like(x), network())
    before = torch.get_rng_state()
    report, raised = found(model)
    assert "random_model" in raised and "16 draws (EOT)" in report.table()
    assert report.settings["draws"] == 16
    assert torch.equal(torch.get_rng_state(), before)
    assert found(model, draws=4)[0].settings["draws"] == 4
    assert found(network())[0].settings["draws"] == 1


def test_a_model_that_ignores_its_input():
    _, raised = found(Blind())
    assert "ignores_input" in raised


@pytest.mark.parametrize("function", GRAPHLESS.values(), ids=GRAPHLESS)
def test_a_model_without_a_graph_to_its_input_is_flagged(function):
    model = Wrapped(function)
    fit(model.linear, digits("train").pixels(), digits("train").labels % 7)
    data = digits().pixels(slice(0, 32)), digits().labels[:32] % 7
    _, raised = found(model, ["ensemble-pgd3", "adaptive31", "torchattacks.PGD"], 32 / 255, data)
    assert "zero_gradients" in raised
    assert ("ignores_input" in raised) == (function is GRAPHLESS["ignores its input"])


def test_noise_alone_fells_hardly_any():
    model = Front(lambda x: x + 0.3 * torch.randn_like(x), network())
    report = evaluate(model, digits().select(100), ["pgd20", "square60", "torchattacks.PGD"], 0.0, checks=0, chunk=100)
    one = evaluate(model, digits().select(100), "pgd20", 0.0, checks=0, chunk=100, draws=1).runs[0]
    correct = [run.robust_accuracy for run in report.runs]
    assert report.settings["draws"] == 16 and min(correct) >= report.clean_accuracy - 0.02
    assert one.robust_accuracy < report.clean_accuracy - 0.1  # which a single draw would not have told


@pytest.mark.parametrize("scale", [1, 3])
def test_normalisation_outside(scale):
    data = digits("train")
    (mean,), (std,) = data.info.mean, data.info.std
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False), Dense(nn.ReLU()))
    fit(model[1], (data.pixels() - mean) / std * scale, data.labels)
    inside = Front(lambda x: (x - mean) / std * scale, model[1])
    assert "normalisation_outside" not in found(inside)[1]
    gain = evaluate(model[1], digits(), "fgsm", 0.0, chunk=64).flags[2]
    assert gain.name == "normalisation_outside" and gain.raised


def test_a_larger_radius_that_helps_the_model():
    report, raised = found(Trap(hat), "fgsm", [0.1, 0.2], binary_digits())
    assert report.runs[0].robust_accuracy < 0.1 and "more_eps" in raised
    # and with a single radius, against what stands at 64/255
    assert "more_eps" in found(Trap(hat), "fgsm", 0.1, binary_digits())[1]


def test_a_single_radius_of_64_has_no_other_to_be_compared_with():
    report, raised = found(network(), "fgsm", 64 / 255)
    assert "more_eps" not in raised and len(report.flags) == len(flags.MESSAGES)


def test_more_steps_that_help_the_model():
    assert "more_steps" in found(Trap(valley), "pgd5", 0.1, binary_digits())[1]
    # and among the runs, where the attacks of the check itself see nothing
    runs, none = ["pgd5", "pgd20"], {"checks": 1}
    report, raised = found(Trap(valley), runs, 0.1, binary_digits(), **none)
    assert report.runs[1].robust_accuracy > report.runs[0].robust_accuracy and "more_steps" in raised


def test_a_few_more_that_stand_by_luck_raise_nothing():
    """A start elsewhere fells others: what falls at the one radius may stand at the next."""
    members = (("pgd20", "own"),)

    def curve(up, down):
        before, after = [0] * up + [-1] * down + [-1] * 40, [-1] * up + [0] * down + [-1] * 40
        return [Run("pgd20", eps, members, tuple(v), 1.0) for eps, v in ((0.1, before), (0.2, after))]

    assert not any(flags.more_eps(curve(*each)).raised for each in ((0, 0), (1, 0), (4, 0), (9, 5), (0, 9)))
    assert all(flags.more_eps(curve(*each)).raised for each in ((5, 0), (12, 3)))
    assert flags.more_eps(curve(4, 0)).value == 4 / 44 and flags.more_eps(curve(0, 4)).value == 0
    longer = [replace(run, protocol=f"pgd{k}", eps=0.1) for run, k in zip(curve(9, 0), (20, 100), strict=True)]
    assert flags.more_steps(longer).raised and not flags.more_steps(reversed(longer[:1])).raised


def test_chance_is_exceeded_by_more_than_luck():
    assert not flags.above_chance(7, 64, 10).raised and flags.above_chance(14, 64, 10).raised


def test_a_model_that_computes_across_the_batch():
    norm = nn.BatchNorm2d(1, track_running_stats=False)
    assert "depends_on_batch" in found(nn.Sequential(norm, network()), "fgsm")[1]
    noisy = Front(lambda x: x + 0.1 * torch.randn_like(x), network())
    assert "depends_on_batch" not in found(noisy, "fgsm")[1]  # which is another matter


class Counts(nn.Module):
    """Rounds logits, as a count of spikes does."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        logits = self.network(x)
        return logits + ((logits / 8).round() * 8 - logits).detach()


def test_logits_that_tie():
    assert "tied_logits" in found(Counts(), "fgsm")[1]


class Labels(nn.Module):
    """Says what it sees, and how sure it is of something else."""

    def __init__(self):
        super().__init__()
        self.network = network()
        torch.manual_seed(1)
        self.other = fit(Dense(nn.ReLU()), digits("train").pixels(), digits("train").labels)

    def forward(self, x):
        logits = self.network(x)
        return 10 * nn.functional.one_hot(logits.argmax(1), 10) + 1e-3 * self.other(x) + 0 * logits


class TurnedAround(Labels):
    """The surer, the less it says so."""

    def forward(self, x):
        logits = self.network(x)
        first, second = logits.topk(2).values.unbind(1)
        return logits + nn.functional.one_hot(logits.argmax(1), 10) * (60 - 2 * (first - second))[:, None]


class ThinSeam(Labels):
    """The same, but for a seam at the change that is thinner than a step."""

    def forward(self, x):
        logits = self.network(x)
        first, second = logits.topk(2).values.unbind(1)
        margins = first - second
        told = 30 * torch.tanh(100 * margins) / (1 + margins)
        return logits + nn.functional.one_hot(logits.argmax(1), 10) * (told - margins)[:, None]


class Certain(Labels):
    """Probabilities of 0 and 1, and a gradient that says nothing."""

    def forward(self, x):
        logits = self.network(x)
        return nn.functional.one_hot(logits.argmax(1), 10) * (1 + 1e-4 * torch.tanh(x.flatten(1).sum(1, keepdim=True)))


@pytest.mark.parametrize("model", [Labels, TurnedAround, ThinSeam, Certain])
def test_logits_that_do_not_tell_how_near_a_change_is(model):
    """No attack that goes by margins finds the way, and what it leaves may look robust."""
    report, raised = found(model(), "pgd10")
    assert "hidden_margins" in raised
    assert report.runs[0].robust_accuracy > found(network(), "pgd10")[0].runs[0].robust_accuracy + 0.1


@pytest.mark.parametrize("name", ["resnet20_digits_at_ann", "resnet20_digits_at_t4", "resnet20_digits_trades_t4"])
def test_published_networks_neither_hide_margins_nor_know_images(name):
    """Few steps make large jumps, and a large radius makes much of a small move."""
    report = evaluate(create_model(name, pretrained=True), digits().select(32), "fgsm", 32 / 255)
    values = {flag.name: flag.value for flag in report.flags}
    assert values["hidden_margins"] < 0.6 and values["knows_images"] < 0.3, values


class Levels(nn.Module):
    """One-hot grey levels: what is no level is an error."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64 * 17, 10)

    def forward(self, x):
        levels = nn.functional.one_hot((16 * x).round().long(), 17).float()
        return self.linear(levels.flatten(1)) + 0 * x.sum()


def test_a_model_that_takes_nothing_but_pixels_is_no_error():
    report, _ = found(Levels(), "fgsm")
    assert len(report.flags) == len(flags.MESSAGES)


class Reshaped(nn.Module):
    """Knows its number of steps, and not that the ReLU stand-in has one."""

    def __init__(self):
        super().__init__()
        self.network = network(True)

    def forward(self, x):
        spikes = self.network.activation(self.network.hidden(x.flatten(1)))
        return self.network.out(spikes.view(4, len(x), -1).mean(0))


def test_a_mode_that_the_model_does_not_bear_is_named_before_any_attack(tmp_path):
    with pytest.raises(ValueError, match="fails under the backward mode relu"):
        evaluate(Reshaped(), digits().select(8), "ensemble-fgsm", chunk=8, state=tmp_path / "state")
    found(Reshaped(), "pgd3@rate")
    with pytest.raises(ValueError, match=r"under the backward mode assg: .* shown 32 for 16 images"):
        found(Front(lambda x: torch.cat([x, x.flip(-1)]), Halves(network(True))), "pgd3@assg")


class Halves(nn.Module):
    """Averages over the two views that an image is shown in."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).view(2, len(x) // 2, -1).mean(0)


def test_what_fells_after_all_gradient_attacks_is_counted():
    members = (("square100", "own"), ("pgd20", "own"), ("transfer-ann", "own"), ("uniform10", "own"))
    run = Run("some", 0.1, members, (0, 0, 1, 2, 3, 3, -1, -2), 1.0)
    assert flags.gradient_free([run]).value == 3
    assert not flags.gradient_free([Run("some", 0.1, members[1:2], (0, -1), 1.0)]).raised
    pgd = Run("pgd20", 0.1, members[1:2], (0, -1, -1), 1.0)
    square = Run("square100", 0.1, members[:1], (0, 0, -1), 1.0)  # what PGD could fell, and what it could not
    assert flags.gradient_free([pgd, square]).value == 1
    assert not flags.gradient_free([pgd, replace(square, eps=0.2)]).raised


def test_attacks_without_gradients_are_told_by_the_names_that_reports_give_them():
    def names(*attacks):
        return [member.attack.name for attack in attacks for member in protocol(attack, network())]

    library = [f"torchattacks.{name}" for name in ("Square", "SPSA", "OnePixel", "Pixle", "GN")]
    source = f"transfer[{published_names()[0]}]-fgsm"
    free = names("square5", "rays5", "uniform-noise5", "gaussian-noise5", source, *library)
    assert len(free) == 10 and all(name.startswith(flags.GRADIENT_FREE) for name in free)
    assert all(any(name.startswith(known) for name in free) for known in flags.GRADIENT_FREE)
    others = names("fgsm", "rfgsm", "pgd5", "apgd5-ce", "sapgd5", "adaptive31", "fab5-t1", "torchattacks.PGD")
    assert len(others) == 8 and not any(name.startswith(flags.GRADIENT_FREE) for name in others)


def test_attacks_without_gradients_alone_say_nothing_of_gradients():
    assert "gradient_free" not in found(network(), "uniform-noise3", 32 / 255)[1]


def test_what_transfers_from_the_ann_and_no_gradient_found(monkeypatch):
    """A network whose gradients are hidden, next to the one that it hides."""
    monkeypatch.setattr(evaluation, "unconverted", lambda model: network())
    hidden = Front(Hidden.apply, network())
    assert "gradient_free" in found(hidden, "fgsm", 24 / 255)[1]
    monkeypatch.setattr(checks, "QUERY_CHECKS", 1)  # it is the transfer that finds it
    assert "gradient_free" in found(hidden, "fgsm", 24 / 255)[1]


def test_the_stand_in_does_not_vouch_for_the_gradients_of_the_network():
    snn = copy.deepcopy(network(spiking=True))
    neuron = next(module for module in snn.modules() if isinstance(module, SpikingNeuron))
    neuron.threshold.data.fill_(1e6)  # it never fires, and no narrow surrogate reaches it
    data = digits().select(8)
    victim = ModelVictim(snn, 8)
    modes = [parse_mode("rect-0.25"), Relu()]
    assert flags.zero_gradients(victim, data.pixels(), data.labels, modes).raised
    assert not flags.zero_gradients(victim, data.pixels(), data.labels, modes[1:]).raised


def test_a_model_that_checks_its_range_normalises_by_itself():
    def checked(x):
        if x.min() < 0 or x.max() > 1:
            raise ValueError("images must lie in [0, 1]")
        return x

    assert not found(Front(checked, network()))[1]


def test_no_checks_no_flags():
    report = evaluate(network(), digits().select(8), "fgsm", checks=0)
    assert not report.flags and "flags" not in report.to_json() and "sanity" not in report.table()
