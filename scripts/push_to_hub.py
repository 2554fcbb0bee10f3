"""``rsnn-zoo push``, from a checkout: ``python scripts/push_to_hub.py --help``."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("push")
