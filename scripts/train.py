"""``rsnn-zoo train``, from a checkout: ``python scripts/train.py --help``."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("train")
