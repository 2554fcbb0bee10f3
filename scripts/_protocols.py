"""What worst-case-v2 takes beside worst-case-v1, on the same images in one run, as a table."""

from typing import Any

from rsnn_zoo.report.report import in_255

WAYS = {"worst-case-v1": "float32", "worst-case-v2": "folded"}
"""The protocols, each with the precision of its gradients."""


def table(*results: dict[str, Any]) -> str:
    """The measurements as a Markdown table: images that stand and seconds an image, by protocol, and their ratio."""
    heads = ["network, eps", "images", *(f"`{way}`" for way in WAYS), "v2's time over v1's"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for found in results:
        n = sum(block["n"] for block in found["blocks"])
        cells, seconds = [f"`{found['model']}`, {in_255(found['eps'])}", f"{n}, {found['split']}"], []
        for way in WAYS:
            runs = [block[way] for block in found["blocks"]]
            seconds.append(sum(run["seconds"] for run in runs))
            cells.append(f"{sum(sum(run['stands']) for run in runs)} stand, {seconds[-1] / n:.1f} s an image")
        before, now = seconds
        lines.append(f"| {' | '.join([*cells, f'{now / before:.2f}'])} |")
    machines = {f"{found['machine']['cpu']}, threads: {found['machine']['threads']}" for found in results}
    return "\n".join([*lines, "", f"{'; '.join(sorted(machines))}."])
