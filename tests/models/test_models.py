"""The networks: what a user builds, runs, changes and differentiates; ANN and SNN from one definition."""

import pytest
import torch
from timm.data import resolve_data_config
from torch import nn

from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.neurons.integrate_fire import Relu, Surrogate, backward_mode
from rsnn_zoo.spec.datasets import DATASETS
from tests.models.conftest import FAMILIES, assert_same, build, images_for, rates_of, thresholds_of

pytestmark = pytest.mark.usefixtures("eager")

# --- what can be built ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_every_data_set(architecture, dataset):
    info = DATASETS[dataset]
    described = {"num_classes": info.num_classes, "in_chans": info.in_chans, "img_size": info.img_size}
    with torch.device("meta"):  # shapes alone, no arithmetic
        network = ARCHITECTURES[architecture](timesteps=2, **described)
        images = torch.empty(5, info.in_chans, info.img_size, info.img_size)
    assert network(images, per_step=True).shape == (2, 5, info.num_classes)
    assert network.architecture == architecture
    assert {key: getattr(network, key) for key in described} == described


@pytest.mark.parametrize(
    ("architecture", "millions"),
    [
        ("resnet20", "0.27"),  # He et al., table 6
        ("resnet32", "0.47"),  # 0.46 there, without the projections of the research code
        ("wrn16_4", "2.75"),
        ("wrn28_4", "5.85"),  # Zagoruyko & Komodakis, table 4: 5.8 and 2.8
        ("vgg11", "61.4"),  # of the research code
    ],
)
def test_parameter_counts_are_the_published_ones(architecture, millions):
    with torch.device("meta"):
        network = ARCHITECTURES[architecture](num_classes=10, in_chans=3, img_size=32)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"{count:.{len(millions.partition('.')[2])}f}" == millions


def test_the_64x64_vgg11_is_the_research_code_s_with_one_hidden_layer():
    with torch.device("meta"):
        large = ARCHITECTURES["vgg11"](num_classes=200, img_size=64, timesteps=3)
    convolutions = [m.out_channels for m in large.modules() if isinstance(m, torch.nn.Conv2d)]
    linear = [(m.in_features, m.out_features) for m in large.modules() if isinstance(m, torch.nn.Linear)]
    assert convolutions == [64, 128, 256, 256, 512, 512, 512, 512]
    assert linear == [(512, 4096), (4096, 200)] and len(list(large.neurons())) == 9
    assert not any(isinstance(m, torch.nn.Dropout) for m in large.modules())


@pytest.mark.parametrize(("size", "inputs"), [(8, 512), (28, 512), (32, 512), (64, 4 * 512)])
def test_a_vgg16_halves_its_images_five_times_where_they_are_large_enough(size, inputs):
    with torch.device("meta"):
        assert ARCHITECTURES["vgg16"](img_size=size).pre_logits[1].in_features == inputs


@pytest.mark.parametrize(
    ("architecture", "neurons"),
    [("vgg11", 10), ("vgg16", 15), ("resnet20", 19), ("resnet32", 31), ("wrn16_4", 13), ("wrn28_4", 25)],
)
def test_ann_and_snn_differ_by_their_thresholds_alone(architecture, neurons):
    ann, snn = build(architecture, None), build(architecture, 2)
    own = {f"{name}.threshold" for name, _ in snn.neurons()}
    assert len(own) == neurons and not list(ann.neurons())
    assert snn.state_dict().keys() - ann.state_dict().keys() == own
    assert ann.state_dict().keys() <= snn.state_dict().keys()
    images = images_for(ann)
    assert snn.load_state_dict(ann.state_dict(), strict=False).unexpected_keys == []
    with backward_mode(Relu()):  # which puts a ReLU in place of each neuron
        assert torch.equal(snn(images), ann(images))
    assert not torch.equal(snn(images), ann(images))


