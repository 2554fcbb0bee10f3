"""``rsnn-zoo build``: entries from nothing, with the evidence and the command that made them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsnn_zoo._utils.files import to_json
from rsnn_zoo.cli._arguments import add_data, add_device, add_precision, add_recipe, best_device, radii_of
from rsnn_zoo.cli._console import CommandFailed, Outcome, say
from rsnn_zoo.cli._process import process_group
from rsnn_zoo.cli.train import add_init
from rsnn_zoo.hub.catalog import list_models
from rsnn_zoo.hub.resolve import entries_folder
from rsnn_zoo.report.evidence import PRECISIONS
from rsnn_zoo.spec.config import CONFIG, EVIDENCE, load_config
from rsnn_zoo.spec.names import ModelName, is_model

if TYPE_CHECKING:
    from rsnn_zoo.report.report import Report

HELP = "train, convert, fine-tune and evaluate entries, and write them with their evidence"
EXAMPLE = """\
rsnn-zoo build 'resnet20_digits_*'
  rsnn-zoo build resnet20_cifar10_trades_{ann,t4,t8} --data cifar10.npz -n 1000 --processes 2
  rsnn-zoo build vgg11_cifar10_trades_t8 --converted --data cifar10.npz -n 300 --attack ensemble-pgd20=8

ANNs come before the SNNs that are made from them. Finished steps are skipped and interrupted ones resume: repeat the
command until it ends. On a CPU, --processes 2 evaluates nearly twice as fast as two threads do. Test images are used
once, by the evaluation at the end. Its verdicts stay in runs/NAME/evaluation.sqlite, so attacks that are added later
run alone."""

EVIDENCE_RUNS = {"digits": {"ensemble-pgd20": (2, 4, 8, 16, 32, 64), "worst-case": (32,)}}
EVIDENCE_RUNS_ELSE = {"ensemble-pgd20": (2, 4, 8, 16), "worst-case": (8,)}
"""Protocols and their radii in units of 1/255: by data set, and of all others."""
ANNS_TOO = {"autoattack": (8,)}
"""What ANNs meet besides: the anchor that other papers give. Members met already cost nothing."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("name", nargs="+", help="names or wildcards")
    one.add_argument("-n", type=int, help="evaluate on the first N test images only")
    one.add_argument("--processes", type=int, default=1, help="processes that share an evaluation (%(default)s)")
    one.add_argument("--batch-size", type=int, default=128, help="most images between two writes of the verdicts")
    one.add_argument("--converted", action="store_true", help="make SNNs by conversion alone, without fine-tuning")
    one.add_argument("--trained", action="store_true", help="evaluate and write what is in runs/, without training")
    about = "protocols with their radii, as in ensemble-pgd20=2,4,8 worst-case=8 (those of its data set)"
    one.add_argument("--attack", nargs="+", default=[], metavar="PROTOCOL", help=about)
    one.add_argument("--output", type=Path, default=entries_folder(), help="folder of the entries (%(default)s)")
    about = "find the accuracy without attack on all test images too, however few are attacked (the default)"
    one.add_argument("--clean-on-all", action=argparse.BooleanOptionalAction, default=True, help=about)
    add_init(one)
    add_precision(one)
    add_recipe(one)
    add_data(one)
    add_device(one)


def run(args: argparse.Namespace) -> Outcome:
    """Build what is named and not there yet."""
    args.device = best_device(args.device)
    names, folders = names_of(args.name), []
    for name in names:
        if name.timesteps and replace(name, timesteps=None) in names and args.output != entries_folder():
            raise ValueError(f"{name} is attacked from its ANN as published in {entries_folder()}: leave out --output")
    for name in names:
        folder = args.output / str(name)
        folders.append(str(folder))
        if (folder / EVIDENCE).is_file():
            say(f"{name}: published already; remove {os.path.relpath(folder)} to make it anew", error=args.json)
            continue
        if not args.trained:
            train_apart(args, name)
        if args.processes > 1:
            publish_in_processes(args, name)
        else:
            with process_group():
                publish(args, name)
    return "", folders, 0


def names_of(patterns: list[str]) -> list[ModelName]:
    """ANNs first; wildcards mean the ANN and T = 4 of the grid."""
    names = set()
    for pattern in patterns:
        known = [pattern] if is_model(pattern) else list_models(pattern)
        names |= {name for name in map(ModelName.parse, known) if name.timesteps in (None, 4) or pattern == str(name)}
    return sorted(names, key=lambda name: (name.timesteps or 0, str(name)))


def train_apart(args: argparse.Namespace, name: ModelName) -> None:
    """Run the training in a process of its own, which goes on where it was stopped."""
    made = "convert" if args.converted else "finetune"
    command = "train" if name.timesteps is None else made
    init = ["--init", args.init] if args.init and name.timesteps is None else []
    call(["-m", "rsnn_zoo.cli", command, str(name), *init, *data_options(args), *recipe_options(args)])


def data_options(args: argparse.Namespace) -> list[str]:
    """Where the images are, and where to compute."""
    options = ["--data", args.data] if args.data else []
    options += ["--download"] if args.download else []
    return [*options, "--data-root", str(args.data_root), "--device", args.device]


def evaluation_options(args: argparse.Namespace) -> list[str]:
    """What changes the evaluation."""
    options = ["--attack", *args.attack] if args.attack else []
    return options if args.precision == PRECISIONS[0] else [*options, "--precision", args.precision]


