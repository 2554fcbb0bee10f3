"""Re-check a file of adversarial examples with nothing but the model.

    python scripts/verify.py results/NAME.adversarial.safetensors --model NAME

Each example must lie in its ball and in [0, 1] and be misclassified by the model, whose weights must be those that the
file names; the same goes for the variants in 8 bits. With --data the clean images are compared with the data set too. A
false claim ends with an error. On another processor than the one that made the file, a spike can hinge on a rounding,
so 2 % of the examples may be classified differently; these are listed.
"""

import argparse
import sys
from pathlib import Path

import torch
from evaluate import add_neuron, load

import rsnn_zoo
from rsnn_zoo.cli.commands import device, run_plugin
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.evaluation.examples import ROUNDED, verify
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import split_of
from rsnn_zoo.verify_entry import TOLERANCE


def load_clean(model: torch.nn.Module, args: argparse.Namespace) -> ImageData:
    """The split that the file may be of: what the model was trained on is held out as its training held it out."""
    name = getattr(model, "pretrained_name", None) or ""
    dataset = ModelName.parse(name).dataset if rsnn_zoo.is_model(name) else None
    split = split_of(getattr(model, "training_record", {}))
    return rsnn_zoo.load_dataset(args.data, args.split, dataset=dataset, root=args.data_root, **split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="file written by evaluate(..., adversarial=FILE)")
    parser.add_argument(
        "--model", required=True, help="the model that they are to fell: name, hf-hub:... or local-dir:..."
    )
    parser.add_argument("--weights", type=Path, help="a .safetensors file in place of the published weights")
    add_neuron(parser)
    parser.add_argument("--plugin", type=Path, metavar="FILE.py", help="a Python file that registers architectures")
    parser.add_argument("--device", type=device, default="cpu", help="(%(default)s)")
    parser.add_argument("--data", help="data set or npz file to compare the clean images with")
    parser.add_argument("--data-root", default="data", help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--split", default="test", choices=("test", "validation", "train"))
    args = parser.parse_args()
    try:
        run_plugin(args.plugin)
        model = load(args.model, args.weights, args.neuron).to(args.device)
        data = load_clean(model, args) if args.data else None
        found = verify(model, args.file, data)
    except (LookupError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for fault, samples in found.faults.items():
        shown = ", ".join(map(str, samples[:10])) + (", ..." if len(samples) > 10 else "")
        print(f"  {len(samples)} {fault}: samples {shown}")
    flipped = sum(len(samples) for fault, samples in found.faults.items() if fault in ROUNDED)
    if set(found.faults) - ROUNDED or flipped > TOLERANCE * found.n:
        sys.exit(f"{args.file} does NOT hold what it claims")
    if flipped:
        print("  these are few enough to be the roundings of another processor")
    which = "but for these, all" if flipped else "all"
    print(f"{which} {found.n} examples fell {args.model} inside their balls, {found.n_uint8} of them in 8 bits too")


if __name__ == "__main__":
    main()
