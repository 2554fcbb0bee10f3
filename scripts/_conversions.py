"""What conversion alone keeps, as a table."""

from typing import Any

from rsnn_zoo.report.report import in_255


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each network and T."""
    lines = ["| ANN | images | its accuracy | T | `absorb` | `published` | `absorb` under attack |", "|---" * 7 + "|"]
    for name, found in results.items():
        runs = found["runs"]
        for timesteps in sorted({int(key.split()[1]) for key in runs}):
            kept = [runs.get(f"{method} {timesteps}") for method in ("absorb", "published")]
            shown = " | ".join(f"{100 * run['accuracy']:.1f}" if run else "" for run in kept)
            shown += f" | {_attacked(kept[0] or {})}"
            lines.append(f"| `{name}` | {found['images']} | {100 * found['ann']:.1f} | {timesteps} | {shown} |")
    return "\n".join(lines)


def _attacked(run: dict[str, Any]) -> str:
    """What stands under each attack that a conversion was measured by."""
    attacks = {name: found for name, found in run.items() if isinstance(found, dict) and "robust" in found}
    how = "{:.0f} of {} under `{}`, {}"
    found = (how.format(f["robust"] * f["images"], f["images"], name, in_255(f["eps"])) for name, f in attacks.items())
    return ", ".join(found)
