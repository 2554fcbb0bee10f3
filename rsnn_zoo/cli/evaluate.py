"""``rsnn-zoo evaluate``: robust accuracy of models, with evidence that ``rsnn-zoo push`` accepts."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rsnn_zoo._utils.files import check_writable, replacing, to_json
from rsnn_zoo.cli._arguments import (
    MODEL,
    add_data,
    add_device,
    add_plugin,
    add_precision,
    add_split,
    add_weights,
    best_device,
    radii_of,
)
from rsnn_zoo.cli._console import Outcome, say
from rsnn_zoo.hub.catalog import list_models

HELP = "attack models and report their robust accuracy"
EXAMPLE = """\
rsnn-zoo evaluate local-dir:my_snn --attack ensemble-pgd20=2,4,8,16 worst-case=8 -n 1000 \\
      --output my_snn/evaluation.json
  rsnn-zoo evaluate 'resnet20_digits_*' --eps 2 4 8 16 32 --output results --results-file results/digits.csv
  rsnn-zoo evaluate resnet20_cifar10_at_t4 --weights FILE.pth --neuron reset=soft initial=0.5 --data cifar10.npz -n 256
  torchrun --nproc-per-node 4 -m rsnn_zoo.cli evaluate resnet20_digits_trades_t4 --attack worst-case --output results

With an --output that is a folder, each model's report is written to OUTPUT/NAME.json and NAME.csv. Verdicts are kept
beside the report as they are found, so a killed evaluation resumes when you repeat the command, with any number of
processes. An existing report of another evaluation is renamed to NAME.1.json, NAME.2.json, ... --results-file has one
row for each model, weights, images, seed and precision, written when the model is finished; further attacks add
columns. Compare the report of a published model with its evidence, hub_configs/NAME/evaluation.json. A report that is
written as evaluation.json into the folder of an entry is its evidence, which rsnn-zoo push asks for."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("names", nargs="*", metavar="NAME", help=f"{MODEL}; or wildcards")
    one.add_argument("--model", nargs="+", default=[], metavar="NAME", help="the same as NAME")
    about = (
        "protocols: quick, adaptive, worst-case, pgd20@rate+square1000 ...; each may have radii of its own in place of "
        "--eps, as in ensemble-pgd20=2,4,8,16 worst-case=8 (ensemble-pgd20)"
    )
    one.add_argument("--attack", nargs="+", default=["ensemble-pgd20"], metavar="PROTOCOL", help=about)
    one.add_argument("--eps", type=float, nargs="+", default=[8], metavar="K", help="radii in units of 1/255 (8)")
    one.add_argument("-n", "--images", type=int, metavar="N", help="only the first N images")
    one.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    one.add_argument("--batch-size", type=int, default=256, help="most images between two writes of the state")
    one.add_argument("--chunk", type=int, help="images per forward pass (default: by image size and device)")
    add_precision(one)
    about = "also find the accuracy without attack on the whole split, however few images are attacked"
    one.add_argument("--clean-on-all", action="store_true", help=about)
    one.add_argument("--draws", type=int, help="passes to average over (default: 16 for a random model, else 1)")
    one.add_argument("--checks", type=int, default=64, help="images that the sanity flags attack (%(default)s)")
    _add_outputs(one)
    add_weights(one)
    add_split(one)
    add_data(one)
    add_device(one)
    add_plugin(one)


def _add_outputs(one: argparse.ArgumentParser) -> None:
    about = (
        "file for the report of one model, ending in .json, or folder for those of several; repeat the command to "
        "resume; the report of another evaluation is renamed (default: only print it)"
    )
    one.add_argument("--output", type=Path, help=about)
    one.add_argument("--results-file", type=Path, help="table of all models, .csv or .json; existing rows are kept")
    about = "save NAME.adversarial.safetensors beside the report, for rsnn-zoo verify"
    one.add_argument("--adversarial", action="store_true", help=about)
    about = "save NAME.html beside the report, a page with a figure (needs matplotlib)"
    one.add_argument("--html", action="store_true", help=about)
    about = "save NAME.robustbench.json beside the report, for the first radius"
    one.add_argument("--robustbench", action="store_true", help=about)
    one.add_argument("--plot", type=Path, help="figure of all models, by radius, attack and steps (needs matplotlib)")


@dataclass(frozen=True)
class _Files:
    """The files of one report.

    Attributes:
        report: The JSON.
        alone: Whether nobody asked for a CSV too.
    """

    report: Path
    alone: bool

    def ending(self, ending: str) -> Path:
        """Give the file beside the report that ends so."""
        return self.report.with_suffix(f".{ending}")

    @property
    def others(self) -> list[Path]:
        """Further files that the report may have."""
        return [self.ending(one) for one in ("csv", "html", "robustbench.json", "adversarial.safetensors")]

    @property
    def state(self) -> Path:
        """The verdicts so far."""
        return self.report.with_name(f"{self.report.name}.partial") if self.alone else self.ending("partial")

    @property
    def examples(self) -> Path:
        """The adversarial examples of an evaluation that has not ended."""
        return self.ending("adversarial.partial")


def run(args: argparse.Namespace) -> Outcome:
    """Evaluate one model after another."""
    names = _names(args)
    _check_outputs(args, names)
    from rsnn_zoo.cli._process import process_group

    with process_group():
        return _evaluate_all(args, names)


