"""Exported files compute what the network does, in each simulator and runtime, or are not left behind."""

import json
import os
from pathlib import Path

import pytest
import torch

import rsnn_zoo
from rsnn_zoo.cli import commands
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.exports import export as exporting
from rsnn_zoo.exports.check import Judged, compare, default_images, reference_pass
from rsnn_zoo.exports.export import FORMATS
from rsnn_zoo.exports.graph import Conv, ExportError
from rsnn_zoo.exports.lower import spiking_graph
from rsnn_zoo.exports.nir import interpret, read_nir, to_nir
from rsnn_zoo.exports.runtimes import onnx_pass
from rsnn_zoo.exports.simulators import SIMULATORS, Simulated, _Neurons, installed_simulators, load_nir
from rsnn_zoo.models import ARCHITECTURES, ForeignNetwork
from rsnn_zoo.models.layers import Scaled, WeightedSum
from tests.conftest import small_network

nir = pytest.importorskip("nir")
pytest.importorskip("nirtorch")
pytestmark = pytest.mark.usefixtures("eager")

SNNS = [name for name in rsnn_zoo.list_models(pretrained=True) if not name.endswith("_ann")]


def family(architecture, timesteps=4, img_size=8, residual=(0.7, 0.4), **kwargs):
    """Random weights, under which neurons of every layer fire; batch norms and sums that do something."""
    if architecture.startswith("vgg"):
        kwargs["hidden_features"] = 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ARCHITECTURES[architecture](
            num_classes=7,
            in_chans=2,
            img_size=img_size,
            timesteps=timesteps,
            **{"threshold": 0.3, "mean": (0.4, 0.5), "std": (0.2, 0.3), **kwargs},
        )
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0.1, 0.2)
                elif isinstance(module, WeightedSum):
                    own = torch.rand(2, module.weight[0].numel()) + 0.5 if module.weight.dim() == 2 else 1.0
                    module.weight.copy_((torch.tensor(residual).view(2, 1) * own).view_as(module.weight))
    return network.eval()


def checks_of(model, path, images):
    return {check.runtime.split()[0]: check for check in rsnn_zoo.export(model, path, images=images).checks}


# --- NIR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_simulators_fire_the_same_spikes(simulator, tmp_path, snn):
    """Hard reset: every library has it."""
    pytest.importorskip(simulator)
    images = default_images(snn, 8)
    checks = checks_of(snn, tmp_path / "a.nir", images)
    assert checks["rsnn_zoo"].differing_spikes == 0 and checks["rsnn_zoo"].spikes == 8 * 4 * 11776
    assert checks[simulator].passes and checks[simulator].differing_spikes == 0
    loaded = load_nir(tmp_path / "a.nir", simulator)
    assert isinstance(loaded, Simulated)
    for _ in range(2):  # no state is left over
        assert (loaded(images).argmax(1) == snn(images).argmax(1)).all()


@pytest.mark.parametrize("reset, initial", [("soft", 0.5), ("hard", 0.25)])
def test_reset_and_initial_membrane_arrive(reset, initial, tmp_path):
    model = small_network(reset=reset, initial=initial)
    checks = checks_of(model, tmp_path / "a.nir", default_images(model, 8))
    assert all(check.passes and check.spikes for check in checks.values())
    graph = read_nir(tmp_path / "a.nir")
    neuron = graph.nodes["act1"]
    assert neuron.metadata["initial"] == initial and graph.metadata["timesteps"] == 2
    neuron.metadata["initial"] = 0.9  # which the interpreter heeds
    assert (interpret(graph, default_images(model, 8))[0] != model.double()(default_images(model, 8).double())).any()


