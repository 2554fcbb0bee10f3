"""``rsnn-zoo train``: an ANN, or an SNN from scratch."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rsnn_zoo.cli._console import Outcome
from rsnn_zoo.cli._process import process_group
from rsnn_zoo.cli._training import Job, add_making, add_training, planned, run_stage

HELP = "train an ANN, naturally or robustly by AT, TRADES, MART, ...; or an SNN directly, from scratch"
EXAMPLE = """\
rsnn-zoo train resnet20_digits_trades_ann
  rsnn-zoo train resnet20_cifar10_trades_ann --data cifar10.npz --dry-run
  rsnn-zoo train resnet20_cifar10_mart_ann --recipe mine.toml --set ann.epochs=5 --output runs/short
  rsnn-zoo train resnet20_digits_rat_t4            # an SNN, by the recipe's table [direct]
  rsnn-zoo train resnet20_cifar10_trades_ann --init natural.pth --set ann.epochs=5 --set ann.lr=0.02
  torchrun --nproc-per-node 8 -m rsnn_zoo.cli train vgg11_cifar10_trades_ann

The recipe holds every number; --dry-run shows it and estimates time and memory. A stopped or killed run resumes when
you repeat the command. The result, in the same folder, is an entry: create_model("local-dir:runs/NAME",
pretrained=True) loads it, and rsnn-zoo finetune turns an ANN into a robust SNN."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    add_making(one)
    add_training(one)
    add_init(one)


def add_init(one: argparse.ArgumentParser) -> None:
    """Add the argument that says where training starts."""
    about = "weights to start from: a folder, a name, or a file (.safetensors, .pth); by default random ones"
    one.add_argument("--init", metavar="WEIGHTS", help=about)


def run(args: argparse.Namespace) -> Outcome:
    """Train what is named."""
    with process_group():
        return _train(args)


def _train(args: argparse.Namespace) -> Outcome:
    import torch

    from rsnn_zoo.cli._weights import load_init
    from rsnn_zoo.hub.registry import create_model

    recipe, data, validation = planned(args)
    torch.manual_seed(args.seed)
    name = str(args.name)
    about = {"name": name, "recipe": recipe.name, "data": asdict(recipe.data)}
    if args.name.timesteps is None:
        model, stage = create_model(name), recipe.stage("ann")
    else:
        stage = recipe.stage("direct")
        model = create_model(name, threshold=recipe.neuron.threshold, **recipe.neuron.arguments())
        about |= {"neuron": asdict(recipe.neuron)}
    if args.init:
        about |= load_init(model, args.init)
    return run_stage(args, Job(model, stage, data, validation, about))
