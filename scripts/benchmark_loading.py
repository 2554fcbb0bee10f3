"""What loading verified weights costs, against loading them unverified and hashing the same file.

    python scripts/benchmark_loading.py

VGG-11 (245 MB in float32), warm file cache: rsnn_zoo.hub.weights.load_weights against safetensors.torch.load_file plus
SHA-256 (the memory it takes is bounded by a test). ResNet-20: create_model(pretrained=True) from a folder against
building the network. Each figure is the median of several rounds, the sides taken in turn.
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch

import rsnn_zoo
from rsnn_zoo.hub.weights import load_weights, serialize

ROUNDS = 9


def seconds(*sides: Callable[[], object]) -> list[float]:
    """The median time of each side, after one round to warm up."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS + 1):
        for side, found in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in times]


def main() -> int:
    """Measure and print; the exit status says whether the bounds are kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        data, info = serialize(rsnn_zoo.create_model("vgg11_cifar10_natural_t8"), path.name)
        path.write_bytes(data)
        del data

        def unverified_and_hashed() -> None:
            safetensors.torch.load_file(path)
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)

        theirs, ours = seconds(unverified_and_hashed, lambda: load_weights(path, info.sha256, info.size))

        name = "resnet20_digits_natural_t4"
        rsnn_zoo.save_pretrained(rsnn_zoo.create_model(name), Path(folder) / name, name=name)
        source = f"local-dir:{folder}/{name}"
        build, load = seconds(
            lambda: rsnn_zoo.create_model(name), lambda: rsnn_zoo.create_model(source, pretrained=True)
        )

    print(f"VGG-11, {info.size / 1e6:.0f} MB: load_file + SHA-256 {1e3 * theirs:.0f} ms, verified {1e3 * ours:.0f} ms")
    print(f"  ratio {ours / theirs:.2f} (at most 1.3)")
    print(f"ResNet-20: build {1e3 * build:.1f} ms, load verified {1e3 * load:.1f} ms")
    print(f"  beyond building {1e3 * (load - build):.1f} ms (at most 50)")
    return int(ours > 1.3 * theirs or load - build > 0.05)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())
