"""``rsnn-zoo list``: names of the zoo."""

from __future__ import annotations

import argparse

from rsnn_zoo.cli._console import Outcome
from rsnn_zoo.hub.catalog import list_models
from rsnn_zoo.hub.resolve import published_names

HELP = "list the names of the zoo"
EXAMPLE = "rsnn-zoo list '*trades*' --pretrained --dataset digits"


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("filter", nargs="*", help="wildcards; names that match any of them are listed")
    one.add_argument("--pretrained", action="store_true", help="only those with published weights")
    one.add_argument("--dataset", help="only this data set")
    one.add_argument("--objective", help="only this training objective")


def run(args: argparse.Namespace) -> Outcome:
    """List names."""
    names = list_models(args.filter or "*", pretrained=args.pretrained, dataset=args.dataset, objective=args.objective)
    published = set() if args.pretrained else set(published_names())  # else all are
    return "\n".join(f"{name}  (published)" if name in published else name for name in names), names, 0
