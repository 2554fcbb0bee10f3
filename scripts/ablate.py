"""Try changes of a recipe's fine-tuning on part of the training data, and judge them on validation images.

    python scripts/ablate.py resnet20_cifar10_trades_t4 --set snn.epochs=1 \\
        --try snn.weight=6 --try snn.lr=0.03 --try 'snn.lr=0.03 snn.weight=6' --output docs/ablation.json

The unchanged recipe (with --set) is run too. Each run fine-tunes from the same ANN and ends with an attack on the first
validation images. Results, each with its recipe, are added to the file --output and plotted beside it; experiments that
are in the file already are not repeated. Test images are never used.
"""

import argparse
import copy
import json
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rsnn_zoo._utils.files import check_writable, load_json, replacing, to_json
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.cli._ann import converted, trained_ann
from rsnn_zoo.cli._arguments import run_plugin
from rsnn_zoo.cli._console import ERRORS
from rsnn_zoo.cli._process import set_up_process
from rsnn_zoo.cli._training import add_making, planned
from rsnn_zoo.cli.convert import add_ann
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.evaluate_entry import evaluate_entry
from rsnn_zoo.evaluation.protocols import full_name
from rsnn_zoo.training.recipe import Conversion, Neuron, Recipe, Split
from rsnn_zoo.training.train import TrainingInterrupted, train

JUDGED = "data", "neuron", "conversion", "snn"
"""The parts of a recipe that make an SNN of an ANN."""

Converted = dict[tuple[Split, Neuron, Conversion], tuple[Any, ...]]


def measured(
    args: argparse.Namespace, recipe: Recipe, data: ImageData, validation: ImageData, made: Converted
) -> dict[str, Any]:
    """Fine-tunes an SNN in a folder that is not kept, and attacks it; converts what was not ``made`` before."""
    shown, judging = data.select(args.images), validation.select(args.n)
    how = recipe.data, recipe.neuron, recipe.conversion
    if how not in made:
        made[how] = converted(args, recipe, data)
    snn, ann, about = copy.deepcopy(made[how])
    with TemporaryDirectory() as folder:
        options = {"teacher": ann, "seed": args.seed, "device": args.device, "progress": not args.quiet}
        try:
            result = train(snn, shown, validation, recipe.stage("snn"), folder, about=about, **options)
        except TrainingInterrupted:
            raise TrainingInterrupted("stopped; runs that had ended are kept, this one begins anew") from None
    how = {"seed": args.seed, "checks": 0, "with_energy": False}
    report = evaluate_entry(snn.cpu(), args.attack, args.eps / 255, data=judging, **how)
    (run,) = report.runs
    return {
        "clean": report.clean_accuracy,
        "robust": run.robust_accuracy,
        "robust_ci95": list(run.ci95),
        "history": result.history,
        "evaluation_seconds": round(run.seconds, 1),
        **environment(args.device),
    }


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Clean and robust accuracy of each run, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(found))
    robust = [100 * one["robust"] for one in found]
    spans = [[100 * abs(one["robust"] - bound) for one in found for bound in [one["robust_ci95"][k]]] for k in (0, 1)]
    axes.errorbar(robust, rows, xerr=spans, fmt="o", capsize=3, label="robust, 95 % interval")
    axes.plot([100 * one["clean"] for one in found], rows, "s", label="clean")
    several = len({one["name"] for one in found}) > 1
    labels = [f"{one['name']} {one['change']}" if several else one["change"] or "no change" for one in found]
    labels = ["\n".join(textwrap.wrap(label, 60)) for label in labels]
    axes.set(xlabel="accuracy on validation images (%)", yticks=list(rows))
    axes.set_yticklabels(labels, fontsize="small")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_making(p)
    add_ann(p)
    p.add_argument(
        "--try", dest="changes", action="append", default=[], metavar="'KEY=VALUE ...'", help="changes of one more run"
    )
    p.add_argument("--images", type=int, default=9600, help="training images (%(default)s)")
    p.add_argument("--attack", default="quick", help="protocol to judge by (%(default)s)")
    p.add_argument("--eps", type=float, default=8, help="radius to judge at, in units of 1/255 (%(default)s)")
    p.add_argument("-n", type=int, default=256, help="validation images to attack (%(default)s)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def run(args: argparse.Namespace) -> None:
    """Runs all that is asked for and not there yet."""
    run_plugin(args.plugin)
    made: Converted = {}
    path, base = args.output or Path("results/ablation.json"), args.set
    planned(args)  # reads the name
    ann = trained_ann(args.name, args.ann, args.key).weights_sha256
    check_writable(path)
    found = load_json(path)["runs"] if path.is_file() else []
    for change in ["", *args.changes]:
        args.set = [*base, *change.split()]
        recipe, data, validation = planned(args)
        whole = json.loads(to_json(recipe.to_json()))  # as the file has it
        about = {
            "name": str(args.name),
            "ann_sha256": ann,
            "change": change,
            "recipe": {part: whole[part] for part in ("name", *JUDGED)},
            "images": args.images,
            "attack": full_name(args.attack),
            "eps": args.eps / 255,
            "n": args.n,
            "seed": args.seed,
        }
        if any(about == {key: one.get(key) for key in about} for one in found):
            continue
        found.append(about | measured(args, recipe, data, validation, made))
        with replacing(path) as temporary:
            temporary.write_bytes(to_json({"runs": found}))
        print(json.dumps({key: found[-1][key] for key in ("name", "change", "clean", "robust")}), flush=True)
    draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
    set_up_process()
    try:
        run(parser().parse_args())
    except (*ERRORS, TrainingInterrupted) as error:
        sys.exit(f"error: {error}")
