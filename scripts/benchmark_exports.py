"""Exports of a network in other runtimes on this CPU: the same verdicts? how many images a second?

    python scripts/benchmark_exports.py resnet20_cifar10_trades_t4 --data cifar10.npz --output exports.json
    python scripts/benchmark_exports.py resnet20_cifar10_trades_t4 --data cifar10.npz --output exports.json --profile
    python scripts/benchmark_exports.py --table exports.json

Each runtime gets the same ONNX file, or an int8 one made of it, and the same images as the network itself:

- verdicts: saved adversarial examples (those of ``evaluate(..., adversarial=...)``; made here without ``--examples``)
  that the runtime classifies correctly, so that its robust accuracy reads higher, and clean images of another class;
- images/s: the median over repetitions of one batch, all runtimes side by side in each repetition, so that another load
  of the machine falls on all alike; with one thread seconds of the processor, which are those of an idle machine;
- profile: where the network's own forward pass spends its time, with batch norms folded, by the kind of layer, and what
  onnxruntime takes in all; ``--profile`` measures this alone, in seconds, into results that are there.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import rsnn_zoo
from rsnn_zoo._utils.files import replacing, to_json
from rsnn_zoo._utils.provenance import digest, environment
from rsnn_zoo.exports.runtimes import onnx_pass, write_onnx
from rsnn_zoo.models.fold import FoldedSum, fold
from rsnn_zoo.models.frozen import freeze
from rsnn_zoo.models.fused import fuse
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.spec.names import ModelName

Logits = Callable[[Tensor], Tensor]
BATCHES = (1, 64)


def quantised(path: Path, images: Tensor) -> Path:
    """The ONNX file with convolutions and linear layers in int8, per channel, calibrated by these images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts = iter(images.split(16))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    out = path.with_suffix(".int8.onnx")
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(path, out, Reader(), per_channel=True, op_types_to_quantize=["Conv", "Gemm", "MatMul"], **kinds)
    return out


def openvino(path: Path, threads: int, precision: str | None) -> tuple[Logits, str]:
    """The ONNX file in OpenVINO on the CPU; the precision that it really takes comes with it."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})
    compiled = ov.Core().compile_model(str(path), "CPU", settings)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0].copy()), taken


def runtimes(model: torch.nn.Module, path: Path, small: Path, threads: int) -> dict[str, Logits]:
    """Images to logits, by what computes them."""
    ours, folded = torch.no_grad()(model), torch.no_grad()(fuse(freeze(fold(model))))
    theirs = onnx_pass(path, threads)
    int8 = onnx_pass(small, threads)
    exact, _ = openvino(path, threads, "f32")
    usual, taken = openvino(path, threads, None)
    return {
        "rsnn_zoo": lambda x: ours(x),
        "rsnn_zoo folded": lambda x: folded(x),
        "onnxruntime float32": lambda x: theirs(x)[0],
        "onnxruntime int8": lambda x: int8(x)[0],
        "OpenVINO float32": exact,
        f"OpenVINO default ({taken} here)": usual,
    }


def classes(run: Logits, images: Tensor) -> Tensor:
    """(N,) classes of images (N, C, H, W)."""
    return torch.cat([run(part.contiguous()).argmax(1) for part in images.split(32)])


def verdicts(run: dict[str, Logits], clean: Tensor, labels: Tensor, fallen: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One row a runtime."""
    own = classes(run["rsnn_zoo"], clean)
    rows = []
    for name, one in run.items():
        here = classes(one, clean)
        back = classes(one, fallen["images"]) == fallen["labels"]
        rows.append(
            {
                "runtime": name,
                "clean": len(clean),
                "other_class": int((here != own).sum()),
                "accuracy": (here == labels).double().mean().item(),
                "examples": len(back),
                "no_longer_fallen": int(back.sum()),
            }
        )
    return rows


def speeds(run: dict[str, Logits], images: Tensor, threads: int, repetitions: int) -> list[dict[str, Any]]:
    """One row a runtime and batch size."""
    rows, clock = [], time.process_time if threads == 1 else time.perf_counter
    for size in BATCHES:
        batch = images[:size].contiguous()
        seconds: dict[str, list[float]] = {name: [] for name in run}
        for repetition in range(repetitions + 2):
            for name, one in run.items():
                start = clock()
                one(batch)
                if repetition > 1:  # the first ones compile
                    seconds[name].append(clock() - start)
        for name, times in seconds.items():
            rate = size / statistics.median(times)
            rows.append({"runtime": name, "batch": size, "threads": threads, "images_per_second": rate})
    return rows


KINDS = {nn.Conv2d: "convolutions", SpikingNeuron: "neurons", FoldedSum: "residual sums", nn.Linear: "classifier"}


