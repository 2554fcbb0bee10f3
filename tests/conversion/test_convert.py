"""Conversion: our networks and anybody's, whatever they do with their ReLU modules; and what it refuses."""

import copy

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rsnn_zoo.conversion.conversion import calibrate, convert, relearn_statistics
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.models.layers import StaticBatchNorm2d
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, Relu, Surrogate, backward_mode
from tests.conversion.conftest import (
    FUNCTIONAL_POOL,
    QUICK,
    Function,
    assert_same_function,
    images,
    plain,
    seeded,
    with_statistics_of,
)

pytestmark = pytest.mark.usefixtures("eager")

# --- our networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "vgg11"])
def test_our_networks_become_their_spiking_twins(architecture):
    kwargs = {"in_chans": 1, "img_size": 8, "mean": (0.3,), "std": (0.4,)}
    kwargs |= {"hidden_features": 16} if architecture == "vgg11" else {}
    ann = seeded(lambda: ARCHITECTURES[architecture](**kwargs)).double()
    x, surrogate = images(6, 1, dtype=torch.float64), Surrogate("exp", 2.0)
    snn = convert(ann, 3, x, reset="soft", leak=0.9, initial=0.5, surrogate=surrogate, **QUICK)
    assert (snn.timesteps, snn.reset, snn.leak, snn.initial, snn.training) == (3, "soft", 0.9, 0.5, False)
    assert all(neuron.surrogate == surrogate and neuron.timesteps == 3 for _, neuron in snn.neurons())
    # the twin that create_model would build, with its weights loaded, is the same network to the bit
    twin = ARCHITECTURES[architecture](timesteps=3, reset="soft", leak=0.9, initial=0.5, **kwargs).double().eval()
    twin.load_state_dict(snn.state_dict())
    assert torch.equal(twin(x), snn(x))
    assert [n.repeated for _, n in snn.neurons()] == [n.repeated for _, n in twin.neurons()]
    assert [m.copies for m in snn.modules() if isinstance(m, StaticBatchNorm2d)] == [3]
    assert_same_function(ann, snn, x)


def test_weights_are_taken_over_and_thresholds_are_the_percentile():
    ann = seeded(lambda: ARCHITECTURES["resnet20"](in_chans=1, img_size=8)).double()
    x = images(6, 1, dtype=torch.float64)
    snn = convert(ann, 2, x, percentile=90.0, scale=0.5, **QUICK)
    assert all(torch.equal(parameter, snn.get_parameter(name)) for name, parameter in ann.named_parameters())
    with torch.no_grad():  # the first layer's current is the same at every step
        current = ann.bn1.train()(ann.conv1(x)).repeat(5, 1, 1, 1).flatten().sort().values
    expected = 0.5 * current[round(0.9 * (len(current) - 1))]
    assert snn.act1.threshold.item() == pytest.approx(expected.item(), rel=1e-6)


# --- networks of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "neurons"),
    [
        (lambda: timm.create_model("resnet18", num_classes=7), 17),
        (lambda: timm.create_model("resnet26", num_classes=7), 25),
        (lambda: timm.create_model("vgg11_bn", num_classes=7, mlp_ratio=1 / 64), 10),
        (lambda: torchvision.models.resnet18(num_classes=7), 17),  # one ReLU module used twice a block
    ],
    ids=["timm-resnet18", "timm-resnet26", "timm-vgg11_bn", "torchvision-resnet18"],
)
def test_networks_of_timm_and_torchvision_convert(build, neurons):
    ann, x = seeded(build), images(4, 3, 32)
    snn = convert(ann, 2, x, **QUICK)
    thresholds = dict(snn.neurons())
    assert len(thresholds) == neurons and not any(isinstance(module, nn.ReLU) for module in snn.modules())
    assert [name for name, neuron in thresholds.items() if neuron.repeated] == [next(iter(thresholds))]
    assert snn.stem_once and snn(x).shape == (4, 7) and snn(x, per_step=True).shape == (2, 4, 7)
    assert_same_function(ann, snn, x)


