"""What several test files of this folder share."""

import pytest
import torch
from torch import nn

from rsnn_zoo.models import ARCHITECTURES

FAMILIES = ("resnet20", "wrn16_4", "vgg11")


def build(architecture, timesteps=3, **kwargs):
    """A small network (8x8 grey images) in evaluation mode, in which every layer fires; always the same weights."""
    small = {"in_chans": 1, "img_size": 8, "mean": (0.3,), "std": (0.4,)}
    small |= {"hidden_features": 24} if architecture.startswith("vgg") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ARCHITECTURES[architecture](timesteps=timesteps, **{**small, **kwargs})
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.8, 1.6)
                module.bias.data.normal_(0.2, 0.3)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.3, 1.2)
            elif isinstance(module, nn.Linear):
                module.weight.data.mul_(4)
    return network.eval()


def images_for(network, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, network.in_chans, network.img_size, network.img_size)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(network.normalize.mean)


def thresholds_of(network):
    return [neuron.threshold for _, neuron in network.neurons()]


def assert_same(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=FAMILIES)
def snn(request):
    """One network of each family, in float64: no rounding flips a spike, so that equal means equal."""
    return build(request.param).double()


def rates_of(snn, call):
    """Mean spikes a neuron and step, by layer, while ``call()`` runs."""
    rates = {}
    hooks = [
        neuron.register_forward_hook(lambda _, inputs, spikes, name=name: rates.update({name: spikes.double().mean()}))
        for name, neuron in snn.neurons()
    ]
    call()
    for hook in hooks:
        hook.remove()
    return torch.stack([rates[name] for name, _ in snn.neurons()])
