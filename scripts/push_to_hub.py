"""Push entries to the Hugging Face Hub, as ``rsnn-zoo push``: one, several by wildcard, or all of hub_configs/.

    python scripts/push_to_hub.py resnet20_digits_trades_t4 --dry-run
    python scripts/push_to_hub.py 'resnet20_digits_*' --tag v1.0
    python scripts/push_to_hub.py --all --org my-lab --private
    python scripts/push_to_hub.py runs/resnet18_cifar10_trades_t4 --plugin mine.py --org my-lab

Each entry is checked first (config, weights, evidence). Files that are already on the Hub are not uploaded again.
"""

import sys

from rsnn_zoo.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
