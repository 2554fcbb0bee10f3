"""Conversion that keeps what the ANN knows: it approaches the ANN, in bounded memory, and takes more networks."""

import copy
import io
import pickle

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.googlenet import Inception

import rsnn_zoo.conversion.absorb as absorbing
from rsnn_zoo.conversion.conversion import convert
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.models.layers import PooledCounts, Scaled
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, Relu, SpikingNeuron, backward_mode, integrate_and_fire
from tests.conversion.conftest import Function

pytestmark = pytest.mark.usefixtures("eager")


def images(batch=8, channels=3, size=8, seed=0):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def around(*layers, width=6):
    """conv, ``layers``, conv, ReLU, linear."""
    return seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), *layers, nn.Conv2d(width, width, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5)),
        )
    )


def error(snn, ann, x):
    """Of the logits, as a share of their deviation over the images."""
    with torch.no_grad():
        return ((snn(x) - ann(x)).norm() / (ann(x) - ann(x).mean(0)).norm()).item()


# --- the limit ------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """An identity shortcut, two uses of one ReLU, a max pool, with or without batch norms."""

    def __init__(self, normed):
        super().__init__()
        norm = nn.BatchNorm2d if normed else nn.Identity
        self.stem, self.first, self.pool = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm(6)), nn.ReLU(), None
        self.conv1, self.norm1 = nn.Conv2d(6, 6, 3, padding=1), norm(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), norm(6)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, x):
        x = self.first(self.stem(x))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.fc(self.relu(x + y).mean((2, 3)))


def small(architecture):
    kwargs = {"hidden_features": 16} if architecture == "vgg11" else {}
    return ARCHITECTURES[architecture](img_size=8, num_classes=5, mean=(0.4,) * 3, std=(0.3,) * 3, **kwargs)


@pytest.mark.parametrize("normed", [False, True])
def test_random_networks_are_approached_as_steps_grow(normed):
    x, ann = images(16), seeded(lambda: Residual(normed))
    for module in ann.modules():  # statistics and weights of its own
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.weight.data += 0.3 * torch.linspace(-1, 1, len(module.weight))
    with torch.no_grad():
        ann.train()(x)
    ann.eval()
    errors = [error(convert(ann, timesteps, x), ann, x) for timesteps in (4, 64)]
    assert errors[1] < 0.25 * errors[0] and errors[1] < 0.1


class Drawn(nn.Module):
    """Depth, widths, norms, pooling and shortcuts drawn."""

    def __init__(self, draw):
        super().__init__()
        width = int(draw(st.integers(3, 6)))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks, self.skips = nn.ModuleList(), []
        for _ in range(draw(st.integers(1, 3))):
            norm = nn.BatchNorm2d(width) if draw(st.booleans()) else nn.Identity()
            self.skips.append(draw(st.booleans()))
            pool = draw(st.sampled_from([nn.Identity, lambda: nn.MaxPool2d(2, 1), lambda: nn.AvgPool2d(2, 1)]))()
            conv = nn.Conv2d(width, width, 3, padding=1, bias=draw(st.booleans()))
            self.blocks.append(nn.ModuleList([conv, norm, nn.ReLU(), pool]))
        self.relu, self.fc = nn.ReLU(), nn.Linear(width, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for (conv, norm, relu, pool), skip in zip(self.blocks, self.skips, strict=True):
            y = norm(conv(x))
            x = pool(relu(x + y if skip else y))
        return self.fc(x.mean((2, 3)))


@given(data=st.data(), seed=st.integers(0, 999))
@settings(max_examples=6, deadline=None)
def test_any_network_of_relus_is_its_ann_at_256_steps(data, seed):
    ann, x = seeded(lambda: Drawn(data.draw), seed), images(12, seed=seed)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        ann.train()(x)
        logits = ann.eval()(x)
        spread = logits.std(0).max()
        assert (convert(ann, 256, x)(x) - logits).abs().max() < 0.15 * spread + 0.01 * logits.abs().max()


def test_layers_below_the_least_threshold_are_approached_too():
    """Of a random ResNet-20 the last activations are below 0.02, where no threshold acts as such."""
    ann, x, seen = seeded(lambda: small("resnet20")), images(4), []
    ann.layer3[2].act2.register_forward_hook(lambda module, inputs, output: seen.append(output.max()))
    errors = [error(convert(ann, timesteps, x), ann, x) for timesteps in (4, 64)]
    assert 0 < max(seen[:1]) < MIN_THRESHOLD
    assert errors[1] < 0.5 * errors[0]


def accuracy(model, data):
    with torch.no_grad():
        return (model(data.pixels()).argmax(1) == data.labels).double().mean().item()


def test_without_batch_norm_accuracy_is_kept(bare_net):
    net, calibration, test = bare_net[0], bare_net[1][:48], bare_net[2].select(100)
    expected = accuracy(net, test)
    assert expected > 0.8
    snn = convert(net, 64, calibration)
    assert accuracy(snn, test) >= expected - 0.01
    snn.timesteps = 256  # of the thresholds found for 64
    assert accuracy(snn, test) >= expected - 0.01
    assert accuracy(convert(net, 8, calibration), test) > expected - 0.05
    assert accuracy(convert(net, 8, calibration, method="published", calibration_timesteps=20), test) < expected - 0.05


@given(st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_counts_are_pooled_to_the_largest_rate_in_spikes(steps, seed):
    rates = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    spikes = integrate_and_fire(rates, torch.ones(()), steps, repeated=True)
    pooled = PooledCounts(nn.MaxPool2d(2), steps)(spikes)
    assert set(pooled.unique().tolist()) <= {0.0, 1.0}
    largest = F.max_pool2d(spikes.unflatten(0, (steps, -1)).sum(0), 2)
    assert torch.equal(pooled.unflatten(0, (steps, -1)).sum(0), largest)


def test_the_accuracy_of_our_networks_is_approached():
    ann = create_model("resnet20_digits_natural_ann", pretrained=True)
    test = load_dataset("digits", "test").select(100)
    snn = convert(ann, 32, load_dataset("digits", "train").pixels()[:24])
    assert accuracy(snn, test) > accuracy(ann, test) - 0.011


# --- what comes out -------------------------------------------------------------------------------------------------


def test_ours_end_with_thresholds_of_1_and_no_other_parameter():
    ann, x = seeded(lambda: small("resnet20")), images(16)
    snn = convert(ann, 4, x)
    assert {neuron.threshold.item() for _, neuron in snn.neurons()} == {1.0}
    assert not any(isinstance(module, Scaled) for module in snn.modules())
    assert (snn.reset, snn.initial) == ("soft", 0.5)
    how = {"reset": "soft", "initial": 0.5, "channel_sums": True}
    twin = ARCHITECTURES["resnet20"](timesteps=4, img_size=8, num_classes=5, mean=(0.4,) * 3, std=(0.3,) * 3, **how)
    twin.load_state_dict(snn.state_dict())
    assert torch.equal(twin.eval()(x), snn(x))


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "vgg11"])
def test_weights_between_activations_scale_as_junctions_say(architecture):
    ann, x = seeded(lambda: small(architecture)), images()
    with torch.no_grad():
        before = ann(x)
        assert {j.activation for j in ann.junctions()} == {m for m in ann.modules() if isinstance(m, nn.ReLU)}
        for factor, junction in enumerate(ann.junctions(), 2):
            for tensor in junction.before:
                tensor *= factor
            for tensor in junction.after:
                tensor /= factor
        torch.testing.assert_close(ann(x), before, rtol=1e-3, atol=1e-4)


