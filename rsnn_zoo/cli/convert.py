"""``rsnn-zoo convert``: a trained ANN into an SNN."""

from __future__ import annotations

import argparse
import json
import time

from rsnn_zoo.cli._console import Outcome
from rsnn_zoo.cli._training import add_making, planned
from rsnn_zoo.spec.config import CONFIG

HELP = "convert a trained ANN into an SNN, without fine-tuning"
EXAMPLE = """\
rsnn-zoo convert resnet20_digits_trades_t4
  rsnn-zoo convert resnet20_cifar10_trades_t8 --ann runs/mine --set conversion.scale=0.5

The recipe says how; what rsnn_zoo.convert does in Python, which keeps more of the ANN, is

  rsnn-zoo convert NAME --set "conversion.method='absorb'" --set "neuron.reset='soft'" --set neuron.initial=0.5

Without --ann, the ANN is the one of the same name in runs/, or else the published one. The result is an entry, like
that of rsnn-zoo train. For your own network, or timm's, write a Python file that registers it, and pass it with the
weights:

    @rsnn_zoo.register_architecture("resnet18")
    def resnet18(num_classes, in_chans):
        return timm.create_model("resnet18", num_classes=num_classes, in_chans=in_chans)

  rsnn-zoo convert resnet18_cifar10_at_t4 --plugin mine.py --ann weights.pth"""


def add_ann(one: argparse.ArgumentParser) -> None:
    """Add the argument that says which ANN."""
    about = "the trained ANN: a folder, a name, or a file of its weights (.safetensors, .pth)"
    one.add_argument("--ann", help=about)
    one.add_argument("--key", help="of --ann FILE: under which the state dict is, where it holds several")


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    add_making(one)
    add_ann(one)
    one.add_argument("--dry-run", action="store_true", help="show the recipe and the thresholds, write nothing")


def run(args: argparse.Namespace) -> Outcome:
    """Convert what is named."""
    from rsnn_zoo._utils.provenance import peak_memory
    from rsnn_zoo.cli._ann import converted
    from rsnn_zoo.hub.saving import save_pretrained
    from rsnn_zoo.hub.shards import published_dtype

    recipe, data, _ = planned(args)
    if not args.dry_run and (args.output / "run.json").exists():
        raise FileExistsError(f"{args.output} holds a fine-tuned network: name another folder, --output FOLDER")
    foreign = args.output.is_dir() and any(args.output.iterdir()) and not (args.output / CONFIG).exists()
    if not args.dry_run and foreign:
        raise FileExistsError(f"{args.output} holds files that are no entry's: name another folder, --output FOLDER")
    started = time.monotonic()
    snn, _, about = converted(args, recipe, data)
    if args.dry_run:
        thresholds = {name: round(neuron.threshold.item(), 4) for name, neuron in snn.neurons()}
        content = {**about, "thresholds": thresholds}
        spent = f"{time.monotonic() - started:.1f} s, {peak_memory(args.device) / 2**20:.0f} MiB"
        return f"{json.dumps(content, indent=2)}\n{spent}", content, 0
    save_pretrained(snn.cpu(), args.output, name=str(args.name), training=about, dtype=published_dtype(snn))
    return f"{args.name}: saved in {args.output}", {"name": str(args.name), "folder": str(args.output)}, 0
