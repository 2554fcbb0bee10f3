"""``rsnn-zoo finetune``, from a checkout: ``python scripts/finetune.py --help``."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("finetune")
