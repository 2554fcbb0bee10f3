"""Kill saves, pushes, evaluations and trainings at random moments: nothing may be lost, nothing half.

    python scripts/kill.py --kills 300 --output docs/kill.json

After each kill the entry must load and be the old or the new one; whatever was killed must go on to the same end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("RSNN_ZOO_COMPILE", "0")

import torch

import rsnn_zoo
from rsnn_zoo._utils.files import replacing, to_json
from rsnn_zoo.hub.publish import push_to_hub, save_evidence, save_pretrained
from rsnn_zoo.hub.resolve import entries_folder, resolve
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import load_evidence
from rsnn_zoo.training.checkpoints import load_checkpoint, save_checkpoint

OLD, NEW = "resnet20_digits_natural_t4", "resnet20_digits_at_t4"
NAMES = {"config.json", "model.safetensors", "README.md", "evaluation.json"}
Action = Callable[[Path], None]


def killed(action: Action, folder: Path, after: float) -> bool:
    """Fork, act, kill; return whether the kill came before the end."""
    if not (pid := os.fork()):
        try:
            action(folder)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def longest(action: Action, make: Action) -> float:
    """Seconds that it takes undisturbed."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        started = time.perf_counter()
        action(Path(name))
        return time.perf_counter() - started


def copy_entry(folder: Path) -> None:
    """Put a sound entry there."""
    shutil.copytree(entries_folder() / OLD, folder, dirs_exist_ok=True)


def whole(folder: Path, sums: set[str]) -> str:
    """Say what is wrong with an entry, nothing if it loads and its files belong together."""
    entry = resolve(f"local-dir:{folder}")
    entry.load_weights()
    if entry.sha256 not in sums:
        return f"it holds weights {entry.sha256}"
    try:
        evidence = load_evidence(entry.get("evaluation.json", 2**24), entry.config)
    except ValueError:  # of the weights before
        evidence = None
    check_card(entry.get("README.md", 2**20).read_text(encoding="utf-8"), entry.config, evidence)
    return ""


def actions(hub: str) -> dict[str, tuple[Action, Action, Action]]:
    """By name: what makes the folder, what is killed, and what must hold afterwards; each raises if it does not."""
    models = [rsnn_zoo.create_model(name, pretrained=True) for name in (OLD, NEW)]
    sums = {str(model.weights_sha256) for model in models}
    data = rsnn_zoo.load_dataset("digits", "test").select(8)
    expected = rsnn_zoo.evaluate(models[0], data, "pgd3", 16 / 255, checks=0, batch_size=1)

    def save(folder: Path) -> None:
        save_pretrained(models[1], folder, name="mine")

    def saved(folder: Path) -> None:
        _refuse(whole(folder, sums))
        save(folder)
        _refuse(whole(folder, sums) or " ".join({path.name for path in folder.iterdir()} - NAMES))

    def push(folder: Path) -> None:
        push_to_hub(folder, org="me", token="hf_local", endpoint=hub, tag="v1")

    def pushed(folder: Path) -> None:
        _refuse(whole(folder, sums))
        push(folder)
        _refuse(whole(folder, sums) or " ".join({path.name for path in folder.iterdir()} - NAMES))

    def evaluate(folder: Path) -> None:
        report = rsnn_zoo.evaluate(
            models[0], data, "pgd3", 16 / 255, checks=0, batch_size=1, state=folder / "evaluation.json.partial"
        )
        save_evidence(folder, report.to_json())

    def evaluated(folder: Path) -> None:
        _refuse(whole(folder, sums))
        evaluate(folder)
        found = json.loads((folder / "evaluation.json").read_text())["runs"][0]["verdicts"]
        wanted = expected.to_json()["runs"][0]["verdicts"]
        _refuse("" if found == wanted else "the verdicts are others", whole(folder, sums))

    def train(folder: Path) -> None:
        state = load_checkpoint(folder)
        for step in range(state["step"] + 1 if state else 0, 40):
            record = {"settings": {}, "environment": {}, "history": [], "step": step}
            save_checkpoint(folder, {**record, "weights": torch.full((50_000,), float(step))})

    def trained(folder: Path) -> None:
        state = load_checkpoint(folder)
        _refuse("" if state is None or (state["weights"] == state["step"]).all() else "a step is mixed with another")
        train(folder)
        _refuse("" if load_checkpoint(folder)["step"] == 39 else "it did not end")

    return {
        "save": (copy_entry, save, saved),
        "push": (copy_entry, push, pushed),
        "evaluate": (copy_entry, evaluate, evaluated),
        "checkpoints of a training": (lambda folder: None, train, trained),
    }


def _refuse(*causes: str) -> None:
    for cause in filter(None, causes):
        raise ValueError(cause)


def main() -> int:
    """Kill each so often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/kill.json"))
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.hub_server import HubServer

    done, draw = {}, random.Random(args.seed)
    with HubServer() as server:
        every = actions(server.url)
        for name, (make, action, check) in every.items():
            takes = longest(action, make)
            record = done[name] = {"kills": 0, "tries": 0, "faults": [], "takes_s": round(takes, 3)}
            while record["kills"] < -(-args.kills // len(every)):
                record["tries"] += 1
                with tempfile.TemporaryDirectory() as folder:
                    make(Path(folder))
                    record["kills"] += killed(action, Path(folder), draw.uniform(0, takes))
                    try:
                        check(Path(folder))
                    except Exception as error:
                        record["faults"].append(f"{type(error).__name__}: {error}"[:300])
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with replacing(args.output) as temporary:
                temporary.write_bytes(to_json(done))
    faults = sum(len(record["faults"]) for record in done.values())
    print(f"{sum(record['kills'] for record in done.values())} kills, {faults} faults: {args.output}")
    return int(faults > 0)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(main())
