"""Networks from elsewhere as architectures of the zoo: from timm's or your own ANN to a published robust SNN."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision

import rsnn_zoo
from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.neurons.integrate_fire import Rate

ROOT = Path(__file__).resolve().parents[2]


class Flattened(torch.nn.Module):
    """As many write it: by a view, which maps in the layout channels_last do not bear."""

    def forward(self, x):
        return x.view(x.size(0), -1)


class Unscaled(torch.nn.Module):
    """Undoes a normalisation; none of its constants is in the state."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("scale", torch.full((channels, 1, 1), 0.5), persistent=False)
        self.shift = torch.full((channels, 1, 1), 0.25)

    def forward(self, x):
        return x * self.scale + self.shift


BUILDERS = {
    "timm_resnet18": lambda num_classes, in_chans: timm.create_model(
        "resnet18", num_classes=num_classes, in_chans=in_chans
    ),
    "shared_relu": lambda num_classes, in_chans: torchvision.models.resnet18(num_classes=num_classes),
    "small": lambda num_classes, in_chans: torch.nn.Sequential(
        Unscaled(in_chans),
        torch.nn.Conv2d(in_chans, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.ReLU(),
        Flattened(),
        torch.nn.Linear(8 * (30 if in_chans == 3 else 6) ** 2, num_classes),
    ),
}


@pytest.fixture
def registered(eager, forget_architectures):
    for name, build in BUILDERS.items():
        rsnn_zoo.register_architecture(name)(build)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_converted_one_comes_back_from_its_folder_as_it_was(registered, tmp_path, images, name):
    torch.manual_seed(0)
    ann = rsnn_zoo.create_model(f"{name}_cifar10_at_ann")
    snn = rsnn_zoo.convert(
        ann, 3, images, calibration_timesteps=10, method="published", reset="soft", leak=0.9, initial=0.5
    )
    rsnn_zoo.save_pretrained(snn, tmp_path, name=f"{name}_cifar10_at_t3")
    loaded = rsnn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert (loaded.timesteps, loaded.reset, loaded.leak, loaded.initial) == (3, "soft", 0.9, 0.5)
    assert [neuron.repeated for _, neuron in loaded.neurons()] == [neuron.repeated for _, neuron in snn.neurons()]
    expected = snn(images)
    assert torch.equal(loaded(images), expected) and expected.abs().max() > 0
    assert loaded(images, per_step=True).shape == (3, 4, 10)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_ann_is_the_network_behind_the_normalisation(registered, images, name):
    torch.manual_seed(0)
    ann = rsnn_zoo.create_model(f"{name}_cifar10_at_ann")
    torch.manual_seed(0)
    own = BUILDERS[name](10, 3).eval()
    own.load_state_dict(ann.network.state_dict())
    info = rsnn_zoo.spec.datasets.DATASETS["cifar10"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    assert torch.equal(ann(images), own((images - mean) / std))


def test_it_is_of_the_grid_and_can_be_attacked(registered, images):
    name = "small_cifar10_trades_t4"
    assert rsnn_zoo.is_model(name) and name in rsnn_zoo.list_models("small_*")
    assert rsnn_zoo.create_model("small_digits_at_t2").in_chans == 1
    snn = rsnn_zoo.create_model(name, threshold=0.1)
    snn.timesteps = 2
    for precision in ("float32", "bfloat16"):
        gradient, logits = InputGradient(snn, Rate(), precision)(images, torch.arange(4))
        assert gradient.shape == images.shape and gradient.abs().sum() > 0 and logits.shape == (4, 10)
    with pytest.raises(ValueError, match="got \\(4, 3, 31, 32\\)"):
        snn(images[:, :, 1:])


def test_a_definition_may_be_run_again(registered):
    """As the cell of a notebook is."""
    for width in (4, 6):
        scope = {"torch": torch, "rsnn_zoo": rsnn_zoo, "width": width, "__name__": "notebook"}
        exec(CELL, scope)
        assert rsnn_zoo.create_model("cell_digits_at_ann").network[0].out_channels == width


CELL = """
@rsnn_zoo.register_architecture("cell")
def cell(num_classes, in_chans):
    layers = torch.nn.Conv2d(in_chans, width, 3), torch.nn.ReLU(), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(36 * width, num_classes))
"""


def test_what_cannot_be_registered_or_built_says_why(registered, images):
    for name, message in (("resnet20", "already registered"), ("ResNet", "lower-case"), ("a__b", "single underscores")):
        with pytest.raises(ValueError, match=message):
            rsnn_zoo.register_architecture(name)
    with pytest.raises(ValueError, match="already registered"):
        rsnn_zoo.register_architecture("small")(BUILDERS["shared_relu"])
    rsnn_zoo.register_architecture("gelu")(lambda num_classes, in_chans: torch.nn.Sequential(torch.nn.GELU()))
    with pytest.raises(ValueError, match=r"0 \(GELU\) applies gelu.*replace it by nn.ReLU"):
        rsnn_zoo.create_model("gelu_cifar10_at_ann")
    with pytest.raises(ValueError, match="average pooling there"):
        rsnn_zoo.convert(rsnn_zoo.create_model("small_cifar10_at_ann"), 2, images, max_pool="average")


PLUGIN = """
import torch, rsnn_zoo

@rsnn_zoo.register_architecture("mine")
def mine(num_classes, in_chans):
    layers = [torch.nn.Conv2d(in_chans, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(8 * 36, num_classes))
"""


@pytest.mark.slow
def test_from_ones_own_weights_to_a_robust_snn_by_the_scripts(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    scope = {}
    exec(PLUGIN.replace('@rsnn_zoo.register_architecture("mine")', ""), scope)
    torch.manual_seed(0)
    network = scope["mine"](10, 1)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "ann.pth")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RSNN_ZOO_COMPILE": "0", "PYTHONPATH": str(ROOT)}

    def script(name, *arguments):
        command = [sys.executable, str(ROOT / "scripts" / name), *arguments, "--plugin", "mine.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = ["--ann", "ann.pth", "--set", "conversion.calibration_timesteps=10"]
    script("convert.py", "mine_digits_trades_t2", *few, "--output", "converted")
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config["architecture"] == "rsnn_mine" and config["rsnn_zoo"]["training"]["ann"] == "ann.pth"
    out = script("finetune.py", "mine_digits_trades_t2", *few, "--set", "snn.epochs=2", "--quiet")
    assert "mine_digits_trades_t2: epoch" in out
    model = ["--model", "local-dir:runs/mine_digits_trades_t2", "--data", "digits"]
    out = script("evaluate.py", *model, "-n", "16", "--attack", "pgd3", "--output", "results")
    assert "pgd3" in out and list((tmp_path / "results").glob("*.json"))
    ann = ["--model", "mine_digits_trades_ann", "--weights", "ann.pth"]  # of the network alone, as for convert.py
    assert "pgd3" in script("evaluate.py", *ann, "-n", "16", "--attack", "pgd3", "--output", "results")