def test_the_neurons_are_what_was_asked_for():
    surrogate = Surrogate("exp", 2.0)
    snn = build("resnet20", 5, threshold=0.7, leak=0.9, reset="soft", surrogate=surrogate)
    assert (snn.timesteps, snn.leak, snn.reset) == (5, 0.9, "soft")
    for _, neuron in snn.neurons():
        assert (neuron.timesteps, neuron.leak, neuron.reset, neuron.surrogate) == (5, 0.9, "soft", surrogate)
        assert neuron.threshold.item() == pytest.approx(0.7)
    assert build("resnet20", 5, surrogate="exp-2").spiking == build("resnet20", 5, surrogate=surrogate).spiking
    with pytest.raises(ValueError, match="'relu' is no surrogate derivative: choose pcw"):
        build("resnet20", 5, surrogate="relu")
    assert (build("resnet20", None).timesteps, build("resnet20").reset, build("resnet20").leak) == (None, "hard", 1.0)


def test_every_layer_fires(snn):  # or the tests below would compare silence
    rates = rates_of(snn, lambda: snn(images_for(snn)))
    assert (rates > 0.02).all() and (rates < 0.5).all()


def test_reset_leak_and_initial_membrane_change_the_logits(snn):
    images = images_for(snn)
    logits = [snn(images)]
    for change in ({"reset": "soft"}, {"leak": 0.5}, {"initial": 0.5}):
        other = build(snn.architecture, **change).double()
        logits.append(other(images))
    assert not any(torch.equal(logits[0], other) for other in logits[1:])


def test_normalisation_is_inside():
    images = torch.rand(2, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    inside = build("resnet20", in_chans=3, mean=mean, std=std)
    outside = build("resnet20", in_chans=3, mean=None, std=None)
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert_same(inside(images), outside(normalised), 1e-6)
    config = resolve_data_config({}, model=inside)  # what timm would do to images before the network
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0, 0, 0), (1, 1, 1), 1.0)
    assert config["input_size"] == (3, 8, 8)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_parameter_and_every_threshold_is_trained(architecture, reset):
    snn = build(architecture, threshold=0.5, reset=reset).train()
    nn.functional.cross_entropy(snn(images_for(snn)), torch.tensor([1, 2, 3, 4])).backward()
    for name, parameter in snn.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert all(threshold.shape == () for threshold in thresholds_of(snn))


