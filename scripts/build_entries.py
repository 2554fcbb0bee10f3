"""Train, convert, fine-tune, evaluate and publish entries into hub_configs/: the one command behind each of them.

    python scripts/build_entries.py 'resnet20_digits_*'
    python scripts/build_entries.py resnet20_cifar10_trades_{ann,t4,t8} --data cifar10.npz

ANNs come before the SNNs that are made of them. What is finished is not done again, and what was interrupted goes on:
give the same command until it ends. Test images are touched once, by the evaluation at the end.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import rsnn_zoo
from rsnn_zoo.energy import energy
from rsnn_zoo.evaluation import EPSILONS
from rsnn_zoo.files import load_json
from rsnn_zoo.hub import entries_folder
from rsnn_zoo.names import ModelName
from rsnn_zoo.publish import EVIDENCE, save_pretrained

SCRIPTS = Path(__file__).parent

EVIDENCE_RUNS = {"digits": {"ensemble-pgd20": EPSILONS}}
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


def train(name: ModelName, arguments: list[str]) -> Path:
    """Runs train.py or finetune.py, which go on where they were stopped."""
    script = "train.py" if name.timesteps is None else "finetune.py"
    subprocess.run([sys.executable, str(SCRIPTS / script), str(name), *arguments], check=True)
    return Path("runs") / str(name)


def publish(run: Path, name: ModelName, data: str | None, n: int | None, command: str) -> None:
    """Evaluates what the run gave, and writes the entry with its evidence."""
    model = rsnn_zoo.create_model(f"local-dir:{run}", pretrained=True)
    images = rsnn_zoo.load_dataset(data or name.dataset, "test", dataset=name.dataset)
    images = images if n is None else images.select(n)
    state = run / "evaluation.partial"
    attacks = EVIDENCE_RUNS.get(name.dataset, EVIDENCE_RUNS_ELSE | ({} if name.timesteps else ANNS_TOO))
    report = rsnn_zoo.evaluate(model, images, attacks, state=state, progress=True)
    report.extra.update(energy(model, images.pixels(slice(0, 256))))
    print(report.table())
    training = {"command": command, **load_json(run / "run.json")}
    folder = entries_folder() / str(name)
    save_pretrained(model, folder, name=str(name), training=training, evaluation=report.to_json())
    state.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", help="names or wildcards")
    parser.add_argument("--data", help="an .npz file or folder in place of the data set's name")
    parser.add_argument("-n", type=int, help="evaluate on the first N test images only")
    args = parser.parse_args()
    arguments = ["--data", args.data] if args.data else []
    for name in names_of(args.name):
        folder = entries_folder() / str(name)
        if (folder / EVIDENCE).is_file():
            print(f"{name}: published already; remove {os.path.relpath(folder)} to make it anew")
            continue
        command = shlex.join(["python", "scripts/build_entries.py", str(name), *arguments])
        publish(train(name, arguments), name, args.data, args.n, command)


if __name__ == "__main__":
    main()
