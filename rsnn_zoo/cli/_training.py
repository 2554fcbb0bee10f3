"""What ``train``, ``convert`` and ``finetune`` share: arguments, data, starting a run and reporting on it."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsnn_zoo.cli._arguments import add_data, add_device, add_plugin, add_recipe
from rsnn_zoo.cli._console import CommandFailed, Outcome, say

if TYPE_CHECKING:
    from rsnn_zoo.data.images import ImageData
    from rsnn_zoo.models import Network
    from rsnn_zoo.spec.names import ModelName
    from rsnn_zoo.training.recipe import Recipe, Stage

__all__ = ["Job", "add_making", "add_training", "default_recipe", "planned", "run_stage"]


@dataclass(frozen=True)
class Job:
    """One training that a command runs, or tells the cost of.

    Attributes:
        model: To train, in place.
        stage: Every number of it.
        data: Training images.
        validation: Validation images, which select the epoch.
        about: What its record says besides.
        teacher: The ANN, of an SNN that is fine-tuned.
    """

    model: Network
    stage: Stage
    data: ImageData
    validation: ImageData
    about: Mapping[str, Any]
    teacher: Network | None = None


def add_making(one: argparse.ArgumentParser) -> None:
    """Add what all three take."""
    one.add_argument("name", help="name of the network to make, e.g. resnet20_cifar10_trades_ann")
    one.add_argument("--output", type=Path, help="folder for the run and its result (default: runs/NAME)")
    add_recipe(one)
    add_data(one)
    add_device(one)
    add_plugin(one)


def add_training(one: argparse.ArgumentParser) -> None:
    """Add what a training takes as well."""
    about = "show the recipe and estimate time and memory, without training"
    one.add_argument("--dry-run", action="store_true", help=about)
    one.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="also log to TensorBoard")
    about = "seconds between checkpoints within an epoch (%(default)s)"
    one.add_argument("--interval", type=float, default=300.0, help=about)
    one.add_argument("--quiet", action="store_true", help="no progress bar")


def planned(args: argparse.Namespace) -> tuple[Recipe, ImageData, ImageData]:
    """Read the name, and find the recipe and the training and validation images; says where the result goes."""
    from rsnn_zoo.cli._arguments import best_device
    from rsnn_zoo.data.images import load_dataset
    from rsnn_zoo.models.distributed import Ranks
    from rsnn_zoo.spec.names import ModelName
    from rsnn_zoo.training.recipe import load_recipe

    name = args.name = ModelName.parse(str(args.name))
    args.device = best_device(args.device)
    recipe = load_recipe(args.recipe or default_recipe(name), name.objective, args.set)
    source = {"root": args.data_root, "download": args.download, "dataset": name.dataset}
    split = {"validation": recipe.data.validation, "seed": recipe.data.seed}
    with Ranks.current().main_first():
        data, validation = (
            load_dataset(args.data or name.dataset, part, **source, **split) for part in ("train", "validation")
        )
    args.output = args.output or Path("runs") / str(name)
    return recipe, data, validation


def default_recipe(name: ModelName) -> str:
    """``cifar10_research`` for ``..._cifar10_..._t8.research``; without a tag the data set's own, or that of 8/255."""
    from rsnn_zoo.training.recipe import recipe_names

    known = [f"{name.dataset}_{name.tag}"] if name.tag else [name.dataset, f"{name.dataset}_linf8"]
    return next((recipe for recipe in known if recipe in recipe_names()), known[0])


def run_stage(args: argparse.Namespace, job: Job) -> Outcome:
    """Train and save the entry, or tell what that would take.

    Raises:
        CommandFailed: If the training is interrupted; says how to go on.
        OSError: If the entry cannot be written.
    """
    from rsnn_zoo.hub.saving import check_saveable, save_pretrained
    from rsnn_zoo.hub.shards import published_dtype
    from rsnn_zoo.models.distributed import Ranks
    from rsnn_zoo.training.train import TrainingInterrupted, train

    check_saveable(job.model, str(args.name))  # or hours of training could not be written
    if args.dry_run:
        return _dry_run(args, job)
    options = {"seed": args.seed, "device": args.device, "interval": args.interval, "progress": not args.quiet}
    with tensorboard(args.tensorboard) as on_epoch:
        options |= {"about": job.about, "on_epoch": on_epoch, "teacher": job.teacher}
        try:
            result = train(job.model, job.data, job.validation, job.stage, args.output, **options)
        except TrainingInterrupted as stop:
            raise CommandFailed(str(stop)) from None
    if not Ranks.current().main:
        return "", None, 0
    entry = {"name": str(args.name), "training": result.record, "dtype": published_dtype(job.model)}
    save_pretrained(job.model.cpu(), args.output, **entry)
    _draw_curves(result.history, args.output / "curves.png")
    robust = "" if result.robust_accuracy is None else f", robust {100 * result.robust_accuracy:.1f} %"
    said = (
        f"{args.name}: epoch {result.epoch}, validation accuracy {100 * result.accuracy:.1f} %{robust}; "
        f"{result.seconds:.0f} s, {result.images_per_second:.0f} images/s, {result.peak_memory / 2**20:.0f} MiB; "
        f"saved in {args.output}"
    )
    return said, {"name": str(args.name), "folder": str(args.output), "record": result.record}, 0


def _dry_run(args: argparse.Namespace, job: Job) -> Outcome:
    """Tell what a training would take, as JSON and in a line on stderr."""
    from rsnn_zoo._utils.provenance import environment
    from rsnn_zoo.models.distributed import Ranks
    from rsnn_zoo.training.train import estimate

    how = {"teacher": job.teacher, "device": args.device}
    expected = estimate(job.model, job.data, job.validation, job.stage, **how)
    if not Ranks.current().main:
        return "", None, 0
    measured = {"estimate": asdict(expected), "environment": environment(args.device)}
    content = {"stage": asdict(job.stage), **job.about, **measured}
    say(f"about {expected}", error=True)
    return json.dumps(content, indent=2), content, 0


def _draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the curves of a training, where matplotlib is there."""
    from rsnn_zoo.report.plots import plot_curves

    try:
        plot_curves(history, path)
    except ImportError as error:
        logging.getLogger(__name__).warning("no curves: %s", error)


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Give something to hand each epoch's record to, if a folder is given; of several processes the first writes.

    Raises:
        ImportError: If tensorboard is asked for and not installed.
    """
    from rsnn_zoo.models.distributed import Ranks

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
