"""Attack models and report their robust accuracy.

    python scripts/evaluate.py --model resnet20_digits_trades_t4
    python scripts/evaluate.py --model 'resnet20_digits_*' --eps 2 4 8 16 32 --output results --plot results/digits.png
    python scripts/evaluate.py --model resnet20_cifar10_natural_t4 --weights FILE.safetensors --data cifar10.npz -n 256

Each model's report goes to OUTPUT/NAME.json; verdicts so far are kept beside it, so the same command resumes after a
kill. A published model's report can be held against its evidence, hub_configs/NAME/evaluation.json.
"""

import argparse
import logging
import runpy
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import rsnn_zoo
from rsnn_zoo.energy import energy
from rsnn_zoo.names import ModelName
from rsnn_zoo.plots import plot_accuracy
from rsnn_zoo.weights import check_state_dict


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", nargs="+", required=True, help="names or wildcards, hf-hub:org/name, local-dir:path")
    p.add_argument("--weights", type=Path, help="a .safetensors file in place of the published weights (one model)")
    p.add_argument("--plugin", type=Path, metavar="FILE.py", help="a Python file that registers architectures first")
    p.add_argument("--data", help="data set or .npz file (default: the one in the model's name)")
    p.add_argument("--data-root", default="data", help="folder of the data sets (default: %(default)s)")
    p.add_argument("--download", action="store_true", help="let torchvision download the data set")
    p.add_argument("--split", default="test", choices=("test", "validation", "train"))
    p.add_argument("-n", type=int, help="evaluate the first N images only")
    p.add_argument(
        "--attack", default="ensemble-pgd20", help="fgsm, rfgsm, pgdK or ensemble-... (default: %(default)s)"
    )
    p.add_argument("--eps", type=float, nargs="+", default=[8], help="radii in units of 1/255 (default: 8)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-size", type=int, default=256, help="images between two writes of the state")
    p.add_argument("--chunk", type=int, help="images that go through the network at once")
    p.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the attack gradients")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--output", type=Path, default=Path("results"), help="folder of the reports (default: %(default)s)")
    p.add_argument("--plot", type=Path, help="figure of robust accuracy against eps")
    return p


def load(name: str, weights: Path | None) -> torch.nn.Module:
    if weights is None:
        return rsnn_zoo.create_model(name, pretrained=True)
    model = rsnn_zoo.create_model(name)
    state = load_file(weights)
    check_state_dict(state, model.state_dict(), str(weights))
    model.load_state_dict(state)
    model.pretrained_name = name
    return model


def main() -> None:
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.plugin is not None:
        runpy.run_path(str(args.plugin))
    wildcards = any(c in pattern for pattern in args.model for c in "*?[")
    names = rsnn_zoo.list_models(args.model, pretrained=True) if wildcards else args.model
    if not names:
        sys.exit(f"no published model matches {' '.join(args.model)}: see rsnn_zoo.list_models(pretrained=True)")
    if args.weights and len(names) != 1:
        sys.exit("--weights goes with one --model")
    args.output.mkdir(parents=True, exist_ok=True)
    reports = []
    for name in names:
        model = load(name, args.weights).to(args.device)
        short = name.split(":")[-1].rstrip("/").split("/")[-1]
        dataset = ModelName.parse(short).dataset if rsnn_zoo.is_model(short) else None
        if args.data is None and dataset is None:
            sys.exit(f"{name} names no data set: pass --data")
        data = rsnn_zoo.load_dataset(
            args.data or dataset, args.split, dataset=dataset, root=args.data_root, download=args.download
        )
        data = data if args.n is None else data.select(args.n)
        state = args.output / f"{short}.partial.json"
        report = rsnn_zoo.evaluate(
            model,
            data,
            args.attack,
            [e / 255 for e in args.eps],
            seed=args.seed,
            batch_size=args.batch_size,
            chunk=args.chunk,
            precision=args.precision,
            state=state,
            progress=True,
        )
        report.extra.update(energy(model, data.pixels(slice(0, 256)).to(args.device)))
        path = args.output / f"{short}.json"
        report.save(path)
        state.unlink(missing_ok=True)
        print(f"{report.table()}\n\n  report: {path}\n")
        reports.append(report.to_json())
    if args.plot:
        print(f"  plot: {plot_accuracy(reports, args.plot)}")


if __name__ == "__main__":
    main()
