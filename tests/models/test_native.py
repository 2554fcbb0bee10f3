"""Convolutions of our own: the numbers of PyTorch's, whatever the shapes, the batch and the threads."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.models import native
from rsnn_zoo.models.frozen import freeze
from rsnn_zoo.models.native import NativeConv2d, go_native
from rsnn_zoo.neurons.modes import parse_mode
from tests.models.test_fused import network

pytestmark = pytest.mark.skipif(native._library() is None, reason="no compiler here")


def layer(c, k, stride=1, bias=True, **options):
    conv = nn.Conv2d(c, k, 3, stride, 1, bias=bias, **options)
    return go_native(freeze(conv)).to(memory_format=torch.channels_last)


def maps(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def spikes(*shape):
    return (maps(*shape) > 0.5).float()


@pytest.fixture
def pytorch_does_nothing(monkeypatch):
    """So that what comes out is ours."""

    def refuse(*args, **kwargs):
        raise AssertionError("PyTorch's convolution ran")

    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, refuse)


@given(
    n=st.integers(1, 4),
    sides=st.tuples(st.integers(1, 11), st.integers(2, 11)),
    c=st.integers(2, 20),
    k=st.sampled_from(range(8, 65, 8)),
    stride=st.integers(1, 2),
    bias=st.booleans(),
)
def test_spikes_are_looked_up(n, sides, c, k, stride, bias):
    conv, x = layer(c, k, stride, bias), spikes(n, c, *sides)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, stride, 1)
    found = conv.of_spikes(x)
    assert conv._of_spikes is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@given(
    n=st.integers(1, 4),
    sides=st.tuples(st.integers(4, 14), st.integers(4, 14)),
    c=st.sampled_from([8, 16, 24]),
    k=st.sampled_from([16, 32, 48]),
)
def test_a_gradient_goes_back(n, sides, c, k):
    conv, grad = layer(k, c), maps(n, c, *sides)
    expected = F.conv_transpose2d(grad.double(), conv.weight.double(), None, 1, 1)
    found = conv.back(grad, torch.Size(sides))
    assert conv._of_gradients is not None
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_they_are_ours(pytorch_does_nothing):
    conv = layer(16, 16)
    assert conv.of_spikes(spikes(2, 16, 8, 8)).shape == conv.back(maps(2, 16, 8, 8), torch.Size((8, 8))).shape


@pytest.mark.parametrize("threads", [1, 2])
def test_neither_batch_nor_threads_change_the_rounding(threads):
    conv, x, grad, size = layer(16, 16), spikes(13, 16, 12, 8), maps(13, 16, 12, 8), torch.Size((12, 8))
    forward, back = conv.of_spikes(x), conv.back(grad, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for many in (1, 2, 5):
            assert torch.equal(conv.of_spikes(x[:many]), forward[:many])
            assert torch.equal(conv.back(grad[-many:], size), back[-many:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 1}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"stride": 3}, {"padding_mode": "circular"}],
)
def test_other_layers_stay_as_they_are(options):
    conv = nn.Conv2d(16, 16, **{"kernel_size": 3, "padding": 1} | options)
    assert not isinstance(go_native(freeze(conv)), NativeConv2d)


@pytest.mark.parametrize(
    "x", [maps(2, 16, 8, 8).double(), maps(2, 16, 8, 8).bfloat16(), torch.randn(2, 16, 8, 8), maps(2, 16, 3, 3)]
)
def test_what_does_not_suit_goes_pytorchs_way(x):
    conv, size = layer(16, 16).to(x.dtype), x.shape[2:]
    expected = F.conv_transpose2d(x, conv.weight, None, 1, 1)
    torch.testing.assert_close(conv.back(x, size), expected, rtol=0, atol=0)


def test_too_wide_for_the_caches_goes_pytorchs_way():
    conv = layer(512, 512)
    conv.back(maps(1, 512, 4, 4), torch.Size((4, 4)))
    conv.of_spikes(spikes(1, 512, 4, 4))
    assert conv._of_spikes is None and conv._of_gradients is None


def test_second_derivatives_are_there():
    conv, x = layer(16, 16), maps(2, 16, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.abs().max() > 0


def test_under_vmap_too():
    conv, x = layer(16, 16), torch.randn(3, 2, 16, 8, 8)
    found = torch.func.vmap(torch.func.grad(lambda one: conv(one).square().sum()))(x)
    leaf = x.flatten(0, 1).requires_grad_()
    conv(leaf).square().sum().backward()
    torch.testing.assert_close(found.flatten(0, 1), leaf.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4"])
@pytest.mark.parametrize("mode", ["pcw-1", "rate"])
def test_whole_networks_have_the_same_gradients(architecture, mode, monkeypatch):
    model = network(architecture).float()
    images, labels = torch.rand(2, 3, 8, 8), torch.arange(2)
    found = {}
    for compiles in ("1", "0"):
        monkeypatch.setenv("RSNN_ZOO_COMPILE", compiles)
        gradient = InputGradient(model, parse_mode(mode))
        found[compiles] = gradient(images, labels)
        used = [m for m in gradient.model.modules() if isinstance(m, NativeConv2d) and m._of_gradients is not None]
        assert bool(used) == (compiles == "1")
    torch.testing.assert_close(found["1"][1], found["0"][1], rtol=1e-4, atol=1e-5)
    assert (found["1"][0] - found["0"][0]).abs().max() < 1e-4 * found["0"][0].abs().max()


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "'"])
def test_without_a_compiler_pytorch_does_it(compiler, monkeypatch, caplog):
    monkeypatch.setenv("CXX", compiler)
    native._library.cache_clear()
    try:
        conv, x = layer(16, 16), spikes(2, 16, 8, 8)
        with caplog.at_level(logging.INFO):
            assert torch.equal(conv.of_spikes(x), conv(x))
            conv.back(x, torch.Size((8, 8)))
        assert sum("was not compiled" in record.message for record in caplog.records) == 1
    finally:
        native._library.cache_clear()


def test_a_copy_of_a_layer_that_was_used_works():
    conv, x = layer(16, 16), spikes(2, 16, 8, 8)
    assert torch.equal(copy.deepcopy(conv).of_spikes(x), conv.of_spikes(x))
