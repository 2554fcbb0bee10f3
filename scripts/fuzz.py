"""Show every loader mutated files: each must load or be refused by a documented error, in 5 s and 1 GiB.

    python scripts/fuzz.py --files 200000 --output docs/fuzz.json --page docs/files.md

Repeated, it goes on where it was stopped. Faults are kept with the seed that makes the file again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("RSNN_ZOO_COMPILE", "0")

import numpy as np
import torch
from _pages import put_into, table

import rsnn_zoo
from rsnn_zoo._utils.files import replacing, to_json
from rsnn_zoo.evaluation import examples
from rsnn_zoo.evaluation.ledger import Ledger
from rsnn_zoo.hub.resolve import entries_folder
from rsnn_zoo.hub.shards import load_files
from rsnn_zoo.hub.weights import load_weights
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import load_evidence, published_runs
from rsnn_zoo.spec.config import FileInfo, load_config
from rsnn_zoo.training.checkpoints import load_checkpoint, save_checkpoint
from rsnn_zoo.training.recipe import FOLDER, load_recipe

ENTRY = entries_folder() / "resnet20_digits_natural_t4"
SECONDS, BYTES = 5.0, 2**30
NASTY = (
    b"null", b"-1", b"1e999", b"NaN", b'"1e999999999"', b"9" * 5000, b"[" * 3000, b"{" * 3000, b'"\\ud800"', b"\x00",
    b"\xff\xfe", b"../../x", b"&a [*a, *a]", b"a." * 300, b"true", b'""', b"[]", b"{}", b"2147483648", b"\n", b"---\n",
)  # fmt: skip
Check = Callable[[Path], object]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Change, leave out, double or insert a few pieces; sometimes cut the file, or put bits where they matter most."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        most = len(found) if draw.random() < 0.5 else min(len(found), 2000)
        at, size = draw.randrange(most + 1), draw.choice((1, 1, 2, 4, 8, 40, 400))
        kind = draw.randrange(6)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at : at + size]
        elif kind == 2:
            found[at:at] = found[at : at + size]
        elif kind == 3:
            found[at : at + size] = draw.randbytes(size)
        elif kind == 4:
            found[at:at] = draw.choice(NASTY)
        else:
            _replace_number(found, at, draw)
    return bytes(found[: draw.randrange(len(found) + 1)] if draw.random() < 0.1 else found)


def _replace_number(found: bytearray, at: int, draw: random.Random) -> None:
    """Put something nasty in place of the digits that stand there."""
    while at < len(found) and not 48 <= found[at] < 58:
        at += 1
    end = at
    while end < len(found) and 48 <= found[end] < 58:
        end += 1
    found[at:end] = draw.choice(NASTY)


def signed_checkpoint(data: bytes) -> bytes:
    """Behind its checksum, or it would hide all else."""
    return hashlib.sha256(data[32:]).digest() + data[32:]


def checks(folder: Path) -> dict[str, tuple[bytes, str, Check, Callable[[bytes], bytes]]]:
    """List each kind of file: a sound one, its name, what loads it, and what makes a mutated one pass its checksum."""
    config = load_config(ENTRY / "config.json")
    evidence = load_evidence(ENTRY / "evaluation.json", config)
    same: Callable[[bytes], bytes] = bytes
    state, run = folder / "sound.state", folder / "run"
    with_state(state)
    run.mkdir()
    record = {"settings": {}, "environment": {}, "history": [{"epoch": 1}], "weights": torch.ones(3, 4), "step": 7}
    save_checkpoint(run, record)
    arrays = io.BytesIO()
    images = (np.arange(6 * 8 * 8) % 255).astype(np.uint8).reshape(6, 8, 8, 1)
    np.savez(
        arrays, train_images=images, train_labels=np.arange(6) % 3, test_images=images, test_labels=np.arange(6) % 3
    )
    model = rsnn_zoo.create_model(ENTRY.name, pretrained=True)
    adversarial = folder / "examples.safetensors"
    data = rsnn_zoo.load_dataset("digits", "test").select(6)
    rsnn_zoo.evaluate(model, data, "fgsm", 32 / 255, checks=0, adversarial=adversarial)

    shards = folder / ENTRY.name
    rsnn_zoo.save_pretrained(model, shards, name=ENTRY.name, dtype="bfloat16", shard_bytes=250_000)
    info = load_config(shards / "config.json").weights

    def weights(path: Path) -> object:
        return load_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())

    def index(path: Path) -> object:
        return load_files(replace(info, **_said(path)), lambda file: shards / file.file if file.file in own else path)

    def shard(path: Path) -> object:
        """Behind its checksum in the config, and in the index."""
        changed = tuple(FileInfo(one.file, **_said(path)) if one.file == path.name else one for one in info.shards)
        said = json.loads((shards / info.file).read_bytes())
        said["metadata"]["sha256"] = {one.file: one.sha256 for one in changed}
        (named := folder / "index.json").write_bytes(to_json(said))
        places = {path.name: path, info.file: named}
        config = replace(info, **_said(named), shards=changed)
        return load_files(config, lambda file: places.get(file.file, shards / file.file))

    own = {one.file for one in info.shards}

    return {
        "config": ((ENTRY / "config.json").read_bytes(), "config.json", load_config, same),
        "evidence": (
            (ENTRY / "evaluation.json").read_bytes(),
            "evaluation.json",
            lambda path: published_runs(load_evidence(path, config)),
            same,
        ),
        "card": (
            (ENTRY / "README.md").read_bytes(),
            "README.md",
            lambda path: check_card(_text(path), config, evidence),
            same,
        ),
        "index": ((shards / info.file).read_bytes(), info.file, index, same),
        "shard": ((shards / info.shards[1].file).read_bytes(), info.shards[1].file, shard, same),
        "weights": ((ENTRY / "model.safetensors").read_bytes(), "model.safetensors", weights, same),
        "recipe": ((FOLDER / "digits.toml").read_bytes(), "mine.toml", lambda path: load_recipe(path, "trades"), same),
        "npz": (arrays.getvalue(), "data.npz", lambda path: rsnn_zoo.load_dataset(path, "test"), same),
        "ledger": (state.read_bytes(), "state", with_state, same),
        "checkpoint": (
            (run / "checkpoint.pt").read_bytes(),
            "checkpoint.pt",
            lambda path: load_checkpoint(path.parent),
            signed_checkpoint,
        ),
        "examples": (adversarial.read_bytes(), "a.safetensors", lambda path: examples._read_examples(path), same),
    }


def _said(path: Path) -> dict[str, object]:
    """What a config says of this file."""
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _text(path: Path) -> str:
    from rsnn_zoo._utils.files import MAX_JSON_BYTES, read_text

    return read_text(path, MAX_JSON_BYTES)


def with_state(path: Path) -> None:
    """Go on with a state, as an evaluation does."""
    ledger = Ledger(path, {"seed": 0}, {"cpu": "one"}, {index: str(index) for index in range(20)})
    try:
        ledger.begin("pgd20")
        if not ledger.merged("pgd20")[0]:
            ledger.add("pgd20", [(index, -1, bytes(256)) for index in range(20)], 0.5)
        ledger.made("pilot", lambda: {"pairs": [1, 2]})
        ledger.images("pgd20")
    finally:
        ledger.close()


class Busy(BaseException):
    """Nothing catches it on the way."""


def _too_long(*_: object) -> None:
    raise Busy(f"busy for more than {SECONDS} s")


def peak() -> int:
    """Bytes that were held at most since the last call of :func:`forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def forget() -> None:
    """Count the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def try_file(check: Check, path: Path) -> tuple[str, str | None]:
    """Load a file; return how it ended, and the fault if there is one."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        check(path)
        return "loaded", None
    except (OSError, ValueError) as error:
        named = type(error).__name__
        documented = not isinstance(error, UnicodeError) and type(error).__module__.split(".")[0] in (
            "rsnn_zoo",
            "builtins",
        )
        return named, None if documented else f"{type(error).__module__}.{named}: {error}"[:300]
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__}: {error}"[:300] + f" at {where.name}:{where.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, default=Path("results/fuzz.json"))
    parser.add_argument("--page", type=Path, help="document to put the figures into, between its two comments")
    args = parser.parse_args()
    found = json.loads(args.output.read_text()) if args.output.is_file() else {}
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as name:
        kinds = {kind: of for kind, of in checks(Path(name)).items() if kind in (args.kinds or [kind])}
        place = Path(name) / "mutated"
        place.mkdir()
        share, done = -(-args.files // len(kinds)), {}
        for kind in kinds:
            fresh = {"files": 0, "endings": {}, "faults": [], "slowest_s": 0.0, "most_bytes": 0, "seed": args.seed}
            done[kind] = found.get(kind, fresh)
        for first in range(0, share, 500):
            for kind, (sound, file, check, sign) in kinds.items():
                record = done[kind]
                for number in range(max(first, record["files"]), min(first + 500, share)):
                    one(record, kind, number, args.seed, place, sound, file, check, sign)
                args.output.parent.mkdir(parents=True, exist_ok=True)
                with replacing(args.output) as temporary:
                    temporary.write_bytes(to_json({**found, **done}))
    if args.page:
        put_into(args.page, "fuzz", figures({**found, **done}))
    faults = sum(len(record["faults"]) for record in done.values())
    print(f"{sum(record['files'] for record in done.values()):,} files, {faults} faults: {args.output}")
    return int(faults > 0)


def figures(done: dict) -> str:
    """Return a table of what came of each kind of file."""
    rows: list[list[object]] = []
    for kind, record in done.items():
        loaded, faults = record["endings"].get("loaded", 0), len(record["faults"])
        counts = [f"{count:,}" for count in (record["files"], loaded, record["files"] - loaded - faults)]
        rows.append([kind, *counts, faults, f"{record['slowest_s']} s", f"{record['most_bytes'] >> 20} MiB"])
    return table("file|tried|loaded|refused|faults|slowest|most memory", rows)


def one(
    record: dict, kind: str, number: int, seed: int, place: Path, sound: bytes, file: str, check: Check, sign
) -> None:
    """Make one file, load it, and take note."""
    draw = random.Random(f"{kind} {seed} {number}")
    for old in place.iterdir():
        old.unlink()
    (place / file).write_bytes(sign(mutated(sound, draw)))
    forget()
    before, started = peak(), time.perf_counter()
    ending, fault = try_file(check, place / file)
    took, held = time.perf_counter() - started, peak() - before
    if held > BYTES:
        fault = fault or f"held {held / 2**30:.1f} GiB"
    record["files"] = number + 1
    record["endings"][ending] = record["endings"].get(ending, 0) + 1
    record["slowest_s"] = max(record["slowest_s"], round(took, 3))
    record["most_bytes"] = max(record["most_bytes"], held)
    if fault and len(record["faults"]) < 50:
        record["faults"].append({"number": number, "what": fault})


if __name__ == "__main__":
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(main())
