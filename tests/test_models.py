"""The networks: what a user builds, runs, changes and differentiates, ANN and SNN from one definition."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import resolve_data_config
from torch import nn

from rsnn_zoo.datasets import DATASETS
from rsnn_zoo.layers import Normalize, StaticBatchNorm2d
from rsnn_zoo.models import ARCHITECTURES, resnet20, vgg11, wrn16_4
from rsnn_zoo.neurons import Relu, SpikingNeuron, Surrogate, backward_mode

pytestmark = pytest.mark.usefixtures("eager")

FAMILIES = ("resnet20", "wrn16_4", "vgg11")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def build(architecture, timesteps=3, seed=0, **kwargs):
    """A small network (8x8 grey images) in evaluation mode, whose batch norms have seen something."""
    small = {"in_chans": 1, "img_size": 8, "mean": (0.3,), "std": (0.4,)}
    small |= {"hidden_features": 24} if architecture.startswith("vgg") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ARCHITECTURES[architecture](timesteps=timesteps, **{**small, **kwargs})
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.8, 1.6)
                module.bias.data.normal_(0.2, 0.3)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.3, 1.2)
    return network.eval()


def images_of(network, batch=4, seed=0, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, network.in_chans, network.img_size, network.img_size)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype or network.normalize.mean.dtype)


def thresholds_of(network):
    return [neuron.threshold for _, neuron in network.neurons()]


@pytest.fixture(params=FAMILIES)
def snn(request):
    """One network of each family, in float64: no rounding flips a spike, so equal means equal."""
    return build(request.param).double()


# --- what can be built ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [None, 2])
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_every_data_set(architecture, dataset, timesteps):
    info = DATASETS[dataset]
    with torch.device("meta"):  # shapes alone, no arithmetic
        network = ARCHITECTURES[architecture](info.num_classes, in_chans=info.in_chans, img_size=info.img_size) if (
            False
        ) else ARCHITECTURES[architecture](
            num_classes=info.num_classes, in_chans=info.in_chans, img_size=info.img_size, timesteps=timesteps
        )
        images = torch.empty(5, info.in_chans, info.img_size, info.img_size)
    assert network(images).shape == (5, info.num_classes)
    assert network(images, per_step=True).shape == (timesteps or 1, 5, info.num_classes)
    assert network.architecture == architecture and network.timesteps == timesteps
    assert (network.num_classes, network.in_chans, network.img_size) == (info.num_classes, info.in_chans, info.img_size)
