"""Measures which attacks fell what others leave standing, per second: what a protocol is chosen by.

    python scripts/choose_protocol.py resnet20_digits_trades_t4 --eps 32 --output docs/protocols/digits.json
    python scripts/choose_protocol.py resnet20_cifar10_trades_t4 --data cifar10.npz -n 64 --output docs/protocols/c.json
    python scripts/choose_protocol.py --table docs/protocols/*.json

On validation images the first attack runs; then each candidate attacks whatever that one left standing, all of them the
same images. So the file knows what any candidate adds to any others. The tables order them greedily: next comes the one
that fells most per second of what those before it leave. ``scripts/readme_tables.py`` puts them into
docs/worst_case_v2.md.
"""

import argparse
import sys
from pathlib import Path

import torch
from _candidates import table
from _measured import keep, resumed

import rsnn_zoo
from rsnn_zoo._utils.files import check_writable, load_json
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.cli._console import ERRORS
from rsnn_zoo.cli._process import set_up_process
from rsnn_zoo.evaluate_entry import data_of
from rsnn_zoo.report.report import STANDS

CANDIDATES = [
    *(f"apgd100-ce@{mode}" for mode in ("pcw-1", "pcw-2", "rate", "assg", "hart-1", "exp_d-1", "pdsg")),
    *(f"apgd100-dlr@{mode}" for mode in ("pcw-1", "hart-1", "exp_d-1")),
    *(f"apgd100-t{target}@pcw-1" for target in (1, 2, 3)),
    *("sapgd100@assg", "sapgd100@assg-0.35", "sapgd100@assg-0.49"),
    *("flips4000", "square1000", "transfer-apgd100-ce", "pgd20@ensemble"),
]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", help="a published name")
    p.add_argument("--data", help="npz file or folder, where the data set is not embedded")
    p.add_argument("--split", default="validation", help="of the images (default: %(default)s)")
    p.add_argument("-n", "--images", type=int, help="the first so many (default: all)")
    p.add_argument("--eps", type=float, default=8, help="radius in units of 1/255 (default: 8)")
    p.add_argument("--first", default="adaptive434", help="what the candidates come after (default: %(default)s)")
    p.add_argument("--candidates", nargs="+", default=CANDIDATES, help="terms of protocols")
    p.add_argument("--precision", default="float32", help="of the gradients (default: %(default)s)")
    p.add_argument("--output", type=Path, help="JSON file; written after each attack, and candidates in it are kept")
    p.add_argument("--table", type=Path, nargs="+", metavar="JSON", help="print tables of such files, and no more")
    return p


def measure(args: argparse.Namespace) -> None:
    """Run what is not in the file yet, and write it there."""
    model = rsnn_zoo.create_model(args.model, pretrained=True)
    data = data_of(model, args.data, args.split, images=args.images)
    asked = {"model": args.model, "dataset": data.info.name, "split": args.split, "n": len(data)}
    asked |= {"eps": args.eps / 255, "first": args.first, "precision": args.precision}
    found = resumed(args.output, asked, {"attacks": {}})
    left = data
    for attack in (args.first, *args.candidates):
        if attack not in found["attacks"]:
            settings = {"checks": 0, "batch_size": len(left), "precision": args.precision, "progress": True}
            run = rsnn_zoo.evaluate(model, left, attack, args.eps / 255, **settings).runs[0]
            fell = [int(at) for at, verdict in zip(left.index, run.verdicts, strict=True) if verdict >= 0]
            stand = [int(at) for at, verdict in zip(left.index, run.verdicts, strict=True) if verdict == STANDS]
            found["attacks"][attack] = {"felled": fell, "standing": stand, "seconds": run.seconds}
            keep(args.output, found | environment(torch.device("cpu")))
        if attack == args.first:
            standing = set(found["attacks"][attack]["standing"])
            left = data.select([row for row, at in enumerate(data.index.tolist()) if at in standing])


def main() -> None:
    set_up_process()
    p = parser()
    args = p.parse_args()
    if args.table:
        print("\n\n".join(table(load_json(path)) for path in args.table))
        return
    if not (args.model and args.output):
        p.error("name a model and an --output, or files after --table")
    check_writable(args.output)
    measure(args)


if __name__ == "__main__":
    try:
        main()
    except ERRORS as error:
        sys.exit(f"error: {error}")
