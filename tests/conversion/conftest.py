"""What several test files of this folder share."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsnn_zoo.conversion.conversion import SpikingNetwork
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.neurons.integrate_fire import Relu, backward_mode


def trained(norm, steps):
    """A small network with max pooling, trained on the digits in a second; it, calibration and test images."""
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second, third = (nn.Conv2d(channels, 16, 3, padding=1) for channels in (1, 16, 16))
        net = nn.Sequential(
            *(first, *norm(16), nn.ReLU(), second, *norm(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(third, *norm(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
        )
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(steps):
            batch = torch.randint(len(train), (64,))
            F.cross_entropy(net(train.pixels(batch)), train.labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return net.eval(), train.pixels()[:128], test


@pytest.fixture(scope="module")
def digits_net():
    """With batch norms: right of some 95 %."""
    return trained(lambda channels: [nn.BatchNorm2d(channels)], 60)


@pytest.fixture(scope="module")
def bare_net():
    """Without batch norms: right of some 90 %."""
    return trained(lambda channels: [], 80)


QUICK = {"method": "published", "calibration_timesteps": 5}


def images(batch=4, channels=3, size=8, seed=0, dtype=torch.float32):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def plain(*layers, channels=3, width=6):
    """conv, ``layers``, conv, ReLU, linear."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            *layers,
            nn.Conv2d(width, width, 3, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, 5, bias=False),
        )
    )


def with_statistics_of(ann, snn):
    """The ANN with the batch norms of the SNN that it became."""
    other = copy.deepcopy(ann).eval()
    loaded = other.load_state_dict((snn.network if isinstance(snn, SpikingNetwork) else snn).state_dict(), strict=False)
    assert not loaded.missing_keys and all(key.endswith("threshold") for key in loaded.unexpected_keys)
    return other


def assert_same_function(ann, snn, x):
    """Under the ReLU mode, without spikes, the SNN is the ANN: every layer is where it was."""
    with torch.no_grad(), backward_mode(Relu(), units="absolute"):
        torch.testing.assert_close(snn(x), with_statistics_of(ann, snn)(x), rtol=1e-4, atol=1e-5)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


FUNCTIONAL_POOL = plain(nn.ReLU(), Function(lambda x: F.max_pool2d(x, 2)))
UNTRACEABLE_POOL = plain(nn.ReLU(), Function(lambda x: F.max_pool2d(x, 2) if x.sum() >= 0 else x))
