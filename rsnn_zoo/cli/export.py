"""``rsnn-zoo export``: a network for other simulators, runtimes and hardware."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rsnn_zoo.cli._arguments import MODEL, add_plugin
from rsnn_zoo.cli._console import Outcome

HELP = "write a network for other simulators, runtimes and hardware, and check the file"
EXAMPLE = "rsnn-zoo export resnet20_digits_trades_t4 --format onnx --batch 1"

_SUFFIXES = {"nir": "nir", "onnx": "onnx", "torch": "pt2"}


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("name", help=MODEL)
    one.add_argument("--format", choices=(*_SUFFIXES,), default="nir", help="(%(default)s)")
    one.add_argument("--batch", type=_batch, default="dynamic", metavar="N", help="fixed size of a batch (%(default)s)")
    one.add_argument("--output", type=Path, help="the file (NAME.nir, NAME.onnx or NAME.pt2 here)")
    one.add_argument("--data", help="npz file whose test images check the file, in place of the embedded digits")
    one.add_argument("-n", "--images", type=int, default=256, metavar="N", help="that many of them (%(default)s)")
    add_plugin(one)


def run(args: argparse.Namespace) -> Outcome:
    """Export what is named."""
    import rsnn_zoo

    model = rsnn_zoo.create_model(args.name, pretrained=True)
    images = None
    if args.data:
        images = rsnn_zoo.load_dataset(args.data, "test").pixels(slice(0, args.images))
    path = args.output or Path(f"{model.pretrained_name}.{_SUFFIXES[args.format]}")
    report = rsnn_zoo.export(model, path, args.format, batch=args.batch, images=images)
    return str(report), asdict(report), 0


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'dynamic' nor a number of images, such as 1")
    return int(text)
