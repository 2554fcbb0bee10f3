"""Times an attack's float32 gradient pass against that of an earlier revision, alternating in one run on this machine.

    python scripts/benchmark_gradients.py --output docs/gradients.json    # then the same as a table:
    python scripts/benchmark_gradients.py --table docs/gradients.json

Timed is what an evaluation spends its steps on, ``ModelVictim.gradient``: gradient, logits and verdicts of a batch that
stands (labels are the network's own answers). The earlier revision runs it as its evaluations do, precision "float32";
this one with precision "folded". Each has a process of its own, the earlier one from ``git archive``, both with the
allocator that the command line sets, and they take turns.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from datetime import date
from pathlib import Path

from _gradients import table

KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""As the command line sets glibc's allocator: large tensors stay with the process."""
REPOSITORY = Path(__file__).resolve().parents[1]
BASE = "a864e79"
NAMES = ["resnet20_cifar10_trades_t4", "resnet20_cifar10_trades_t8"]
MODES = ["pcw-1", "exp-1", "rate", "rga", "hart-1", "assg"]

WORKER = """
import json, sys, time, torch, rsnn_zoo
import torch.nn.functional as F
from rsnn_zoo.attacks.victim import ModelVictim
try:
    from rsnn_zoo.neurons.modes import parse_mode
except ImportError:  # as earlier revisions have it
    from rsnn_zoo.modes import parse_mode
name, precision, images, chunk, threads, warm_up = json.loads(sys.argv[1])
torch.set_num_threads(threads)
model = rsnn_zoo.create_model(name, pretrained=True)
victim = ModelVictim(model, chunk, precision)
x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
labels = victim.logits(x).argmax(1)
def loss(logits, aim):
    return F.cross_entropy(logits, aim, reduction="none")
warm, memory = set(), {}
print("ready", flush=True)
for line in sys.stdin:
    mode = line.strip()
    def once():
        began = time.perf_counter()
        victim.under(parse_mode(mode)).gradient(x, labels, loss, labels, memory.setdefault(mode, {}))
        return time.perf_counter() - began
    if mode not in warm:
        warm.add(mode)
        for _ in range(warm_up):
            once()
    print(once(), flush=True)
"""


class Build:
    """One revision in a process of its own, which measures when it is asked to."""

    def __init__(self, source: Path, precision: str, name: str, args: argparse.Namespace):
        settings = json.dumps([name, precision, args.images, args.chunk, args.threads, 2])
        environment = os.environ | KEEPS_MEMORY | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(args.threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=source,
        )
        self.read()

    def read(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a build ended before it had measured: see its error above")
        return line

    def seconds(self, mode: str) -> float:
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        return float(self.read())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace) -> dict:
    from rsnn_zoo._utils.provenance import environment

    cases = []
    with tempfile.TemporaryDirectory() as folder:
        archive = ["git", "-C", str(REPOSITORY), "archive", args.base, "rsnn_zoo", "hub_configs"]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extractall(folder, filter="data")
        for name in args.models:
            builds = Build(Path(folder), "float32", name, args), Build(REPOSITORY, "folded", name, args)
            for mode in args.modes:
                pairs = [[build.seconds(mode) for build in builds] for _ in range(args.repeats)]
                before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
                cases.append({"model": name, "mode": mode, "before": before, "after": after})
                print(f"{name} {mode}: {before / after:.2f}x", file=sys.stderr)
            for build in builds:
                build.close()
    how = {key: getattr(args, key) for key in ("base", "images", "chunk", "threads", "repeats")}
    return {**environment(), "date": date.today().isoformat(), **how, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE, help="revision to compare with (default: %(default)s)")
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("gradients.json"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print this file's table")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    results = measure(args)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
