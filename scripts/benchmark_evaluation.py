"""Counts and times what evaluations cost, on the same images of the same models.

    python scripts/benchmark_evaluation.py --model 'resnet20_digits_*_t4' --eps 8 16 32 --seeds 0 1 --output steps.json
    python scripts/benchmark_evaluation.py --model resnet20_cifar10_trades_t4 --split validation -n 256 --plain

Ways to a worst case: the published ensemble (PGD-20 under 19 backward modes), the adaptive ensemble as it is by name
and with fewer steps, and with ``--plain`` the published ensemble the published way: torchattacks' PGD, one mode after
another, every image through all steps, the last iterate judged, neurons step by step through autograd, in float32. The
plain network too computes what lies before its first neuron but once. A gradient step is one gradient of one image;
pilots of the adaptive ensemble count.
"""

import argparse
import copy
import fnmatch
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

import rsnn_zoo
from rsnn_zoo._utils.files import replacing, to_json
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.cli._process import tune_malloc
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.evaluate_entry import data_of
from rsnn_zoo.evaluation.protocols import ENSEMBLE_MODES, full_name
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, SpikingNeuron
from rsnn_zoo.neurons.modes import BackwardMode, Rate, Relu, Surrogate, current_mode, model_under

STEPS = 20
ATTACKS = (f"ensemble-pgd{STEPS}", "adaptive", "adaptive186")


# --- the published way ------------------------------------------------------------------------------------------------


class PlainSpike(torch.autograd.Function):
    """A spike with a surrogate derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.surrogate.derivative(*ctx.saved_tensors), None


class PlainNeuron(nn.Module):
    """A layer of neurons step by step, differentiated by autograd."""

    def __init__(self, neuron: SpikingNeuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of all steps, as the neuron's own."""
        neuron, mode = self.neuron, current_mode() or self.neuron.surrogate
        if isinstance(mode, Relu):
            return torch.relu(x)
        threshold = neuron.threshold.clamp(min=MIN_THRESHOLD)
        surrogate = mode if isinstance(mode, Surrogate) else Surrogate()
        currents = [x] * neuron.timesteps if neuron.repeated else x.chunk(neuron.timesteps)
        v, spikes = (neuron.initial * threshold).expand_as(currents[0]), []
        for current in currents:
            u = neuron.leak * v + current
            s = PlainSpike.apply(u - threshold, surrogate)
            v = (1 - s) * u if neuron.reset == "hard" else u - threshold * s
            spikes.append(s)
        if isinstance(mode, Rate):
            fired = torch.stack(spikes).amax(0).detach()
            spikes = [s.detach() + (c - c.detach()) * fired for s, c in zip(spikes, currents, strict=True)]
        return torch.cat(spikes)


def plain(model: nn.Module) -> nn.Module:
    """A copy with plain neurons."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SpikingNeuron):
                setattr(parent, name, PlainNeuron(child))
    return model.eval()


def plain_ensemble(model: nn.Module, data: ImageData, eps: float, batch_size: int) -> Tensor:
    """Whether each sample stands under PGD-20 in each of the 19 modes."""
    model = plain(model)
    images, labels = data.pixels(), data.labels
    modes: list[BackwardMode] = list(ENSEMBLE_MODES)
    parts = []
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        robust = model(x).argmax(1) == y
        for mode in modes:
            attack = torchattacks.PGD(model_under(model, mode), eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS)
            robust &= model(attack(x, y)).argmax(1) == y
        parts.append(robust)
    return torch.cat(parts)


# --- what is measured -------------------------------------------------------------------------------------------------


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the gradient steps and the images of further verdicts that attacks ask of any victim inside."""
    counts = {"gradient_steps": 0, "verdicts": 0}
    gradient, fallen = ModelVictim.gradient, ModelVictim.fallen

    def counting_gradient(self: ModelVictim, x: Tensor, *rest: Any) -> Any:
        counts["gradient_steps"] += len(x)
        return gradient(self, x, *rest)

    def counting_fallen(self: ModelVictim, x: Tensor, labels: Tensor) -> Tensor:
        counts["verdicts"] += len(x)
        return fallen(self, x, labels)

    ModelVictim.gradient, ModelVictim.fallen = counting_gradient, counting_fallen
    try:
        yield counts
    finally:
        ModelVictim.gradient, ModelVictim.fallen = gradient, fallen


def measure(model: nn.Module, data: ImageData, eps: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Robust samples, gradient steps and seconds of each way."""
    found: dict[str, Any] = {}
    how = {"seed": seed, "precision": options.precision, "batch_size": options.batch_size}
    for attack in map(full_name, ATTACKS):
        started = time.perf_counter()
        with counted() as counts:
            report = rsnn_zoo.evaluate(model, data, attack, eps, checks=0, **how)
        seconds = time.perf_counter() - started
        robust = round(report.runs[0].robust_accuracy * len(data.labels))
        found[attack] = {"robust": robust, **counts, "seconds": round(seconds, 1)}
    if options.plain:
        torch.manual_seed(seed)
        started = time.perf_counter()
        robust = int(plain_ensemble(model, data, eps, options.plain_batch_size).sum())
        steps = len(data.labels) * STEPS * len(ENSEMBLE_MODES)
        found["plain"] = {"robust": robust, "gradient_steps": steps, "seconds": round(time.perf_counter() - started, 1)}
    return found


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", nargs="+", required=True, help="names or wildcards, local-dir:path")
    p.add_argument("--data", help="data set or .npz file (default: the one in the model's name)")
    p.add_argument("--data-root", default="data", help="folder of the data sets (default: %(default)s)")
    p.add_argument("--split", default="test", choices=("test", "validation"))
    p.add_argument("-n", type=int, help="the first N images only")
    p.add_argument("--eps", type=float, nargs="+", default=[8], help="radii in units of 1/255 (default: 8)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="of all that is drawn (default: 0)")
    p.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of our attack gradients")
    p.add_argument("--batch-size", type=int, default=256, help="samples that we attack at once")
    p.add_argument("--plain", action="store_true", help="time the published way as well: the slowest by far")
    p.add_argument("--plain-batch-size", type=int, default=64, help="images at once of the published way")
    p.add_argument("--output", type=Path, default=Path("benchmark_evaluation.json"))
    return p


def main() -> None:
    options = parser().parse_args()
    tune_malloc()
    published = rsnn_zoo.list_models(pretrained=True)
    names = [n for pattern in options.model for n in fnmatch.filter(published, pattern) or [pattern]]
    results = []
    for name in names:
        model = rsnn_zoo.create_model(name, pretrained=True).eval()
        known = getattr(model, "pretrained_name", None) or name
        data = data_of(model, options.data, options.split, images=options.n, root=options.data_root)
        for radius, seed in itertools.product(options.eps, options.seeds):
            about = {"model": known, "split": options.split, "n": len(data.labels), "eps": radius, "seed": seed}
            results.append(about | {"precision": options.precision} | measure(model, data, radius / 255, seed, options))
            print(results[-1], flush=True)
            with replacing(options.output) as temporary:
                about = {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), **environment()}
                temporary.write_bytes(to_json({"threads": torch.get_num_threads(), **about, "results": results}))


if __name__ == "__main__":
    main()
