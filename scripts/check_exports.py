"""Every published SNN as NIR and ONNX files: do simulators and onnxruntime compute what the network does?

    python scripts/check_exports.py --data cifar10=cifar10.npz --output docs/exports/checks.json
    python scripts/check_exports.py --table docs/exports/checks.json

Test images of the entry's own data set; simulators and the reference interpreter in float64, spike by spike. Entries
that the output file already holds, at the same weights, number of images and versions, are not checked again: a run
that was stopped goes on. An entry that fails is named at the end, and the exit status is 1.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import rsnn_zoo
from rsnn_zoo._utils.files import replacing, to_json
from rsnn_zoo._utils.provenance import digest, environment
from rsnn_zoo.exports.graph import ExportError
from rsnn_zoo.exports.simulators import SIMULATORS
from rsnn_zoo.spec.names import ModelName

PACKAGES = ("torch", "nir", "nirtorch", *SIMULATORS, "onnx", "onnxruntime")
COLUMNS = ("rsnn_zoo", *SIMULATORS, "onnxruntime")
EXPECTED = {"rsnn_zoo": "NIR, own interpreter", "onnxruntime": "ONNX, onnxruntime, float32"}


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checked(name: str, source: str, count: int) -> dict[str, Any]:
    """One entry, exported to both formats."""
    model = rsnn_zoo.create_model(name, pretrained=True)
    images = rsnn_zoo.load_dataset(source, "test").select(count).pixels()
    checks = []
    with tempfile.TemporaryDirectory() as folder:
        for format in ("nir", "onnx"):
            report = rsnn_zoo.export(model, Path(folder) / f"network.{format}", format, images=images)
            checks += [{"format": format, **asdict(check)} for check in report.checks]
    return {
        "model": name,
        "model_sha256": digest(model),
        "images": len(images),
        "versions": versions(),
        "checks": checks,
    }


def is_current(entry: dict[str, Any], count: int) -> bool:
    """Whether a result is of the weights, the packages and the number of images that would be checked now."""
    weights = digest(rsnn_zoo.create_model(entry["model"], pretrained=True))
    return (entry["model_sha256"], entry["versions"], entry["images"]) == (weights, versions(), count)


def check_all(names: list[str], sources: dict[str, str], count: int, output: Path) -> list[str]:
    """Checks the entries, each written as soon as it is done; gives what failed."""
    failed = []
    old = json.loads(output.read_text())["entries"] if output.exists() else []
    entries = {entry["model"]: entry for entry in old}
    for name in names:
        if name in entries and is_current(entries[name], count):
            continue
        dataset = ModelName.parse(name).dataset
        try:
            entries[name] = checked(name, sources.get(dataset, dataset), count)
        except ExportError as error:
            failed.append(f"{name}: {error}")
            continue
        results = {"schema": 1, "entries": [entries[one] for one in sorted(entries)], "environment": environment()}
        with replacing(output) as temporary:
            temporary.write_bytes(to_json(results))
        print(name, flush=True)
    return failed


def table(results: dict[str, Any]) -> str:
    """Markdown: differing spikes, and predictions where any differs."""
    head = [EXPECTED.get(name, f"NIR, {name}") for name in COLUMNS]
    lines = ["| entry | spikes compared | " + " | ".join(head) + " |", "|---" * (len(head) + 2) + "|"]
    for entry in results["entries"]:
        by_name = {check["runtime"].split()[0]: check for check in entry["checks"]}
        cells = [cell(by_name.get(name), entry["images"]) for name in COLUMNS]
        spikes = by_name["rsnn_zoo"]["spikes"] / 1e6
        lines.append(f"| {entry['model']} | {spikes:.1f} million | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(check: dict[str, Any] | None, images: int) -> str:
    """What one runtime did."""
    if check is None:
        return "refused"
    classes = f"{images - check['differing_predictions']} of {images} classes"
    return f"{check['differing_spikes']} differ, {classes}" if check["spikes"] else classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="published SNNs; all by default")
    parser.add_argument("--data", nargs="+", default=[], metavar="DATASET=FILE", help="where data sets lie")
    parser.add_argument("-n", "--images", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("exports.json"))
    parser.add_argument("--table", type=Path, help="print such a file as a table, and check nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    torch.set_grad_enabled(False)
    published = [name for name in rsnn_zoo.list_models(pretrained=True) if not name.endswith("_ann")]
    sources = dict(pair.split("=", 1) for pair in args.data)
    failed = check_all(args.names or published, sources, args.images, args.output)
    if args.output.exists():
        print(table(json.loads(args.output.read_text())))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
