"""Push entries of hub_configs/ to the Hugging Face Hub: one, several by wildcard, or all; as ``rsnn-zoo push``.

    python scripts/push_to_hub.py resnet20_digits_trades_t4 --dry-run
    python scripts/push_to_hub.py 'resnet20_digits_*' --tag v1.0
    python scripts/push_to_hub.py --all --org my-lab --private

An entry is checked first (weights, evidence, config); what is on the Hub already is not uploaded again.
"""

import sys

from rsnn_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
