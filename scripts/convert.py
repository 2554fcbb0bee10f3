"""``rsnn-zoo convert``, from a checkout: ``python scripts/convert.py --help``."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("convert")
