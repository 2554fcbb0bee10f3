"""Input gradients of models that do unusual things: layers, hooks, draws, graphs and outputs."""

import pytest
import torch
import torch.nn.functional as F

from rsnn_zoo.attacks.gradients import InputGradient, PassGradient
from rsnn_zoo.attacks.losses import LOSSES
from rsnn_zoo.attacks.victim import ModelVictim
from tests.attacks.conftest import network, plain


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
