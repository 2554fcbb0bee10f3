"""Channels are brought to one scale, and currents to the ANN's mean and spread."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from rsnn_zoo.conversion.conversion import convert
from rsnn_zoo.conversion.equalise import equalise
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.models.layers import Spiking
from rsnn_zoo.models.rows import hooked

pytestmark = pytest.mark.usefixtures("eager")


def images(batch=24, size=8, seed=0):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def drawn(architecture, size=8):
    """A network with statistics of its own."""
    kwargs = {"hidden_features": 16} if architecture.startswith("vgg") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ann = ARCHITECTURES[architecture](img_size=size, num_classes=5, mean=(0.4,) * 3, std=(0.3,) * 3, **kwargs)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        ann.train()(images(32, size, seed=1))
    return ann.eval()


def rescaled(ann, spread):
    """The same function, by channels of other scales."""
    ann, generator = copy.deepcopy(ann), torch.Generator().manual_seed(0)
    ann.free_channels()
    with torch.no_grad():
        for _, before, after in ann.channels():
            factor = torch.exp(spread * torch.randn(len(before[0]), generator=generator))
            for tensor in before:
                tensor /= factor.view(-1, *[1] * (tensor.dim() - 1))
            for tensor in after:
                tensor *= factor.view(1, -1, *[1] * (tensor.dim() - 2))
    return ann


@torch.no_grad()
def error(snn, ann, x):
    return ((snn(x) - ann(x)).norm() / (ann(x) - ann(x).mean(0)).norm()).item()


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "vgg11"])
def test_channels_are_free_along_every_feature_map(architecture):
    ann, x, maps = drawn(architecture), images(4), set()
    activations = [module for module in ann.modules() if isinstance(module, nn.ReLU)]
    with torch.no_grad():
        after = rescaled(ann, 1.0)(x)
        with hooked(activations, post=lambda module, _, output: maps.add(module) if output.dim() == 4 else None):
            before = ann(x)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    ann.free_channels()
    free = [layer.activation for layer in ann.channels()]
    assert len(free) == len(set(free)) and set(free) == maps


def test_an_anns_scale_of_channels_makes_next_to_no_difference():
    ann, data = create_model("resnet20_digits_natural_ann", pretrained=True), load_dataset("digits", "train")
    calibration, x = data.select(128).pixels(), load_dataset("digits", "test").select(40).pixels()
    expected = error(convert(ann, 8, calibration), ann, x)
    assert expected < 0.4
    assert error(convert(rescaled(ann, 1.0), 8, calibration), ann, x) < 1.5 * expected


def test_equalising_leaves_the_function_and_evens_channels():
    ann, x = rescaled(drawn("resnet20"), 1.0), images()
    seen, even = [], copy.deepcopy(ann)
    with torch.no_grad():
        equalise(even, even.normalize, [x[:10], x[10:]], Spiking(8, reset="soft", initial=0.5))
        for network in (ann, even):
            with hooked([network.layer2[1].act1], post=lambda module, _, output: seen.append(output)):
                logits = network(x)
        torch.testing.assert_close(logits, ann(x), rtol=1e-3, atol=1e-4)
    largest = [output.amax((0, 2, 3)) for output in seen]
    alive = largest[1] > 0
    before, after = (one[alive].log().std() for one in largest)
    assert after < 0.5 * before


def test_currents_have_the_mean_and_spread_of_the_ann():
    ann, x = drawn("resnet20"), images(64)
    snn, found = convert(ann, 6, x), {}

    def note(name):
        return lambda module, _, output: found.setdefault(name, []).append(output)

    ann = copy.deepcopy(ann)
    names = [name for name, module in ann.named_modules() if isinstance(module, nn.BatchNorm2d)][1:]
    for network in (ann, snn):
        for name in names:
            network.get_submodule(name).register_forward_hook(note(name))
        with torch.no_grad():
            network(x)
    for name in names:
        wanted, got = found[name][0], found[name][1].unflatten(0, (6, -1)).mean(0)
        (ours, deviation), (theirs, spread) = ((y.mean((0, 2, 3)), y.std((0, 2, 3))) for y in (got, wanted))
        scale = spread / deviation  # of the channels, and of the threshold that became 1
        moving = deviation > 0.05 * deviation.max()
        torch.testing.assert_close((ours * scale)[moving], theirs[moving], rtol=0.05, atol=0.1 * spread.max().item())


def test_weights_that_are_not_a_layers_own_are_left():
    x = images()

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight
            self.normed = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
            self.relu, self.relu2, self.relu3, self.fc = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Linear(4, 5)

        def forward(self, x):
            x = self.relu3(self.normed(self.relu2(self.second(self.relu(self.first(x))))))
            return self.fc(x.mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ann = Tied().eval()
    snn = convert(ann, 8, x)
    assert snn.network.second.weight is snn.network.first.weight
    torch.testing.assert_close(snn.network.first.weight, ann.first.weight)
    torch.testing.assert_close(snn.network.normed.weight, ann.normed.weight)
    assert not torch.equal(snn.network.fc.weight, ann.fc.weight)
    assert error(snn, ann, x) < 0.7


def test_a_constant_layer_divides_by_nothing():
    ann = drawn("resnet20")
    with torch.no_grad():
        ann.layer1[0].bn2.weight.zero_()
        ann.layer2[0].bn1.bias.fill_(-9.0)  # never fires
    x = images()
    snn = convert(ann, 4, x)
    with torch.no_grad():
        assert snn(x).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in snn.state_dict().values())


def parametrised(ann):
    parametrizations.weight_norm(ann.layer1[0].conv1)


def shared(ann):
    ann.layer1[1] = ann.layer1[2]


class Added(nn.Module):
    def forward(self, shortcut, residual):
        return shortcut + residual


def another_sum(ann):
    ann.layer1[1].sum = Added()


def another_shortcut(ann):
    ann.layer2[0].downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(16, 32, 1))


def another_classifier(ann):
    ann.fc = nn.Sequential(nn.Dropout(), ann.fc)


@pytest.mark.parametrize("change", [parametrised, shared, another_sum, another_shortcut, another_classifier])
def test_of_other_parts_than_the_usual_ones_no_weight_is_rescaled(change):
    ann, x = create_model("resnet20_digits_natural_ann", pretrained=True), load_dataset("digits", "train").pixels()[:64]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        change(ann)
    snn = convert(ann.eval(), 16, x)
    with torch.no_grad():
        agreement = (snn(x).argmax(1) == ann(x).argmax(1)).float().mean()
    assert snn.scaled and agreement > 0.8
