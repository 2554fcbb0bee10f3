"""The reference answers of the published research code, where the shared folder is there."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "parity"
needs_parity = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"reference answers are absent: {FOLDER}")
ARCHITECTURES = {  # their name to the key of SHAPES and the name of ours
    "resnet20": ("resnet20", "resnet20"),
    "wrn16_4": ("wrn16_4", "wrn16_4"),
    "vgg11_bn": ("vgg11", "vgg11"),
    "vgg16_bn": ("vgg16", "vgg16"),
    "vgg11_tin": ("vgg11_64", "vgg11"),
}

# The research code's own names and shapes, written out: what a checkpoint of that code holds.


def _norm(name, channels):
    return {f"{name}.{p}": (channels,) for p in ("weight", "bias", "running_mean", "running_var")}


def resnet20_shapes(num_classes):
    shapes = {"features.0.weight": (16, 3, 3, 3), **_norm("features.1", 16), "features.2.v_th": ()}
    channels = 16
    for i in range(9):
        block, out = f"features.{3 + i}", 16 << (i // 3)
        shapes |= {f"{block}.conv1.weight": (out, channels, 3, 3), f"{block}.conv2.weight": (out, out, 3, 3)}
        shapes |= {**_norm(f"{block}.bn1", out), **_norm(f"{block}.bn2", out), f"{block}.convex.comb": (2,)}
        shapes |= {f"{block}.act1.v_th": (), f"{block}.act2.v_th": ()}
        if out != channels:
            shapes |= {f"{block}.shortcut.0.weight": (out, channels, 1, 1), **_norm(f"{block}.shortcut.1", out)}
        channels = out
    return shapes | {"classifier.1.weight": (num_classes, 64), "classifier.1.bias": (num_classes,)}


def wrn16_4_shapes(num_classes):
    shapes, channels = {"features.0.weight": (16, 3, 3, 3)}, 16
    for i in range(6):
        block, out = f"features.{1 + i}", 64 << (i // 2)
        shapes |= {f"{block}.conv1.weight": (out, channels, 3, 3), f"{block}.conv2.weight": (out, out, 3, 3)}
        shapes |= {**_norm(f"{block}.bn1", channels), **_norm(f"{block}.bn2", out), f"{block}.convex.comb": (2,)}
        shapes |= {f"{block}.act1.v_th": (), f"{block}.act2.v_th": ()}
        if out != channels:
            shapes[f"{block}.convShortcut.weight"] = (out, channels, 1, 1)
        channels = out
    shapes |= {**_norm("features.7", 256), "features.8.v_th": ()}
    return shapes | {"classifier.1.weight": (num_classes, 256), "classifier.1.bias": (num_classes,)}


VGG_LAYERS = {  # convolutions and pools; position in the classifier to inputs
    "vgg11": ((64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512), {1: 8192, 4: 4096, 7: 4096}),
    "vgg16": (
        (64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512, "A"),
        {1: 512, 4: 4096, 7: 4096},
    ),
    "vgg11_64": ((64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512), {2: 512, 4: 4096}),
}


def vgg_shapes(layers, linear, num_classes):
    shapes, channels, position = {}, 3, 0
    for item in layers:
        if item == "A":
            position += 1
            continue
        shapes |= {f"features.{position}.weight": (item, channels, 3, 3), f"features.{position}.bias": (item,)}
        shapes |= {**_norm(f"features.{position + 1}", item), f"features.{position + 2}.v_th": ()}
        channels, position = item, position + 3
    *hidden, last = linear
    for position, inputs in linear.items():
        out = num_classes if position == last else 4096
        shapes |= {f"classifier.{position}.weight": (out, inputs), f"classifier.{position}.bias": (out,)}
    return shapes | {f"classifier.{position + 1}.v_th": () for position in hidden}


SHAPES = {"resnet20": resnet20_shapes, "wrn16_4": wrn16_4_shapes} | {
    name: partial(vgg_shapes, *layers) for name, layers in VGG_LAYERS.items()
}


def research_state_dict(architecture, num_classes, seed):
    """The weights with which the reference answers were computed, under the research code's names."""
    spec = importlib.util.spec_from_file_location("parity_weights", FOLDER / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    shapes = SHAPES[architecture](num_classes)
    return {name: torch.as_tensor(weights.draw(name, shape, seed)) for name, shape in shapes.items()}


def read(case):
    """The case's description and its tensors."""
    with safe_open(FOLDER / f"{case}.safetensors", "pt") as file:
        return json.loads(file.metadata()["case"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def relative_error(found, expected):
    """Largest absolute difference over largest absolute value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
