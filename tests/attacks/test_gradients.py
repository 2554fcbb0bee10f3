"""The fast input gradient against the plain one, and the folded network against the network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d

from rsnn_zoo.attacks.gradients import InputGradient, fold, input_gradient
from rsnn_zoo.models.frozen import freeze
from rsnn_zoo.models.layers import WeightedSum
from rsnn_zoo.neurons.modes import ASSG, HART, PDSG, RGA, Rate, Relu, Surrogate
from tests.attacks.conftest import network, plain


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "vgg11"])
@pytest.mark.parametrize("timesteps", [None, 3])
def test_folding_changes_nothing_but_roundings(architecture, timesteps):
    model = network(architecture, timesteps).double()
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    folded = fold(model)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-9, atol=1e-9)
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) < sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert architecture == "wrn16_4" or not norms
    left = sum(isinstance(m, WeightedSum) for m in model.modules())
    assert sum(key.endswith("sum.shortcut_weight") for key in folded.state_dict()) == left


def test_a_norm_that_holds_an_activation_is_not_folded():
    norm = BatchNormAct2d(4)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), norm).double().eval()
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fold(model)(images), model(images))
    assert (model(images) == 0).any()


class _Halved(torch.nn.Conv2d):
    """Convolves with other weights than it holds, as quantised and standardised ones do."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / 2, self.bias)


@pytest.mark.parametrize(
    "conv",
    [
        lambda: _Halved(2, 4, 3),
        lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 4, 3)),
        lambda: torch.nn.utils.spectral_norm(torch.nn.Conv2d(2, 4, 3)).eval(),
    ],
    ids=["subclass", "parametrised", "hook"],
)
def test_a_convolution_that_makes_its_weights_anew_is_not_folded(conv):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    model = torch.nn.Sequential(conv(), norm).double().eval()
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(fold(model)(images), expected)


class _Backwards(torch.nn.Sequential):
    """Holds a convolution and a norm, and runs them in another order."""

    def forward(self, x):
        return x + self[0](self[1](x))


def test_layers_that_run_in_another_order_are_not_folded():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    model = _Backwards(torch.nn.Conv2d(2, 2, 3, padding=1), norm).double().eval()
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fold(model)(images), model(images))


def test_a_norm_without_running_statistics_is_not_folded():
    norm = torch.nn.BatchNorm2d(4, track_running_stats=False)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), norm).double().eval()
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fold(model)(images), model(images))


@pytest.mark.parametrize("mode", [None, Surrogate("rect", 0.5), Rate(), Relu(), ASSG(), HART(), RGA(), PDSG()], ids=str)
@pytest.mark.parametrize("settings", [{"folded": False}, {"folded": False, "pad": True}, {}], ids=str)
def test_gradient_equals_the_plain_one(mode, settings):
    model = network("resnet20", surrogate=Surrogate("exp", 1.0)).double()
    images, labels = torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.arange(5)
    gradient, logits = InputGradient(model, mode, chunk=2, **settings)(images, labels)
    expected, expected_logits = plain(model, images, labels, mode)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(logits, expected_logits)


def test_unfolded_logits_are_the_models_to_the_bit_with_and_without_gradients():
    model = network("resnet20").to(memory_format=torch.channels_last)
    images, labels = torch.rand(8, 2, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(8) % 7
    exact = InputGradient(model, chunk=8, folded=False, pad=True)
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(exact(images, labels)[1], expected)
    assert torch.equal(exact.logits(images), expected)


@pytest.mark.parametrize("mode", [None, ASSG(), PDSG()], ids=str)
def test_padded_chunks_do_not_depend_on_the_company(mode):
    model = network("wrn16_4")
    images, labels = torch.rand(11, 2, 8, 8), torch.arange(11) % 7
    exact = InputGradient(model, mode, chunk=4, folded=False, pad=True)
    shared = {}
    runs = [exact(images, labels, memory=shared) for _ in range(2)]
    for i in range(11):
        own = {}
        for together, logits in runs:
            alone, one = exact(images[i : i + 1], labels[i : i + 1], memory=own)
            assert torch.equal(alone[0], together[i])
            assert torch.equal(one[0], logits[i])


@given(
    st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 3)] * 2, *[st.integers(0, 2)] * 2, *[st.integers(1, 2)] * 2),
    st.sampled_from([1, 2]),
    st.tuples(st.integers(7, 9), st.integers(7, 9)),
)
def test_a_frozen_convolution_passes_the_same_gradient_on(shape, groups, size):
    kernel, stride, padding, dilation = (shape[i : i + 2] for i in range(0, 8, 2))
    layer = torch.nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups).double()
    images = torch.randn(2, 4, *size, dtype=torch.float64)
    found = []
    for convolution in (layer, freeze(copy.deepcopy(layer))):
        x = images.clone().requires_grad_()
        output = convolution(x)
        output.sin().sum().backward()
        found.append((output, x.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_frozen_layers_keep_nothing_of_their_input():
    model, images = network("resnet20", timesteps=4, img_size=16), torch.rand(4, 2, 16, 16, requires_grad=True)
    kept = []
    for one in (model.requires_grad_(False), freeze(copy.deepcopy(model))):
        kept.append(0)

        def note(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            one(images)
    assert kept[1] < 0.5 * kept[0]


def test_bfloat16_points_where_float32_points():
    model = network("resnet20", timesteps=None)
    images, labels = torch.rand(4, 2, 8, 8), torch.arange(4)
    found, _ = InputGradient(model, precision="bfloat16")(images, labels)
    expected, _ = plain(model, images, labels, None)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.95


def test_the_model_is_left_as_it_was():
    model = network("resnet20").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for settings in ({}, {"folded": False}, {"precision": "bfloat16"}):
        InputGradient(model, Rate(), **settings)(torch.rand(2, 2, 8, 8), torch.tensor([0, 1]))
    input_gradient(model.eval(), torch.rand(2, 2, 8, 8), lambda z: z[:, 0])
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bad_settings_are_refused():
    model = network("resnet20")
    with pytest.raises(ValueError, match="float32, bfloat16"):
        InputGradient(model, precision="int8")
    with pytest.raises(ValueError, match="at least 1"):
        InputGradient(model, chunk=0)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        InputGradient(model, draws=0)