def test_training_lowers_the_loss_and_moves_the_thresholds():
    snn = build("resnet20").train()
    images, labels = images_for(snn, 8), torch.arange(8)
    optimizer = torch.optim.Adam(snn.parameters(), 0.01)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(snn(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert all(threshold != 1.0 for threshold in thresholds_of(snn))


# --- as in timm -----------------------------------------------------------------------------------------------------


def test_features_and_head_make_the_forward_pass(snn):
    images = images_for(snn)
    features = snn.forward_features(images)
    assert features.shape[:2] == (3 * 4, snn.num_features)
    assert torch.equal(snn.forward_head(features), snn(images))
    assert torch.equal(snn.forward_head(features, per_step=True), snn(images, per_step=True))
    seen = snn.forward_head(features, pre_logits=True)
    assert seen.shape == (12, snn.head_features)
    assert torch.equal(snn.over_time(snn.get_classifier()(seen), per_step=False), snn(images))


def test_the_classifier_can_be_replaced_and_removed(snn):
    images = images_for(snn)
    assert snn.get_classifier() is snn.get_submodule(snn.default_cfg["classifier"])
    assert isinstance(snn.get_submodule(snn.default_cfg["first_conv"]), nn.Conv2d)
    snn.reset_classifier(7, "avg")
    assert snn.num_classes == 7 and snn.get_classifier().out_features == 7
    assert snn(images).shape == (4, 7) and snn(images).dtype == torch.float64
    snn.reset_classifier(0)
    assert snn.num_classes == 0
    bare = build(snn.architecture, num_classes=0).double()
    bare.load_state_dict(snn.state_dict())
    assert torch.equal(snn(images), bare(images)) and bare(images).shape == (4, snn.head_features)


def test_the_classifier_stays_where_the_network_is():
    with torch.device("meta"):
        network = build("resnet20")
    network.reset_classifier(3)
    assert network.get_classifier().weight.is_meta


def test_default_cfg_describes_the_network():
    cfg = build("vgg11", num_classes=7, in_chans=2, mean=None, std=None).default_cfg
    expected = {"num_classes": 7, "input_size": (2, 8, 8), "fixed_input_size": True, "mean": (0, 0), "std": (1, 1)}
    assert expected.items() <= cfg.items()
    assert not build("resnet20").default_cfg["fixed_input_size"]


def test_networks_without_hidden_linear_layers_take_other_sizes():
    assert build("resnet20")(torch.rand(2, 1, 12, 12)).shape == (2, 10)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"timesteps": 0}, ValueError, "timesteps must be at least 1, got 0"),
        ({"timesteps": -1}, ValueError, "timesteps must be at least 1, got -1"),
        ({"timesteps": True}, TypeError, "timesteps must be an integer, got True"),
        ({"timesteps": 2.5}, TypeError, r"timesteps must be an integer, got 2\.5"),
        ({"timesteps": "4"}, TypeError, "timesteps must be an integer, got '4'"),
        ({"reset": "zero"}, ValueError, "reset must be 'hard' or 'soft', got 'zero'"),
        ({"timesteps": None, "reset": "zero"}, ValueError, "reset must be 'hard' or 'soft', got 'zero'"),
        ({"leak": -0.1}, ValueError, r"leak must lie in \[0, 1\], got -0\.1"),
        ({"initial": 1.0}, ValueError, r"initial must lie in \[0, 1\), got 1\.0"),
        ({"leak": 1.1}, ValueError, r"leak must lie in \[0, 1\]"),
        ({"leak": float("nan")}, ValueError, r"leak must lie in \[0, 1\]"),
        ({"timesteps": None, "leak": 2.0}, ValueError, r"leak must lie in \[0, 1\]"),
        ({"num_classes": -1}, ValueError, "num_classes must not be negative, got -1"),
        ({"in_chans": 0, "mean": None, "std": None}, ValueError, "in_chans must be at least 1, got 0"),
        ({"img_size": 0}, ValueError, "img_size must be at least 1, got 0"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0)}, ValueError, "1 channels need as many means and positive stds"),
        ({"mean": (0.1, 0.2)}, ValueError, "1 channels need as many means"),
        ({"std": (0.0,)}, ValueError, "positive stds"),
        ({"std": (float("nan"),)}, ValueError, "positive stds"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture, change, error, said):
    with pytest.raises(error, match=said):
        build(architecture, **change)


@pytest.mark.parametrize(
    ("timesteps", "error", "said"),
    [
        (0, ValueError, "at least 1"),
        (-1, ValueError, "at least 1"),
        (True, TypeError, "integer"),
        (2.5, TypeError, "integer"),
        (None, TypeError, "integer"),
    ],
)
def test_timesteps_that_cannot_be_are_refused_and_change_nothing(snn, timesteps, error, said):
    with pytest.raises(error, match=said):
        snn.timesteps = timesteps
    assert snn.timesteps == 3 and all(neuron.timesteps == 3 for _, neuron in snn.neurons())


def test_an_ann_has_no_timesteps_to_change():
    with pytest.raises(ValueError, match=r"convert it with rsnn_zoo\.convert"):
        build("resnet20", None).timesteps = 4


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (8, 8), (1, 2, 1, 8, 8)])
def test_images_of_another_shape_are_refused(snn, shape):
    with pytest.raises(
        ValueError, match=rf"{snn.architecture} takes images \(B, 1, 8, 8\) in \[0, 1\], got \({shape[0]}, "
    ):
        snn(torch.rand(shape, dtype=torch.float64))


def test_images_of_another_size_are_refused_where_linear_layers_follow():
    with pytest.raises(ValueError, match=r"vgg11 takes images \(B, 1, 8, 8\) in \[0, 1\], got \(2, 1, 16, 16\)"):
        build("vgg11")(torch.rand(2, 1, 16, 16))


def test_integer_images_are_refused(snn):
    with pytest.raises(TypeError, match=r"torch\.uint8.*divide"):
        snn(torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8))


def test_a_wrong_classifier_is_refused_and_changes_nothing(snn):
    before = snn.get_classifier()
    for arguments, said in (((-1,), "num_classes must not be negative"), ((5, "max"), "global_pool must be 'avg'")):
        with pytest.raises(ValueError, match=said):
            snn.reset_classifier(*arguments)
    assert snn.num_classes == 10 and snn.get_classifier() is before
