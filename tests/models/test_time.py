"""Time steps: merged, shared, changed, and each its own logits."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.models.layers import StaticBatchNorm2d
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from tests.models.conftest import assert_same, build, images_for

pytestmark = pytest.mark.usefixtures("eager")

# --- time -----------------------------------------------------------------------------------------------------------


def test_logits_are_the_mean_over_steps(snn):
    images = images_for(snn)
    per_step = snn(images, per_step=True)
    assert per_step.shape == (3, 4, 10)
    assert torch.equal(per_step.mean(0), snn(images))
    assert not torch.equal(per_step[0], per_step[-1])


def test_the_first_steps_do_not_depend_on_how_many_follow(snn):
    images = images_for(snn)
    three = snn(images, per_step=True)
    snn.timesteps = 5
    assert_same(snn(images, per_step=True)[:3], three)


@pytest.mark.parametrize("training", [False, True])
def test_timesteps_can_be_changed(snn, training):
    longer, images = build(snn.architecture, 6).double().train(training), images_for(snn)
    snn.train(training).timesteps = 6
    assert snn.timesteps == 6
    assert torch.equal(snn(images), longer(images))
    assert all(torch.equal(a, b) for a, b in zip(snn.buffers(), longer.buffers(), strict=True))


def everything_repeated(snn):
    """The plain network: takes every image T times over, and computes the stem T times."""
    plain = copy.deepcopy(snn)
    for module in plain.modules():
        if isinstance(module, SpikingNeuron):
            module.repeated = False
        elif isinstance(module, StaticBatchNorm2d):
            module.copies = 1
    return lambda images: plain(images.repeat(plain.timesteps, 1, 1, 1)), plain


@example("vgg11", 3, 2, "hard", 1.0, True)
@example("vgg11", 2, 3, "soft", 0.6, False)
@given(
    architecture=st.sampled_from(["resnet20", "wrn16_4"]),
    timesteps=st.integers(1, 5),
    batch=st.integers(2, 3),
    reset=st.sampled_from(["hard", "soft"]),
    leak=st.sampled_from([1.0, 0.6]),
    training=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_the_stem_computed_once_is_the_stem_computed_at_each_step(
    architecture, timesteps, batch, reset, leak, training
):
    snn = build(architecture, timesteps, reset=reset, leak=leak).double().train(training)
    plainly, plain = everything_repeated(snn)
    images = images_for(snn, batch).requires_grad_()
    results = []
    for call, network in ((snn, snn), (plainly, plain)):
        logits = call(images)
        gradients = torch.autograd.grad(logits[:, 3].sum(), [images, *network.parameters()])
        results.append((logits, gradients, list(network.buffers())))  # statistics of the batch norms included
    assert_same(*results)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_of_several_passes_are_those_of_the_plain_network(momentum):
    snn = build("resnet20").double().train()
    for module in snn.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = momentum
    plainly, plain = everything_repeated(snn)
    for seed in range(3):
        images = images_for(snn, 2, seed)
        snn(images), plainly(images)
    assert_same(dict(snn.named_buffers()), dict(plain.named_buffers()))
    assert snn.bn1.num_batches_tracked == 3


def test_no_state_survives_a_forward_pass(snn):
    images = images_for(snn)
    before, state = snn(images), copy.deepcopy(snn.state_dict())
    snn(images_for(snn, 7, seed=1))
    with pytest.raises(ValueError):
        snn(images[0])
    assert torch.equal(snn(images), before)
    assert all(torch.equal(value, state[key]) for key, value in snn.state_dict().items())


def test_samples_do_not_influence_each_other(snn):
    images = images_for(snn, 5).requires_grad_()
    together = snn(images)
    assert_same(torch.cat([snn(image[None]) for image in images]), together)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_same(snn(images[order]), together[order])
    (gradient,) = torch.autograd.grad(together[2].square().sum(), images)
    assert gradient[2].any() and not gradient[[0, 1, 3, 4]].any()
