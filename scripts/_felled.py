"""What each member of a protocol felled, by published evidence, as tables."""

import itertools
from typing import Any

from _pages import table

from rsnn_zoo.report.evidence import published_index, published_runs
from rsnn_zoo.report.report import STANDS, in_255

Report = dict[str, Any]


def by_member(protocol: str, reports: list[Report], before: tuple[str, list[Report]] | None = None) -> str:
    """A table of the members that felled anything, in their order, by report, and of what stands.

    Args:
        protocol: Whose members.
        reports: Contents of ``evaluation.json``; those without the protocol have no column.
        before: Another protocol and reports on it, for a last row: what stood of the same images.
    """
    columns, counts, last = [], list[dict[str, int]](), [["stand"], [f"under `{before[0]}`"]] if before else [["stand"]]
    for report in reports:
        for run in (run for run in published_runs(report) if run.protocol == protocol):
            columns.append(f"{report['model']}, {in_255(run.eps)}")
            attacks = run.claimed["attacks"]
            counts.append({f"{one['attack']}@{one['mode']}".removesuffix("@own"): one["felled"] for one in attacks})
            last[0].append(f"{run.verdicts.count(STANDS)} of {len(run.verdicts)}")
            if before:
                last[1].append(standing(before[0], report, run.eps, before[1]))
    members = dict.fromkeys(itertools.chain(*counts))
    rows = [[f"`{name}`", *(one.get(name, 0) or "" for one in counts)] for name in members]
    return table(" | ".join(["in this order", *columns]), [*(row for row in rows if any(row[1:])), *last])


def standing(protocol: str, report: Report, eps: float, others: list[Report]) -> str:
    """How many of a report's images, the first of their split, stand by another report on them; "" without one."""
    index = list(published_index(report))
    for other in others:
        same = all(other[key] == report[key] for key in ("weights_sha256", "split"))
        if same and list(published_index(other))[: len(index)] == index:
            for run in published_runs(other):
                if (run.protocol, run.eps) == (protocol, eps):
                    return str(run.verdicts[: len(index)].count(STANDS))
    return ""


KINDS = {"adaptive": "an adaptive ensemble", "apgd": "Auto-PGD", "flips": "flips"}
"""Attacks by how their names begin, and what a table calls them."""


def missed(first: str, second: str, reports: list[Report]) -> str:
    """A table of the images that withstand one protocol, by what of the other fells them at the same radius."""
    rows = list[list[object]]()
    for report in reports:
        runs = {(run.protocol, run.eps): run for run in published_runs(report)}
        for eps in (eps for protocol, eps in runs if protocol == first and (second, eps) in runs):
            stronger = runs[second, eps]
            pairs = zip(runs[first, eps].verdicts, stronger.verdicts, strict=True)
            fates = [verdict for stood, verdict in pairs if stood == STANDS]
            names = [stronger.claimed["attacks"][verdict]["attack"] for verdict in fates if verdict >= 0]
            if fates:
                felled = [sum(name.startswith(kind) for name in names) for kind in KINDS]
                if sum(felled) != len(names):
                    raise ValueError(f"the table has no column for one of {sorted(set(names))}: add it to KINDS")
                rows.append([f"`{report['model']}`, {in_255(eps)}", len(fates), *felled, fates.count(STANDS)])
    fall = " | ".join(f"fall to {kind}" for kind in KINDS.values())
    return table(f"SNN, eps | stand under `{first}` | {fall} | stand", rows)
