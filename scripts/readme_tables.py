"""Rewrite the tables of README.md and docs/ from the result files, so that no figure is typed by hand.

    python scripts/readme_tables.py            # writes the pages
    python scripts/readme_tables.py --check    # writes nothing, fails if a page is stale

Results come from hub_configs/*/evaluation.json, speeds from scripts/benchmark*.json (written by the scripts of the same
names), trainings from docs/runs/ (run.json and log.jsonl of each run, or config.json of what convert.py made, and
validation.json by evaluate.py), estimates from docs/dry_runs/ (the output of train.py or finetune.py --dry-run),
conversions from docs/conversion.json (by compare_conversion.py), gradient passes from docs/gradients.json (by
benchmark_gradients.py), costs of protocols from docs/costs/ (by benchmark_protocols.py), candidates for a protocol from
docs/protocols/ (by choose_protocol.py), evidence that was published before from docs/evaluations/, experiments from
docs/ablation.json and docs/finetuning.json (by ablate.py).
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _candidates import table as candidates_table
from _conversions import table as conversions_table
from _ensembles import table as ensembles_table
from _felled import by_member, missed
from _gradients import table as gradients_table
from _pages import replaced
from _protocols import table as protocols_table
from _ratios import ratios_table

from rsnn_zoo._utils.files import load_json, replacing
from rsnn_zoo.hub.resolve import entries_folder, published_names
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES
from rsnn_zoo.report.overview import plot_overview
from rsnn_zoo.report.report import in_255, wilson
from rsnn_zoo.spec.config import CONFIG, EVIDENCE, load_config
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BENCHMARK = Path(__file__).with_name("benchmark.json")
TRAINING = Path(__file__).with_name("benchmark_training.json")
CHANCE = 0.1
"""Accuracy of guessing one of CIFAR-10's classes."""


def results() -> str:
    """A table for each data set: accuracy without attack, and under attack with its interval."""
    reports = evidence()
    datasets = dict.fromkeys(report["dataset"] for report in reports.values())
    return "\n\n".join(
        results_on({name: report for name, report in reports.items() if report["dataset"] == dataset})
        for dataset in datasets
    )


