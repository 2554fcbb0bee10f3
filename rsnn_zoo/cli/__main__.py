"""``python -m rsnn_zoo.cli``."""

import sys

from rsnn_zoo.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
