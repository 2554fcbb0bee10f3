"""Train an ANN, naturally or robustly by AT, TRADES, MART, ...; or an SNN directly, from scratch.

    python scripts/train.py resnet20_digits_trades_ann
    python scripts/train.py resnet20_cifar10_trades_ann --data cifar10.npz --dry-run
    python scripts/train.py resnet20_cifar10_mart_ann --recipe mine.toml --set ann.epochs=5 --output runs/short
    python scripts/train.py resnet20_digits_rat_t4            # an SNN, by the recipe's table [direct]
    torchrun --nproc-per-node 8 scripts/train.py vgg11_cifar10_trades_ann

The recipe holds every number; --dry-run shows it and estimates time and memory. A stopped or killed run resumes when
you repeat the command. The result, in the same folder, is an entry: create_model("local-dir:runs/NAME",
pretrained=True) loads it, and finetune.py turns an ANN into a robust SNN.
"""

from dataclasses import asdict

import torch
from _training import main, parsed, resolve, run_stage, training_parser

from rsnn_zoo.hub.registry import create_model


def run() -> None:
    """Train what the command line names."""
    args = parsed(training_parser(__doc__))
    recipe, data, validation = resolve(args)
    torch.manual_seed(args.seed)
    name = str(args.name)
    about = {"name": name, "recipe": recipe.name, "data": asdict(recipe.data)}
    if args.name.timesteps is None:
        model, stage = create_model(name), recipe.stage("ann")
    else:
        stage = recipe.stage("direct")
        model = create_model(name, threshold=recipe.neuron.threshold, **recipe.neuron.arguments())
        about |= {"neuron": asdict(recipe.neuron)}
    run_stage(args, model, stage, data, validation, about)


if __name__ == "__main__":
    main(run)