def recipe_options(args: argparse.Namespace) -> list[str]:
    """What changes the training."""
    options = [part for change in args.set for part in ("--set", change)]
    options += ["--recipe", args.recipe] if args.recipe else []
    return [*options, "--seed", str(args.seed)] if args.seed else options


def call(command: list[str], **environment: str) -> None:
    """Run Python; what fails there has said why, and ends this too.

    Raises:
        CommandFailed: If it ends with another status than 0.
    """
    if code := subprocess.run([sys.executable, *command], env={**environment, **os.environ}).returncode:
        raise CommandFailed(f"ended with status {code}: {shlex.join(command)}")


def check_trained(args: argparse.Namespace, name: ModelName, training: dict[str, Any]) -> None:
    """Refuse a run of another recipe than this command's: the card would name a command that makes another network.

    Raises:
        ValueError: If it is; names what differs.
    """
    from rsnn_zoo.cli._training import default_recipe
    from rsnn_zoo.training.checkpoints import differences
    from rsnn_zoo.training.recipe import DEFAULTS, load_recipe

    recipe = load_recipe(args.recipe or default_recipe(name), name.objective, args.set)
    stage = "snn" if training.get("ann") else "direct" if name.timesteps else "ann"
    tables: dict[str, Any] = {"data": recipe.data}
    tables |= {"stage": recipe.stage(stage)} if "stage" in training else {}
    tables |= {"neuron": recipe.neuron} if name.timesteps else {}
    tables |= {"conversion": recipe.conversion} if training.get("ann") else {}
    seed = {"seed": args.seed} if "stage" in training else {}  # a conversion draws nothing
    wanted = json.loads(to_json(seed | {key: asdict(table) for key, table in tables.items()}))
    recorded = {key: training[key] for key in wanted if key in training}
    if differing := differences(recorded, wanted, {key: DEFAULTS[key] for key in tables}):
        raise ValueError(
            f"runs/{name} is of another recipe ({'; '.join(differing)}): repeat the options by which it was trained "
            "(--recipe, --set, --seed), or train it in another folder"
        )


def command_of(args: argparse.Namespace, name: ModelName, training: dict[str, Any]) -> str:
    """What makes this entry, and the ANN that it is converted from, anew."""
    names = [str(replace(name, timesteps=None)), str(name)] if training.get("ann") else [str(name)]
    data = ["--data", Path(args.data).name] if args.data else []
    images = ["-n", str(args.n)] if args.n else []
    images += ["--converted"] if "stage" not in training else []
    images += ["--init", init] if (init := init_of(name, training)) else []
    return shlex.join(["rsnn-zoo", "build", *names, *data, *images, *evaluation_options(args), *recipe_options(args)])


def init_of(name: ModelName, training: dict[str, Any]) -> str | None:
    """What weights the training of this entry's ANN began with, if not with random ones."""
    ann = entries_folder() / str(replace(name, timesteps=None)) / CONFIG
    if training.get("ann") and ann.is_file():
        training = load_config(ann).training
    return training.get("init")


def attacks_on(name: ModelName) -> dict[str, list[float]]:
    """The protocols of an entry's evidence, with their radii in [0, 1]."""
    attacks = EVIDENCE_RUNS.get(name.dataset, EVIDENCE_RUNS_ELSE | ({} if name.timesteps else ANNS_TOO))
    return {attack: [radius / 255 for radius in radii] for attack, radii in attacks.items()}


def publish(args: argparse.Namespace, name: ModelName) -> Report:
    """Evaluate what the run gave, in as many processes as call it, and write the entry with its evidence."""
    from rsnn_zoo.evaluate_entry import ann_of, evaluate_entry
    from rsnn_zoo.hub.publish import save_pretrained
    from rsnn_zoo.hub.registry import create_model
    from rsnn_zoo.models.distributed import Ranks

    folder = Path("runs") / str(name)
    model = create_model(f"local-dir:{folder}", pretrained=True).to(args.device)
    training = model.training_record
    if "stage" in training or "conversion" in training:  # else nobody knows what made it
        check_trained(args, name, training)
        training = {"command": command_of(args, name, training), **training}
    ann = ann_of(name, training)
    where = {"data": args.data, "images": args.n, "root": args.data_root, "download": args.download}
    settings = {"batch_size": args.batch_size, "state": folder / "evaluation.sqlite", "progress": not args.json}
    settings |= {"precision": args.precision, "clean_on_all": args.clean_on_all}
    report = evaluate_entry(model, radii_of(args.attack, [8]) or attacks_on(name), **where, **settings)
    if Ranks.current().main:
        if ann:
            report.extra["ann"] = ann
        say(report.table(), error=args.json)
        entry = args.output / str(name)
        save_pretrained(model.cpu(), entry, name=str(name), training=training, evaluation=report.to_json())
    return report


def publish_in_processes(args: argparse.Namespace, name: ModelName) -> None:
    """Start this command anew under torchrun, to publish what is trained."""
    options = ["--output", str(args.output), "--batch-size", str(args.batch_size)]
    options += ["-n", str(args.n)] if args.n is not None else []
    options += evaluation_options(args)
    options += [] if args.clean_on_all else ["--no-clean-on-all"]
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
    command = ["-m", "rsnn_zoo.cli", "build", str(name), "--trained", *options]
    call([*launcher, *command, *data_options(args), *recipe_options(args)], OMP_NUM_THREADS=str(threads))
