"""Train, convert, fine-tune and evaluate entries, and write them to hub_configs/: the command that made each of them.

    python scripts/build_entries.py 'resnet20_digits_*'
    python scripts/build_entries.py resnet20_cifar10_trades_{ann,t4,t8} --data cifar10.npz -n 1000 --processes 2

ANNs come before the SNNs that are made from them. Finished steps are skipped and interrupted ones resume: repeat the
command until it ends. On a CPU, --processes 2 evaluates nearly twice as fast as two threads do. Test images are used
once, by the evaluation at the end. Its verdicts stay in runs/NAME/evaluation.sqlite, so attacks that are added later
run alone.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _training import default_recipe, main

import rsnn_zoo
from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.cli.commands import device
from rsnn_zoo.evaluation.energy import energy
from rsnn_zoo.evaluation.evaluation import EPSILONS
from rsnn_zoo.hub.publish import EVIDENCE, save_pretrained
from rsnn_zoo.hub.resolve import CONFIG, entries_folder
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES
from rsnn_zoo.spec.config import load_config
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.checkpoints import differences
from rsnn_zoo.training.recipe import DEFAULTS, load_recipe

SCRIPTS = Path(__file__).parent

EVIDENCE_RUNS = {"digits": {"ensemble-pgd20": EPSILONS, "worst-case": 32 / 255}}
EVIDENCE_RUNS_ELSE = {"ensemble-pgd20": tuple(k / 255 for k in (2, 4, 8, 16)), "worst-case": 8 / 255}
"""Protocols and their radii: by data set, and of all others."""
ANNS_TOO = {"autoattack": 8 / 255}
"""What ANNs meet besides: the anchor that other papers give. Members met already cost nothing."""


def names_of(patterns: list[str]) -> list[ModelName]:
    """ANNs first; wildcards mean the ANN and T = 4 of the grid."""
    names = set()
    for pattern in patterns:
        known = [pattern] if rsnn_zoo.is_model(pattern) else rsnn_zoo.list_models(pattern)
        names |= {name for name in map(ModelName.parse, known) if name.timesteps in (None, 4) or pattern == str(name)}
    return sorted(names, key=lambda name: (name.timesteps or 0, str(name)))


def train(args: argparse.Namespace, name: ModelName) -> None:
    """Runs train.py or finetune.py, which go on where they were stopped."""
    script = "train.py" if name.timesteps is None else "finetune.py"
    data = ["--data", args.data] if args.data else []
    call([str(SCRIPTS / script), str(name), *data, *recipe_options(args), "--device", args.device])


def recipe_options(args: argparse.Namespace) -> list[str]:
    """What changes the training."""
    options = [part for change in args.set for part in ("--set", change)]
    options += ["--recipe", args.recipe] if args.recipe else []
    return [*options, "--seed", str(args.seed)] if args.seed else options


def check_trained(args: argparse.Namespace, name: ModelName, training: dict[str, Any]) -> None:
    """Refuses a run of another recipe than this command's: the card would name a command that makes another network.

    Raises:
        ValueError: If it is; names what differs.
    """
    recipe = load_recipe(args.recipe or default_recipe(name), name.objective, args.set)
    stage = "snn" if training.get("ann") else "direct" if name.timesteps else "ann"
    tables: dict[str, Any] = {"stage": recipe.stage(stage), "data": recipe.data}
    tables |= {"neuron": recipe.neuron} if name.timesteps else {}
    tables |= {"conversion": recipe.conversion} if training.get("ann") else {}
    wanted = json.loads(to_json({"seed": args.seed} | {key: asdict(table) for key, table in tables.items()}))
    recorded = {key: training[key] for key in wanted if key in training}
    if differing := differences(recorded, wanted, {key: DEFAULTS[key] for key in tables}):
        raise ValueError(
            f"runs/{name} is of another recipe ({'; '.join(differing)}): repeat the options by which it was trained "
            "(--recipe, --set, --seed), or train it in another folder"
        )


def call(command: list[str], **environment: str) -> None:
    """Runs Python; what fails there has said why, and ends this too."""
    if code := subprocess.run([sys.executable, *command], env={**environment, **os.environ}).returncode:
        sys.exit(code)


def command_of(args: argparse.Namespace, name: ModelName, training: dict[str, Any]) -> str:
    """What makes this entry, and the ANN that it is converted from, anew."""
    names = [str(replace(name, timesteps=None)), str(name)] if training.get("ann") else [str(name)]
    data = ["--data", Path(args.data).name] if args.data else []
    images = ["-n", str(args.n)] if args.n else []
    return shlex.join(["python", "scripts/build_entries.py", *names, *data, *images, *recipe_options(args)])


def ann_of(name: ModelName, training: dict[str, Any]) -> dict[str, Any] | None:
    """What the published ANN withstood that an SNN was converted from; None where there was none.

    Raises:
        ValueError: If there is none of these weights.
    """
    if not training.get("ann"):
        return None
    ann, sha256 = replace(name, timesteps=None), training["ann_sha256"]
    folder = entries_folder() / str(ann)
    weights = load_config(folder / CONFIG).weights if (folder / EVIDENCE).is_file() else None
    if weights is None or weights.sha256 != sha256:
        raise ValueError(
            f"the entry {ann} is {'not there' if weights is None else 'of other weights'}: publish the network that "
            f"{name} was converted from first, as it is attacked by transfer from it and compared with it"
        )
    report = load_json(folder / EVIDENCE, MAX_EVIDENCE_BYTES)
    runs = [{key: run[key] for key in ("protocol", "eps", "robust_accuracy", "ci95")} for run in report["runs"]]
    return {"name": str(ann), "weights_sha256": sha256, "n": report["n"], "clean": report["clean"], "runs": runs}


def publish(args: argparse.Namespace, name: ModelName) -> None:
    """Evaluates what the run gave, in as many processes as call it, and writes the entry with its evidence."""
    run = Path("runs") / str(name)
    model = rsnn_zoo.create_model(f"local-dir:{run}", pretrained=True).to(args.device)
    training = model.training_record
    if "stage" in training:  # else nobody knows what made it
        check_trained(args, name, training)
        training = {"command": command_of(args, name, training), **training}
    ann = ann_of(name, training)
    images = rsnn_zoo.load_dataset(args.data or name.dataset, "test", dataset=name.dataset)
    images = images if args.n is None else images.select(args.n)
    state = run / "evaluation.sqlite"
    attacks = EVIDENCE_RUNS.get(name.dataset, EVIDENCE_RUNS_ELSE | ({} if name.timesteps else ANNS_TOO))
    report = rsnn_zoo.evaluate(model, images, attacks, batch_size=args.batch_size, state=state, progress=True)
    if not Ranks.current().main:
        return
    report.extra.update(energy(model, images.pixels(slice(0, 256)).to(args.device)))
    if ann:
        report.extra["ann"] = ann
    print(report.table())
    entry = args.output / str(name)
    save_pretrained(model.cpu(), entry, name=str(name), training=training, evaluation=report.to_json())


def publish_in_processes(args: argparse.Namespace, name: ModelName) -> None:
    """Starts this script anew under torchrun, to publish what is trained."""
    options = {key: getattr(args, key.strip("-").replace("-", "_")) for key in ("--data", "-n", "--batch-size")}
    options |= {"--output": args.output, "--device": args.device}
    given = [str(part) for key, value in options.items() if value is not None for part in (key, value)]
    given += recipe_options(args)
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
    call([*launcher, __file__, str(name), "--trained", *given], OMP_NUM_THREADS=str(threads))


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", help="names or wildcards")
    parser.add_argument("--data", help="npz file or folder to use instead of the named data set")
    parser.add_argument("-n", type=int, help="evaluate on the first N test images only")
    parser.add_argument("--processes", type=int, default=1, help="processes that share an evaluation (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="most images between two writes of the verdicts")
    parser.add_argument("--trained", action="store_true", help="evaluate and write what is in runs/, without training")
    parser.add_argument("--output", type=Path, default=entries_folder(), help="folder of the entries")
    parser.add_argument("--recipe", help="as of train.py, for all that is named")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="likewise")
    parser.add_argument("--seed", type=int, default=0, help="likewise (%(default)s)")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    names = names_of(args.name)
    for name in names:
        if name.timesteps and replace(name, timesteps=None) in names and args.output != entries_folder():
            raise ValueError(f"{name} is attacked from its ANN as published in {entries_folder()}: leave out --output")
    for name in names:
        folder = args.output / str(name)
        if (folder / EVIDENCE).is_file():
            print(f"{name}: published already; remove {os.path.relpath(folder)} to make it anew")
            continue
        if not args.trained:
            train(args, name)
        if args.processes > 1:
            publish_in_processes(args, name)
        else:
            publish(args, name)


if __name__ == "__main__":
    main(run)