def _evaluate_all(args: argparse.Namespace, names: list[str]) -> Outcome:
    from rsnn_zoo.models.distributed import Ranks
    from rsnn_zoo.report.plots import plot_accuracy

    logging.getLogger("rsnn_zoo").setLevel(logging.INFO)
    reports = []
    for name in names:
        report, text = _evaluate_one(args, name)
        if Ranks.current().main:
            reports.append(report.to_json())
            say("" if args.json else text)
    plot = f"  plot: {plot_accuracy(reports, args.plot)}" if args.plot and reports else ""
    return plot, reports[0] if len(reports) == 1 else reports, 0


def _evaluate_one(args: argparse.Namespace, name: str):
    """Evaluate one model, and write what is asked for; give its report, and what there is to say of it."""
    from rsnn_zoo.cli._weights import load_named
    from rsnn_zoo.evaluate_entry import evaluate_entry
    from rsnn_zoo.models.distributed import Ranks

    files = _files(args, name)
    where = {"split": args.split, "images": args.images, "root": args.data_root, "download": args.download}
    settings = {key: getattr(args, key) for key in ("seed", "batch_size", "chunk", "precision", "draws", "checks")}
    if files:
        settings |= {"state": files.state, "adversarial": files.examples if args.adversarial else None}
    report = evaluate_entry(
        load_named(name, args.weights, args.neuron, args.key),
        radii_of(args.attack, args.eps),
        data=args.data,
        device=best_device(args.device),
        progress=sys.stderr.isatty(),
        clean_on_all=args.clean_on_all,
        **where,
        **settings,
    )
    said = _save(args, report, files) if Ranks.current().main else ""
    return report, f"{report.table()}{said}"


def _save(args: argparse.Namespace, report, files: _Files | None) -> str:
    """Write the files of a report; say which."""
    from rsnn_zoo.evaluate_entry import save_report
    from rsnn_zoo.report.plots import save_page
    from rsnn_zoo.report.results_file import add_row

    said = []
    if files:
        if former := save_report(report, files.report, *files.others):
            said.append(f"{files.report} was of another evaluation: kept as {former}")
        if not files.alone:
            report.save(files.ending("csv"))
        if args.html:
            save_page(report.to_json(), files.ending("html"))
        if args.robustbench:
            with replacing(files.ending("robustbench.json")) as temporary:
                temporary.write_bytes(to_json(report.robustbench(report.runs[0].eps)))
        if args.adversarial:
            files.examples.replace(files.ending("adversarial.safetensors"))
    if args.results_file:
        add_row(args.results_file, report.summary())
    if files:
        files.state.unlink(missing_ok=True)
        said.append(f"report: {', '.join(str(file) for file in (files.report, *files.others) if file.is_file())}\n")
    return "".join(f"\n\n  {line}" for line in said)


def _names(args: argparse.Namespace) -> list[str]:
    """The models that are named, by wildcards too."""
    found: list[str] = []
    for pattern in [*args.names, *args.model]:
        wild = ":" not in pattern and any(c in pattern for c in "*?[")
        matching = list_models(pattern, pretrained=True) if wild else [pattern]
        if not matching:
            raise ValueError(f"no published model matches {pattern}: see rsnn-zoo list --pretrained")
        found += [name for name in matching if name not in found]
    if not found:
        raise ValueError("name a model")
    if args.weights and len(found) != 1:
        raise ValueError("--weights goes with one model")
    if _is_file(args) and len(found) != 1:
        raise ValueError(f"--output {args.output} is the report of one model: name a folder for {len(found)}")
    short, times = Counter(map(short_name, found)).most_common(1)[0]
    if args.output and times > 1:
        same = " and ".join(name for name in found if short_name(name) == short)
        raise ValueError(
            f"the reports of {same} would all be {args.output / short}.json: evaluate one at a time, and give each an "
            "--output of its own"
        )
    return found


def _is_file(args: argparse.Namespace) -> bool:
    return args.output is not None and args.output.suffix == ".json"


def _files(args: argparse.Namespace, name: str) -> _Files | None:
    if args.output is None:
        return None
    alone = _is_file(args)
    return _Files(args.output if alone else args.output / f"{short_name(name)}.json", alone)


def short_name(name: str) -> str:
    """Give the name of a model's files: ``net`` of ``local-dir:mine/net`` and of ``hf-hub:me/net``."""
    kind, _, path = name.partition(":")
    return Path(os.path.abspath(path)).name if kind == "local-dir" else name.rpartition("/")[2]


def _check_outputs(args: argparse.Namespace, names: list[str]) -> None:
    """Find out before the attacks, which may take hours, whether all that is asked for can be written."""
    from rsnn_zoo.report.results_file import read_rows

    beside = [f"--{key}" for key in ("adversarial", "html", "robustbench") if getattr(args, key)]
    if beside and args.output is None:
        raise ValueError(f"{', '.join(beside)} is written beside the report: give --output too")
    if args.plot or args.html:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ValueError("--plot and --html need matplotlib: pip install matplotlib") from None
    if args.plot:
        try:
            Figure().savefig(io.BytesIO(), format=args.plot.suffix.lstrip(".") or "png")
        except ValueError as error:
            raise ValueError(f"--plot {args.plot}: {error}") from None
    if args.results_file:
        read_rows(args.results_file)
    reports = (files.report for name in names if (files := _files(args, name)))
    for path in (*reports, args.plot, args.results_file):
        if path:
            check_writable(path)
