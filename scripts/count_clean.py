"""Find the accuracy without attack on the whole test split, for entries whose evidence is of fewer images.

    python scripts/count_clean.py 'resnet20_cifar10_*' --data cifar10.npz

Adds it to evaluation.json and the card of each entry that has none; ``rsnn-zoo build`` does so unless told otherwise.
"""

import argparse
import sys

from rsnn_zoo.cli._console import ERRORS
from rsnn_zoo.cli._process import set_up_process
from rsnn_zoo.evaluate_entry import data_of
from rsnn_zoo.evaluation.clean import clean_accuracy
from rsnn_zoo.hub.catalog import list_models
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import entries_folder
from rsnn_zoo.hub.saving import save_evidence
from rsnn_zoo.report.evidence import load_evidence, published_index
from rsnn_zoo.spec.config import CONFIG, EVIDENCE, load_config


def add_to(name: str, source: str | None) -> str:
    """Add it to an entry; what there is to say of it."""
    folder = entries_folder() / name
    evidence = load_evidence(folder / EVIDENCE, load_config(folder / CONFIG))
    if "clean_on_all" in evidence:
        return "has it already"
    model = create_model(name, pretrained=True)
    data = data_of(model, source, evidence.get("split", "test"))
    attacked = published_index(evidence)
    if data.select(list(attacked)).sha256 != evidence["data_sha256"]:
        raise ValueError(f"{name} was attacked on other images than those of {source or 'its data set'}")
    if len(attacked) == len(data):
        return "was attacked on all images"
    found = clean_accuracy(model, data)
    save_evidence(folder, {**evidence, "clean_on_all": found})
    return f"{100 * found['accuracy']:.2f} % of {found['n']:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="names or wildcards")
    parser.add_argument("--data", help="npz file or folder to use instead of the named data set")
    args = parser.parse_args()
    set_up_process()
    try:
        for pattern in args.names:
            for name in list_models(pattern, pretrained=True):
                print(f"{name}: {add_to(name, args.data)}", flush=True)
    except ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
