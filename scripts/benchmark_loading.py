"""What loading a verified network costs, against safetensors' load_file and hashing the same file, unverified.

    python scripts/benchmark_loading.py --output docs/loading.json --page docs/files.md

A random VGG-11 (some 60 MB in float32), warm file cache: processor time as the median of several rounds, the sides
taken in turn, and the peak of the memory that each adds to a process of its own. ``load_file`` maps the file, so its
tensors change with it; the verified ones do not. ResNet-20: create_model(pretrained=True) from a folder against
building it.
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
from rsnn_zoo.hub.weights import load_weights
from rsnn_zoo.spec.config import load_config

ROUNDS = 9
TIME, MEMORY, BEYOND = 1.5, 1.2, 0.05
"""Bounds: times load_file and SHA-256, times the file, seconds that a small network takes beyond being built."""


def sides(folder: Path) -> dict[str, Callable[[], object]]:
    """What is compared, by name, on the entry of a folder."""
    path = folder / "model.safetensors"
    sha256 = load_config(folder / "config.json").weights.sha256

    def unverified() -> None:
        tensors = safetensors.torch.load_file(path)
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        del tensors

    return {
        "load_file and SHA-256": unverified,
        "verified tensors": lambda: load_weights(path, sha256),
        "verified network": lambda: rsnn_zoo.create_model(f"local-dir:{folder}", pretrained=True),
    }


def seconds(*calls: Callable[[], object]) -> list[float]:
    """The median processor time of each, after one round to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 1):
        for call, found in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            found.append(time.process_time() - start)
    return [statistics.median(found[1:]) for found in times]


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


def main() -> int:
    """Measure and print; the exit status says whether the bounds are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/loading.json"))
    parser.add_argument("--page", type=Path, help="document to put the figures into, between its two comments")
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hold:
        return hold(*args.hold)
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name) / "large", Path(name) / "small"
        network = rsnn_zoo.create_model("vgg11_cifar10_natural_t8", hidden_features=640)
        info = rsnn_zoo.save_pretrained(network, large, name="mine").weights
        network = rsnn_zoo.create_model("resnet20_digits_natural_t4")
        rsnn_zoo.save_pretrained(network, small, name="mine")
        calls = sides(large)
        times = dict(zip(calls, seconds(*calls.values()), strict=True))
        memory = {side: held(large, side) for side in calls}
        build, load = seconds(
            lambda: rsnn_zoo.create_model("resnet20_digits_natural_t4"),
            lambda: rsnn_zoo.create_model(f"local-dir:{small}", pretrained=True),
        )
    found = {
        "bytes": info.size,
        "seconds": {side: round(took, 4) for side, took in times.items()},
        "added_bytes": memory,
        "resnet20": {"build": round(build, 4), "load": round(load, 4)},
        "torch": torch.__version__,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.output) as temporary:
        temporary.write_bytes(to_json(found))
    first = next(iter(times.values()))
    rows = [
        [side, f"{1e3 * took:.0f} ms", f"{took / first:.2f}", f"{memory[side] / info.size:.2f}"]
        for side, took in times.items()
    ]
    text = table(f"of {info.size / 1e6:.0f} MB|processor time|of the first|memory added, of the file", rows)
    print(text, f"ResNet-20: {1e3 * (load - build):.0f} ms beyond being built", sep="\n")
    if args.page:
        put_into(args.page, "loading", text)
    kept = max(times.values()) <= TIME * first and max(memory.values()) <= MEMORY * info.size
    return int(not kept or load - build > BEYOND)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
