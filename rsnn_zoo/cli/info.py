"""``rsnn-zoo info``: what an entry is, and what was found of it."""

from __future__ import annotations

import argparse

from rsnn_zoo.cli._arguments import MODEL, add_plugin
from rsnn_zoo.cli._console import Outcome
from rsnn_zoo.hub.resolve import resolve
from rsnn_zoo.report.card import summary
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, load_evidence
from rsnn_zoo.spec.config import EVIDENCE

HELP = "describe an entry and its published results"
EXAMPLE = "rsnn-zoo info hf-hub:colleague/their_snn"


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("name", help=MODEL)
    add_plugin(one)


def run(args: argparse.Namespace) -> Outcome:
    """Describe an entry."""
    entry = resolve(args.name)
    try:
        evidence, missing = load_evidence(entry.get(EVIDENCE, MAX_EVIDENCE_BYTES), entry.config), None
    except (OSError, ValueError) as error:
        evidence, missing = None, f"No usable evidence: {error}"
    content = {"name": args.name, "origin": entry.origin, "config": entry.config.to_json(), "evidence": evidence}
    lines = [f"{args.name} ({entry.origin})", "", summary(entry.config, evidence), *([missing] if missing else [])]
    return "\n".join(lines), content, 0
