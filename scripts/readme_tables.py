"""Write the tables of README.md anew from the result files that scripts wrote: no figure in it is typed by hand.

    python scripts/readme_tables.py            # writes README.md
    python scripts/readme_tables.py --check    # only says whether it is stale

Results come from hub_configs/*/evaluation.json, speeds from scripts/benchmark.json and
scripts/benchmark_training.json (the scripts of these names wrote them).
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmark import ratios_table

from rsnn_zoo.config import load_config
from rsnn_zoo.files import load_json, replacing
from rsnn_zoo.hub import CONFIG, entries_folder, published_names
from rsnn_zoo.publish import EVIDENCE

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = Path(__file__).with_name("benchmark.json")
TRAINING = Path(__file__).with_name("benchmark_training.json")


def results() -> str:
    """One row an entry: accuracy without attack and under each radius, with the half-width of its interval."""
    reports = {name: load_json(entries_folder() / name / EVIDENCE) for name in published_names()}
    radii = sorted({run["eps"] for report in reports.values() for run in report["runs"]})
    header = ["entry", "parameters", "n", "clean", *(f"{255 * eps:.3g}/255" for eps in radii), "energy / ANN's"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, report in reports.items():
        config = load_config(entries_folder() / name / CONFIG)
        runs = {run["eps"]: run for run in report["runs"]}
        cells = [f"`{name}`", f"{config.weights.num_parameters / 1e6:.2f} M", f"{report['n']:,}"]
        cells += [percent(report["clean"]["accuracy"], report["clean"]["ci95"])]
        cells += [percent(runs[eps]["robust_accuracy"], runs[eps]["ci95"]) if eps in runs else "" for eps in radii]
        cells += [f"{report['energy']['ratio']:.3f}" if config.timesteps else "1"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(accuracy: float, interval: list[float]) -> str:
    low, high = (100 * bound for bound in interval)
    return f"{100 * accuracy:.1f} ({low:.1f} to {high:.1f})"


def benchmark() -> str:
    """The measured ratios."""
    return ratios_table(load_json(BENCHMARK))


def training() -> str:
    """Throughput of our training loop and of a plain one."""
    found = load_json(TRAINING)
    lines = ["| training | plain loop, images/s | ours, images/s | ratio |", "|---|---|---|---|"]
    for result in found["results"]:
        speeds = result["images_per_second"]
        lines.append(f"| {result['case']} | {speeds['plain']:.1f} | {speeds['ours']:.1f} | {result['ratio']:.2f} |")
    versions = found["environment"]["versions"]
    return "\n".join(
        [*lines, "", f"{found['environment']['cpu']}, {found['threads']} threads; torch {versions['torch']}."]
    )


TABLES: dict[str, Callable[[], str]] = {"results": results, "benchmark": benchmark, "training": training}


def filled(text: str) -> str:
    """The README with each table between its two markers written anew."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, table=table: f"{m[1]}{table()}\n{m[2]}", text)
        if found != 1:
            raise ValueError(f"README.md needs the markers of the table {name!r} once, and has them {found} times")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where README.md is stale")
    args = parser.parse_args()
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = filled(before)
    if args.check and after != before:
        sys.exit("README.md is stale: run python scripts/readme_tables.py")
    if after != before:
        with replacing(path) as temporary:
            temporary.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
