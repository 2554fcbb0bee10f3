"""Attack models and report their robust accuracy.

    python scripts/evaluate.py --model resnet20_digits_trades_t4
    python scripts/evaluate.py --model 'resnet20_digits_*' --eps 2 4 8 16 32 --results-file results/digits.csv
    python scripts/evaluate.py --model resnet20_digits_trades_t4 --attack pgd5 pgd20 pgd100 --adversarial --html
    python scripts/evaluate.py --model local-dir:runs/resnet20_cifar10_at_t4 --data cifar10.npz -n 256
    python scripts/evaluate.py --model resnet20_cifar10_at_t4 --weights FILE.pth --neuron reset=soft initial=0.5 \\
        --data cifar10.npz -n 256
    torchrun --nproc-per-node 4 scripts/evaluate.py --model resnet20_digits_trades_t4 --attack worst-case

Each model's report is written to OUTPUT/NAME.json and NAME.csv. Verdicts are kept beside it as they are found, so a
killed evaluation resumes when you repeat the command, with any number of processes. An existing report of another
evaluation is renamed to NAME.1.json, NAME.2.json, ... --results-file has one row for each model, weights, images, seed
and precision, written when the model is finished; further attacks add columns. Compare the report of a published model
with its evidence, hub_configs/NAME/evaluation.json.
"""

import argparse
import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _training import main

import rsnn_zoo
from rsnn_zoo._utils.files import check_writable, load_json, replacing, to_json
from rsnn_zoo.cli.commands import device, radii_of, run_plugin
from rsnn_zoo.evaluation.energy import energy
from rsnn_zoo.hub.weights import check_state_dict
from rsnn_zoo.models import ForeignNetwork
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.models.state_files import read_state_dict
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES
from rsnn_zoo.report.outputs import keep_former
from rsnn_zoo.report.plots import plot_accuracy, save_page
from rsnn_zoo.report.report import Report, write_csv
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import split_of

