"""``rsnn-zoo evaluate --output results``, from a checkout: ``python scripts/evaluate.py --help``."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("evaluate", "--output", "results")
