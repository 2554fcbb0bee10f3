"""Make a robust SNN from a trained ANN: convert it, then fine-tune weights and thresholds.

    python scripts/finetune.py resnet20_digits_trades_t4
    python scripts/finetune.py resnet20_cifar10_trades_t8 --ann runs/resnet20_cifar10_trades_ann

Without --ann, the ANN is the one of the same name in runs/, or else the published one. --ann takes a folder, another
name, or a file of your own weights (see convert.py). Like train.py, it resumes when you repeat the command, and
--dry-run shows the recipe and estimates time and memory.
"""

from _training import main, parsed, resolve, run_stage, training_parser
from convert import add_ann, converted


def run() -> None:
    """Fine-tune what the command line names."""
    args = parsed(add_ann(training_parser(__doc__)))
    recipe, data, validation = resolve(args)
    stage = recipe.stage("snn")
    snn, ann, about = converted(args, recipe, data)
    run_stage(args, snn, stage, data, validation, about, teacher=ann)


if __name__ == "__main__":
    main(run)
