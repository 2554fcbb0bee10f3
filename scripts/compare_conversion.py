"""Measure what conversion alone keeps of a trained network, by each method, without any training of the SNN.

    python scripts/compare_conversion.py resnet20_digits_trades_ann resnet20_digits_natural_ann
    python scripts/compare_conversion.py resnet20_cifar10_trades_ann --data cifar10.npz --methods absorb
    python scripts/compare_conversion.py --table

Clean accuracy on validation images, which no network was trained on, in docs/conversion.json after every network and T:
what stands there is not measured again, so a run that was stopped goes on. The published method needs some 10 GB for
128 images of CIFAR-10. --table prints the table of docs/conversion.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import rsnn_zoo
from rsnn_zoo._utils.provenance import peak_memory
from rsnn_zoo.conversion.conversion import METHODS
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import split_of

RESULTS = Path(__file__).parent.parent / "docs" / "conversion.json"


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Any, batch: int = 50) -> float:
    """Share of right answers."""
    parts = zip(data.pixels().split(batch), data.labels.split(batch), strict=True)
    return sum((model(images).argmax(1) == labels).sum().item() for images, labels in parts) / len(data)


def measure(name: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Adds to the results what they lack of one ANN."""
    ann = rsnn_zoo.create_model(name, pretrained=True)
    source, split = args.data or ModelName.parse(name).dataset, split_of(ann.training_record)
    train = rsnn_zoo.load_dataset(source, "train", **split)
    held_out = rsnn_zoo.load_dataset(source, "validation", **split)
    held_out = held_out.select(min(args.images, len(held_out)))
    found = results.setdefault(name, {"images": len(held_out), "ann": accuracy(ann, held_out), "runs": {}})
    for timesteps in args.timesteps:
        for method in args.methods:
            key = f"{method} {timesteps}"
            if key in found["runs"]:
                continue
            calibration = train.pixels()[: args.calibration]
            # both with the neurons that lose the least, so that the methods alone differ
            neuron = {"reset": METHODS["absorb"][0], "initial": METHODS["absorb"][1]}
            start = time.perf_counter()
            snn = rsnn_zoo.convert(ann, timesteps, calibration, method=method, **neuron)
            seconds = time.perf_counter() - start
            found["runs"][key] = {
                "accuracy": accuracy(snn, held_out),
                "calibration_images": len(calibration),
                "seconds": round(seconds, 1),
                "peak_memory": peak_memory("cpu"),
                "threads": torch.get_num_threads(),
            }
            print(name, key, found["runs"][key], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each network and T."""
    lines = ["| ANN | images | its accuracy | T | `absorb` | `published` |", "|---|---|---|---|---|---|"]
    for name, found in results.items():
        runs = found["runs"]
        for timesteps in sorted({int(key.split()[1]) for key in runs}):
            kept = [runs.get(f"{method} {timesteps}") for method in ("absorb", "published")]
            shown = " | ".join(f"{100 * run['accuracy']:.1f}" if run else "" for run in kept)
            lines.append(f"| `{name}` | {found['images']} | {100 * found['ann']:.1f} | {timesteps} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anns", nargs="*", help="names of published ANNs")
    parser.add_argument("--data", help="file or folder of the data, where they are not embedded")
    parser.add_argument("--images", type=int, default=500, help="validation images")
    parser.add_argument("--calibration", type=int, default=128, help="training images to convert with")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in args.anns:
        measure(name, args, results)
    if args.table:
        print(table(results))


if __name__ == "__main__":
    main()
