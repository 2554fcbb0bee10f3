"""Time worst-case-v2 against worst-case-v1 on the same validation images, block by block in turns.

    python scripts/benchmark_protocols.py resnet20_cifar10_trades_t4 --data cifar10.npz --output docs/costs/t4.json

Each protocol runs as evaluations run it: v1 with float32 gradients of the network, v2 with those of the folded one. The
file is written after each block, and the command goes on where it was stopped; a file holds one machine's blocks alone.
``scripts/readme_tables.py`` makes the table of docs/speed.md from docs/costs/*.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from _measured import keep, resumed
from _protocols import WAYS

import rsnn_zoo
from rsnn_zoo._utils.files import check_writable
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.cli._console import ERRORS
from rsnn_zoo.cli._process import set_up_process
from rsnn_zoo.evaluate_entry import data_of
from rsnn_zoo.report.report import STANDS

MACHINE = ("versions", "platform", "cpu", "gpu", "cores", "threads")


def measure(args: argparse.Namespace) -> None:
    """Run the blocks that are not in the file yet."""
    model = rsnn_zoo.create_model(args.model, pretrained=True)
    data = data_of(model, args.data, args.split, images=args.images)
    here = environment(torch.device("cpu"))
    asked = {"model": args.model, "dataset": data.info.name, "split": args.split, "eps": args.eps / 255}
    asked |= {"block": args.block, "machine": {key: here[key] for key in MACHINE}}
    found = resumed(args.output, asked, {"blocks": []})
    for start in range(len(found["blocks"]) * args.block, len(data), args.block):
        images, block = data.select(range(start, min(start + args.block, len(data)))), {}
        for protocol in sorted(WAYS, reverse=len(found["blocks"]) % 2 == 1):  # each is the first as often
            settings: dict[str, Any] = {"checks": 0, "precision": WAYS[protocol], "progress": True}
            (run,) = rsnn_zoo.evaluate(model, images, protocol, args.eps / 255, **settings).runs
            block[protocol] = {"seconds": run.seconds, "stands": [int(v) == STANDS for v in run.verdicts]}
        found["blocks"].append({"n": len(images), **block})
        keep(args.output, found)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="a published name")
    p.add_argument("--data", help="npz file or folder, where the data set is not embedded")
    p.add_argument("--split", default="validation", help="of the images (default: %(default)s)")
    p.add_argument("-n", "--images", type=int, default=200, help="the first so many (default: %(default)s)")
    p.add_argument("--block", type=int, default=50, help="images of one turn (default: %(default)s)")
    p.add_argument("--eps", type=float, default=8, help="radius in units of 1/255 (default: 8)")
    p.add_argument("--output", type=Path, required=True, help="JSON file; blocks in it are kept")
    return p


def main() -> None:
    args = parser().parse_args()
    check_writable(args.output)
    measure(args)


if __name__ == "__main__":
    set_up_process()
    try:
        main()
    except ERRORS as error:
        sys.exit(f"error: {error}")
