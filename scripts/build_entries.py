"""``rsnn-zoo build``, from a checkout: the command that cards of earlier entries name."""

from rsnn_zoo.cli import program

if __name__ == "__main__":
    program("build")
