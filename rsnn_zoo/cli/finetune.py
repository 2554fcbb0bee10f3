"""``rsnn-zoo finetune``: a robust SNN from a trained ANN."""

from __future__ import annotations

import argparse

from rsnn_zoo.cli._console import Outcome
from rsnn_zoo.cli._process import process_group
from rsnn_zoo.cli._training import Job, add_making, add_training, planned, run_stage
from rsnn_zoo.cli.convert import add_ann

HELP = "make a robust SNN from a trained ANN: convert it, then fine-tune weights and thresholds"
EXAMPLE = """\
rsnn-zoo finetune resnet20_digits_trades_t4
  rsnn-zoo finetune resnet20_cifar10_trades_t8 --ann runs/resnet20_cifar10_trades_ann

Without --ann, the ANN is the one of the same name in runs/, or else the published one. --ann takes a folder, another
name, or a file of your own weights (see rsnn-zoo convert --help). Like rsnn-zoo train, it resumes when you repeat the
command, and --dry-run shows the recipe and estimates time and memory."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    add_making(one)
    add_training(one)
    add_ann(one)


def run(args: argparse.Namespace) -> Outcome:
    """Fine-tune what is named."""
    with process_group():
        return _finetune(args)


def _finetune(args: argparse.Namespace) -> Outcome:
    from rsnn_zoo.cli._ann import converted

    recipe, data, validation = planned(args)
    stage = recipe.stage("snn")
    snn, ann, about = converted(args, recipe, data)
    return run_stage(args, Job(snn, stage, data, validation, about, teacher=ann))