def results_on(reports: dict[str, Any]) -> str:
    """One row an entry, with what it was found at 8/255 and at the radius of the worst case: the card has the rest."""
    found = [run for report in reports.values() for run in report["runs"]]
    radii = {"8/255", *(in_255(run["eps"]) for run in found if run["protocol"].startswith("worst-case"))}
    columns = sorted({(run["eps"], run["protocol"]) for run in found if in_255(run["eps"]) in radii})
    attacks = [f"{protocol}, {in_255(eps)}" for eps, protocol in columns]
    header = ["entry", "n", "clean", *attacks, "energy / ANN's", "flags"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, report in reports.items():
        config = load_config(entries_folder() / name / CONFIG)
        runs = {(run["eps"], run["protocol"]): percent(run["robust_accuracy"], run["ci95"]) for run in report["runs"]}
        cells = [f"[`{name}`](hub_configs/{name}/README.md)", f"{report['n']:,}"]
        cells += [f"{100 * report['clean']['accuracy']:.1f}"]
        cells += [runs.get(column, "") for column in columns]
        cells += [f"{report['energy']['ratio']:.2f}" if config.timesteps else "1"]
        cells += [", ".join(f"`{flag}`" for flag, one in report.get("flags", {}).items() if one["raised"]) or "none"]
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
    where = found["environment"]
    caption = f"{where['cpu']}, {found['threads']} threads; torch {where['versions']['torch']}; {revision(where)}."
    return "\n".join([*lines, "", caption])


def revision(found: dict[str, Any]) -> str:
    """The revision of the code that was measured."""
    return f"revision {found['git_revision'][:7]}"


def costs() -> str:
    """Minutes that the evaluations of robust SNNs took, by data set, number of images, protocol and radius."""
    runs = (path for path in DOCS.glob("runs/*/validation.json") if not path.parent.name.endswith(".converted"))
    folders = *entries_folder().glob(f"*/{EVIDENCE}"), *runs
    reports = [load_json(path, MAX_EVIDENCE_BYTES) for path in folders]
    reports = [report for report in reports if "spikes" in report and robustly_trained(report["model"])]
    minutes, snns = defaultdict(list), defaultdict(set)
    for report in reports:
        for run in report["runs"]:
            if in_255(run["eps"]) == "8/255" or not run["protocol"].startswith("ensemble"):
                kind = report["dataset"], f"{report['n']:,}", f"{run['protocol']}, {in_255(run['eps'])}"
                minutes[kind].append(run["seconds"] / 60)
                snns[kind].add(report["weights_sha256"])
    lines = ["| data set | n | attack | SNNs | minutes |", "|---|---|---|---|---|"]
    for kind in sorted(sorted(minutes), key=lambda kind: kind[0], reverse=True):
        span = dict.fromkeys(f"{bound(minutes[kind]):.0f}" for bound in (min, max))
        lines.append(f"| {' | '.join(kind)} | {len(snns[kind])} | {' to '.join(span)} |")
    where = sorted({f"{report['cpu']}, {report['threads']} thread a process" for report in reports})
    return "\n".join([*lines, "", f"Minutes of all processes together; {'; '.join(where)}."])


def robustly_trained(name: str) -> bool:
    return ModelName.parse(name).objective != "natural"


def evaluation() -> str:
    """What two ensembles and a plain loop took, by what benchmark_evaluation.py measured."""
    return ensembles_table(*map(load_json, sorted(Path(__file__).parent.glob("benchmark_evaluation*.json"))))


def runs() -> str:
    """One row a training, by its folder: its time, and the accuracies on validation images.

    Beside its minutes those of an idle machine, where a dry run has estimated them, and beside the robust accuracy of
    an SNN its share of that of its ANN. A run without ``validation.json`` is left out.
    """
    folders = sorted(path.parent for path in DOCS.glob("runs/*/validation.json"))
    reports = {folder: load_json(folder / "validation.json", MAX_EVIDENCE_BYTES) for folder in folders}
    by_weights = {report["weights_sha256"]: report for report in reports.values()}
    times = ["minutes", "idle machine, estimated", "images/s, last epoch"]
    header = ["run", "epochs", *times, "validation images", "clean", "attack", "robust", "of its ANN's"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for folder, report in reports.items():
        run, history = made(folder)
        dry = folder / "dry_run.json"
        cells = [f"`{folder.name}`", str(len(history)), f"{run['result']['seconds'] / 60:.0f}" if history else ""]
        cells += [f"{load_json(dry)['estimate']['seconds'] / 60:.0f}" if dry.is_file() else ""]
        cells += [f"{history[-1]['images_per_second']:.0f}" if history else "", f"{report['n']:,}"]
        cells += [percent(report["clean"]["accuracy"], report["clean"]["ci95"])]
        ann = by_weights.get(run.get("ann_sha256"))
        for one in report["runs"]:
            attacked = [f"{one['protocol']}, {in_255(one['eps'])}", percent(one["robust_accuracy"], one["ci95"])]
            before = [run["robust_accuracy"] for run in ann["runs"] if run["eps"] == one["eps"]] if ann else []
            kept = [share(one["robust_accuracy"], before[0]) if len(before) == 1 else ""]
            lines.append(f"| {' | '.join([*cells, *attacked, *kept])} |")
    return "\n".join(lines)


def longer() -> str:
    """One row a training of VGG-11, with the weights that it began with and what its last epoch gave."""
    header = ["run", "began with", "epochs", "weight", "minutes", "validation images", "clean", "attack", "robust"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for folder in sorted(DOCS.glob("runs/vgg11_cifar10_trades_ann*")):
        run, history = made(folder)
        stage, n = run["stage"], run["validation_images"]
        init = f"`{run['init']}`" if "init" in run else "random ones"
        cells = [f"`{folder.name}`", init, str(len(history)), f"{stage['weight']:g}"]
        cells += [f"{history[-1]['seconds'] / 60:.0f}", f"{n:,}"]
        clean, robust = (
            percent(right, wilson(round(right * n), n))
            for right in (history[-1][key] for key in ("validation", "validation_robust"))
        )
        attack = f"pgd{stage['validation_steps']}, {in_255(stage['validation_eps'])}"
        lines.append(f"| {' | '.join([*cells, clean, attack, robust])} |")
    return "\n".join(lines)


def planned() -> str:
    """What training the entries that are not published yet would take, as estimated on an idle machine."""
    header = ["network", "epochs", "minutes an epoch, all attack steps", "hours in all", "memory (GiB)"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    where = set()
    for path in sorted(DOCS.glob("dry_runs/*.json")):
        if path.stem in published_names():
            continue
        found = load_json(path)
        estimate, environment = found["estimate"], found["environment"]
        cells = [f"`{path.stem}`", str(found["stage"]["epochs"]), f"{estimate['seconds_an_epoch'] / 60:.1f}"]
        cells += [f"{estimate['seconds'] / 3600:.1f}", f"{estimate['peak_memory'] / 2**30:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
        where.add(f"{environment['cpu']}, {environment['cores']} cores, torch {environment['versions']['torch']}")
    return "\n".join([*lines, "", f"{'; '.join(sorted(where))}."]) if where else "All are published."


def made(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is recorded of a training and of its epochs; what was only converted has no epochs, and its config."""
    if not (folder / "run.json").is_file():
        return load_config(folder / CONFIG).training, []
    epochs = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return load_json(folder / "run.json"), [json.loads(epoch) for epoch in epochs]


def evidence() -> dict[str, Any]:
    """Evidence of the published entries, by name."""
    return {name: load_json(entries_folder() / name / EVIDENCE, MAX_EVIDENCE_BYTES) for name in published_names()}


def published() -> dict[str, Any]:
    """Evidence of the published entries for CIFAR-10, by name."""
    return {name: report for name, report in evidence().items() if ModelName.parse(name).dataset == "cifar10"}


def kept() -> str:
    """What each published SNN for CIFAR-10 keeps of its ANN's accuracy, attack by attack."""
    lines = ["| SNN | attack | its ANN | SNN | kept |", "|---|---|---|---|---|"]
    for name, report in published().items():
        if "ann" not in report:  # it is one
            continue
        before, after = accuracies(report["ann"]), accuracies(report)
        for attack in sorted(before | after):
            cells = [percent(*both[attack]) if attack in both else "" for both in (before, after)]
            kept = share(after[attack][0], before[attack][0]) if all(cells) else ""
            lines.append(f"| `{name}` | {attack[1]} | {' | '.join(cells)} | {kept} |")
    return "\n".join(lines) if len(lines) > 2 else "No SNN is published yet."


def share(after: float, before: float) -> str:
    """What an SNN keeps of its ANN's accuracy; where that is below chance, a share says nothing."""
    return f"{100 * after / before:.1f} %" if before > CHANCE else ""


def accuracies(report: dict[str, Any]) -> dict[tuple[float, str], tuple[float, list[float]]]:
    """Accuracies with their intervals, by radius and attack."""
    found = {(0.0, "none"): (report["clean"]["accuracy"], report["clean"]["ci95"])}
    return found | {
        (run["eps"], f"{run['protocol']}, {in_255(run['eps'])}"): (run["robust_accuracy"], run["ci95"])
        for run in report["runs"]
    }


def ablation() -> str:
    """One row an experiment, by its differences from the current recipe."""
    experiments = load_json(DOCS / "ablation.json")["runs"]
    changes = [differences(one) for one in experiments]
    everywhere = [change for change in changes[0] if all(change in others for others in changes)]
    header = ["SNN", "change", "images", "images/s, last epoch", "clean", "attack", "robust"]
    lines = [f"All with {', '.join(f'`{change}`' for change in everywhere)}.\n"] if everywhere else []
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for one, mine in zip(experiments, changes, strict=True):
        change = ", ".join(f"`{change}`" for change in mine if change not in everywhere) or "none"
        cells = [f"`{one['name']}`", change, f"{one['images']:,}", f"{one['history'][-1]['images_per_second']:.0f}"]
        cells += [f"{100 * one['clean']:.1f}", f"{one['attack']}, n = {one['n']}"]
        lines.append(f"| {' | '.join([*cells, percent(one['robust'], one['robust_ci95'])])} |")
    return "\n".join(lines)


def conversions() -> str:
    """One row a network and T, by what compare_conversion.py measured."""
    return conversions_table(load_json(DOCS / "conversion.json"))


def gradients() -> str:
    """One row a network and backward mode, by what benchmark_gradients.py measured."""
    return gradients_table(load_json(DOCS / "gradients.json"))


def protocols() -> str:
    """One row a network, by what benchmark_protocols.py measured."""
    return protocols_table(*map(load_json, sorted(DOCS.glob("costs/*.json"))))


def candidates() -> str:
    """What fells what after a first attack, by what choose_protocol.py measured."""
    return "\n\n".join(candidates_table(load_json(path)) for path in sorted(DOCS.glob("protocols/*.json")))


def felled() -> str:
    """What each member of worst-case-v2 felled of the SNNs, and what stood of the same under worst-case-v1."""
    snns = [report for report in evidence().values() if "spikes" in report]
    return by_member("worst-case-v2", snns, before=("worst-case-v1", former("*")))


def felled_before() -> str:
    """What each member of worst-case-v1 felled of the robust SNNs whose evidence was of it."""
    return by_member("worst-case-v1", former("*_trades_t?"))


def overlooked() -> str:
    """What fells the images of robust SNNs that withstand the published ensemble."""
    snns = [report for report in evidence().values() if "spikes" in report and robustly_trained(report["model"])]
    return missed("ensemble-pgd20", "worst-case-v2", snns)


def former(pattern: str) -> list[dict[str, Any]]:
    """Evidence that was published before that of worst-case-v2."""
    return [load_json(path, MAX_EVIDENCE_BYTES) for path in sorted(DOCS.glob(f"evaluations/{pattern}.v1.json"))]


def starts() -> str:
    """One row a fine-tuning, by what it started from and its steps."""
    lines = ["| SNN | start | steps | clean | attack | robust |", "|---" * 6 + "|"]
    for one in load_json(DOCS / "finetuning.json")["runs"]:
        name, stage = ModelName.parse(one["name"]), one["recipe"]["snn"]
        ann = load_config(entries_folder() / str(replace(name, timesteps=None)) / CONFIG).weights
        start = f"`{one['recipe']['conversion'].get('method', 'published')}`"
        start += "" if ann and ann.sha256 == one["ann_sha256"] else " of an ANN of few levels"
        steps = round(stage["epochs"] * (one["images"] // stage["batch_size"]))
        attack = f"{one['attack']}, {in_255(one['eps'])}, n = {one['n']}"
        cells = [f"`{name}`", start, f"{steps:,}", f"{100 * one['clean']:.1f}", attack]
        lines.append(f"| {' | '.join([*cells, percent(one['robust'], one['robust_ci95'])])} |")
    return "\n".join(lines)


def differences(experiment: dict[str, Any]) -> list[str]:
    """Settings in which an experiment differs from the current recipe of that name."""
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
    ROOT / "README.md": (results,),
    DOCS / "speed.md": (costs, protocols, evaluation, benchmark, gradients, training),
    DOCS / "worst_case_v2.md": (candidates, felled, overlooked, felled_before),
    DOCS / "cifar10.md": (kept, runs, longer, planned, ablation),
    DOCS / "conversion.md": (conversions, starts),
}
"""Tables by page; each stands between markers with the name of its function."""


def filled(text: str, tables: Iterable[Callable[[], str]]) -> str:
    """A page with each table rewritten between its two markers."""
    for table in tables:
        text = replaced(text, table.__name__, table())
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
    if not args.check:
        plot_overview(list(evidence().values()), DOCS / "published.png")


if __name__ == "__main__":
    main()
