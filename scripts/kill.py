"""Kill saves, pushes, evaluations and trainings at random moments: nothing may be lost, nothing half.

    python scripts/kill.py --kills 320 --output docs/kills.json --page docs/files.md

A folder lives through one to three kills (SIGKILL) and is then brought to its end. After each kill what is on disk must
be whole, and hold all that the killed process had been told was done. At the end it must be, but for times, what it is
where nothing is killed. Repeated with the same output, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RSNN_ZOO_COMPILE", "0")
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the Hub of the tests speaks the plain protocol
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(1, str(Path(__file__).parent.parent))

import torch
from _pages import put_into, table
from huggingface_hub import close_session

import rsnn_zoo
from rsnn_zoo._utils.files import load_json, replacing, to_json
from rsnn_zoo._utils.folders import locked
from rsnn_zoo.hub.publish import push_to_hub, save_evidence, save_pretrained
from rsnn_zoo.hub.resolve import entries_folder, resolve
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import EvidenceError, load_evidence
from rsnn_zoo.training.checkpoints import load_checkpoint
from rsnn_zoo.training.recipe import load_recipe
from rsnn_zoo.training.train import train
from tests import tiny
from tests.hub_server import TOKEN, HubServer

OLD, NEW = "resnet20_digits_natural_t4", "resnet20_digits_at_t4"
CASES, KEYS = ("save", "push", "evaluate", "train"), ("folders", "kills", "takes_s")
ENTRY = {"config.json", "model.safetensors", "README.md", "evaluation.json"}
ALL = 10**6  # more than any progress on the way
Say = Callable[[int], object]


class Fault(Exception):
    """Something is lost, or half."""


@dataclass(frozen=True)
class Case:
    """What is killed.

    Attributes:
        make: Puts into the folder what is there before.
        act: Does the work or goes on with it; tells how far it is whenever that has been kept for sure.
        holds: Raises where what is on disk is not whole.
        progress: How far what is on disk is, on the scale of ``act``.
        ended: Raises where the end is not that of an undisturbed life.
    """

    make: Callable[[Path], object]
    act: Callable[[Path, Say], object]
    holds: Callable[[Path], object]
    progress: Callable[[Path], int]
    ended: Callable[[Path], object]


def life(case: Case, folder: Path, seconds: float) -> tuple[bool, int]:
    """Act in a process of its own; return whether it had to be killed then, and how far it had said to be."""
    ours, theirs = os.pipe()
    close_session()  # or two processes would speak over one connection
    if not (pid := os.fork()):
        status = 1
        try:
            case.act(folder, lambda done: os.write(theirs, done.to_bytes(4, "big")))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(theirs)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with open(ours, "rb") as pipe:
        said = pipe.read()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise Fault("it ended with an error")
    return os.WIFSIGNALED(status), max(
        map(int.from_bytes, (said[at : at + 4] for at in range(0, len(said), 4))), default=0
    )


def check(found: bool, fault: str) -> None:
    """Raise the fault where that was not found."""
    if not found:
        raise Fault(fault)


# --- entries ---


def check_entry(name: str, sums: set[str], **where: Any) -> None:
    """Hold the files of an entry against each other."""
    entry = resolve(name, **where)
    entry.load_weights()
    check(entry.sha256 in sums, f"it holds weights {entry.sha256}")
    try:
        evidence = load_evidence(entry.get("evaluation.json", 2**24), entry.config)
    except EvidenceError:  # of the weights before
        evidence = None
    check_card(entry.get("README.md", 2**20).read_text(encoding="utf-8"), entry.config, evidence)


def no_leftovers(folder: Path, wanted: set[str]) -> None:
    """Raise where a file is left that a killed process made."""
    found = {path.name for path in folder.iterdir()}
    check(found == wanted, f"left over or missing: {sorted(found ^ wanted)}")


def save_case(old: Path, model: Any, sums: set[str]) -> Case:
    """Save other weights over an entry."""

    def act(folder: Path, say: Say) -> None:
        save_pretrained(model, folder, name="mine")
        say(1)

    return Case(
        make=lambda folder: shutil.copytree(old, folder, dirs_exist_ok=True),
        act=act,
        holds=lambda folder: check_entry(f"local-dir:{folder}", sums),
        progress=lambda folder: int(resolve(f"local-dir:{folder}").sha256 == model.weights_sha256),
        ended=lambda folder: no_leftovers(folder, ENTRY),
    )


def push_case(old: Path, new: Path, sums: set[str], hub: HubServer) -> Case:
    """Push other weights into a repository, with a tag."""
    push_to_hub(old, org="me", token=TOKEN, endpoint=hub.url)
    before, large, wanted = copy.deepcopy(hub.repos), dict(hub.lfs), resolve(f"local-dir:{new}").sha256

    def make(folder: Path) -> None:
        hub.repos, hub.lfs = copy.deepcopy(before), dict(large)
        shutil.copytree(new, folder, dirs_exist_ok=True)

    def act(folder: Path, say: Say) -> None:
        push_to_hub(folder, org="me", token=TOKEN, endpoint=hub.url, tag="v1")
        say(3)

    def holds(folder: Path) -> None:
        check_entry(f"local-dir:{folder}", sums)
        for revision in ("main", *hub.repos["me/mine"].tags):
            with tempfile.TemporaryDirectory() as cache:
                where = {"cache_dir": cache, "endpoint": hub.url}
                check_entry("hf-hub:me/mine", sums, revision=revision, **where)

    def progress(folder: Path) -> int:
        repo = hub.repos["me/mine"]
        files = repo.commits[repo.branches["main"]]
        pinned = resolve(f"local-dir:{folder}").config.revision == "v1"
        return int(files["model.safetensors"].oid == wanted) + bool(repo.tags) + pinned

    def ended(folder: Path) -> None:
        no_leftovers(folder, ENTRY)
        check(hub.repos["me/mine"].tags.keys() == {"v1"}, "the tag is missing")

    return Case(make, act, holds, progress, ended)


def evaluate_case(old: Path, model: Any, sums: set[str]) -> Case:
    """Evaluate an entry into its evidence, with a state."""
    data = rsnn_zoo.load_dataset("digits", "test").select(10)
    options = {"attack": "pgd3", "eps": 16 / 255, "checks": 0, "batch_size": 1, "chunk": 1}
    expected = rsnn_zoo.evaluate(model, data, **options).to_json()["runs"][0]["verdicts"]

    def act(folder: Path, say: Say) -> None:
        report = rsnn_zoo.evaluate(model, data, **options, state=folder / "state")
        save_evidence(folder, report.to_json())
        say(ALL)

    def progress(folder: Path) -> int:
        if load_json(folder / "evaluation.json", 2**24)["n"] == len(data):
            return ALL
        if not (folder / "state").is_file():
            return 0
        with closing(sqlite3.connect(folder / "state")) as database:
            tables = dict(database.execute("SELECT name, 1 FROM sqlite_master"))
            return database.execute("SELECT count(*) FROM samples").fetchone()[0] if "samples" in tables else 0

    def ended(folder: Path) -> None:
        no_leftovers(folder, {*ENTRY, "state"})
        found = load_json(folder / "evaluation.json", 2**24)["runs"][0]["verdicts"]
        check(found == expected, "the verdicts are others")

    return Case(
        make=lambda folder: shutil.copytree(old, folder, dirs_exist_ok=True),
        act=act,
        holds=lambda folder: check_entry(f"local-dir:{folder}", sums),
        progress=progress,
        ended=ended,
    )


# --- a run ---


def train_case() -> Case:
    """Train a small spiking network on the digits, with a checkpoint after every batch."""
    recipe = load_recipe("digits", "trades")
    stage = replace(
        recipe.direct, epochs=4, batch_size=100, attack_steps=2, validation_steps=2, eps_warmup=2, steps_warmup=2
    )
    data = rsnn_zoo.load_dataset("digits", "train").select(500)
    validation = rsnn_zoo.load_dataset("digits", "validation").select(40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = tiny.Dense(SpikingNeuron(2, repeated=True))

    def run(folder: Path, say: Say) -> tuple[Any, dict[str, Any]]:
        model = copy.deepcopy(fresh)
        result = train(
            model,
            data,
            validation,
            stage,
            folder,
            interval=0,
            progress=False,
            on_epoch=lambda record: say(record["epoch"]),
        )
        say(ALL)
        return result, {key: value.clone() for key, value in model.state_dict().items()}

    def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        timed = ("seconds", "images_per_second", "peak_memory")
        return [{key: value for key, value in record.items() if key not in timed} for record in history]

    with tempfile.TemporaryDirectory() as name:
        expected, weights = run(Path(name), lambda done: None)

    def holds(folder: Path) -> None:
        state = load_checkpoint(folder)
        lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").is_file() else []
        known = untimed(expected.history)
        check(untimed([json.loads(line) for line in lines]) == known[: len(lines)], "the log is another")
        check(state is None or untimed(state["history"]) == known[: state["epoch"]], "the history is another")

    def progress(folder: Path) -> int:
        if (folder / "run.json").is_file() and load_json(folder / "run.json")["result"]:
            return ALL
        state = load_checkpoint(folder)
        return state["epoch"] if state else 0

    def ended(folder: Path) -> None:
        result, found = run(folder, lambda done: None)  # of what has ended, it reads the end
        check(result.epoch == expected.epoch and result.accuracy == expected.accuracy, "another epoch was selected")
        check(result.robust_accuracy == expected.robust_accuracy, "the robust accuracy is another")
        check(untimed(result.history) == untimed(expected.history), "the history is another")
        check(all(torch.equal(weights[key], found[key]) for key in weights), "the weights are others")
        no_leftovers(folder, {"checkpoint.pt", "checkpoint.previous.pt", "log.jsonl", "run.json"})

    return Case(make=lambda folder: None, act=run, holds=holds, progress=progress, ended=ended)


# --- all of them ---


def cases(folder: Path, hub: HubServer, wanted: list[str] | None) -> dict[str, Case]:
    """The cases by name; an old and a new entry called ``mine`` are put into the folder."""
    models = [rsnn_zoo.create_model(name, pretrained=True) for name in (OLD, NEW)]
    entries = [folder / "old", folder / "new"]
    for name, model, entry in zip((OLD, NEW), models, entries, strict=True):
        evidence = load_json(entries_folder() / name / "evaluation.json", 2**24)
        save_pretrained(model, entry, name="mine", evaluation=evidence)
    sums = {str(model.weights_sha256) for model in models}
    makers: dict[str, Callable[[], Case]] = {
        "save": lambda: save_case(entries[0], models[1], sums),
        "push": lambda: push_case(*entries, sums, hub),
        "evaluate": lambda: evaluate_case(entries[0], models[0], sums),
        "train": train_case,
    }
    return {name: make() for name, make in makers.items() if name in (wanted or makers)}


def undisturbed(case: Case) -> float:
    """Seconds that a whole life takes, in a process of its own; the first one warms up."""
    took = 0.0
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            case.make(Path(name))
            close_session()
            started = time.perf_counter()
            if not (pid := os.fork()):
                case.act(Path(name), lambda done: None)
                os._exit(0)
            check(os.waitpid(pid, 0)[1] == 0, "it ends with an error even undisturbed")
            took = time.perf_counter() - started
    return took


def one_folder(case: Case, takes: float, draw: random.Random, record: dict[str, Any]) -> None:
    """Let a folder live through one to three kills, then bring it to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder, reached = Path(name), 0
        case.make(folder)
        for _ in range(draw.randint(1, 3)):
            record["lives"] += 1
            was_killed, said = life(case, folder, draw.uniform(0, takes))
            record["kills"] += was_killed
            case.holds(folder)
            found = case.progress(folder)
            check(found >= max(reached, said), f"it had come to {max(reached, said)}, and {found} is left")
            reached = found
            if not was_killed:
                break
        case.act(folder, lambda done: None)
        case.holds(folder)
        case.ended(folder)


