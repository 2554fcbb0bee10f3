"""Measure every entry: parameters, files, time to load, images a second with one and two threads; and its energy.

    python scripts/measure_entries.py
    python scripts/measure_entries.py --names resnet20_digits_natural_t4 --images 64

Each entry and number of threads has a process of its own. Loading is the shortest of several, of files that the system
has in its cache; images a second are the best of several passes, compiled. Energy is that of the published evidence.
Writes docs/entries.json after each entry, and the table into docs/entries.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _pages import put_into, table

import rsnn_zoo
from rsnn_zoo._utils.files import load_json, replacing, to_json
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.hub.resolve import entry_folder, published_names
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, load_evidence
from rsnn_zoo.spec.config import EVIDENCE, load_config

DOCS = Path(__file__).parent.parent / "docs"
THREADS = (1, 2)
ROUNDS = 5
HEADER = "entry | parameters | MB | load, ms | images/s, 1 thread | images/s, 2 threads | µJ an image | of its ANN's"


def shortest(rounds: int, call: Any) -> float:
    """Seconds of the quickest of several calls, after one to warm up."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measured(name: str, threads: int, images: int, batch: int) -> dict[str, Any]:
    """What this process finds."""
    torch.set_num_threads(threads)
    load = shortest(ROUNDS, lambda: rsnn_zoo.create_model(name, pretrained=True))
    model = rsnn_zoo.create_model(name, pretrained=True)
    batches = torch.rand(images, model.in_chans, model.img_size, model.img_size).split(batch)

    @torch.inference_mode()
    def forward() -> None:
        for part in batches:
            model(part)

    rate = images / shortest(3, forward)
    return {"load_ms": round(1e3 * load, 1), "images_per_second": round(rate, 1), "environment": environment()}


def entry_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure all that the table says of an entry."""
    folder = entry_folder(name)
    config = load_config(folder / "config.json")
    evidence = load_evidence(folder / EVIDENCE, config)
    found: dict[str, Any] = {
        "parameters": config.weights.num_parameters,
        "bytes": config.weights.total_size,
        "stored": config.weights.stored or config.weights.dtype,
        "files": len(config.weights.files),
        "nanojoule": evidence.get("energy", {}).get("nanojoule"),
        "energy_ratio": evidence.get("energy", {}).get("ratio"),
        "threads": {},
    }
    for threads in THREADS:
        options = [
            "--measure",
            name,
            "--threads",
            str(threads),
            "--images",
            str(args.images),
            "--batch",
            str(args.batch),
        ]
        done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
        found["threads"][str(threads)] = json.loads(done.stdout.splitlines()[-1])
    return found


def row_of(name: str, entry: dict[str, Any]) -> list[object]:
    """A line of the table."""
    one, two = (entry["threads"][str(threads)] for threads in THREADS)
    spent, ratio = entry["nanojoule"], entry["energy_ratio"]
    return [
        f"`{name}`",
        f"{entry['parameters']:,}",
        f"{entry['bytes'] / 1e6:.1f}",
        f"{one['load_ms']:.0f}",
        f"{one['images_per_second']:,.0f}",
        f"{two['images_per_second']:,.0f}",
        "" if spent is None else f"{spent / 1e3:.1f}",
        "" if ratio is None or name.endswith("_ann") else f"{100 * ratio:.0f} %",
    ]


def write_page(results: dict[str, Any]) -> None:
    """Put the table into its page, with what it was measured on."""
    entries = results["entries"]
    about = next(iter(entries.values()))["threads"]["1"]["environment"]
    said = (
        f"Measured on {about['cpu']}, {about['cores']} cores, with torch {about['versions']['torch']} and Python "
        f"{about['python']}, in batches of {results['batch']} images of noise, float32."
    )
    rows = [row_of(name, entry) for name, entry in sorted(entries.items())]
    put_into(DOCS / "entries.md", "entries", f"{said}\n\n{table(HEADER, rows)}")


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=published_names(), help="only these (all)")
    parser.add_argument("--images", type=int, default=256, help="of a pass (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images of a forward pass (%(default)s)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.measure, args.threads, args.images, args.batch)))
        return 0
    path = DOCS / "entries.json"
    results = load_json(path, MAX_EVIDENCE_BYTES) if path.is_file() else {"entries": {}}
    for name in args.names:
        results |= {"images": args.images, "batch": args.batch}
        results["entries"][name] = entry_of(name, args)
        with replacing(path) as temporary:
            temporary.write_bytes(to_json(results))
    write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
