"""Estimate the hours of entries that are planned, from dry runs and runs of the same networks.

    python scripts/plan_entries.py --page docs/reproduce.md

A dry run is the output of ``rsnn-zoo train`` or ``finetune`` with ``--dry-run --json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _pages import put_into, table

from rsnn_zoo._utils.files import load_json
from rsnn_zoo.spec.datasets import Augmentation
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import Stage, load_recipe

DOCS = Path(__file__).parent.parent / "docs"
USUAL = "cifar10_linf8"
"""The recipe that `build` takes for CIFAR-10 where none is named."""
PLANNED = (  # entry, recipe, what was measured of that training
    ("resnet20_cifar10_mart_ann", USUAL, "dry_runs/resnet20_cifar10_mart_ann.json"),
)


def hours_of(stage: Stage, measured: dict[str, Any]) -> float:
    """What a training takes, by a dry run of it, or by what such a one of as dear a network took.

    Raises:
        ValueError: If that was of another schedule.
    """
    augmentation = Augmentation(**measured["stage"]["augmentation"])
    if stage != (before := Stage(**{**measured["stage"], "augmentation": augmentation})):
        raise ValueError(f"measured was {before}, planned is {stage}: repeat the dry run")
    return measured.get("estimate", measured.get("result"))["seconds"] / 3600


def row_of(name: str, recipe: str, source: str) -> list[object]:
    """A line of the table."""
    parts = ModelName.parse(name)
    stage = load_recipe(recipe, parts.objective).stage("snn" if parts.timesteps else "ann")
    option = "" if recipe == USUAL else f" --recipe {recipe}"
    command = f"rsnn-zoo build {name}{option} --data cifar10.npz -n 1000 --processes 2"
    return [f"`{command}`", f"{hours_of(stage, load_json(DOCS / source)):.1f}", f"`docs/{source}`"]


def main() -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    about = "page whose table is written anew (%(default)s)"
    parser.add_argument("--page", type=Path, default=DOCS / "reproduce.md", metavar="FILE", help=about)
    page = parser.parse_args().page
    text = table("command | hours of training | by", [row_of(*plan) for plan in PLANNED])
    put_into(page, "plan", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
