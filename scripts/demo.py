"""The main job on real images: load a published robust SNN, attack it, hold the answer against its evidence.

    python scripts/demo.py

Loads resnet20_digits_trades_t4, verifies its weights, evaluates it with the PGD-20 ensemble of 19 backward modes on the
whole test split of the digits, shows the table and a plot, and says whether the verdicts are those of the published
evidence. Ends with an error where more than 2 % of them are not.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import rsnn_zoo
from rsnn_zoo.files import load_json
from rsnn_zoo.hub import entry_folder
from rsnn_zoo.plots import plot_accuracy
from rsnn_zoo.publish import EVIDENCE

TOLERANCE = 0.02
"""Another processor rounds otherwise, and a spike that hangs on a rounding flips."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_digits_trades_t4", help="a published name (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of report and plot")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.monotonic()

    model = rsnn_zoo.create_model(args.model, pretrained=True)
    print(f"{args.model}: weights verified, sha256 {model.weights_sha256[:16]}...")
    evidence = load_json(entry_folder(args.model) / EVIDENCE)
    data = rsnn_zoo.load_dataset(evidence["dataset"], evidence["split"])
    runs = evidence["runs"]
    report = rsnn_zoo.evaluate(
        model, data, runs[0]["protocol"], [run["eps"] for run in runs], **evidence["settings"], progress=True
    )
    args.output.mkdir(parents=True, exist_ok=True)
    report.save(args.output / f"{args.model}.json")
    plot = plot_accuracy([report.to_json()], args.output / f"{args.model}.png")
    print(f"\n{report.table()}\n\n  report: {args.output / args.model}.json\n  plot:   {plot}")

    pairs = [
        (found == int(published))
        for run, one in zip(runs, report.runs, strict=True)
        for found, published in zip(one.verdicts, run["verdicts"].split(), strict=True)
    ]
    same = sum(pairs)
    print(f"\n  {same} of {len(pairs)} verdicts equal the published evidence ({time.monotonic() - started:.0f} s)")
    if same == len(pairs):
        print("  The published evidence is reproduced exactly.")
    elif same >= (1 - TOLERANCE) * len(pairs):
        here, there = report.environment["cpu"], evidence.get("cpu")
        print(f"  Reproduced but for roundings: it was made on {there}, this is {here}.")
    else:
        sys.exit("  This does NOT reproduce the published evidence.")


if __name__ == "__main__":
    main()