def test_spikes_of_others_are_zeros_and_ones_and_stand_for_gains():
    ann, x = seeded(lambda: Residual(True)), images()
    snn, seen = convert(ann, 4, x), []
    for _, neuron in snn.neurons():
        neuron.register_forward_hook(lambda module, inputs, output: seen.append(output))
    snn(x)
    assert len(seen) == 3 and all(set(spikes.unique().tolist()) <= {0.0, 1.0} for spikes in seen)
    assert {neuron.threshold.item() for _, neuron in snn.neurons()} == {1.0}
    assert all(module.gain.item() > 0 for module in snn.modules() if isinstance(module, Scaled))


def test_the_caller_network_is_left_as_it_was():
    ann, x = seeded(lambda: Residual(True)), images()
    before = copy.deepcopy(ann.state_dict())
    convert(ann, 4, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ann.state_dict().items())


def test_chunks_of_images_change_next_to_nothing(monkeypatch):
    ann, x, sizes = seeded(lambda: Residual(True)), images(12), []
    ann.conv1.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    whole = convert(ann, 4, x)
    assert max(sizes) == 4 * 12
    sizes.clear()
    monkeypatch.setattr(absorbing, "BUDGET", 1)
    parts = convert(ann, 4, x)
    assert max(sizes) == 2 * 3  # of trial runs; for all else one image at a time
    gains = [[module.gain for module in snn.modules() if isinstance(module, Scaled)] for snn in (whole, parts)]
    ratios = torch.stack(gains[1]) / torch.stack(gains[0])
    torch.testing.assert_close(ratios, ratios[:1].expand(3))  # the thresholds, lowered together by nearly the same
    assert 0.8 < ratios[0] < 1.25
    assert error(parts, ann, x) < 1.3 * error(whole, ann, x) + 0.02


# --- which networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "limit"),
    [
        (nn.ReLU6(), 6.0),
        (nn.LeakyReLU(0.0), None),
        (nn.Threshold(0, 0), None),
        (nn.Hardtanh(0, 0.2), 0.2),
        (Function(F.relu), None),
        (Function(torch.relu), None),
        (Function(lambda x: x.relu()), None),
        (Function(lambda x: F.relu(x, inplace=True)), None),
        (Function(lambda x: x.clamp(min=0)), None),
        (Function(lambda x: torch.clamp(x, 0, 0.2)), 0.2),
        (Function(F.relu6), 6.0),
    ],
)
def test_relus_by_other_names_become_neurons(layer, limit):
    ann, x = around(layer), images(16)
    snn = convert(ann, 64, x)
    gains = [module.gain.item() for module in snn.modules() if isinstance(module, Scaled)]
    assert len(gains) == 2
    if limit is not None:
        assert min(gains) <= limit + 1e-6
    assert error(snn, ann, x) < 0.2