def main() -> int:
    """Kill each so often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=320, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="only these")
    parser.add_argument("--output", type=Path, default=Path("results/kills.json"))
    parser.add_argument("--page", type=Path, help="document to put the figures into, between its two comments")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with HubServer() as hub, tempfile.TemporaryDirectory() as place:
        for name, case in cases(Path(place), hub, args.cases).items():
            fresh = {"kills": 0, "folders": 0, "lives": 0, "faults": [], "takes_s": 0.0, "seed": args.seed}
            record = kept(args.output).get(name, fresh)
            takes = undisturbed(case)
            record["takes_s"] = round(takes, 3)
            while record["kills"] < -(-args.kills // len(CASES)):
                draw = random.Random(f"{name} {args.seed} {record['folders']}")
                record["folders"] += 1
                try:
                    one_folder(case, takes, draw, record)
                except Exception as error:
                    record["faults"].append(f"{record['folders']}: {type(error).__name__}: {error}"[:300])
                with locked(args.output.parent), replacing(args.output) as temporary:
                    temporary.write_bytes(to_json(kept(args.output) | {name: record}))
    done = kept(args.output)
    if args.page:
        rows = [[name, *(done[name][key] for key in KEYS), len(done[name]["faults"])] for name in CASES if name in done]
        put_into(args.page, "kills", table("what|folders|kills|seconds undisturbed|faults", rows))
    faults = sum(len(record["faults"]) for record in done.values())
    print(f"{sum(record['kills'] for record in done.values())} kills, {faults} faults: {args.output}")
    return int(faults > 0)


def kept(path: Path) -> dict[str, Any]:
    """What is known so far, of this process and of others that kill other things."""
    return load_json(path) if path.is_file() else {}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(main())