ROW = ("model", "weights_sha256", "dataset", "split", "n", "data_sha256", "seed", "precision", "network")
"""What a row of the results file is of."""
ENDINGS = ("json", "csv", "html", "robustbench.json", "adversarial.safetensors")
"""Of the files of a report."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", nargs="+", required=True, help="names or wildcards, hf-hub:org/name, local-dir:path")
    p.add_argument(
        "--weights", type=Path, help=".safetensors or .pth file in place of the published weights (one model)"
    )
    add_neuron(p)
    p.add_argument("--plugin", type=Path, metavar="FILE.py", help="a Python file that registers architectures first")
    p.add_argument("--data", help="data set or .npz file (default: the one in the model's name)")
    p.add_argument("--data-root", default="data", help="folder of the data sets (default: %(default)s)")
    p.add_argument("--download", action="store_true", help="let torchvision download the data set")
    p.add_argument("--split", default="test", choices=("test", "validation", "train"))
    p.add_argument("-n", "--images", type=int, dest="n", metavar="N", help="only the first N images")
    p.add_argument(
        "--attack",
        nargs="+",
        default=["ensemble-pgd20"],
        metavar="PROTOCOL",
        help="quick, adaptive, worst-case, pgd20@rate+square1000 ...; each may have radii of its own in place of "
        "--eps, as in ensemble-pgd20=2,4,8,16 worst-case=8 (default: ensemble-pgd20)",
    )
    p.add_argument("--eps", type=float, nargs="+", default=[8], help="radii in units of 1/255 (default: 8)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-size", type=int, default=256, help="most images between two writes of the state")
    p.add_argument("--chunk", type=int, help="images per forward pass (default: by image size and device)")
    p.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the attack gradients")
    p.add_argument("--draws", type=int, help="passes to average over (default: 16 for a random model, else 1)")
    p.add_argument("--checks", type=int, default=64, help="images that the sanity flags attack (default: %(default)s)")
    p.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--output", type=Path, default=Path("results"), help="folder of the reports (default: %(default)s)")
    p.add_argument("--results-file", type=Path, help="table of all models, .csv or .json; existing rows are kept")
    p.add_argument("--adversarial", action="store_true", help="save OUTPUT/NAME.adversarial.safetensors (verify.py)")
    p.add_argument("--html", action="store_true", help="save OUTPUT/NAME.html, a page with a figure (needs matplotlib)")
    p.add_argument("--robustbench", action="store_true", help="save OUTPUT/NAME.robustbench.json, for the first radius")
    p.add_argument("--plot", type=Path, help="figure of all models, by radius, attack and steps (needs matplotlib)")
    return p


NEURON = {"reset": str, "leak": float, "initial": float}
"""What --neuron takes: that which an SNN computes by and its weights do not say."""


def add_neuron(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--neuron",
        nargs="+",
        metavar="KEY=VALUE",
        help=f"with --weights of an SNN, which do not say it: {', '.join(NEURON)}; e.g. reset=hard for the defaults",
    )


def load(name: str, weights: Path | None, neuron: list[str] | None) -> torch.nn.Module:
    if neuron and weights is None:
        raise ValueError("--neuron goes with --weights: a published model says itself what neurons it has")
    if weights is None:
        return rsnn_zoo.create_model(name, pretrained=True)
    given = dict(part.partition("=")[::2] for part in neuron or [])
    if unknown := given.keys() - NEURON.keys():
        raise ValueError(f"--neuron takes {', '.join(NEURON)}, not {', '.join(sorted(unknown))}")
    model = rsnn_zoo.create_model(name, **{key: NEURON[key](value) for key, value in given.items()})
    if getattr(model, "timesteps", None) and neuron is None:
        raise ValueError(
            f"{weights} does not say how the neurons of {name} reset, leak and start: give --neuron, such as "
            "reset=soft, or the folder of the run, --model local-dir:FOLDER"
        )
    own = model.network if isinstance(model, ForeignNetwork) else model  # your file is of your network alone
    state = read_state_dict(weights, names=own.state_dict())
    check_state_dict(state, own.state_dict(), str(weights))
    own.load_state_dict(state)
    model.pretrained_name = name
    return model


def names(args: argparse.Namespace) -> list[str]:
    found: list[str] = []
    for pattern in args.model:
        wild = ":" not in pattern and any(c in pattern for c in "*?[")
        matching = rsnn_zoo.list_models(pattern, pretrained=True) if wild else [pattern]
        if not matching:
            raise ValueError(f"no published model matches {pattern}: see rsnn_zoo.list_models(pretrained=True)")
        found += [name for name in matching if name not in found]
    if args.weights and len(found) != 1:
        raise ValueError("--weights goes with one --model")
    short, times = Counter(map(short_name, found)).most_common(1)[0]
    if times > 1:
        same = " and ".join(name for name in found if short_name(name) == short)
        raise ValueError(
            f"the reports of {same} would all be {args.output / short}.json: evaluate one at a time, and give each an "
            "--output of its own"
        )
    return found


def short_name(name: str) -> str:
    """The name of a model's files: ``net`` of ``local-dir:mine/net`` and of ``hf-hub:me/net``."""
    kind, _, path = name.partition(":")
    return Path(os.path.abspath(path)).name if kind == "local-dir" else name.rpartition("/")[2]


def check_outputs(args: argparse.Namespace, names: list[str]) -> None:
    """Finds out before the attacks, which may take hours, whether all that is asked for can be written."""
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
        if args.results_file.suffix not in (".csv", ".json"):
            raise ValueError(f"--results-file ends in .csv or .json, not as {args.results_file}")
        read_rows(args.results_file)
    for path in (*(args.output / f"{short_name(name)}.json" for name in names), args.plot, args.results_file):
        if path:
            check_writable(path)