class Reuses(nn.Module):
    """One ReLU module called ``uses`` times, registered under more than one name, beside one of a similar name."""

    def __init__(self, uses):
        super().__init__()
        self.act = self.alias = nn.ReLU(inplace=True)
        self.act_2 = nn.ReLU()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(uses + 1))
        self.again = nn.Sequential(nn.Conv2d(4, 4, 1), self.alias)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act_2(self.convs[0](x))
        for i, conv in enumerate(self.convs[1:]):
            x = (self.alias if i % 2 else self.act)(conv(x))
        return self.head(self.again(x).mean((2, 3)))


@given(uses=st.integers(0, 5))
@settings(max_examples=6, deadline=None)
def test_each_use_of_a_shared_relu_becomes_a_neuron_of_its_own(uses):
    ann, x = seeded(lambda: Reuses(uses)), images()
    snn = convert(ann, 3, x, **QUICK)
    called = []
    for _, neuron in snn.neurons():
        neuron.register_forward_hook(lambda neuron, *_: called.append(neuron))
    snn(x)
    assert len(called) == len(set(called)) == uses + 2
    assert len({neuron.threshold.item() for neuron in called}) == uses + 2  # each found its own
    assert_same_function(ann, snn, x)


def test_a_relu_shared_within_a_sequential_is_split():
    act = nn.ReLU()
    ann = plain(act, nn.Conv2d(6, 6, 1), act)
    snn = convert(ann, 3, images(), **QUICK)
    assert len(list(snn.neurons())) == 3
    assert_same_function(ann, snn, images())


def test_a_relu_of_two_names_and_one_use_becomes_one_neuron():
    ann = Reuses(0)
    ann.again = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())  # act and alias are left over
    ann.act_2 = ann.alias
    snn = convert(ann, 3, images(), **QUICK)
    assert not any(isinstance(module, nn.ReLU) for module in snn.modules())
    assert_same_function(ann, snn, images())


def test_rates_times_thresholds_approach_the_activations():
    # without batch norms and biases, with a soft reset and no threshold below a current, the limit is exact
    ann, x = plain(nn.ReLU(), nn.MaxPool2d(2)).double(), images(6, dtype=torch.float64)
    snn = convert(ann, 8, x, method="published", reset="soft", percentile=100.0, scale=1.0, max_pool="average")
    ann[2] = nn.AvgPool2d(2)
    scale = torch.stack([neuron.threshold for _, neuron in snn.neurons()]).prod()
    errors = []
    for snn.timesteps in (20, 200, 2000):
        errors.append(((snn(x) * scale - ann(x)).norm() / ann(x).norm()).item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.005


@pytest.mark.parametrize(("timesteps", "points"), [(4, 0.15), (16, 0.05)])
def test_a_converted_network_classifies_as_the_network_did(digits_net, timesteps, points):
    net, calibration, test = digits_net
    snn = convert(net, timesteps, calibration)
    with torch.no_grad():
        before, after = ((m(test.pixels()).argmax(1) == test.labels).double().mean().item() for m in (net, snn))
    assert before > 0.9 and after > before - points


def test_functional_max_pooling_of_spikes_is_taken():
    snn = convert(FUNCTIONAL_POOL, 3, images(), **QUICK)
    assert_same_function(FUNCTIONAL_POOL, snn, images())


@pytest.mark.parametrize("max_pool", ["counts", "average"])
@pytest.mark.parametrize(
    ("called", "module"),
    [
        (lambda x: F.max_pool2d(x, 2), nn.MaxPool2d(2)),
        (lambda x: F.max_pool2d(x, 3, 2, 0, 1, True), nn.MaxPool2d(3, 2, ceil_mode=True)),
        (lambda x: torch.max_pool2d(input=x, kernel_size=3, stride=1), nn.MaxPool2d(3, 1)),
        (lambda x: F.adaptive_max_pool2d(x, (4, 5)), nn.AdaptiveMaxPool2d((4, 5))),
    ],
)
def test_max_pooling_called_as_a_function_converts_as_its_module_does(called, module, max_pool):
    """Pooled step by step, its spikes would be at no rate that the network had."""
    expected, ann = (plain(nn.ReLU(), pool) for pool in (module, Function(called)))
    ann.load_state_dict(expected.state_dict())
    with torch.no_grad():
        ours, theirs = (convert(one, 4, images(), max_pool=max_pool)(images()) for one in (ann, expected))
    torch.testing.assert_close(ours, theirs)


def test_max_pooling_stays_or_becomes_average_pooling():
    ann, x = plain(nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(6)), images()
    for kind, pools in (
        ("spikes", (nn.MaxPool2d, nn.AdaptiveMaxPool2d)),
        ("average", (nn.AvgPool2d, nn.AdaptiveAvgPool2d)),
    ):
        snn = convert(ann, 3, x, max_pool=kind, **QUICK)
        assert [type(snn.network[i]) for i in (2, 3)] == list(pools)
        ann.pooled = with_statistics_of(ann, snn)
        for i in (2, 3):
            ann.pooled[i] = snn.network[i]
        with backward_mode(Relu(), units="absolute"):
            torch.testing.assert_close(snn(x), ann.pooled(x))
        del ann.pooled


def test_pooled_spikes_are_spikes():
    snn = convert(plain(nn.ReLU(), nn.MaxPool2d(2)), 3, images(), **QUICK)
    snn.network[2].register_forward_hook(lambda *args: outputs.append(args[2]))
    outputs = []
    snn(images())
    assert set(outputs[0].unique().tolist()) == {0.0, 1.0}


def test_normalisation_moves_inside():
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)

    class Normalised(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))

    ann, x = plain(nn.BatchNorm2d(6), nn.ReLU()), images()
    inside = convert(ann, 3, x, mean=mean, std=std, **QUICK)
    assert torch.equal(inside(x), convert(Normalised(ann), 3, x, **QUICK)(x))
    assert not torch.equal(inside(x), convert(ann, 3, x, **QUICK)(x))
    assert torch.equal(convert(ann, 3, x, std=std, **QUICK).normalize.mean, torch.zeros(3))


