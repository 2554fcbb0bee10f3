"""``rsnn-zoo verify``, from a checkout: ``python scripts/verify.py FILE --model NAME``."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("verify")
