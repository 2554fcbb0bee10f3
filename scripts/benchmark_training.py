"""Times our training loop against a plain one, in one run on this CPU.

    python scripts/benchmark_training.py --output training.json

Two trainings on CIFAR-sized images: TRADES of the ANN (PGD, 10 steps), and robust fine-tuning of its SNN (T = 4,
R+FGSM). The plain loop is what the papers' code does: float32, a DataLoader with torchvision's transforms in worker
processes, batch norm by the training flag, and a neuron that loops over time in autograd. Ours is
rsnn_zoo.training.train's: bfloat16, data and augmentation in memory, folded attack gradients, one kernel a layer, and
malloc tuned as scripts/train.py does it; once more with torch.compile of the whole network, the recipe's ``compile``.
Every case runs alone in a fresh process, with the same network, batch size, steps of the attack and threads.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from rsnn_zoo._utils.files import replacing
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.cli._process import tune_malloc
from rsnn_zoo.data.augment import Augment
from rsnn_zoo.models import Network, resnet20
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.training.recipe import Stage, load_recipe
from rsnn_zoo.training.updates import Updates

CIFAR10 = DATASETS["cifar10"]
IMAGES = 4096
WARM_UP = 2


def stage(case: str) -> Stage:
    """What is trained: the recipe's ANN, or its SNN with the published attack, with equal batches.

    The published attack meets the network in evaluation mode, in ours as in the plain loop.
    """
    recipe = load_recipe("cifar10_linf8", "trades")
    what = recipe.ann if case == "ann" else replace(recipe.snn, attack="rfgsm", attack_pass="evaluation")
    return replace(what, batch_size=64, attack_steps=10, steps_warmup=0.0)


def network(case: str) -> Network:
    torch.manual_seed(0)
    model = resnet20(timesteps=None if case == "ann" else 4, threshold=0.5, mean=CIFAR10.mean, std=CIFAR10.std)
    for module in model.modules():  # so drawn, many neurons fire
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def images() -> tuple[Tensor, Tensor]:
    return torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (IMAGES,))


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(case: str, compile: bool = False) -> Iterator[None]:
    tune_malloc()
    what = replace(stage(case), compile=compile)
    model = network(case).to(memory_format=torch.channels_last).train()
    updates, augment, generator = Updates(model, what, Ranks()), Augment(what.augmentation), torch.Generator()
    pixels, labels = images()
    while True:
        for indices in torch.randperm(IMAGES).view(-1, what.batch_size):
            batch = (augment(pixels[indices], generator).float() / 255).contiguous(memory_format=torch.channels_last)
            updates(batch, labels[indices], generator, done=1.0, step=0.01)
            yield


# --- the plain loop ---------------------------------------------------------------------------------------------------


class Spike(torch.autograd.Function):
    """A spike where u >= 0, with the derivative max(0, 1 - |u|)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp(min=0)


class PlainNeuron(nn.Module):
    """Integrate and fire with hard reset, step by step."""

    def __init__(self, neuron: SpikingNeuron):
        super().__init__()
        self.threshold, self.timesteps, self.repeated = neuron.threshold, neuron.timesteps, neuron.repeated

    def forward(self, x: Tensor) -> Tensor:
        steps = [x] * self.timesteps if self.repeated else x.chunk(self.timesteps)
        v, spikes = torch.zeros_like(steps[0]), []
        for current in steps:
            u = v + current
            spikes.append(Spike.apply(u - self.threshold))
            v = (1 - spikes[-1]) * u
        return torch.cat(spikes)


class Images(Dataset):
    def __init__(self) -> None:
        pixels, self.labels = images()
        self.pixels = pixels.permute(0, 2, 3, 1).numpy()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain_attack(model: nn.Module, x: Tensor, what: Stage) -> Tensor:
    """The inner loop of the papers' code: PGD, or R+FGSM, up the divergence from the clean output."""
    criterion = nn.KLDivLoss(reduction="sum")
    rfgsm = what.attack == "rfgsm"
    step = what.eps / 2 if rfgsm else what.attack_step * what.eps / what.attack_steps
    clean = F.softmax(model(x), dim=1).detach()
    adversarial = x + (what.eps / 2 * torch.randn_like(x).sign() if rfgsm else 0.001 * torch.randn_like(x))
    for _ in range(1 if rfgsm else what.attack_steps):
        adversarial.requires_grad_()
        with torch.enable_grad():
            loss = criterion(F.log_softmax(model(adversarial), dim=1), clean)
        gradient = torch.autograd.grad(loss, [adversarial])[0]
        adversarial = adversarial.detach() + step * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, x - what.eps), x + what.eps).clamp(0.0, 1.0)
    return adversarial


def plain(case: str) -> Iterator[None]:
    what, model = stage(case), network(case)
    for name, neuron in list(model.neurons()):
        model.set_submodule(name, PlainNeuron(neuron))
    rest = {"momentum": what.momentum, "weight_decay": what.weight_decay, "nesterov": what.nesterov}
    optimizer = torch.optim.SGD(model.parameters(), lr=what.lr, **rest)
    loader = DataLoader(Images(), what.batch_size, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for x, y in loader:
            model.eval()
            adversarial = plain_attack(model, x, what)
            model.train()
            optimizer.zero_grad()
            clean = model(x)
            divergence = F.kl_div(F.log_softmax(model(adversarial), 1), F.softmax(clean, 1), reduction="batchmean")
            (F.cross_entropy(clean, y) + what.weight * divergence).backward()
            optimizer.step()
            yield


LOOPS: dict[str, Callable[[str], Iterator[None]]] = {
    "plain": plain,
    "ours": ours,
    "ours, compiled": partial(ours, compile=True),
}
CASES = {"ann": "ResNet-20, TRADES, PGD-10", "snn": "its SNN, T = 4, R+FGSM"}


def measure(loop: str, case: str, steps: int, threads: int) -> list[float]:
    """Seconds of each step."""
    torch.set_num_threads(threads)
    running = LOOPS[loop](case)
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        next(running)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a case and round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="how often the cases take turns (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="where to write the measurements")
    args = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {case: {loop: [] for loop in LOOPS} for case in CASES}
    for _ in range(args.rounds):
        for case in CASES:
            for loop in LOOPS:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    found[case][loop] += pool.submit(measure, loop, case, args.steps, args.threads).result()
    results = []
    for case, title in CASES.items():
        batch = stage(case).batch_size
        speeds = {loop: batch / statistics.median(seconds) for loop, seconds in found[case].items()}
        results.append({"case": title, "images_per_second": speeds, "ratio": speeds["ours"] / speeds["plain"]})
        shown = ", ".join(f"{loop} {speed:.0f}" for loop, speed in speeds.items())
        print(f"{title}: {shown} images/s, {results[-1]['ratio']:.2f}x")
    if args.output:
        with replacing(args.output) as temporary:
            record = {"results": results, "seconds": found, "threads": args.threads, "environment": environment()}
            temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
