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
from rsnn_zoo.neurons.kernels import compiles
from rsnn_zoo.neurons.modes import parse_mode
from tests.models.test_fused import network

pytestmark = pytest.mark.skipif(not compiles() or native._library() is None, reason="nothing is compiled here")


def layer(c, k, bias=True, **options):
    conv = nn.Conv2d(c, k, 3, padding=1, bias=bias, **options)
    return go_native(freeze(conv)).to(memory_format=torch.channels_last)


def maps(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def close(found, expected):
    return (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture
def pytorch_does_nothing(monkeypatch):
    """So that what comes out is ours."""

    def refuse(*args, **kwargs):
        raise AssertionError("PyTorch's convolution ran")

    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, refuse)


SIDES = st.tuples(st.integers(4, 14), st.integers(4, 14))


@given(
    n=st.integers(1, 4), sides=SIDES, c=st.sampled_from([8, 16, 24]), k=st.sampled_from([16, 32]), bias=st.booleans()
)
def test_it_convolves(n, sides, c, k, bias):
    conv, x = layer(c, k, bias), maps(n, c, *sides)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, 1, 1)
    assert close(conv(x), expected)
    assert conv._points_forth is not None


@pytest.mark.parametrize(("n", "c", "k", "side"), [(70, 128, 128, 8), (3, 64, 512, 9), (1, 512, 512, 4)])
def test_wide_layers_convolve_too(n, c, k, side):
    conv, x = layer(c, k), maps(n, c, side, side)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), 1, 1)
    assert close(conv(x), expected)
    assert conv._points_forth is not None


@given(n=st.integers(1, 4), sides=SIDES, c=st.sampled_from([8, 16, 24]), k=st.sampled_from([16, 32]))
def test_a_gradient_goes_back(n, sides, c, k):
    conv, grad = layer(k, c), maps(n, c, *sides)
    expected = F.conv_transpose2d(grad.double(), conv.weight.double(), None, 1, 1)
    assert close(conv.back(grad, torch.Size(sides)), expected)
    assert conv._points_back is not None


def test_it_is_ours_with_and_without_gradients(pytorch_does_nothing):
    conv, x = layer(16, 16), maps(2, 16, 8, 8)
    assert torch.equal(conv(x), conv(x.requires_grad_()))
    conv(x).square().sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [16, 160])
def test_neither_batch_nor_threads_change_the_rounding(threads, channels):
    conv, x, size = layer(channels, channels), maps(13, channels, 12, 8), torch.Size((12, 8))
    forth, back = conv(x), conv.back(x, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for many in (1, 2, 5):
            assert torch.equal(conv(x[:many]), forth[:many])
            assert torch.equal(conv.back(x[-many:], size), back[-many:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 1}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"stride": 2}, {"padding_mode": "circular"}],
)
def test_other_layers_stay_as_they_are(options):
    conv = nn.Conv2d(16, 16, **{"kernel_size": 3, "padding": 1} | options)
    assert not isinstance(go_native(freeze(conv)), NativeConv2d)


@pytest.mark.parametrize(
    "x", [maps(2, 16, 8, 8).double(), maps(2, 16, 8, 8).bfloat16(), torch.randn(2, 16, 8, 8), maps(2, 16, 3, 3)]
)
def test_what_does_not_suit_goes_pytorchs_way(x):
    conv, size = layer(16, 16).to(x.dtype), x.shape[2:]
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, 1, 1), rtol=0, atol=0)
    torch.testing.assert_close(conv.back(x, size), F.conv_transpose2d(x, conv.weight, None, 1, 1), rtol=0, atol=0)


def test_wider_than_was_measured_goes_pytorchs_way():
    conv = layer(512, 528)
    conv.back(conv(maps(1, 512, 4, 4)), torch.Size((4, 4)))
    assert conv._points_forth is None and conv._points_back is None


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


def with_and_without(model, mode, monkeypatch):
    """Gradients and logits of the folded network by our convolutions, and by PyTorch's."""
    images, labels, found = torch.rand(4, 3, 16, 16), torch.arange(4), []
    for wanted in ("1", "0"):
        monkeypatch.setenv("RSNN_ZOO_COMPILE", wanted)
        gradient = InputGradient(model, mode)
        found.append(gradient(images, labels))
        used = [m for m in gradient.model.modules() if isinstance(m, NativeConv2d) and m._points_back is not None]
        assert bool(used) == (wanted == "1")
    return found


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "vgg11"])
def test_whole_networks_have_the_same_gradients(architecture, monkeypatch):
    small = {"img_size": 16, "hidden_features": 24} if architecture == "vgg11" else {}
    model = network(architecture, timesteps=None, **small).float()
    (ours, logits), (theirs, expected) = with_and_without(model, None, monkeypatch)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > 0.999  # a ReLU near zero may be on or off


@pytest.mark.parametrize("mode", ["pcw-1", "rate"])
def test_spiking_ones_nearly_have(mode, monkeypatch):
    """Roundings flip a spike in a million."""
    (ours, _), (theirs, _) = with_and_without(network().float(), parse_mode(mode), monkeypatch)
    assert F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).median() > 0.9


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "'"])
def test_without_a_compiler_pytorch_does_it(compiler, monkeypatch, caplog):
    monkeypatch.setenv("CXX", compiler)
    native._library.cache_clear()
    try:
        conv, x = layer(16, 16), maps(2, 16, 8, 8)
        with caplog.at_level(logging.INFO):
            assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, 1, 1))
            conv.back(x, torch.Size((8, 8)))
        assert sum("was not compiled" in record.message for record in caplog.records) == 1
    finally:
        native._library.cache_clear()


def test_a_copy_of_a_layer_that_was_used_works():
    conv, x = layer(16, 16), maps(2, 16, 8, 8)
    assert torch.equal(conv(x), copy.deepcopy(conv)(x))
