"""``python -m rsnn_zoo.cli``."""

import sys

from rsnn_zoo.cli.commands import main

sys.exit(main())
