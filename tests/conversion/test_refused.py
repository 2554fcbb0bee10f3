"""What conversion refuses, saying where and what to do; and what nearly looks like it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rsnn_zoo.conversion.conversion import convert
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from tests.conversion.conftest import QUICK, UNTRACEABLE_POOL, Function, assert_same_function, images, plain, seeded

pytestmark = pytest.mark.usefixtures("eager")

# --- what is refused ------------------------------------------------------------------------------------------------

# everything of torch's own that bends its input, but for ReLU
OTHERS = [
    *(nn.CELU(), nn.ELU(), nn.GELU(), nn.GLU(1), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh()),
    *(
        nn.LeakyReLU(),
        nn.LogSigmoid(),
        nn.LogSoftmax(1),
        nn.Mish(),
        nn.PReLU(),
        nn.RReLU(),
        nn.Threshold(0.1, 0.0),
        nn.SELU(),
    ),
    *(nn.SiLU(), nn.Sigmoid(), nn.Softmax(1), nn.Softmin(1), nn.Softplus(), nn.Softshrink(), nn.Softsign(), nn.Tanh()),
    nn.Tanhshrink(),
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda module: type(module).__name__)
def test_another_activation_is_refused_with_its_place_and_the_remedy(other):
    name = type(other).__name__
    ann = plain(nn.ReLU(), nn.Conv2d(6, 12, 1), other, nn.Conv2d(6 if name == "GLU" else 12, 6, 1))
    with pytest.raises(ValueError, match=rf"^3 \({name}\) .*nn\.ReLU"):
        convert(ann, 3, images(), **QUICK)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.clamp(-1, 1), ""),
        (lambda x: F.threshold(x, 0.1, 0.0), ""),
        (lambda x: torch.maximum(x, torch.zeros(())), "applies maximum"),
        (F.gelu, "applies gelu"),
        (lambda x: x * torch.sigmoid(x), "applies sigmoid"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "applies gt"),
        (lambda x: torch.where(x.new_ones(1, dtype=torch.bool), x, 0.1 * x), "applies where"),
        (lambda x: x**2, "applies pow"),
    ],
)
def test_a_functional_activation_is_refused_with_its_place(function, said):
    ann = plain(nn.ReLU(), Function(function))
    expected = rf"\(Function\) {said}" if said else "calls relu, clamp or threshold as a function"
    with pytest.raises(ValueError, match=rf"^2 {expected}.*nn\.ReLU"):
        convert(ann, 3, images(), **QUICK)


def test_what_bends_weights_alone_is_taken():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight / self.weight.pow(2).sum().sqrt(), self.bias, padding=1)

    ann = plain(nn.ReLU(), Scaled(6, 6, 3))
    assert_same_function(ann, convert(ann, 3, images(), **QUICK), images())


class Twice(nn.Module):
    """Uses what goes into its ReLU again."""

    def __init__(self, inplace):
        super().__init__()
        self.act = nn.ReLU(inplace)

    def forward(self, x):
        return self.act(x) + x


def test_a_relu_in_place_whose_input_is_used_again_is_refused():
    ann = plain(Twice(inplace=False), nn.ReLU(inplace=True))
    assert_same_function(ann, convert(ann, 3, images(), **QUICK), images())
    with pytest.raises(ValueError, match=r"inplace=True\) changes a tensor that the network uses again"):
        convert(plain(Twice(inplace=True)), 3, images(), **QUICK)


class Dropping(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return F.dropout(self.act(x), 0.5, self.training)


def test_what_tracing_loses_is_said(caplog):
    act = nn.ReLU()
    convert(plain(act, Dropping(act)), 3, images(), **QUICK)
    assert "what it does in training alone" in caplog.text
    caplog.clear()
    convert(plain(act, nn.Dropout(), act), 3, images(8), **QUICK)
    convert(plain(nn.ReLU(), Dropping(nn.ReLU())), 3, images(8), **QUICK)
    assert not caplog.text


class Branches(nn.Module):
    """Looks at its data, so that torch.fx cannot trace it."""

    def __init__(self, act, other):
        super().__init__()
        self.conv, self.head, self.act, self.other = nn.Conv2d(3, 3, 3), nn.Linear(3, 5), act, other

    def forward(self, x):
        x = self.act(self.conv(x))
        x = self.other(self.conv(x)) if x.sum() > -1 else x
        return self.head(x.mean((2, 3)))


def test_a_shared_relu_of_an_untraceable_network_is_refused():
    act = nn.ReLU()
    with pytest.raises(
        ValueError, match=r"^act: used in several places, and torch\.fx cannot trace.*nn\.ReLU of its own"
    ):
        convert(Branches(act, act), 3, images(), **QUICK)


def test_an_untraceable_network_without_shared_relus_converts():
    ann = seeded(lambda: Branches(nn.ReLU(), nn.ReLU()))
    snn = convert(ann, 3, images(), **QUICK)
    assert len(list(snn.neurons())) == 2
    assert_same_function(ann, snn, images())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"ann": nn.Sequential(nn.Flatten(), nn.Linear(192, 5))}, ValueError, "has no ReLU module"),
        ({"ann": nn.Sequential(nn.Conv2d(3, 4, 3), SpikingNeuron(2))}, ValueError, "spikes already"),
        ({"ann": ARCHITECTURES["resnet20"](timesteps=2)}, ValueError, "spikes already"),
        ({"ann": ARCHITECTURES["resnet20"](), "mean": (0.5,) * 3}, ValueError, "normalises inside"),
        ({"ann": UNTRACEABLE_POOL, "max_pool": "average"}, ValueError, "2: calls max pooling as a function, .*fx"),
        ({"ann": plain(nn.ReLU(), nn.MaxPool2d(2, dilation=2)), "max_pool": "average"}, ValueError, "dilation"),
        ({"images": None}, ValueError, "pass some hundred training images"),
        ({"images": images() * float("nan")}, ValueError, "NaN"),
        ({"images": images() - 0.5}, ValueError, r"not \[0, 1\]"),
        ({"images": images() * 255}, ValueError, r"not \[0, 1\]"),
        ({"images": (images() * 255).byte()}, TypeError, "divide uint8 by 255"),
        ({"images": images()[0]}, ValueError, r"\(B, C, H, W\)"),
        ({"images": images()[:0]}, ValueError, "none of these 0"),
        ({"timesteps": 0}, ValueError, "at least 1"),
        ({"timesteps": 2.5}, TypeError, "integer"),
        ({"timesteps": None}, TypeError, "integer"),
        ({"calibration_timesteps": 0}, ValueError, "at least 1"),
        ({"reset": "none"}, ValueError, "'hard' or 'soft'"),
        ({"leak": 1.5}, ValueError, r"\[0, 1\]"),
        ({"percentile": 0.0}, ValueError, r"percentile must lie in \(0, 100\]"),
        ({"percentile": 101.0}, ValueError, r"percentile must lie in \(0, 100\]"),
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"max_pool": "none"}, ValueError, "'counts', 'spikes' or 'average'"),
        ({"mean": (0.5,), "std": (1.0,)}, ValueError, "3 channels need as many means"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, error, said):
    with pytest.raises(error, match=said):
        convert(**{"ann": plain(nn.ReLU()), "timesteps": 3, "images": images(), **QUICK, **change})


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm((6, 8, 8))])
def test_statistics_of_each_image_are_refused_behind_spikes_alone(norm):
    """They would be those of single steps, and the SNN would not approach its ANN."""
    with pytest.raises(ValueError, match=rf"^2 \({type(norm).__name__}\) normalises by .*BatchNorm2d"):
        convert(plain(nn.ReLU(), norm), 3, images())
    before = nn.Sequential(nn.LayerNorm((3, 8, 8)), *plain(nn.ReLU())).eval()
    assert convert(before, 3, images())(images()).shape[0] == len(images())


@pytest.mark.parametrize(
    "bend",
    [
        lambda x: x + x.std((2, 3), keepdim=True),
        lambda x: x.topk(6, 1).values,
        lambda x: x.sort(1).values,
        lambda x: x + x.median(1, keepdim=True).values,
        lambda x: x + x.norm(dim=1, keepdim=True),
        torch.round,
    ],
)
def test_orders_and_spreads_of_activations_are_refused(bend):
    with pytest.raises(ValueError, match=r"^2 \(Function\) .* which no rate of spikes follows"):
        convert(plain(nn.ReLU(), Function(bend)), 3, images())


@pytest.mark.parametrize("method", ["absorb", "published"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, method):
    ann = plain(nn.ReLU())
    with torch.no_grad():
        ann[0].weight[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"^0\.weight holds values that are no finite numbers"):
        convert(ann, 3, images(), method=method)


class Two(nn.Module):
    """It takes more than images."""

    def forward(self, x, y):
        return x.flatten(1)


@pytest.mark.parametrize(
    ("ann", "kwargs", "error", "said"),
    [
        ("resnet18", {}, TypeError, "not a str: create_model"),
        (nn.Sequential, {}, TypeError, "not the class Sequential"),
        (Two(), {}, ValueError, "does not run on 2 images .*wrap one"),
        (plain(nn.ReLU()), {"images": torch.rand(4, 2, 8, 8)}, ValueError, r"images of shape .*\(2, 8, 8\)"),
        (plain(nn.ReLU()), {"method": None}, ValueError, "method is None; known: absorb, published"),
        (plain(nn.ReLU()), {"mean": 0.5, "std": 0.5}, TypeError, "one number for each channel"),
    ],
)
def test_what_is_no_network_of_images_is_refused(ann, kwargs, error, said):
    with pytest.raises(error, match=said):
        convert(ann, 3, **{"images": images(), **kwargs})


@pytest.mark.parametrize("method", ["absorb", "published"])
def test_it_is_said_that_a_few_images_are_few(method, caplog):
    convert(plain(nn.ReLU()), 3, images()[:1], method=method)
    assert "thresholds are found from few images (1)" in caplog.text


class Fixed(nn.Module):
    """It takes batches of four images alone."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return F.relu(x).reshape(self.shape)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 64), "not run on 2 images .*let it take any number of them"),
        ((4, -1), "gives 4 rows of logits for 2 images"),
    ],
)
def test_a_fixed_number_of_images_is_named_as_the_cause(shape, said):
    with pytest.raises(ValueError, match=said):
        convert(Fixed(*shape), 3, images())


def test_what_is_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        snn = convert(plain(nn.ReLU()), 3, images())
    snn(images()).sum().backward()
    assert any(parameter.grad is not None for parameter in snn.parameters())
