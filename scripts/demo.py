"""Load a published robust SNN, attack it, and compare the result with the published evidence.

    python scripts/demo.py

Loads resnet20_digits_trades_t4, verifies its weights, evaluates it with the PGD-20 ensemble of 19 backward modes at
8/255 on the first images of its evidence (``--images 360``: on the whole test split of the digits), prints the table,
plots the result with the published curve, and says whether the verdicts match the published evidence. Ends with an
error if more than 2 % of them differ.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import rsnn_zoo
from rsnn_zoo._utils.files import load_json
from rsnn_zoo.cli._console import ERRORS
from rsnn_zoo.cli._process import set_up_process
from rsnn_zoo.evaluate_entry import data_of, evaluate_entry, save_report
from rsnn_zoo.hub.resolve import entry_folder
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, published_index, published_settings
from rsnn_zoo.report.plots import plot_accuracy
from rsnn_zoo.report.report import Report, in_255
from rsnn_zoo.spec.config import EVIDENCE
from rsnn_zoo.verify_entry import TOLERANCE


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet20_digits_trades_t4", help="a published name (default: %(default)s)")
    p.add_argument("--eps", type=float, nargs="+", default=[8], help="radii in units of 1/255 (default: 8)")
    p.add_argument("-n", "--images", type=int, default=128, help="the first so many of them (default: %(default)s)")
    p.add_argument("--data", help="npz file or folder, where the data set is not embedded")
    p.add_argument("--output", type=Path, default=Path("results"), help="folder for report and plot")
    return p


def published_runs(evidence: dict[str, Any], name: str, eps: list[float]) -> list[dict[str, Any]]:
    """The runs of the evidence's first protocol at these radii."""
    wanted = [round(radius / 255, 9) for radius in eps]
    first = [run for run in evidence["runs"] if run["protocol"] == evidence["runs"][0]["protocol"]]
    runs = [run for run in first if round(run["eps"], 9) in wanted]
    if len(runs) < len(wanted):
        there = ", ".join(in_255(run["eps"]) for run in first)
        raise ValueError(f"the evidence of {name} holds {first[0]['protocol']} at eps {there}: choose among these")
    return runs


def compare(runs: list[dict[str, Any]], report: Report, evidence: dict[str, Any]) -> None:
    """Say how many verdicts are those of the evidence; end with an error where too few are."""
    pairs = [
        (found == int(published))
        for run, one in zip(runs, report.runs, strict=True)
        for found, published in zip(one.verdicts, run["verdicts"].split()[: len(report.correct)], strict=True)
    ]
    same = sum(pairs)
    print(f"\n  {same} of {len(pairs)} verdicts equal the published evidence")
    if same == len(pairs):
        print("  The published evidence is reproduced exactly.")
    elif same >= (1 - TOLERANCE) * len(pairs):
        here = report.environment.get("cpu")
        print(f"  Reproduced but for roundings: it was made on {evidence.get('cpu')}, this is {here}.")
    else:
        sys.exit("  This does NOT reproduce the published evidence.")


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    model = rsnn_zoo.create_model(args.model, pretrained=True)
    print(f"{args.model}: weights verified, sha256 {model.weights_sha256[:16]}...")
    evidence = load_json(entry_folder(args.model) / EVIDENCE, MAX_EVIDENCE_BYTES)
    runs = published_runs(evidence, args.model, args.eps)
    attack = {runs[0]["protocol"]: [run["eps"] for run in runs]}
    data = data_of(model, args.data, evidence["split"], images=published_index(evidence)).select(args.images)
    settings = published_settings(evidence) | {"checks": 0, "batch_size": len(data)}  # the verdicts, in full chunks
    report = evaluate_entry(model, attack, data=data, with_energy=False, progress=True, **settings)
    path = args.output / f"{args.model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_report(report, path)
    print(f"\n{report.table()}\n\n  report: {path}")
    try:
        here = report.to_json() | {"model": "this run"}
        print(f"  plot:   {plot_accuracy([evidence, here], path.with_suffix('.png'))}")
    except ImportError as error:
        print(f"  no plot: {error}")
    print(f"  {time.monotonic() - started:.0f} s")
    compare(runs, report, evidence)


if __name__ == "__main__":
    set_up_process()
    try:
        run(parser().parse_args())
    except ERRORS as error:
        sys.exit(f"error: {error}")
