"""Load a published robust SNN, attack it, and compare the result with the published evidence.

    python scripts/demo.py

Loads resnet20_digits_trades_t4, verifies its weights, evaluates it with the PGD-20 ensemble of 19 backward modes at
8/255 on the images of its evidence (the whole test split of the digits), prints the table, plots the result with the
published curve, and says whether the verdicts match the published evidence. Ends with an error if more than 2 % of them
differ.
"""

import argparse
import sys
import time
from pathlib import Path

from _training import main

import rsnn_zoo
from rsnn_zoo._utils.files import load_json
from rsnn_zoo.hub.publish import EVIDENCE
from rsnn_zoo.hub.resolve import entry_folder
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, published_index
from rsnn_zoo.report.plots import plot_accuracy
from rsnn_zoo.report.report import in_255
from rsnn_zoo.verify_entry import TOLERANCE


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_digits_trades_t4", help="a published name (default: %(default)s)")
    parser.add_argument("--eps", type=float, nargs="+", default=[8], help="radii in units of 1/255 (default: 8)")
    parser.add_argument("--data", help="npz file or folder, where the data set is not embedded")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for report and plot")
    args = parser.parse_args()
    started = time.monotonic()

    model = rsnn_zoo.create_model(args.model, pretrained=True)
    print(f"{args.model}: weights verified, sha256 {model.weights_sha256[:16]}...")
    evidence = load_json(entry_folder(args.model) / EVIDENCE, MAX_EVIDENCE_BYTES)
    dataset = evidence["dataset"]
    data = rsnn_zoo.load_dataset(args.data or dataset, evidence["split"], dataset=dataset)
    data = data.select(published_index(evidence))
    wanted = [round(eps / 255, 9) for eps in args.eps]
    first = evidence["runs"][0]["protocol"]
    runs = [run for run in evidence["runs"] if run["protocol"] == first and round(run["eps"], 9) in wanted]
    if len(runs) < len(wanted):
        published = ", ".join(in_255(run["eps"]) for run in evidence["runs"] if run["protocol"] == first)
        sys.exit(f"the evidence of {args.model} holds {first} at eps {published}: choose among these")
    report = rsnn_zoo.evaluate(
        model,
        data,
        first,
        [run["eps"] for run in runs],
        **evidence["settings"] | {"checks": 0},  # the verdicts alone
        batch_size=len(data),  # fewer half-filled chunks; no influence on the verdicts
        progress=True,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    report.save(args.output / f"{args.model}.json")
    here = report.to_json() | {"model": "this run"}
    print(f"\n{report.table()}\n\n  report: {args.output / args.model}.json")
    try:
        print(f"  plot:   {plot_accuracy([evidence, here], args.output / f'{args.model}.png')}")
    except ImportError as error:
        print(f"  no plot: {error}")

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
        print(f"  Reproduced but for roundings: it was made on {evidence.get('cpu')}, this is {here['cpu']}.")
    else:
        sys.exit("  This does NOT reproduce the published evidence.")


if __name__ == "__main__":
    main(run)
