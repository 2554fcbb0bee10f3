"""What train.py, convert.py and finetune.py share: arguments, data, starting a run and reporting on it."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _malloc import tune_malloc

from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.cli.commands import device, run_plugin
from rsnn_zoo.data.images import ImageData, load_dataset
from rsnn_zoo.hub.publish import check_saveable, save_pretrained
from rsnn_zoo.models import Network
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.report.curves import plot_curves
from rsnn_zoo.spec.names import ModelName, UnknownNameError
from rsnn_zoo.training.recipe import Recipe, Stage, load_recipe, recipe_names
from rsnn_zoo.training.train import TrainingInterrupted, estimate, train

ERRORS = (LookupError, OSError, ValueError, ArithmeticError, ImportError)
"""What a user can cause; shown as one line."""


def parser(text: str) -> argparse.ArgumentParser:
    """Arguments of all three."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("name", help="name of the network to make, e.g. resnet20_cifar10_trades_ann")
    add("--plugin", type=Path, metavar="FILE.py", help="Python file that registers architectures or objectives")
    add("--recipe", help=f"one of {', '.join(recipe_names())}, or a .toml file (default: by tag or data set)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, e.g. ann.epochs=5")
    add("--output", type=Path, help="folder for the run and its result (default: runs/NAME)")
    add("--data", help="npz file or folder to use instead of the named data set")
    where = {"dest": "root", "type": Path, "default": Path("data"), "metavar": "FOLDER"}
    add("--data-root", "--root", help="folder of torchvision's data sets (%(default)s)", **where)
    add("--download", action="store_true", help="let torchvision download the data set")
    add("--seed", type=int, default=0, help="seed of weights, order, augmentation and attacks (%(default)s)")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    return found


def training_parser(text: str) -> argparse.ArgumentParser:
    """Arguments of a training as well."""
    found = parser(text)
    add = found.add_argument
    add("--dry-run", action="store_true", help="show the recipe and estimate time and memory, without training")
    add("--tensorboard", type=Path, metavar="FOLDER", help="also log to TensorBoard")
    add("--interval", type=float, default=300.0, help="seconds between checkpoints within an epoch (%(default)s)")
    add("--quiet", action="store_true", help="no progress bar")
    return found


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; the name is read when the plugin has registered what is in it."""
    args = parser.parse_args()
    try:
        run_plugin(args.plugin)
        args.name = ModelName.parse(args.name)
    except (UnknownNameError, OSError) as error:
        parser.error(str(error))
    return args


def resolve(args: argparse.Namespace) -> tuple[Recipe, ImageData, ImageData]:
    """The recipe, and the training and validation images."""
    name: ModelName = args.name
    recipe = load_recipe(args.recipe or default_recipe(name), name.objective, args.set)
    source = {"root": args.root, "download": args.download, "dataset": name.dataset}
    split = {"validation": recipe.data.validation, "seed": recipe.data.seed}
    with Ranks.current().main_first():
        data, validation = (
            load_dataset(args.data or name.dataset, part, **source, **split) for part in ("train", "validation")
        )
    args.output = args.output or Path("runs") / str(name)
    return recipe, data, validation


def default_recipe(name: ModelName) -> str:
    """``cifar10_research`` for ``..._cifar10_..._t8.research``; without a tag the data set's own, or that of 8/255."""
    known = [f"{name.dataset}_{name.tag}"] if name.tag else [name.dataset, f"{name.dataset}_linf8"]
    return next((recipe for recipe in known if recipe in recipe_names()), known[0])


def run_stage(
    args: argparse.Namespace,
    model: Network,
    stage: Stage,
    data: ImageData,
    validation: ImageData,
    about: Mapping[str, Any],
    teacher: Network | None = None,
) -> None:
    """Trains and saves the entry, or tells what that would take."""
    check_saveable(model, str(args.name))
    if args.dry_run:
        expected = estimate(model, data, validation, stage, teacher=teacher, device=args.device)
        if Ranks.current().main:
            measured = {"estimate": asdict(expected), "environment": environment(args.device)}
            print(json.dumps({"stage": asdict(stage), **about, **measured}, indent=2))
            print(f"about {expected}", file=sys.stderr)
        return
    options = {"seed": args.seed, "device": args.device, "interval": args.interval, "progress": not args.quiet}
    with tensorboard(args.tensorboard) as on_epoch:
        options |= {"about": about, "on_epoch": on_epoch, "teacher": teacher}
        result = train(model, data, validation, stage, args.output, **options)
    if not Ranks.current().main:
        return
    save_pretrained(model.cpu(), args.output, name=str(args.name), training=result.record)
    robust = "" if result.robust_accuracy is None else f", robust {100 * result.robust_accuracy:.1f} %"
    print(
        f"{args.name}: epoch {result.epoch}, validation accuracy {100 * result.accuracy:.1f} %{robust}; "
        f"{result.seconds:.0f} s, {result.images_per_second:.0f} images/s, {result.peak_memory / 2**20:.0f} MiB; "
        f"saved in {args.output}"
    )
    try:
        plot_curves(result.history, args.output / "curves.png")
    except ImportError as error:
        logging.getLogger(__name__).warning("no curves: %s", error)


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Something to hand each epoch's record to, if a folder is given; of several processes the first writes."""
    if folder is None or not Ranks.current().main:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboard: pip install tensorboard") from error

    def log(record: dict[str, Any]) -> None:
        for key, value in record.items():
            if value is not None:
                writer.add_scalar(key, value, record["epoch"])

    with SummaryWriter(folder) as writer:
        yield log


def main(run: Callable[[], None]) -> None:
    """Runs a script, in every process that ``torchrun`` starts; what a user can cause ends it with one line."""
    tune_malloc()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if several := int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        run()
    except TrainingInterrupted as stop:
        sys.exit(f"\n{stop}")
    except ERRORS as error:
        sys.exit(f"error: {error}")
    finally:
        if several:
            torch.distributed.destroy_process_group()