@pytest.mark.parametrize(
    "architecture, kwargs",
    [
        ("resnet20", {"residual": (-0.1, 0.8)}),
        ("resnet20", {"channel_sums": True, "reset": "soft", "initial": 0.5}),
        ("wrn16_4", {"reset": "soft", "initial": 0.5}),
        ("vgg11", {"img_size": 16}),
    ],
)
def test_every_family_has_the_same_spikes(architecture, kwargs):
    model = family(architecture, 3, **kwargs)
    images = torch.rand(2, 2, model.img_size, model.img_size)
    graph = to_nir(spiking_graph(model))
    logits, spikes = interpret(graph, images)
    expected, recorded = reference_pass(model, torch.float64)(images)
    assert sum(fired.any() for fired in spikes.values()) > len(spikes) / 2
    for name, fired in spikes.items():
        layer = graph.nodes[name].metadata["layer"]
        assert (fired.flatten() == recorded[layer].flatten()).all(), name
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_nothing_but_convolutions_and_neurons_is_written():
    """No importer takes Scale, AvgPool2d and Flatten all; a positive shortcut weight goes into the threshold."""
    graph = spiking_graph(family("resnet20"))
    kinds = {type(node).__name__ for node in to_nir(graph).nodes.values()}
    assert kinds == {"Input", "Conv2d", "IF", "Output"}
    convolutions = [node for node in graph.nodes.values() if isinstance(node, Conv)]
    assert len(convolutions) == 1 + 1 + 18 + 2 + 1  # normalisation, stem, blocks, projections, classifier


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, reset, timesteps",  # each kind of family with each reset and each T, and each reset with each T
    [
        ("vgg11", "soft", 8),
        ("vgg16", "hard", 4),
        ("resnet20", "hard", 8),
        ("resnet32", "soft", 4),
        ("wrn16_4", "soft", 8),
        ("wrn28_4", "hard", 4),
    ],
)
def test_all_families_in_all_simulators(architecture, reset, timesteps, tmp_path):
    model = family(architecture, timesteps, reset=reset, initial=0.5 if reset == "soft" else 0.0)
    checks = checks_of(model, tmp_path / "a.nir", torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    unable = {"norse"} if reset == "soft" else set()
    assert set(checks) == {"rsnn_zoo", *installed_simulators()} - unable
    assert all(check.passes and check.spikes for check in checks.values())


def decided(model, n):
    """Of the first 64 digits the n whose class is the surest: in float32 a flipped spike changes none of them."""
    images = default_images(model)
    with torch.no_grad():
        first, second = model(images).topk(2).values.T
    return images[(first - second).argsort(descending=True)[:n]]


@pytest.mark.slow
@pytest.mark.parametrize("name", SNNS)
def test_every_published_entry(name, tmp_path):
    """On few images; scripts/check_exports.py takes 256 of the entry's own data set."""
    model = rsnn_zoo.create_model(name, pretrained=True)
    checks = checks_of(model, tmp_path / "a.nir", default_images(model, 2 if "cifar10" in name else 8))
    assert checks["rsnn_zoo"].differing_spikes == 0
    assert all(check.differing_predictions == 0 for check in checks.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20_cifar10_trades_t8", "resnet20_digits_trades_t4"])
def test_published_entries_in_onnxruntime(name, tmp_path):
    model = rsnn_zoo.create_model(name, pretrained=True)
    (check,) = rsnn_zoo.export(model, tmp_path / "a.onnx", "onnx", images=decided(model, 16)).checks
    assert check.differing_predictions == 0


# --- ONNX and torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, batch", [("onnx", None), ("torch", 4)])
def test_runtimes_give_the_same_predictions(format, batch, tmp_path):
    pytest.importorskip("onnxruntime")
    model = small_network()
    path = tmp_path / f"a.{format}"
    (check,) = rsnn_zoo.export(model, path, format, batch=batch).checks
    assert check.differing_predictions == 0 and check.images == 64
    if format == "onnx":
        images = default_images(model, 5)  # of another size than it was traced with
        torch.testing.assert_close(onnx_pass(path)(images)[0], model(images))
    assert json.loads((tmp_path / f"{path.name}.report.json").read_text())["checks"][0]["passes"]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_file_that_fails_is_not_left_behind(tmp_path, monkeypatch):
    model = small_network()
    right = exporting.interpret

    def wrong(graph, images):
        logits, spikes = right(graph, images)
        spikes["act1"][0, 0, 0, 0, 0] ^= True  # of each chunk of 32 images
        return logits, spikes

    monkeypatch.setattr(exporting, "interpret", wrong)
    (tmp_path / "a.nir").write_text("the one before")
    with pytest.raises(ExportError, match=r"not kept.* 2 of .* spikes differ"):
        rsnn_zoo.export(model, tmp_path / "a.nir")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nir"]
    assert (tmp_path / "a.nir").read_text() == "the one before"


@pytest.mark.parametrize(
    "model, kwargs, message",
    [
        (lambda: small_network(leak=0.9), {}, "leaks"),
        (lambda: family("resnet20", None), {}, "ANN has no spikes"),
        (lambda: torch.nn.Linear(2, 2), {}, "only networks of this zoo"),
        (small_network, {"format": "tflite"}, "unknown format.*nir, onnx, torch"),
        (small_network, {"batch": 3}, "batch"),
        (small_network, {"images": torch.rand(2, 3, 8, 8)}, "takes images"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rsnn_zoo.export(model(), tmp_path / "a", **kwargs)
    assert not list(tmp_path.iterdir())


def test_sinabs_subtracts_the_threshold_in_full_precision():
    """Rounded to float32 it flips single spikes of millions, and those after them."""
    pytest.importorskip("sinabs")
    how = _Neurons(0.1, soft=True, initial=torch.full((1,), 0.05, dtype=torch.float64))
    layer = SIMULATORS["sinabs"](how)
    layer.start(1)
    assert [layer(torch.full((1, 1), 0.06, dtype=torch.float64)).item() for _ in range(3)] == [1, 0, 1]
    assert layer.neuron.v_mem.item() == pytest.approx(0.05 + 3 * 0.06 - 2 * 0.1, abs=1e-15)


def test_norse_has_no_soft_reset(tmp_path):
    pytest.importorskip("norse")
    rsnn_zoo.export(small_network(reset="soft"), tmp_path / "a.nir", images=default_images(small_network(), 2))
    with pytest.raises(ExportError, match="never by subtraction"):
        load_nir(tmp_path / "a.nir", "norse")
    with pytest.raises(ExportError, match=r"unknown simulator 'brian'.*sinabs"):
        load_nir(tmp_path / "a.nir", "brian")


def test_a_foreign_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_nir(tmp_path / "a.nir")
    linear = nir.Linear(weight=torch.ones(1, 1).numpy())
    nir.write(tmp_path / "a.nir", nir.NIRGraph.from_list(linear))
    with pytest.raises(ExportError, match="not exported by rsnn_zoo"):
        read_nir(tmp_path / "a.nir")


def test_differences_are_counted():
    model = small_network()
    images = default_images(model, 10)
    ours = reference_pass(model, torch.float64)

    def theirs(x):
        logits, spikes = ours(x)
        return -logits, {name: ~fired for name, fired in spikes.items()}

    (check,) = compare(ours, [Judged(theirs, "torch", "float64", predictions_within=0.5)], images)
    assert check.differing_spikes == check.spikes > 0 and check.differing_predictions == 10 and not check.passes


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_file_and_report(tmp_path, capsys):
    path = tmp_path / "a.nir"
    command = ["export", "resnet20_digits_natural_t4", "--output", str(path), "--data", str(tmp_path / "none.npz")]
    assert commands.main(command) == 1 and "none.npz" in capsys.readouterr().err
    assert commands.main([*command[:-2], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["format"] == "nir" and all(check["passes"] for check in said["checks"])
    assert path.is_file() and (tmp_path / "a.nir.report.json").is_file()
    with pytest.raises(SystemExit, match="2"):
        commands.main(["export", "x", "--batch", "0"])


def test_digits_stand_for_images_of_any_size():
    model = family("resnet20", 2, img_size=32)
    images = default_images(model, 3)
    assert images.shape == (3, 2, 32, 32) and len(load_dataset("digits", "test")) == 360


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
@pytest.mark.parametrize("format", ["nir", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_full_disk_is_an_error_and_ends_no_process(format):
    """As torch's own writer does."""
    network = small_network()
    with pytest.raises(OSError, match="No space left"):
        FORMATS[format](network, Path("/dev/full"), 1, default_images(network))


def residual_network(num_classes, in_chans):
    """A network of convolutions with a shortcut, as a user registers it."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = (
                torch.nn.Conv2d(8, 8, 3, padding=1),
                torch.nn.BatchNorm2d(8),
                torch.nn.ReLU(),
            )

        def forward(self, x):
            return self.relu(self.norm(self.conv(x)) + x)

    return torch.nn.Sequential(
        *(torch.nn.Conv2d(in_chans, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AvgPool2d(2)),
        *(Block(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, num_classes)),
    )


def test_a_registered_network_that_was_converted_keeps_its_gains(tmp_path):
    torch.manual_seed(0)
    ann = ForeignNetwork("of_mine", residual_network, num_classes=5, in_chans=1, img_size=8).eval()
    images = torch.rand(16, 1, 8, 8)
    snn = rsnn_zoo.convert(ann, 4, images)
    gains = [module.gain.item() for module in snn.modules() if isinstance(module, Scaled)]
    assert len(gains) == 2 and all(abs(gain - 1) > 1e-3 for gain in gains)
    checks = checks_of(snn, tmp_path / "mine.nir", images)
    assert all(check.differing_spikes == 0 and check.spikes > 0 for check in checks.values())