def branches():
    """A network around a block of GoogLeNet, whose ReLUs are functions."""
    inception = Inception(6, 2, 2, 2, 2, 2, 2)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), inception, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


@pytest.mark.parametrize(
    "build",
    [
        branches,
        lambda: torchvision.models.DenseNet(4, (2, 1), 8, num_classes=5),
        lambda: torchvision.models.MobileNetV2(5, 0.25, [[1, 8, 1, 1], [6, 8, 1, 2]]),
    ],
)
def test_blocks_of_torchvision_with_functional_and_clipped_relus_are_approached(build):
    ann, x = seeded(build), images(6, 3, 16)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        ann.train()(x)
    ann.eval()
    assert error(convert(ann, 48, x), ann, x) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "googlenet", "mobilenet_v2"])
def test_torchvision_networks_with_functional_and_clipped_relus_convert(name):
    kwargs = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    ann, x = seeded(lambda: getattr(torchvision.models, name)(num_classes=5, **kwargs)), images(4, 3, 64)
    snn = convert(ann, 2, x)
    assert snn(x).shape == (4, 5)
    with torch.no_grad():
        for module in snn.modules():  # without corrections it is the ANN, where no spikes are
            if isinstance(module, SpikingNeuron):
                assert module.threshold.item() == 1.0


class Product(nn.Module):
    """One ReLU gates another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu1, self.relu2 = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.relu1(self.a(x)) * self.relu2(self.b(x))


def bilinear(x):
    return F.bilinear(x.movedim(1, -1), x.movedim(1, -1), torch.ones(6, 6, 6)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("ann", "kwargs", "said"),
    [
        (around(Product()), {}, r"1 \(Product\) multiplies activations by activations"),
        (around(nn.ReLU(), Function(bilinear)), {}, r"2 \(Function\) multiplies activations by activations"),
        (
            around(nn.ReLU(), Function(lambda x: torch.addcmul(x, x, x))),
            {},
            r"2 \(Function\) multiplies activations by",
        ),
        (
            around(nn.ReLU(), Function(lambda x: x.logsumexp(1, True).expand_as(x))),
            {},
            r"2 \(Function\) applies logsumexp",
        ),
        (
            around(nn.ReLU(), Function(lambda x: x.amax((2, 3), keepdim=True).expand(-1, -1, 8, 8))),
            {},
            r"2 \(Function\) takes a maximum over space as a function",
        ),
        (around(nn.ReLU()).half(), {}, r"16 bits"),
        (around(nn.ReLU()), {"method": "absorbed"}, r"method is 'absorbed'.*absorb"),
        (around(nn.ReLU()), {"percentile": 99.0, "scale": 0.5}, r"percentile, scale: of method='published' alone"),
        (around(Function(lambda x: F.normalize(x))), {}, r"1 \(Function\) divides by .*F\.normalize"),
        (around(nn.ReLU(), Function(lambda x: F.dropout(x, 0.5, True))), {}, r"2 \(Function\) draws random numbers"),
        (around(nn.ReLU(), Function(lambda x: x + torch.randn_like(x))), {}, r"2 \(Function\) draws random numbers"),
        (
            nn.Sequential(
                *(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)),
            ).eval(),
            {"method": "published", "images": images(1)},
            "takes more than one image",
        ),
    ],
)
def test_what_would_be_silently_wrong_is_refused(ann, kwargs, said):
    with pytest.raises(ValueError, match=said):
        convert(ann, 2, **{"images": images(), **kwargs})


def dead():
    ann = around(nn.ReLU())
    with torch.no_grad():
        ann[0].bias -= 100
    return ann


def test_a_dead_layer_stays_silent_or_is_refused(caplog):
    ann, x = dead(), images()
    assert error(convert(ann, 8, x), ann, x + 0) >= 0 and "1 is dead" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(convert(ann, 64, x)(x), ann(x), atol=0.02, rtol=0.1)
    caplog.clear()
    snn = convert(ann, 8, x, method="published")
    assert "1 is dead" in caplog.text and snn.network[1].threshold.item() == pytest.approx(MIN_THRESHOLD)


def test_one_image_is_enough_for_batch_norms():
    ann = seeded(lambda: Residual(True))
    assert convert(ann, 4, images(1))(images(2)).shape == (2, 5)


# --- kept -----------------------------------------------------------------------------------------------------------


def test_what_convert_makes_of_a_user_network_is_saved_loaded_and_pickled():
    ann, x = seeded(lambda: Residual(True)), images()  # with a split ReLU
    snn, file = convert(ann, 4, x), io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(snn)), copy.deepcopy(snn)):
        assert torch.equal(other(x), snn(x))
        with backward_mode(Relu()):
            assert torch.equal(other(x), snn(x))
