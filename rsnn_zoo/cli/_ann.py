"""The trained ANN that an SNN is made from, and the SNN that conversion makes of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.folders import current
from rsnn_zoo.cli._weights import load_file
from rsnn_zoo.conversion.conversion import convert
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import NotPublishedError
from rsnn_zoo.hub.shards import packed
from rsnn_zoo.models import Network
from rsnn_zoo.spec.config import CONFIG
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import ModelName, is_model
from rsnn_zoo.training.recipe import Recipe

__all__ = ["converted", "trained_ann"]


def converted(args: argparse.Namespace, recipe: Recipe, data: ImageData) -> tuple[Network, Network, dict[str, Any]]:
    """Make the SNN; give it, its ANN, and what is to be recorded of its making.

    Raises:
        ValueError: If the name is that of an ANN, or the ANN is another than the name says.
        OSError: If the ANN cannot be read.
    """
    name: ModelName = args.name
    if name.timesteps is None:
        raise ValueError(f"{name} is an ANN: name the SNN to be made, such as {replace(name, timesteps=4)}")
    ann = trained_ann(name, args.ann, args.key).to(args.device)
    images = data.pixels(slice(0, recipe.conversion.images)).to(args.device)
    how = recipe.neuron.arguments() | recipe.conversion.arguments()
    snn = convert(ann, name.timesteps, images, **how)
    about = {
        "name": str(name),
        "recipe": recipe.name,
        "data": asdict(recipe.data),
        "ann": ann.pretrained_name,
        "ann_sha256": ann.weights_sha256,
    }
    return snn, ann, about | {"neuron": asdict(recipe.neuron), "conversion": asdict(recipe.conversion)}


def trained_ann(name: ModelName, source: str | None, key: str | None = None) -> Network:
    """Load the ANN of an SNN's name.

    Args:
        name: Of the SNN.
        source: A folder, a name or a file of weights; by default the run of that name in ``runs/``, or what is
            published.
        key: Under which the state dict is, in a file that holds several.

    Raises:
        NotPublishedError: If nobody published it.
        OSError: If a file cannot be read.
        ValueError: If it is another ANN than the name of the SNN says.
    """
    own = str(replace(name, timesteps=None))
    run = Path("runs") / own
    source = source or (str(run) if current(run, CONFIG).is_file() else own)
    if not Path(source).is_file() and Path(source).suffix not in (".safetensors", ".pth", ".pt"):
        try:
            ann = create_model(f"local-dir:{source}" if Path(source).is_dir() else source, pretrained=True)
        except NotPublishedError as error:
            raise NotPublishedError(f"{error}. Or give the ANN: --ann FILE_OR_FOLDER") from None
        check_ann(ann, name)
        return ann
    ann = create_model(own)
    load_file(ann, source, key)
    ann.pretrained_name, ann.weights_sha256 = Path(source).name, packed(ann)[1].sha256
    return ann


def check_ann(ann: Network, name: ModelName) -> None:
    """Refuse an ANN that is another than the name of the SNN says: its card would tell a falsehood.

    Raises:
        ValueError: If it is.
    """
    found = {"architecture": ann.architecture}
    if is_model(ann.pretrained_name):
        own = ModelName.parse(ann.pretrained_name)
        found |= {"dataset": own.dataset, "objective": own.objective}
    for what, value in found.items():
        if value != (wanted := getattr(name, what)):
            raise ValueError(
                f"{name} says that its ANN has the {what} {wanted}, and that of {ann.pretrained_name} is {value}: name "
                f"the SNN {replace(name, **found)}, or give another ANN"
            )
    if ann.num_classes != (classes := DATASETS[name.dataset].num_classes):
        raise ValueError(f"{name} is of {classes} classes and its ANN of {ann.num_classes}: give another ANN")
