"""What loading a verified network costs, against safetensors' load_file and hashing the same file, unverified.

    python scripts/benchmark_loading.py --output docs/loading.json --page docs/files.md

A random VGG-11 (some 60 MB in float32), and the published one in shards of bfloat16, warm file cache: medians of the
processor and wall time of several rounds, the sides taken in turn, and the peak of the memory that each adds to a
process of its own. ``load_file`` maps the file, so its tensors change with it; the verified ones do not. ResNet-20:
create_model(pretrained=True) from a folder against building it.
"""

import argparse
import hashlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from _pages import put_into, table

import rsnn_zoo
from rsnn_zoo._utils.files import replacing, to_json
from rsnn_zoo.hub.resolve import entry_folder
from rsnn_zoo.hub.shards import load_files
from rsnn_zoo.spec.config import load_config

ROUNDS = 9
TIMES = "seconds", "wall_seconds"
TIME, MEMORY, BEYOND = 1.5, 1.2, 0.05
"""Bounds: times load_file and SHA-256, times the file, seconds that a small network takes beyond being built."""


def sides(folder: Path) -> dict[str, Callable[[], object]]:
    """What is compared, by name, on the entry of a folder."""
    info = load_config(folder / "config.json").weights
    files = [folder / each.file for each in info.files if each.file.endswith(".safetensors")]

    def unverified() -> dict[str, torch.Tensor]:
        tensors = {}
        for path in files:
            tensors |= safetensors.torch.load_file(path)
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return tensors

    return {
        "load_file and SHA-256": unverified,
        **({"the same, widened": lambda: {k: x.float() for k, x in unverified().items()}} if info.stored else {}),
        "verified tensors": lambda: load_files(info, lambda file: folder / file.file),
        "verified network": lambda: rsnn_zoo.create_model(f"local-dir:{folder}", pretrained=True),
    }


def seconds(*calls: Callable[[], object]) -> list[tuple[float, float]]:
    """The median processor and wall time of each, after one round to warm up."""
    times: list[list[tuple[float, float]]] = [[] for _ in calls]
    for _ in range(ROUNDS + 1):
        for call, found in zip(calls, times, strict=True):
            start = time.process_time(), time.perf_counter()
            call()
            found.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return [tuple(map(statistics.median, zip(*found[1:], strict=True))) for found in times]


def peak() -> int:
    """Bytes that this process has held at most; Linux knows."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def held(folder: Path, name: str) -> int:
    """Bytes that a side adds to the peak of a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--hold", str(folder), name], capture_output=True, text=True)
    done.check_returncode()
    return int(done.stdout.split()[-1])


def hold(folder: str, name: str) -> int:
    """Be that process."""
    call = sides(Path(folder))[name]
    before = peak()
    kept = call()
    print(peak() - before)
    del kept
    return 0


def measured(folder: Path) -> dict[str, object]:
    """Both times and the memory of each side."""
    calls = sides(folder)
    times = dict(zip(calls, seconds(*calls.values()), strict=True))
    return {
        "bytes": load_config(folder / "config.json").weights.total_size,
        "seconds": {side: round(both[0], 4) for side, both in times.items()},
        "wall_seconds": {side: round(both[1], 4) for side, both in times.items()},
        "added_bytes": {side: held(folder, side) for side in calls},
    }


def table_of(found: dict[str, object]) -> str:
    """Markdown: a row for each side, as multiples of the first and of the files."""
    rows, size = [], found["bytes"]
    for side, took in found["seconds"].items():
        wall, (first, first_wall) = found["wall_seconds"][side], (next(iter(found[key].values())) for key in TIMES)
        cells = f"{1e3 * took:.0f} ms", f"{took / first:.2f}", f"{1e3 * wall:.0f} ms", f"{wall / first_wall:.2f}"
        rows.append([side, *cells, f"{found['added_bytes'][side] / size:.2f}"])
    return table(
        f"of {size / 1e6:.0f} MB|processor time|of the first|wall time|of the first|memory, of the files", rows
    )


def main() -> int:
    """Measure and print; the exit status says whether the bounds are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", default="vgg11_cifar10_trades_t8", help="the published one (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/loading.json"))
    parser.add_argument("--page", type=Path, help="document to put the figures into, between its two comments")
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hold:
        return hold(*args.hold)
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name) / "large", Path(name) / "small"
        network = rsnn_zoo.create_model("vgg11_cifar10_natural_t8", hidden_features=640)
        rsnn_zoo.save_pretrained(network, large, name="mine")
        network = rsnn_zoo.create_model("resnet20_digits_natural_t4")
        rsnn_zoo.save_pretrained(network, small, name="mine")
        found = {"random VGG-11": measured(large), args.entry: measured(entry_folder(args.entry))}
        build, load = seconds(
            lambda: rsnn_zoo.create_model("resnet20_digits_natural_t4"),
            lambda: rsnn_zoo.create_model(f"local-dir:{small}", pretrained=True),
        )
    beyond = load[0] - build[0]
    others = {"resnet20": {"build": round(build[0], 4), "load": round(load[0], 4)}, "torch": torch.__version__}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.output) as temporary:
        temporary.write_bytes(to_json({**found, **others}))
    text = "\n\n".join(f"{name}:\n\n{table_of(one)}" for name, one in found.items())
    print(text, f"ResNet-20: {1e3 * beyond:.0f} ms beyond being built", sep="\n")
    if args.page:
        put_into(args.page, "loading", text)
    return int(not all(map(kept, found.values())) or beyond > BEYOND)


def kept(found: dict[str, object]) -> bool:
    """Whether a verified network keeps the bounds; where it is wider than its files, its own size comes on top."""
    first, *_ = found["wall_seconds"].values()
    *_, last = found["wall_seconds"].values()
    *_, added = found["added_bytes"].values()
    own = 2 * found["bytes"] if "the same, widened" in found["seconds"] else 0
    return last <= TIME * first and added <= own + MEMORY * found["bytes"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
