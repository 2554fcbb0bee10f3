"""Which attacks fell what a first one leaves, as ``choose_protocol.py`` measured it, in order and as a table."""

from typing import Any

from rsnn_zoo.report.report import in_255


def ordered(found: dict[str, Any]) -> list[tuple[str, int, float]]:
    """Candidates by turn, what each fells of what is left, and that per second; without those that would nothing."""
    attacks = {name: one for name, one in found["attacks"].items() if name != found["first"]}
    left, order = set(found["attacks"][found["first"]]["standing"]), []

    def gain(name: str) -> int:
        return len(left & set(attacks[name]["felled"]))

    while attacks and any(map(gain, attacks)):
        best = max(attacks, key=lambda name: gain(name) / attacks[name]["seconds"])
        order.append((best, gain(best), gain(best) / attacks[best]["seconds"]))
        left -= set(attacks.pop(best)["felled"])
    return order


def table(found: dict[str, Any]) -> str:
    """A heading, what was measured, and a row a candidate, by turn; then those that add nothing to the others."""
    first = found["attacks"][found["first"]]
    stood = len(first["standing"])
    lines = [
        f"### {found['model']}, eps {in_255(found['eps'])}",
        "",
        f"{found['n']} {found['split']} images of {found['dataset']}, gradients {found['precision']}, "
        f"{found['cores']} cores ({found['cpu']}). After `{found['first']}`, which felled {len(first['felled'])} in "
        f"{first['seconds']:.0f} s, {stood} stood.",
        "",
        f"| after `{found['first']}` | fells of {stood} | s per image | after all above it | fells per minute |",
        "|---|---|---|---|---|",
    ]
    order, left = ordered(found), stood
    for name, added, rate in order:
        one = found["attacks"][name]
        lines.append(f"| `{name}` | {len(one['felled'])} | {one['seconds'] / stood:.2f} | {added} | {60 * rate:.3g} |")
        left -= added
    for name in (each for each in found["attacks"] if each not in {found["first"], *(one[0] for one in order)}):
        one = found["attacks"][name]
        lines.append(f"| `{name}` | {len(one['felled'])} | {one['seconds'] / stood:.2f} | 0 | 0 |")
    return "\n".join([*lines, "", f"{left} stand under all of them."])
