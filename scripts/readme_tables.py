"""Write the tables of README.md and docs/ anew from the result files that scripts wrote: no figure is typed by hand.

    python scripts/readme_tables.py            # writes the pages
    python scripts/readme_tables.py --check    # only says whether they are stale

Results come from hub_configs/*/evaluation.json, speeds from scripts/benchmark*.json (the scripts of these names wrote
them), trainings from docs/runs/ (run.json and log.jsonl of the run's folder; validation.json by evaluate.py),
experiments from docs/ablation.json (by ablate.py).
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmark import ratios_table

from rsnn_zoo.config import load_config
from rsnn_zoo.evidence import MAX_EVIDENCE_BYTES
from rsnn_zoo.files import load_json, replacing
from rsnn_zoo.hub import CONFIG, entries_folder, published_names
from rsnn_zoo.names import ModelName
from rsnn_zoo.publish import EVIDENCE
from rsnn_zoo.recipe import load_recipe
from rsnn_zoo.report import in_255

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BENCHMARK = Path(__file__).with_name("benchmark.json")
TRAINING = Path(__file__).with_name("benchmark_training.json")
EVALUATION = sorted(Path(__file__).parent.glob("benchmark_evaluation*.json"))


def results() -> str:
    """A table a data set: accuracy without attack and under each protocol and radius, with its interval."""
    reports = {name: load_json(entries_folder() / name / EVIDENCE, MAX_EVIDENCE_BYTES) for name in published_names()}
    datasets = dict.fromkeys(report["dataset"] for report in reports.values())
    return "\n\n".join(
        results_on({name: report for name, report in reports.items() if report["dataset"] == dataset})
        for dataset in datasets
    )


def results_on(reports: dict[str, Any]) -> str:
    """One row an entry, one column a protocol and radius."""
    columns = sorted({(run["eps"], run["protocol"]) for report in reports.values() for run in report["runs"]})
    attacks = [f"{protocol}, {in_255(eps)}" for eps, protocol in columns]
    header = ["entry", "parameters", "n", "clean", *attacks, "energy / ANN's"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, report in reports.items():
        config = load_config(entries_folder() / name / CONFIG)
        runs = {(run["eps"], run["protocol"]): percent(run["robust_accuracy"], run["ci95"]) for run in report["runs"]}
        cells = [f"`{name}`", f"{config.weights.num_parameters / 1e6:.2f} M", f"{report['n']:,}"]
        cells += [percent(report["clean"]["accuracy"], report["clean"]["ci95"])]
        cells += [runs.get(column, "") for column in columns]
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
    loops = list(found["results"][0]["images_per_second"])
    lines = [f"| images/s | {' | '.join(loops)} | ours / plain |", "|---" * (len(loops) + 2) + "|"]
    for result in found["results"]:
        speeds = " | ".join(f"{result['images_per_second'][loop]:.1f}" for loop in loops)
        lines.append(f"| {result['case']} | {speeds} | {result['ratio']:.2f} |")
    versions = found["environment"]["versions"]
    return "\n".join(
        [*lines, "", f"{found['environment']['cpu']}, {found['threads']} threads; torch {versions['torch']}."]
    )


def evaluation() -> str:
    """Samples that stand, gradient steps and seconds of the published ensemble, the adaptive one, and the plain way."""
    names = [key for key in load_json(EVALUATION[0])["results"][0] if key.startswith(("ensemble", "adaptive"))]
    header = ["model", "n", "eps", "seed", f"standing under {names[0]}", "gradient steps"]
    header += [text for name in names[1:] for text in (f"{name}", "of these steps")]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    plain = []
    for found in map(load_json, EVALUATION):
        for result in found["results"]:
            ensemble, *adaptive = ways = [result[name] for name in names]
            cells = [f"`{result['model']}`", result["n"], f"{result['eps']:g}/255", result["seed"]]
            cells += [ensemble["robust"], f"{ensemble['gradient_steps']:,}"]
            for one in adaptive:
                cells += [one["robust"], f"{one['gradient_steps'] / ensemble['gradient_steps']:.2f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
            if "plain" in result:
                seconds = result["plain"]["seconds"]
                ratios = [f"{seconds / way['seconds']:.1f} (`{name}`)" for name, way in zip(names, ways, strict=True)]
                plain.append(
                    f"The plain loop left {result['plain']['robust']} of {result['n']} standing for "
                    f"`{result['model']}` at {result['eps']:g}/255, in {seconds:.0f} s: "
                    f"{', '.join(ratios)} times our time. "
                    f"{found['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}."
                )
    return "\n".join([*lines, *(f"\n{line}" for line in plain)])


def runs() -> str:
    """One row a training, by its folder: its time, and what the attack left standing on validation images."""
    header = ["run", "epochs", "minutes", "images/s", "validation images", "clean", "attack", "robust"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for folder in sorted((DOCS / "runs").iterdir()):
        run, report = (load_json(folder / name, MAX_EVIDENCE_BYTES) for name in ("run.json", "validation.json"))
        history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        cells = [f"`{folder.name}`", str(run["stage"]["epochs"]), f"{run['result']['seconds'] / 60:.0f}"]
        cells += [f"{history[-1]['images_per_second']:.0f}", f"{report['n']:,}"]
        cells += [percent(report["clean"]["accuracy"], report["clean"]["ci95"])]
        for one in report["runs"]:
            attacked = [f"{one['protocol']}, {in_255(one['eps'])}", percent(one["robust_accuracy"], one["ci95"])]
            lines.append(f"| {' | '.join([*cells, *attacked])} |")
    return "\n".join(lines)


def ablation() -> str:
    """One row an experiment, by what sets it off from the recipe as it is now."""
    experiments = load_json(DOCS / "ablation.json")["runs"]
    changes = [differences(one) for one in experiments]
    everywhere = [change for change in changes[0] if all(change in others for others in changes)]
    header = ["SNN", "change", "images", "images/s", "clean", "attack", "robust"]
    lines = [f"All with {', '.join(f'`{change}`' for change in everywhere)}.\n"] if everywhere else []
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for one, mine in zip(experiments, changes, strict=True):
        change = ", ".join(f"`{change}`" for change in mine if change not in everywhere) or "none"
        cells = [f"`{one['name']}`", change, f"{one['images']:,}", f"{one['history'][-1]['images_per_second']:.0f}"]
        cells += [f"{100 * one['clean']:.1f}", f"{one['attack']}, n = {one['n']}"]
        lines.append(f"| {' | '.join([*cells, percent(one['robust'], one['robust_ci95'])])} |")
    return "\n".join(lines)


def differences(experiment: dict[str, Any]) -> list[str]:
    """Settings of an experiment that the recipe of that name does not have now."""
    made_by = experiment["recipe"]
    recipe = load_recipe(made_by["name"], ModelName.parse(experiment["name"]).objective).to_json()
    return [
        f"{part}.{key} = {in_255(value) if key == 'eps' else json.dumps(value)}"
        for part in made_by
        if part != "name"
        for key, value in made_by[part].items()
        if json.loads(json.dumps(recipe[part].get(key))) != value
    ]


PAGES: dict[Path, tuple[Callable[[], str], ...]] = {
    ROOT / "README.md": (results, evaluation, benchmark, training),
    DOCS / "cifar10.md": (runs, ablation),
}
"""Tables by page; a table stands between markers with the name of its function."""


def filled(text: str, tables: Iterable[Callable[[], str]]) -> str:
    """A page with each table between its two markers written anew."""
    for table in tables:
        name = table.__name__
        pattern = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, table=table: f"{m[1]}{table()}\n{m[2]}", text)
        if found != 1:
            raise ValueError(
                f"the markers of the table {name!r} are needed once on its page, and are there {found} times"
            )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page is stale")
    args = parser.parse_args()
    for path, tables in PAGES.items():
        before = path.read_text(encoding="utf-8")
        after = filled(before, tables)
        if args.check and after != before:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run python scripts/readme_tables.py")
        if after != before:
            with replacing(path) as temporary:
                temporary.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
