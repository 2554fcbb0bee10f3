"""The fast input gradient against the plain one, and the folded network against the network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d

from rsnn_zoo.attacks.gradients import InputGradient, PassGradient, fold, input_gradient
from rsnn_zoo.attacks.losses import LOSSES
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.models.frozen import freeze
from rsnn_zoo.models.layers import WeightedSum
from rsnn_zoo.neurons.modes import ASSG, HART, PDSG, RGA, Rate, Relu, Surrogate, backward_mode


def network(architecture, timesteps=3, img_size=8, **kwargs):
    torch.manual_seed(0)
    if architecture.startswith("vgg"):
        kwargs["hidden_features"] = 32
    model = ARCHITECTURES[architecture](
        num_classes=7,
        in_chans=2,
        img_size=img_size,
        timesteps=timesteps,
        threshold=0.4,
        mean=(0.4, 0.5),
        std=(0.2, 0.3),
        **kwargs,
    )
    with torch.no_grad():  # batch norms and residual weights that do something
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for name, parameter in model.named_parameters():
            if name.endswith("sum.weight"):
                parameter.copy_(torch.tensor([0.7, 0.4]))
    return model.eval()


def plain(model, images, labels, mode):
    images = images.clone().requires_grad_()
    with backward_mode(mode):
        logits = model(images)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), images)
    return gradient, logits.detach()


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


class OfTheBatch(torch.nn.BatchNorm2d):
    """Stays in training."""

    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        lambda: torch.nn.Conv2d(2, 4, 3, padding="same"),
        lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 4, 3)),
        lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), OfTheBatch(4)),
        lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4, affine=False)),
    ],
)
def test_unusual_layers_are_differentiated_too(odd):
    torch.manual_seed(0)
    model = torch.nn.Sequential(odd(), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(7)).double()
    images, labels = torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.arange(5)
    model(images)
    expected, expected_logits = plain(model.eval(), images, labels, None)
    gradient, logits = InputGradient(model, folded=False)(images, labels)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(logits, expected_logits)


def inner_gradient(layers, x):
    x = x if x.requires_grad else x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layers(x).tanh().square().sum(), x, create_graph=True)
    return layers(x - 0.1 * gradient)


def with_other_weights(layers, x):
    named = {name: 1.5 * parameter for name, parameter in layers.named_parameters()}
    return torch.func.functional_call(layers, named, x)


def quantised(layers, x):
    conv, norm = layers
    return norm(conv._conv_forward(x, (8 * conv.weight).round() / 8, conv.bias))


def in_16_bits(layers, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layers(x).float()


USES = {
    "gradient inside": inner_gradient,
    "functorch": lambda layers, x: layers(x - torch.func.grad(lambda z: layers(z).tanh().square().sum())(x)),
    "vmap": lambda layers, x: torch.func.vmap(layers, in_dims=1, out_dims=1)(torch.stack([x, 2 * x], 1)).sum(1),
    "other weights": with_other_weights,
    "quantised": quantised,
    "one by one": lambda layers, x: layers[1](torch.stack([layers[0](image) for image in x])),
    "in 16 bits": in_16_bits,
}
"""What a forward pass may do with a convolution and a batch norm."""


class Using(torch.nn.Module):
    def __init__(self, use):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4))
        self.use, self.out = use, torch.nn.Linear(144, 7)

    def forward(self, x):
        return self.out(self.use(self.layers, x).tanh().flatten(1))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_layers_may_be_used_in_unusual_ways(use):
    torch.manual_seed(0)
    model, images, labels = Using(use).eval(), torch.rand(5, 2, 8, 8), torch.arange(5)
    model.layers[1].running_mean.uniform_(-1, 1), model.layers[1].running_var.uniform_(0.5, 2)
    expected, expected_logits = plain(model, images, labels, None)
    gradient, logits = InputGradient(model, folded=False)(images, labels)
    torch.testing.assert_close(logits, expected_logits)
    tolerance = 0.02 if use is in_16_bits else 1e-5
    torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance * expected.abs().max())


class Noisy(torch.nn.Module):
    """A network whose answer is drawn anew at each pass."""

    def __init__(self):
        super().__init__()
        self.network = network("resnet20")

    def forward(self, x):
        return self.network(x * (0.5 + torch.rand(()))) * (0.5 + torch.rand(()))


def test_draws_are_averaged():
    images, labels = torch.rand(3, 2, 8, 8), torch.arange(3)
    torch.manual_seed(1)
    one = InputGradient(Noisy())
    alone = [one(images, labels) for _ in range(4)]
    torch.manual_seed(1)
    found = InputGradient(Noisy(), draws=4)(images, labels)
    assert (alone[0][0] - alone[1][0]).abs().max() > 1e-6
    for k in range(2):
        torch.testing.assert_close(found[k], torch.stack([each[k] for each in alone]).mean(0))


class Wrapped(torch.nn.Module):
    """A linear model under a function of model and images."""

    def __init__(self, function):
        super().__init__()
        self.linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))
        self.weight, self.function = torch.nn.Parameter(torch.arange(7.0)), function

    def forward(self, x):
        return self.function(self, x)


@torch.no_grad()
def without_gradients(model, x):
    return model.linear(x)


@torch.inference_mode()
def in_inference_mode(model, x):
    return model.linear(x)


GRAPHLESS = {
    "ignores its input": lambda model, x: model.weight.expand(len(x), 7),
    "quantises": lambda model, x: model.linear((x * 8).long().float() / 8),
    "one-hot": lambda model, x: F.one_hot(model.linear(x).argmax(1), 7),
    "no_grad": without_gradients,
    "inference_mode": in_inference_mode,
}
"""Functions of :class:`Wrapped` from whose logits no graph leads to the images."""


@pytest.mark.parametrize("function", GRAPHLESS.values(), ids=GRAPHLESS)
def test_without_a_graph_the_gradient_is_zero(function):
    model = Wrapped(function)
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
    logits = model(images).float()
    for draws in (1, 2):
        gradient, found = InputGradient(model, chunk=2, pad=True, draws=draws)(images, labels)
        assert gradient.shape == images.shape and not gradient.any()
        torch.testing.assert_close(found, logits.clone().detach())
    gradient, _ = PassGradient(model)(images, labels, LOSSES["ce"], {})  # parameters want gradients here
    assert gradient.shape == images.shape and not gradient.any()


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda model, x: (model.linear(x), x), "a tuple"),
        (lambda model, x: {"logits": model.linear(x)}, "a dict"),
        (lambda model, x: model.linear(x).expand(4, -1, -1), r"\(4, 2, 7\)"),
        (lambda model, x: model.linear(x).mean(0, keepdim=True), r"\(1, 7\)"),
        (lambda model, x: model.linear(x).argmax(1), r"\(2,\) of torch.int64"),
    ],
)
def test_what_is_no_logits_is_refused(function, what):
    images, labels, gradient = torch.rand(2, 1, 8, 8), torch.arange(2), InputGradient(Wrapped(function))
    message = r"must give logits \(B, K\).*for 2 images it gave " + what
    with pytest.raises(ValueError, match=message):
        gradient.logits(images)
    with pytest.raises(ValueError, match=message):
        gradient(images, labels)
    with pytest.raises(ValueError, match=message):
        PassGradient(gradient.model).logits(images)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint16], ids=str)
def test_labels_of_any_integer_type(dtype):
    model = Wrapped(lambda model, x: model.linear(x))
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
    expected, _ = InputGradient(model)(images, labels)
    assert torch.equal(InputGradient(model)(images, labels.to(dtype))[0], expected)
    victim = ModelVictim(model, 4)
    assert torch.equal(victim.fallen(images, labels.to(dtype)), victim.fallen(images, labels))


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