# --- in time --------------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """The image itself goes around the first neuron."""

    def __init__(self):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(7, 4, 3), nn.ReLU()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        y = self.act1(self.conv1(x))
        y = self.act2(self.conv2(torch.cat([x, y], 1)))
        return self.head(y.mean((2, 3)))


def test_a_path_around_the_first_neuron_is_repeated_in_time():
    x = images(dtype=torch.float64)
    snn = convert(seeded(Around).double(), 4, x, **QUICK)
    assert not snn.stem_once and not any(neuron.repeated for _, neuron in snn.neurons())
    net, v1, v2, steps = snn.network, 0.0, 0.0, []
    for _ in range(4):  # step by step, written out
        v1 = v1 + net.conv1(x)
        s1 = (v1 >= net.act1.threshold).double()
        v1 = (1 - s1) * v1
        v2 = v2 + net.conv2(torch.cat([x, s1], 1))
        s2 = (v2 >= net.act2.threshold).double()
        v2 = (1 - s2) * v2
        steps.append(net.head(s2.mean((2, 3))))
    torch.testing.assert_close(snn(x, per_step=True), torch.stack(steps))
    torch.testing.assert_close(snn(x), torch.stack(steps).mean(0))
    snn.timesteps = 2
    torch.testing.assert_close(snn(x, per_step=True), torch.stack(steps[:2]))


def test_the_stem_computed_once_is_the_stem_computed_at_each_step():
    x = images(dtype=torch.float64)
    branches = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
    snn = convert(plain(nn.BatchNorm2d(6), nn.ReLU(), branches).double(), 4, x, **QUICK)
    assert snn.stem_once
    once = snn(x)
    snn.stem_once = False
    for _, neuron in snn.neurons():
        neuron.repeated = False
    torch.testing.assert_close(snn(x), once)


def test_timesteps_can_be_changed():
    ann, x = plain(nn.BatchNorm2d(6), nn.ReLU()).double(), images(dtype=torch.float64)
    snn = convert(ann, 4, x, **QUICK)
    first = snn(x, per_step=True)[:2]
    snn.timesteps = 2
    torch.testing.assert_close(snn(x, per_step=True), first)
    assert snn.timesteps == 2