def evaluate(args: argparse.Namespace, name: str, short: str) -> Report:
    model = load(name, args.weights, args.neuron).to(args.device)
    called = str(model.pretrained_name)
    dataset = ModelName.parse(called).dataset if rsnn_zoo.is_model(called) else None
    if args.data is None and dataset is None:
        raise ValueError(f"{name} names no data set: pass --data")
    with Ranks.current().main_first():
        where = {"root": args.data_root, "download": args.download, **split_of(getattr(model, "training_record", {}))}
        data = rsnn_zoo.load_dataset(args.data or dataset, args.split, dataset=dataset, **where)
    data = data if args.n is None else data.select(args.n)
    report = rsnn_zoo.evaluate(
        model,
        data,
        radii_of(args.attack, args.eps),
        **{key: getattr(args, key) for key in ("seed", "batch_size", "chunk", "precision", "draws", "checks")},
        state=args.output / f"{short}.partial",
        adversarial=args.output / f"{short}.adversarial.partial" if args.adversarial else None,
        progress=True,
    )
    if Ranks.current().main:
        report.extra.update(energy(model, data.pixels(slice(0, 256)).to(args.device)))
    return report


def save(args: argparse.Namespace, report: Report, short: str) -> None:
    path = args.output / f"{short}.json"
    files = [path.with_suffix(f".{ending}") for ending in ENDINGS]
    if kept := keep_former(files, report.to_json()):
        print(f"{path} was of another evaluation: kept as {kept}", flush=True)
    report.save(path)
    report.save(path.with_suffix(".csv"))
    if args.html:
        save_page(report.to_json(), path.with_suffix(".html"))
    if args.robustbench:
        with replacing(path.with_suffix(".robustbench.json")) as temporary:
            temporary.write_bytes(to_json(report.robustbench(report.runs[0].eps)))
    if args.adversarial:
        (args.output / f"{short}.adversarial.partial").replace(path.with_suffix(".adversarial.safetensors"))
    if args.results_file:
        add_row(args.results_file, report.summary())
    (args.output / f"{short}.partial").unlink(missing_ok=True)
    print(f"{report.table()}\n\n  report: {', '.join(str(file) for file in files if file.is_file())}\n", flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file, values of a CSV file as text; none where there is no file.

    Raises:
        ValueError: If it is no results file.
    """
    if not path.is_file():
        return []
    try:
        if path.suffix == ".json":
            rows = load_json(path, MAX_EVIDENCE_BYTES)
        else:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file, strict=True)
                rows = list(reader)
                if reader.fieldnames and "model" not in reader.fieldnames:
                    raise ValueError("it has no column 'model'")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "model" in row for row in rows):
            raise ValueError("it is no list of rows, each with its model")
        if any(None in row for row in rows):
            raise ValueError("a row has more values than there are columns")
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no results file ({error}): name another one") from None
    return rows


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a results file; one of the same evaluation that is there keeps its other attacks and flags."""
    known = read_rows(path)
    rows = [*(old for old in known if row_key(old) == row_key(row)), row]
    flags = dict.fromkeys(flag for one in rows for flag in str(one.get("flags") or "").split())
    merged = {key: value for one in rows for key, value in one.items()} | {"flags": " ".join(flags)}
    rows = [*(old for old in known if row_key(old) != row_key(row)), merged]
    if path.suffix == ".csv":
        write_csv(path, rows)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(to_json(rows))


def row_key(row: Mapping[str, Any]) -> list[str]:
    """What a row is of, as text, since that is all that a CSV file gives back."""
    return ["" if row.get(key) is None else str(row[key]) for key in ROW]


def run() -> None:
    args = parser().parse_args()
    run_plugin(args.plugin)
    logging.getLogger("rsnn_zoo").setLevel(logging.INFO)
    chosen = names(args)
    check_outputs(args, chosen)
    reports = []
    for name in chosen:
        short = short_name(name)
        report = evaluate(args, name, short)
        if Ranks.current().main:
            save(args, report, short)
            reports.append(report.to_json())
    if args.plot and reports:
        print(f"  plot: {plot_accuracy(reports, args.plot)}")


if __name__ == "__main__":
    main(run)
