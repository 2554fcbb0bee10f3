"""Convert a trained ANN into an SNN, without fine-tuning.

    python scripts/convert.py resnet20_digits_trades_t4
    python scripts/convert.py resnet20_cifar10_trades_t8 --ann runs/mine --set conversion.scale=0.5

Without --ann, the ANN is the one of the same name in runs/, or else the published one. The result is an entry, like
that of train.py. For your own network, or timm's, write a Python file that registers it, and pass it with the weights:

    @rsnn_zoo.register_architecture("resnet18")
    def resnet18(num_classes, in_chans):
        return timm.create_model("resnet18", num_classes=num_classes, in_chans=in_chans)

    python scripts/convert.py resnet18_cifar10_at_t4 --plugin mine.py --ann weights.pth
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _training import main, parsed, parser, resolve

import rsnn_zoo
from rsnn_zoo._utils.provenance import peak_memory
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.hub.publish import save_pretrained
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import NotPublishedError
from rsnn_zoo.hub.weights import check_state_dict, serialize
from rsnn_zoo.models import ForeignNetwork, Network
from rsnn_zoo.models.state_files import read_state_dict
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import ModelName, is_model
from rsnn_zoo.training.recipe import Recipe


def add_ann(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the argument that says which ANN."""
    parser.add_argument(
        "--ann", help="the trained ANN: a folder, a name, or a file of its weights (.safetensors, .pth)"
    )
    parser.add_argument("--key", help="of --ann FILE: under which the state dict is, where it holds several")
    return parser


def converted(args: argparse.Namespace, recipe: Recipe, data: ImageData) -> tuple[Network, Network, dict[str, Any]]:
    """The SNN, its ANN, and what is to be recorded of its making."""
    if args.name.timesteps is None:
        raise ValueError(f"{args.name} is an ANN: name the SNN to be made, such as {_of(args, 4)}")
    ann = trained_ann(args).to(args.device)
    images = data.pixels(slice(0, recipe.conversion.images)).to(args.device)
    how = recipe.neuron.arguments() | recipe.conversion.arguments()
    snn = rsnn_zoo.convert(ann, args.name.timesteps, images, **how)
    about = {
        "name": str(args.name),
        "recipe": recipe.name,
        "data": asdict(recipe.data),
        "ann": ann.pretrained_name,
        "ann_sha256": ann.weights_sha256,
    }
    return snn, ann, about | {"neuron": asdict(recipe.neuron), "conversion": asdict(recipe.conversion)}


def trained_ann(args: argparse.Namespace) -> Network:
    """The ANN that --ann names, or that of the SNN's name."""
    own = Path("runs") / _of(args, None)
    source = args.ann or (str(own) if (own / "config.json").is_file() else _of(args, None))
    if not Path(source).is_file() and Path(source).suffix not in (".safetensors", ".pth", ".pt"):
        try:
            ann = create_model(f"local-dir:{source}" if Path(source).is_dir() else source, pretrained=True)
        except NotPublishedError as error:
            raise NotPublishedError(f"{error}. Or give the ANN: --ann FILE_OR_FOLDER") from None
        check_ann(ann, args.name)
        return ann
    ann = create_model(_of(args, None))
    own = ann.network if isinstance(ann, ForeignNetwork) else ann
    state = read_state_dict(source, key=args.key, names=own.state_dict())
    check_state_dict(state, own.state_dict(), source)
    own.load_state_dict(state)
    ann.pretrained_name, ann.weights_sha256 = Path(source).name, serialize(ann, "")[1].sha256
    return ann


def check_ann(ann: Network, name: ModelName) -> None:
    """Refuses an ANN that is another than the name of the SNN says: its card would tell a falsehood.

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


def _of(args: argparse.Namespace, timesteps: int | None) -> str:
    return str(replace(args.name, timesteps=timesteps))


def run() -> None:
    """Convert what the command line names."""
    p = add_ann(parser(__doc__))
    p.add_argument("--dry-run", action="store_true", help="show the resolved recipe and the thresholds, write nothing")
    args = parsed(p)
    recipe, data, _ = resolve(args)
    if not args.dry_run and (args.output / "run.json").exists():
        raise FileExistsError(f"{args.output} holds a fine-tuned network: name another folder, --output FOLDER")
    started = time.monotonic()
    snn, _, about = converted(args, recipe, data)
    if args.dry_run:
        thresholds = {name: round(neuron.threshold.item(), 4) for name, neuron in snn.neurons()}
        print(json.dumps({**about, "thresholds": thresholds}, indent=2))
        print(f"{time.monotonic() - started:.1f} s, {peak_memory(args.device) / 2**20:.0f} MiB")
        return
    save_pretrained(snn.cpu(), args.output, name=str(args.name), training=about)
    print(f"{args.name}: saved in {args.output}")


if __name__ == "__main__":
    main(run)
