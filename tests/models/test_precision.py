"""A network's dtype, memory layout and device."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch

from rsnn_zoo.neurons.integrate_fire import Relu, backward_mode
from tests.models.conftest import FAMILIES, assert_same, build, images_for, rates_of, thresholds_of

pytestmark = pytest.mark.usefixtures("eager")

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


# --- precision, layout, device --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_double_agrees_with_float(snn, device):
    images = images_for(snn).to(device)
    exact = snn.to(device)(images)
    logits = copy.deepcopy(snn).float()(images.float())
    assert (exact.dtype, logits.dtype) == (torch.float64, torch.float32)
    assert (logits - exact).norm() < 0.02 * exact.norm()  # a spike or two may be flipped


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", [torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_lower_precision_gives_nearly_the_same(snn, how, device):
    snn = snn.to(device)
    images = images_for(snn)
    if how == "autocast":
        inside, dtype, given = torch.autocast(device, torch.bfloat16), torch.bfloat16, torch.float32
    else:
        inside, dtype, given = nullcontext(), how, how
    low, low_images = copy.deepcopy(snn).to(given), images.to(given)
    with backward_mode(Relu()), inside:  # without the thresholds, which make a spike of a rounding
        logits = low(low_images)
    with backward_mode(Relu()):
        exact = snn(images)
    assert logits.dtype == dtype
    assert (logits - exact).norm() < (0.002 if how == torch.float16 else 0.02) * exact.norm()
    with inside:
        found = rates_of(low, lambda: low(low_images))
    assert_same(found, rates_of(snn, lambda: snn(images)), 0.05)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_training_under_autocast(architecture, device):
    snn = build(architecture).to(device).train()
    with torch.autocast(device, torch.bfloat16):
        logits = snn(images_for(snn))
    logits.float().logsumexp(1).sum().backward()
    for name, parameter in snn.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.grad.isfinite().all(), name
    assert all(buffer.isfinite().all() for buffer in snn.buffers())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [False, True])
def test_channels_last_changes_nothing(snn, training, device):
    snn.to(device).train(training)
    other, images = copy.deepcopy(snn).to(memory_format=torch.channels_last), images_for(snn)
    results = []
    for network, x in ((snn, images), (other, images.contiguous(memory_format=torch.channels_last))):
        x.requires_grad_()
        logits = network(x)
        results.append((logits, torch.autograd.grad(logits.logsumexp(1).sum(), [x, *network.parameters()])))
    assert_same(*results)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_the_device_does_not_matter(snn, device):
    images = images_for(snn)
    assert_same(copy.deepcopy(snn).to(device)(images.to(device)).cpu(), snn(images))


def test_networks_can_be_copied_and_pickled(snn):
    images = images_for(snn)
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert torch.equal(other(images), snn(images))
        other.timesteps = 5
        assert (other.timesteps, snn.timesteps) == (5, 3)
        thresholds_of(other)[0].data.fill_(9.0)
        assert thresholds_of(snn)[0] == 1.0
