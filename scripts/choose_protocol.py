"""Measures which attacks fell what others leave standing, per second: what a protocol is chosen by.

    python scripts/choose_protocol.py resnet20_digits_trades_t4 --eps 32 --output docs/protocols/digits.json
    python scripts/choose_protocol.py resnet20_cifar10_trades_t4 --data cifar10.npz -n 64 --output docs/protocols/c.json
    python scripts/choose_protocol.py --table docs/protocols/*.json
    python scripts/choose_protocol.py --felled worst-case-v2 docs/evaluations/*.json 'resnet20_*_t?'

On validation images the first attack runs; then each candidate attacks whatever that one left standing, all of them the
same images. So the file knows what any candidate adds to any others. The tables order them greedily: next comes the one
that fells most per second of what those before it leave. With ``--felled``, a table of what each member of a protocol
felled after those before it, by the published evidence or by reports that ``rsnn-zoo evaluate --output`` wrote.
"""

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import rsnn_zoo
from rsnn_zoo._utils.files import check_writable, load_json, replacing, to_json
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.cli._console import ERRORS
from rsnn_zoo.cli._process import set_up_process
from rsnn_zoo.evaluate_entry import data_of
from rsnn_zoo.hub.resolve import entry_folder
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, published_index, published_runs
from rsnn_zoo.report.report import STANDS, in_255
from rsnn_zoo.spec.config import EVIDENCE

CANDIDATES = [
    *(f"apgd100-ce@{mode}" for mode in ("pcw-1", "pcw-2", "rate", "assg", "hart-1", "exp_d-1", "pdsg")),
    *(f"apgd100-dlr@{mode}" for mode in ("pcw-1", "hart-1", "exp_d-1")),
    *(f"apgd100-t{target}@pcw-1" for target in (1, 2, 3)),
    *("sapgd100@assg", "sapgd100@assg-0.35", "sapgd100@assg-0.49"),
    *("flips4000", "square1000", "transfer-apgd100-ce", "pgd20@ensemble"),
]

FIRST_VERSION = "worst-case-v1"
"""What later versions are compared with, on the same images."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?", help="a published name")
    p.add_argument("--data", help="npz file or folder, where the data set is not embedded")
    p.add_argument("--split", default="validation", help="of the images (default: %(default)s)")
    p.add_argument("-n", "--images", type=int, help="the first so many (default: all)")
    p.add_argument("--eps", type=float, default=8, help="radius in units of 1/255 (default: 8)")
    p.add_argument("--first", default="adaptive434", help="what the candidates come after (default: %(default)s)")
    p.add_argument("--candidates", nargs="+", default=CANDIDATES, help="terms of protocols")
    p.add_argument("--precision", default="float32", help="of the gradients (default: %(default)s)")
    p.add_argument("--output", type=Path, help="JSON file; written after each attack, and candidates in it are kept")
    p.add_argument("--table", type=Path, nargs="+", metavar="JSON", help="print tables of such files, and no more")
    p.add_argument("--felled", nargs="+", metavar="NAME", help="a protocol, then entries or report files")
    return p


def measure(args: argparse.Namespace) -> None:
    """Run what is not in the file yet, and write it there."""
    model = rsnn_zoo.create_model(args.model, pretrained=True)
    data = data_of(model, args.data, args.split, images=args.images)
    asked = {"model": args.model, "dataset": data.info.name, "split": args.split, "n": len(data)}
    asked |= {"eps": args.eps / 255, "first": args.first, "precision": args.precision}
    found = load_json(args.output) if args.output.exists() else asked | {"attacks": {}}
    if other := {key: found.get(key) for key, value in asked.items() if found.get(key) != value}:
        raise ValueError(f"{args.output} holds another measurement, with {other}: name another file")
    left = data
    for attack in (args.first, *args.candidates):
        if attack not in found["attacks"]:
            settings = {"checks": 0, "batch_size": len(left), "precision": args.precision, "progress": True}
            run = rsnn_zoo.evaluate(model, left, attack, args.eps / 255, **settings).runs[0]
            fell = [int(at) for at, verdict in zip(left.index, run.verdicts, strict=True) if verdict >= 0]
            stand = [int(at) for at, verdict in zip(left.index, run.verdicts, strict=True) if verdict == STANDS]
            found["attacks"][attack] = {"felled": fell, "standing": stand, "seconds": run.seconds}
            made = datetime.now(timezone.utc).isoformat(timespec="seconds")
            found |= {"created": made, **environment(torch.device("cpu"))}
            with replacing(args.output) as path:
                path.write_bytes(to_json(found))
        if attack == args.first:
            standing = set(found["attacks"][attack]["standing"])
            left = data.select([row for row, at in enumerate(data.index.tolist()) if at in standing])


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


def table(path: Path) -> str:
    """Two tables in Markdown: each candidate by itself, and in order."""
    found = load_json(path)
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


def reports(*patterns: str) -> list[dict[str, Any]]:
    """Reports by their file, or evidence of entries by their name."""
    paths = []
    for pattern in patterns:
        names = [] if pattern.endswith(".json") else rsnn_zoo.list_models(pattern, pretrained=True)
        paths += [entry_folder(name) / EVIDENCE for name in names] or [Path(pattern)]
    return [load_json(path, MAX_EVIDENCE_BYTES) for path in paths]


def standing(protocol: str, report: dict[str, Any], eps: float, others: list[dict[str, Any]]) -> str:
    """How many of a report's images, the first of their split, stand by another report on them; "" without one."""
    index = list(published_index(report))
    for other in others:
        same = all(other[key] == report[key] for key in ("weights_sha256", "split"))
        if same and list(published_index(other))[: len(index)] == index:
            for run in published_runs(other):
                if (run.protocol, run.eps) == (protocol, eps):
                    return str(run.verdicts[: len(index)].count(STANDS))
    return ""


def felled(protocol: str, *patterns: str) -> str:
    """A table in Markdown of the members that felled anything, in their order, by entry, and of what stands."""
    columns, members, stand, before = [], {}, [], []
    given = reports(*patterns)
    for report in given:
        for run in (run for run in published_runs(report) if run.protocol == protocol):
            attacks = run.claimed["attacks"]
            found = {f"{one['attack']}@{one['mode']}".removesuffix("@own"): one["felled"] for one in attacks}
            columns.append((f"{report['model']}, {in_255(run.eps)}", found))
            members |= dict.fromkeys(member for member, count in found.items() if count)
            stand.append(f"{run.verdicts.count(STANDS)} of {len(run.verdicts)}")
            before.append(standing(FIRST_VERSION, report, run.eps, given))
    order = [member for _, found in columns[:1] for member in found if member in members]
    lines = ["| in this order | " + " | ".join(head for head, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for member in dict.fromkeys([*order, *members]):
        lines.append(f"| `{member}` | " + " | ".join(str(found.get(member, 0) or "") for _, found in columns) + " |")
    lines.append(f"| stand | {' | '.join(stand)} |")
    if protocol != FIRST_VERSION:
        lines.append(f"| under `{FIRST_VERSION}` | {' | '.join(before)} |")
    return "\n".join(lines)


def main() -> None:
    set_up_process()
    p = parser()
    args = p.parse_args()
    if args.table:
        print("\n\n".join(map(table, args.table)))
        return
    if args.felled:
        print(felled(*args.felled))
        return
    if not (args.model and args.output):
        p.error("name a model and an --output, files after --table, or a protocol and entries after --felled")
    check_writable(args.output)
    measure(args)


if __name__ == "__main__":
    try:
        main()
    except ERRORS as error:
        sys.exit(f"error: {error}")
