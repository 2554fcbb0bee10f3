"""Train an ANN: naturally, or robustly by AT, TRADES, MART, ...

    python scripts/train.py resnet20_digits_trades_ann
    python scripts/train.py resnet20_cifar10_trades_ann.linf8 --data cifar10.npz --dry-run
    python scripts/train.py resnet20_cifar10_mart_ann --recipe mine.toml --set ann.epochs=5 --output runs/short

The recipe holds every number; --dry-run shows it and estimates the time. A run that was stopped or killed goes on when
the same command is given again. The result, in the same folder, is an entry: create_model("local-dir:runs/NAME",
pretrained=True) loads it, and finetune.py makes a robust SNN of it.
"""

from _training import main, resolve, run_stage, training_parser  # noqa: I001 (tunes malloc before torch allocates)

import torch

from rsnn_zoo.registry import create_model


def run() -> None:
    """Train what the command line names."""
    parser = training_parser(__doc__)
    args = parser.parse_args()
    if args.name.timesteps is not None:
        parser.error(f"{args.name} is an SNN: train {args.name.objective}'s ..._ann here, then finetune.py")
    recipe, data, validation = resolve(args)
    torch.manual_seed(args.seed)
    model = create_model(str(args.name))
    run_stage(args, model, recipe.ann, data, validation, {"name": str(args.name), "recipe": recipe.name})


if __name__ == "__main__":
    main(run)
