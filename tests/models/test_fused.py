"""A folded ResNet run as one function: the same outputs and gradients, in fewer passes."""

import pytest
import torch

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.models.fold import fold
from rsnn_zoo.models.frozen import freeze
from rsnn_zoo.models.fused import FusedResNet, fuse
from rsnn_zoo.models.layers import WeightedSum
from rsnn_zoo.neurons.modes import MODES, backward_mode, parse_mode, surrogate_units


def network(architecture="resnet20", **neuron):
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture](**{"timesteps": 3, "threshold": 0.5} | neuron).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, WeightedSum) and module.weight.dim() == 2:
            torch.nn.init.uniform_(module.weight, 0.2, 0.8)
    return model


def both(model, mode, images, passes=1, units="threshold"):
    """Gradients and logits of the fused network and of the one that is folded alone, at the last of some passes."""
    found = []
    for prepare in (fuse, lambda plain: plain):
        prepared = prepare(freeze(fold(model)))
        gradient = InputGradient(model, mode)
        gradient.model = prepared
        memory = {}
        for _ in range(passes):
            with surrogate_units(units):
                result = gradient(images, torch.arange(len(images)), memory=memory)
        found.append((type(prepared), *result))
    return found


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("mode", ["pcw-1", "exp-2", "ste", "rate", "rga", "relu", "assg", "hart-1", "pdsg"])
def test_the_fused_network_has_the_gradients_of_the_folded_one(mode, reset, eager):
    model = network(reset=reset, leak=0.9, initial=0.3)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    fused, plain = both(model, MODES[mode], images, passes=2)
    assert fused[0] is FusedResNet and plain[0] is not FusedResNet
    torch.testing.assert_close(fused[2], plain[2])
    scale = plain[1].abs().max()
    assert scale > 0
    assert (fused[1] - plain[1]).abs().max() < 1e-9 * scale


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["pcw-1", "rate", "hart-1"])
def test_sums_by_channel_have_the_gradients_of_the_network_itself(mode, layout, eager):
    model = network(channel_sums=True).to(memory_format=layout)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    fused, plain = both(model, MODES[mode], images)
    itself = InputGradient(model, MODES[mode], folded=False)(images, torch.arange(3))
    assert fused[0] is FusedResNet
    for gradient, logits in (fused[1:], itself):
        torch.testing.assert_close(logits, plain[2])
        assert (gradient - plain[1]).abs().max() < 1e-9 * plain[1].abs().max()


@pytest.mark.parametrize("mode", ["pcw-1", "rate", "rga", "assg", "hart-1", "pdsg"])
def test_widths_are_in_the_units_that_are_set(mode, eager):
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    found = {units: both(network(), MODES[mode], images, 2, units) for units in ("threshold", "absolute")}
    for fused, plain in found.values():
        assert (fused[1] - plain[1]).abs().max() < 1e-9 * plain[1].abs().max()
    if mode not in ("rga", "pdsg"):  # these go by the threshold, or by the spread of the membranes, anyway
        relative, absolute = (each[0][1] for each in found.values())
        assert (relative - absolute).abs().max() > 1e-3 * absolute.abs().max()


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_without_gradients_it_fires_the_same(reset, eager):
    folded = freeze(fold(network(reset=reset, leak=0.9, initial=0.3, channel_sums=reset == "soft")))
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = folded(images)
        torch.testing.assert_close(fuse(folded)(images), expected, rtol=1e-12, atol=1e-12)
    assert type(folded) is FusedResNet and expected.std() > 0
    torch.testing.assert_close(folded(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pcw-1", "rate", "hart-1", "assg"])
def test_compiled_too(mode):
    model = network().float()
    fused, plain = both(model, MODES[mode], torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(fused[2], plain[2], rtol=1e-4, atol=1e-5)
    assert (fused[1] - plain[1]).abs().max() < 1e-5 * plain[1].abs().max()


def test_any_loss_of_single_steps_goes_back_too(eager):
    model = network()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    weights = torch.randn(3, 2, 10, dtype=torch.float64)
    for name in ("pcw-1", "rate", "hart-1"):
        found = []
        for prepared in (fuse(freeze(fold(model))), freeze(fold(model))):
            leaf = images.clone().requires_grad_()
            with backward_mode(parse_mode(name)):
                (prepared(leaf, per_step=True) * weights).sum().backward()
            found.append(leaf.grad)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("mode", ["pcw-1", "rate", "assg"])
def test_chunks_that_go_through_together_give_each_image_what_it_gets_alone(mode, eager):
    model = network().float()
    images, labels = torch.rand(11, 3, 8, 8), torch.arange(11) % 10
    together = InputGradient(model, MODES[mode], chunk=2, pad=True)
    assert type(together.model) is FusedResNet and together.at_once(images) == 8
    gradient, logits = together(images, labels, memory={})
    for start in range(0, 11, 2):
        alone = together(images[start : start + 2], labels[start : start + 2], memory={})
        assert torch.equal(alone[0], gradient[start : start + 2])
        assert torch.equal(alone[1], logits[start : start + 2])


@pytest.mark.parametrize(
    ("chunk", "timesteps", "side", "times"),
    [(16, 4, 32, 4), (16, 8, 32, 2), (16, 32, 32, 1), (64, 4, 8, 4), (64, 4, 64, 1), (1, 1, 32, 4)],
)
def test_as_many_chunks_go_together_as_the_caches_hold(chunk, timesteps, side, times):
    model, images = network(timesteps=timesteps), torch.zeros(1, 3, side, side)
    assert InputGradient(model, chunk=chunk).at_once(images) == chunk * times
    assert InputGradient(model, chunk=chunk, folded=False).at_once(images) == chunk
    assert InputGradient(model, chunk=chunk).at_once(images.to("meta")) == chunk  # other devices choose by the batch


def test_what_was_changed_or_hooked_or_is_no_resnet_stays_as_it_is(eager):
    hooked = freeze(fold(network()))
    hooked.layer1[0].act1.register_forward_hook(lambda *_: None)
    changed = freeze(fold(network()))
    changed.layer2[0].act1 = torch.nn.ReLU()
    pruned = freeze(fold(network()))
    pruned.layer3 = torch.nn.Identity()
    for model in (hooked, changed, pruned, freeze(network()), fold(network()), freeze(fold(network(timesteps=None)))):
        before = type(model)
        assert type(fuse(model)) is before
    assert type(fuse(freeze(fold(network("wrn16_4"))))) is not FusedResNet