@torch.no_grad()
def profile(model: nn.Module, path: Path, images: Tensor, repetitions: int) -> list[dict[str, Any]]:
    """One row a kind of layer and batch size: calls, and milliseconds of the processor in all of them."""
    network, rows, theirs = freeze(fold(model)), [], onnx_pass(path)
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    started: list[float] = []

    def stop(kind: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            spent[kind] += time.process_time() - started.pop()
            calls[kind] += 1

        return hook

    for module in network.modules():
        kind = next((name for layer, name in KINDS.items() if isinstance(module, layer)), None)
        if kind:
            module.register_forward_pre_hook(lambda *_: started.append(time.process_time()))
            module.register_forward_hook(stop(kind))
    for size in BATCHES:
        batch = images[:size]
        theirs(batch), network(batch)  # which compiles
        spent.clear()
        calls.clear()
        for name, run in (("all", network), ("onnxruntime, all", theirs)):
            start = time.process_time()
            for _ in range(repetitions):
                run(batch)
            spent[name], calls[name] = time.process_time() - start, repetitions
        for kind in ("onnxruntime, all", "all", *KINDS.values()):
            each = 1000 * spent[kind] / repetitions
            rows.append({"batch": size, "part": kind, "calls": calls[kind] // repetitions, "milliseconds": each})
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, as JSON."""
    model = rsnn_zoo.create_model(args.name, pretrained=True)
    data = rsnn_zoo.load_dataset(args.data, "test").select(args.images)
    train = rsnn_zoo.load_dataset(args.data, "train").pixels(slice(0, 64))
    with tempfile.TemporaryDirectory() as folder:
        path, examples = Path(folder) / "network.onnx", args.examples or Path(folder) / "examples.safetensors"
        checks = rsnn_zoo.export(model, path, "onnx", images=data.pixels()).checks
        small = quantised(path, train)
        if not args.examples:
            rsnn_zoo.evaluate(model, data, {"pgd10": [args.eps / 255]}, adversarial=examples)
        fallen = load_file(examples)
        rates: list[dict[str, Any]] = []
        for threads in args.threads:
            torch.set_num_threads(threads)
            run = runtimes(model, path, small, threads)
            if threads == args.threads[0]:
                judged = verdicts(run, data.pixels(), data.labels, fallen)
            rates += speeds(run, data.pixels(), threads, args.repetitions)
        torch.set_num_threads(1)
        parts = profile(model, path, data.pixels(), args.repetitions)
    return {
        "schema": 1,
        "model": args.name,
        "model_sha256": digest(model),
        "logits_differ_by": checks[0].largest_logit_difference,
        "attack": "saved examples" if args.examples else f"pgd10 at {args.eps:g}/255",
        "verdicts": judged,
        "speeds": rates,
        "profile": parts,
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "openvino")},
        "environment": environment(),
    }


def profiled(args: argparse.Namespace) -> dict[str, Any]:
    """The results that are there with a profile of their own network."""
    results = json.loads(args.output.read_text())
    model = rsnn_zoo.create_model(args.name, pretrained=True)
    images = rsnn_zoo.load_dataset(args.data, "test").pixels(slice(0, max(BATCHES)))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(model, path, None)
        return results | {"profile": profile(model, path, images, args.repetitions)}


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| runtime | clean images of another class | accuracy | examples that no longer fall |",
        "|---|---|---|---|",
    ]
    for row in results["verdicts"]:
        lines.append(
            f"| {row['runtime']} | {row['other_class']} of {row['clean']} | {100 * row['accuracy']:.1f} % "
            f"| {row['no_longer_fallen']} of {row['examples']} |"
        )
    rates = {(row["runtime"], row["threads"], row["batch"]): row["images_per_second"] for row in results["speeds"]}
    columns = sorted({key[1:] for key in rates})
    lines += ["", "| images/s | " + " | ".join(f"batch {b}, {t} thread{'s' * (t > 1)}" for t, b in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(key[0] for key in rates):
        lines.append(f"| {name} | " + " | ".join(f"{rates[(name, *column)]:.0f}" for column in columns) + " |")
    parts = {(row["part"], row["batch"]): row for row in results.get("profile", [])}
    if parts:
        lines += [
            "",
            "| processor time (calls) of our forward pass, folded | "
            + " | ".join(f"batch {size}" for size in BATCHES)
            + " |",
        ]
        lines += ["|---" * (len(BATCHES) + 1) + "|"]
    for name in dict.fromkeys(key[0] for key in parts):
        cells = [f"{parts[name, size]['milliseconds']:.2f} ms" for size in BATCHES]
        lines.append(f"| {name} ({parts[name, BATCHES[0]]['calls']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a published entry")
    parser.add_argument("--data", help="npz file, or the name of a data set (default: that of the entry)")
    parser.add_argument("-n", "--images", type=int, default=256)
    parser.add_argument("--examples", type=Path, help="adversarial examples of this entry")
    parser.add_argument("--eps", type=float, default=8, metavar="K", help="radius K/255 of examples made here")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--profile", action="store_true", help="measure the profile alone, into --output")
    parser.add_argument("--table", type=Path, help="print such a file as tables, and measure nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    args.data = args.data or ModelName.parse(args.name).dataset
    results = profiled(args) if args.profile else measure(args)
    if args.output:
        with replacing(args.output) as temporary:
            temporary.write_bytes(to_json(results))
    print(table(results))


if __name__ == "__main__":
    main()