def test_one_image_is_enough():
    snn = convert(plain(nn.ReLU()), 2, images(1), **QUICK)
    assert snn.stem_once and snn(images(1)).shape == (1, 5)


# --- statistics and thresholds --------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_spikes_over_time_and_images():
    x = images(6, dtype=torch.float64)
    snn = convert(plain(nn.ReLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()).double(), 4, x, **QUICK)
    norm, seen = snn.network[3], []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    snn(x)
    assert seen[0].shape[0] == 4 * 6
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen[0].transpose(0, 1).flatten(1).var(1))


def test_batches_of_statistics_weigh_about_the_same():
    """A last batch of one image would count as much as the hundred before it."""
    norm, x = nn.BatchNorm2d(3, affine=False), images(9)
    relearn_statistics(norm, x, batch_size=4)
    batches = x.split(3)
    torch.testing.assert_close(norm.running_mean, torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0))
    assert norm.momentum == 0.1 and norm.training and norm.num_batches_tracked == 3


def test_calibration_changes_thresholds_alone():
    x = images()
    snn = convert(plain(nn.BatchNorm2d(6), nn.ReLU()), 3, x, **QUICK)
    before = copy.deepcopy(snn.state_dict())
    found = calibrate(snn, x, timesteps=7, scale=1.0)
    assert found == {name: neuron.threshold.item() for name, neuron in snn.neurons()}
    changed = {key for key, value in snn.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.threshold" for name, _ in snn.neurons()}
    assert snn.timesteps == 3 and not any(module.training for module in snn.modules())
    assert not any(neuron._forward_pre_hooks for _, neuron in snn.neurons())


def test_a_silent_layer_gets_the_smallest_threshold():
    ann = plain(nn.ReLU())
    ann[0].weight.data.abs_().neg_()  # no current is ever positive
    snn = convert(ann, 3, images(), **QUICK)
    neuron = snn.network[1]
    assert neuron.threshold.item() == pytest.approx(MIN_THRESHOLD)
    assert neuron(torch.full((1, 1, 1, 1), MIN_THRESHOLD)).sum() == 3 and not neuron(torch.zeros(1, 1, 1, 1)).any()


# --- what is lent stays as it is ------------------------------------------------------------------------------------


def test_the_given_network_is_left_as_it_was():
    ann = seeded(lambda: torchvision.models.resnet18(num_classes=7)).train()
    ann.layer1.eval()
    ann.fc.weight.requires_grad_(False)
    ann.relu.register_forward_hook(lambda *_: None)
    x = images(4, 3, 32)
    state, pixels, random = copy.deepcopy(ann.state_dict()), x.clone(), torch.get_rng_state()

    def kept():
        return [
            (name, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._buffers))
            for name, m in ann.named_modules(remove_duplicate=False)
        ] + [(name, parameter.requires_grad, parameter.grad) for name, parameter in ann.named_parameters()]

    before = kept()
    snn = convert(ann, 2, x, **QUICK)
    assert kept() == before
    assert all(torch.equal(value, state[key]) for key, value in ann.state_dict().items())
    assert torch.equal(x, pixels) and torch.equal(torch.get_rng_state(), random)
    owned = {t.data_ptr() for t in [*ann.parameters(), *ann.buffers()] if t.numel()}
    assert not any(t.data_ptr() in owned for t in [*snn.parameters(), *snn.buffers()] if t.numel())


def test_a_converted_network_trains():
    snn = convert(seeded(lambda: Reuses(3)), 3, images(), **QUICK).train()
    F.cross_entropy(snn(images()), torch.arange(4)).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in snn.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_network_keeps_its_precision(dtype):
    ann = plain(nn.BatchNorm2d(6), nn.ReLU())
    snn = convert(ann, 3, images(dtype=dtype), **QUICK)
    assert {parameter.dtype for parameter in snn.parameters()} == {torch.float32}
    assert snn(images()).dtype == torch.float32
