"""Times our networks against SpikingJelly, snnTorch and T times our own ANN, in one run on this CPU.

    python scripts/benchmark.py --output benchmark.json     # everything; then the same as ratios:
    python scripts/benchmark.py --table benchmark.json

Every case runs alone in a fresh process: it builds the network and its inputs, warms up, measures the peak memory of
one call, then times some more. Equal for all cases: threads, weights, images, allocator settings, and

- forward: evaluation mode, no_grad.
- attack_gradient: evaluation mode, the gradient of the cross-entropy with respect to the images alone.
- training_step: training mode, forward, backward and one step of SGD with momentum.

bfloat16 is autocast, or InputGradient's own in the attack gradient; the peers, see _peers.py, run in float32.
Peak memory is what a call holds at once on top of what stays when it returns (weights, images, momentum).
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _ratios import PEERS, PRECISIONS, Case, ratios_table
from torch import Tensor, nn

from rsnn_zoo._utils.files import replacing
from rsnn_zoo._utils.progress import bar as progress_bar
from rsnn_zoo._utils.provenance import environment
from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.cli._process import tune_malloc
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.neurons.integrate_fire import Surrogate
from rsnn_zoo.spec.datasets import DATASETS

BATCHES = {"resnet20": 64, "wrn16_4": 8, "vgg11": 8}  # so that one run of everything takes about half an hour
WARM_UP = 2


# --- what is measured: a function of no arguments ---------------------------------------------------------------------


def forward(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    model.eval()

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32"):
            return model(images)

    return run


def attack_gradient(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    model.eval().requires_grad_(False)
    leaf = images.clone().requires_grad_()
    return lambda: torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)[0]


def our_attack_gradient(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    gradient = InputGradient(model, mode=Surrogate("pcw", 1.0), precision=precision)
    return lambda: gradient(images, labels, loss="ce")[0]


def training_step(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        with torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


QUANTITIES = {"forward": forward, "attack_gradient": attack_gradient, "training_step": training_step}
OUR_QUANTITIES = QUANTITIES | {"attack_gradient": our_attack_gradient}


def build(case: Case, batch: int) -> Callable[[], object]:
    """The case's network, with the same weights and images in every library, ready to be run."""
    from _peers import PEERS as peers  # not above: --table does without the two libraries

    torch.manual_seed(0)
    data = DATASETS["cifar10"]
    model = ARCHITECTURES[case.model](timesteps=case.timesteps, threshold=0.5, mean=data.mean, std=data.std)
    for module in model.modules():  # so drawn, 9 to 44 % of a layer's neurons fire at a step
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    images, labels = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    if case.library in peers:
        return QUANTITIES[case.quantity](peers[case.library](model), images, labels, case.precision)
    return OUR_QUANTITIES[case.quantity](model, images, labels, case.precision)


# --- one case, in its own process -------------------------------------------------------------------------------------


def peak_bytes(run: Callable[[], object]) -> int | None:
    """Most memory that a call holds at once above what was resident before it; None where the kernel cannot tell."""

    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what earlier calls freed would still be resident, and hide the peak
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    except (AttributeError, OSError):
        return None
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def measure(case: Case, batch: int, repeats: int, threads: int, malloc_tuning: bool) -> dict[str, Any]:
    """Seconds and peak memory of one case: meant for a process of its own."""
    if malloc_tuning:
        tune_malloc()
    torch.set_num_threads(threads)
    run = build(case, batch)
    for _ in range(WARM_UP):
        run()
    peak = peak_bytes(run)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"median_seconds": statistics.median(seconds), "min_seconds": min(seconds), "peak_bytes": peak}


def measure_apart(case: Case, **settings: object) -> dict[str, Any]:
    """``measure`` in a fresh process; a case that fails, or is killed for its memory, gives its error."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, case, **settings).result()
        except Exception as error:  # the other cases still count
            return {"error": f"{type(error).__name__}: {error}"}


# --- all cases --------------------------------------------------------------------------------------------------------


def plan(models: list[str], timesteps: list[int], quantities: list[str], peers: list[str]) -> list[Case]:
    """Measure all cases, what a ratio is made of close together, so that it meets the machine in one state."""
    cases = []
    for model in models:
        for quantity in quantities:
            if "ann" in peers:
                cases += [Case(model, None, quantity, "ann", precision) for precision in PRECISIONS]
            for steps in timesteps:
                cases += [Case(model, steps, quantity, "rsnn_zoo", precision) for precision in PRECISIONS]
                cases += [Case(model, steps, quantity, peer, "float32") for peer in PEERS if peer in peers]
    return cases


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def positive(text: str) -> int:
        if (value := int(text)) < 1:
            raise ValueError
        return value

    def add_choices(flag: str, choices: list[str]) -> None:
        parser.add_argument(flag, nargs="+", choices=choices, default=choices, help="default: all")

    add_choices("--models", list(BATCHES))
    add_choices("--quantities", list(QUANTITIES))
    add_choices("--peers", [*PEERS, "ann"])
    parser.add_argument("--timesteps", nargs="+", type=positive, default=[4, 8])
    parser.add_argument("--batch", type=positive, help=f"images a call; default: {BATCHES}")
    parser.add_argument("--repeats", type=positive, default=5, help="timed calls after warm-up (default: 5)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--malloc-tuning", action="store_true", help="tune glibc's allocator, for all cases")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this file's ratios")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.table:
        print(ratios_table(json.loads(args.table.read_text())))
        return
    try:
        versions = {name: version(name) for name in ("torch", *PEERS)}
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install spikingjelly snntorch") from None
    settings = {"repeats": args.repeats, "threads": args.threads, "malloc_tuning": args.malloc_tuning}
    batch = {model: args.batch or BATCHES[model] for model in args.models}
    about = {**environment(), "date": date.today().isoformat(), "batch": batch}
    about["versions"] = versions
    results = {**about, **settings, "cases": []}
    progress = progress_bar(plan(args.models, args.timesteps, args.quantities, args.peers), unit="case")
    for case in progress:
        progress.set_description(" ".join(str(part) for part in astuple(case) if part))
        outcome = measure_apart(case, batch=batch[case.model], **settings)
        results["cases"].append(asdict(case) | outcome)
        with replacing(args.output) as temporary:  # after every case: a run that is stopped keeps what it has
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(ratios_table(results))
    if failed := [case for case in results["cases"] if "error" in case]:
        raise SystemExit(f"{len(failed)} cases failed:\n" + "\n".join(map(str, failed)))


if __name__ == "__main__":
    main()
