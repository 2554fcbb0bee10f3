"""Convert a trained ANN into an SNN, without fine-tuning.

    python scripts/convert.py resnet20_digits_trades_t4
    python scripts/convert.py resnet20_cifar10_trades_t8 --ann runs/mine --set conversion.scale=0.5

Without --ann the ANN is that of the same name in runs/, or else the published one. The result is an entry, as that of
train.py.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _training import main, parser, resolve

import rsnn_zoo
from rsnn_zoo.data import ImageData
from rsnn_zoo.models import Network
from rsnn_zoo.publish import save_pretrained
from rsnn_zoo.recipe import Recipe
from rsnn_zoo.registry import create_model


def add_ann(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the argument that says which ANN."""
    parser.add_argument("--ann", help="folder or name of the trained ANN")
    return parser


def converted(args: argparse.Namespace, recipe: Recipe, data: ImageData) -> tuple[Network, dict[str, Any]]:
    """The SNN, and what is to be recorded of its making."""
    if args.name.timesteps is None:
        raise ValueError(f"{args.name} is an ANN: name the SNN to be made, such as {_of(args, 4)}")
    own = Path("runs") / _of(args, None)
    source = args.ann or (str(own) if (own / "config.json").is_file() else _of(args, None))
    source = f"local-dir:{source}" if Path(source).is_dir() else source
    ann = create_model(source, pretrained=True).to(args.device)
    images = data.pixels(slice(0, recipe.conversion.images)).to(args.device)
    snn = rsnn_zoo.convert(ann, images=images, **recipe.conversion.arguments())
    about = {
        "name": str(args.name),
        "recipe": recipe.name,
        "ann": ann.pretrained_name,
        "ann_sha256": ann.weights_sha256,
    }
    return snn, about | {"conversion": asdict(recipe.conversion)}


def _of(args: argparse.Namespace, timesteps: int | None) -> str:
    return str(replace(args.name, timesteps=timesteps))


def run() -> None:
    """Convert what the command line names."""
    args = add_ann(parser(__doc__)).parse_args()
    recipe, data, _ = resolve(args)
    snn, about = converted(args, recipe, data)
    save_pretrained(snn.cpu(), args.output, name=str(args.name), training=about)
    print(f"{args.name}: saved in {args.output}")


if __name__ == "__main__":
    main(run)
