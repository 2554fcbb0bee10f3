"""Measure what conversion alone keeps of a trained network, by each method, without any training of the SNN.

    python scripts/compare_conversion.py resnet20_digits_trades_ann resnet20_digits_natural_ann
    python scripts/compare_conversion.py resnet20_cifar10_trades_ann --data cifar10.npz --methods absorb
    python scripts/compare_conversion.py resnet20_cifar10_trades_ann --data cifar10.npz --methods absorb \\
        --timesteps 4 --attack ensemble-pgd20
    python scripts/compare_conversion.py cnn vgg11 wrn16_4 timm-resnet18 --timesteps 4 8 64
    python scripts/compare_conversion.py timm-vgg11_bn --timesteps 4 8 64 --steps 200 --lr 2e-4 \\
        --images 200 --calibration 64
    python scripts/compare_conversion.py --table

Accuracy on validation images, which no network was trained on, in docs/conversion.json after every network and T: what
stands there is not measured again, and an attack goes on from its verdicts in runs/conversions, so a run that was
stopped goes on. Names of TRAINED are networks that are trained here first, on the digits for some seconds. The
published method needs some 10 GB for 128 images of CIFAR-10, so ask for no more of these. Every process measures its
own peak memory: for the memory of one conversion ask for one. --table prints the table that readme_tables.py writes
into docs/conversion.md.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import timm
import torch
from _conversions import table
from torch import nn
from torch.nn import functional as F

import rsnn_zoo
from rsnn_zoo._utils.files import load_json, replacing, to_json
from rsnn_zoo._utils.provenance import environment, peak_memory
from rsnn_zoo.conversion.conversion import METHODS
from rsnn_zoo.evaluation.protocols import full_name
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.report.evidence import PRECISIONS
from rsnn_zoo.report.report import wilson
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import split_of

ROOT = Path(__file__).parent.parent
RESULTS, STATES = ROOT / "docs" / "conversion.json", ROOT / "runs" / "conversions"


DIGITS: dict[str, Any] = {"num_classes": 10, "in_chans": 1}
TRAINED = {
    "cnn": lambda: nn.Sequential(  # without batch norm, with max pooling
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    ),
    "vgg11": lambda: ARCHITECTURES["vgg11"](img_size=8, hidden_features=64, **DIGITS),
    "wrn16_4": lambda: ARCHITECTURES["wrn16_4"](img_size=8, **DIGITS),
    "timm-resnet18": lambda: timm.create_model("resnet18", **DIGITS),
    # five times halved, so that 32 x 32 pixels are the least; of its 129 M parameters the linear layers have most
    "timm-vgg11_bn": lambda: nn.Sequential(
        nn.Upsample(scale_factor=4), timm.create_model("vgg11_bn", mlp_ratio=0.05, **DIGITS)
    ),
}
"""Networks that are trained here, on the digits."""
HELD_OUT = 0.4
"""Share of the training images that these are measured on, and not trained on."""


def trained(name: str, train: Any, steps: int, lr: float) -> nn.Module:
    """One of ``TRAINED``, after some steps."""
    torch.manual_seed(0)
    network = TRAINED[name]().train()
    optimizer = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(train), (64,))
        F.cross_entropy(network(train.pixels(batch)), train.labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Any, batch: int = 50) -> float:
    """Share of right answers."""
    parts = zip(data.pixels().split(batch), data.labels.split(batch), strict=True)
    return sum((model(images).argmax(1) == labels).sum().item() for images, labels in parts) / len(data)


def prepared(name: str, args: argparse.Namespace) -> tuple[nn.Module, Any, Any]:
    """A network, its training images and those to measure it on."""
    ann = None if name in TRAINED else rsnn_zoo.create_model(name, pretrained=True)
    split = split_of(ann.training_record) if ann else {"validation": HELD_OUT}
    source = args.data or (ModelName.parse(name).dataset if ann else "digits")
    train, held_out = (rsnn_zoo.load_dataset(source, part, **split) for part in ("train", "validation"))
    return ann or trained(name, train, args.steps, args.lr), train, held_out.select(min(args.images, len(held_out)))


def measure(name: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Adds to the results what they lack of one ANN."""
    ann, train, held_out = prepared(name, args)
    found = results.setdefault(name, {"images": len(held_out), "ann": accuracy(ann, held_out), "runs": {}})
    calibration = train.select(min(args.calibration, len(train))).pixels()
    # both methods with the neurons that lose the least, so that they alone differ
    neuron = {"reset": METHODS["absorb"][0], "initial": METHODS["absorb"][1]}
    for timesteps, method in itertools.product(args.timesteps, args.methods):
        key = f"{method} {timesteps}"
        run = found["runs"].get(key)
        attack = args.attack and full_name(args.attack)
        if run and (not attack or attack in run):
            continue
        start = time.perf_counter()
        snn = rsnn_zoo.convert(ann, timesteps, calibration, method=method, **neuron)
        seconds, memory = time.perf_counter() - start, peak_memory("cpu")
        right = accuracy(snn, held_out)
        found["runs"][key] = run = {
            **({} if run is None else run),
            "accuracy": right,
            "interval": wilson(round(right * len(held_out)), len(held_out)),
            "images": len(held_out),
            "calibration_images": len(calibration),
            "seconds": round(seconds, 1),
            "peak_memory": memory,
            "threads": torch.get_num_threads(),
            "environment": environment(torch.device("cpu")),
        }
        if attack:
            state = STATES / f"{name}.{method}.{timesteps}.{attack}.sqlite"  # so that it goes on where it was stopped
            state.parent.mkdir(parents=True, exist_ok=True)
            settings = {"eps": args.eps, "precision": args.precision, "checks": 0, "state": state, "progress": True}
            report = rsnn_zoo.evaluate(snn, held_out.select(args.attacked), attack, **settings)
            standing = round(report.runs[0].robust_accuracy * args.attacked)
            run[attack] = {
                "eps": args.eps,
                "precision": args.precision,
                "images": args.attacked,
                "robust": standing / args.attacked,
                "interval": wilson(standing, args.attacked),
                "environment": environment(torch.device("cpu")),
            }
        print(name, key, run, flush=True)
        with replacing(RESULTS) as temporary:
            temporary.write_bytes(to_json(results))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anns", nargs="*", help=f"names of published ANNs, or of {', '.join(TRAINED)}")
    parser.add_argument("--data", help="file or folder of the data, where they are not embedded")
    parser.add_argument("--images", type=int, default=1000, help="validation images")
    parser.add_argument("--calibration", type=int, default=512, help="training images to convert with")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=240, help="updates of an ANN that is trained here (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="its peak learning rate (%(default)s)")
    parser.add_argument("--attack", help="protocol to measure robust accuracy by, too")
    parser.add_argument("--attacked", type=int, default=100, help="validation images to attack")
    parser.add_argument("--precision", default="folded", choices=PRECISIONS, help="of its gradients (%(default)s)")
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    args = parser.parse_args()
    results = load_json(RESULTS) if RESULTS.exists() else {}
    for name in args.anns:
        measure(name, args, results)
    if args.table:
        print(table(results))


if __name__ == "__main__":
    main()
