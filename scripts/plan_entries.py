"""Estimate the hours of entries that are planned, from dry runs and runs of the same networks.

    python scripts/plan_entries.py --page docs/reproduce.md

A step takes a time that is linear in the steps of its attack, so a dry run at one schedule says what another takes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _pages import put_into, table

from rsnn_zoo._utils.files import load_json
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import Stage, load_recipe

DOCS = Path(__file__).parent.parent / "docs"
LARGE = "cifar10_linf8_large"
IMAGES = 45_000
PLANNED = (  # entry, recipe, what was measured of that network at another schedule, or of another with its passes
    ("vgg11_cifar10_trades_ann", LARGE, "dry_runs/vgg11_cifar10_trades_ann.json"),
    ("vgg11_cifar10_trades_t8", LARGE, "dry_runs/vgg11_cifar10_trades_t8.json"),
    ("resnet20_cifar10_at_t8", "cifar10_linf8", "runs/resnet20_cifar10_trades_t8/run.json"),
    ("wrn16_4_cifar10_at_ann", "cifar10_linf8", "dry_runs/wrn16_4_cifar10_at_ann.json"),
    ("wrn16_4_cifar10_at_t4", LARGE, "dry_runs/wrn16_4_cifar10_trades_t4.json"),
    ("wrn16_4_cifar10_at_t8", LARGE, "dry_runs/wrn16_4_cifar10_trades_t8.json"),
    ("resnet20_cifar10_mart_ann", "cifar10_linf8", "dry_runs/resnet20_cifar10_mart_ann.json"),
    ("wrn16_4_cifar10_mart_ann", LARGE, "dry_runs/wrn16_4_cifar10_mart_ann.json"),
)


def shares(stage: dict[str, Any]) -> float:
    """Mean over a training of how far the attack's steps have grown, from 0 (one step) to 1 (all)."""
    done = np.linspace(0, stage["epochs"], 10_000, endpoint=False)
    if not stage["steps_warmup"]:
        return 1.0
    return float(np.minimum(done / stage["steps_warmup"], 1).mean())


def hours_of(stage: Stage, measured: dict[str, Any]) -> float:
    """What a training takes, by what another one of the same network and batch took."""
    before = measured["stage"]
    if "estimate" not in measured:
        return measured["result"]["seconds"] / 3600 * stage.epochs / before["epochs"]
    found, batches = measured["estimate"], IMAGES // before["batch_size"]
    full, validation = found["seconds_a_step"], found["seconds_an_epoch"] - batches * found["seconds_a_step"]
    mean = (found["seconds"] / before["epochs"] - validation) / batches
    grown = shares(before)
    one = (mean - grown * full) / (1 - grown) if grown < 1 else full
    here = shares({"epochs": stage.epochs, "steps_warmup": stage.steps_warmup})
    return stage.epochs * (batches * (one + here * (full - one)) + validation) / 3600


def row_of(name: str, recipe: str, source: str) -> list[object]:
    """A line of the table."""
    parts = ModelName.parse(name)
    stage = load_recipe(recipe, parts.objective).stage("snn" if parts.timesteps else "ann")
    option = f" --recipe {recipe}" if recipe == LARGE else ""
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
