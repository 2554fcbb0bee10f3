"""What evidence says of its attacks, held against what their protocol's name stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rsnn_zoo.attacks.adaptive import Adaptive
from rsnn_zoo.evaluation import flags
from rsnn_zoo.evaluation.protocols import Member, Plan
from rsnn_zoo.report.evidence import EvidenceError, PublishedRun, published_runs
from rsnn_zoo.report.report import Run
from rsnn_zoo.spec.schema import Section

__all__ = ["TOLERATED_MOVES", "check_attacks", "check_flags", "tolerated_moves"]

TOLERATED_MOVES = 0.1
"""Share of the fallen that may have fallen to another attack: which iterate is the first to fell hangs on roundings
more often than whether any does."""


def check_attacks(run: PublishedRun, plan: Plan) -> None:
    """Hold the attacks that a run lists against those that its protocol runs on this model.

    Args:
        run: As published.
        plan: What its protocol comes to for the model.

    Raises:
        EvidenceError: If others are listed, or of other steps or restarts, or something else is left out.
        ValueError: If an adaptive ensemble cannot have learned what is said.
    """
    claimed = run.claimed
    members = [_taught(member, run.learned) for member in plan.members]
    names = tuple((member.attack.name, member.mode_name) for member in members)
    steps = tuple(getattr(member.attack, "steps", None) for member in members)
    listed: Sequence[Mapping[str, Any]] = claimed.get("attacks", [])
    if len(listed) != len(names):
        raise EvidenceError(f"{run.protocol[:100]} lists {len(listed)} attacks, and by its name runs {len(names)}")
    made = Run(run.protocol, run.eps, names, run.verdicts, 0.0, steps).to_json()
    for said, true in zip([claimed, *listed], [made, *made["attacks"]], strict=True):
        for key in ("attack", "mode", "steps", "restarts"):
            if key in true and said.get(key, true[key]) != true[key]:
                raise EvidenceError(
                    f"{run.protocol[:100]} lists {key} {said[key]!r:.100} where by its name it runs {true[key]!r}"
                )
    if other := set(claimed.get("left_out", {})) ^ set(plan.left_out):
        raise EvidenceError(
            f"{run.protocol[:100]} says that it left out {', '.join(claimed.get('left_out', {})) or 'nothing'}; on "
            f"this model it differs in {min(other)!r:.100}"
        )


def _taught(member: Member, learned: Mapping[str, Any]) -> Member:
    known = learned.get(str(member))
    if known is None or not isinstance(member.attack, Adaptive):
        return member
    return replace(member, attack=member.attack.taught(known))


def tolerated_moves(fallen: int) -> int:
    """How many of so many that fell may have fallen to another attack than the evidence says.

    Example:
        >>> [tolerated_moves(fallen) for fallen in (0, 1, 2, 30)]
        [0, 0, 1, 3]
    """
    return min(fallen - 1, max(1, int(TOLERATED_MOVES * fallen))) if fallen else 0


def check_flags(evidence: Mapping[str, Any]) -> None:
    """Hold what is flagged against what the verdicts, and the agreement of two networks, alone show.

    Raises:
        EvidenceError: If a flag that they raise is not raised, or the agreement is none.
    """
    members = [tuple((a["attack"], str(a.get("mode"))) for a in run.get("attacks", [])) for run in evidence["runs"]]
    published = zip(published_runs(evidence), members, strict=True)
    runs = [Run(run.protocol, run.eps, members, run.verdicts, 0.0) for run, members in published]
    found = [flags.gradient_free(runs), flags.more_eps(runs), flags.more_steps(runs)]
    if "agreement" in evidence:
        said = Section(evidence, "the evidence").section("agreement")
        sampled = said.integer("sampled", 1, 10**15)
        found.append(flags.other_network(sampled, said.integer("fell", 0, sampled)))
    for flag in found:
        if flag.raised and not evidence.get("flags", {}).get(flag.name, {}).get("raised"):
            raise EvidenceError(f"the flag {flag.name} is not raised, and by the verdicts {flag.message}")
