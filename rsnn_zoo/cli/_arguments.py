"""Arguments that several commands share, each in one place, and what their text means."""

from __future__ import annotations

import argparse
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

from rsnn_zoo.report.evidence import PRECISIONS
from rsnn_zoo.spec.datasets import SPLITS

__all__ = [
    "MODEL",
    "add_data",
    "add_device",
    "add_plugin",
    "add_precision",
    "add_recipe",
    "add_split",
    "add_weights",
    "best_device",
    "device",
    "radii_of",
    "run_plugin",
]

MODEL = "a published name, hf-hub:org/name, hf-hub:org/name@revision, or local-dir:path"


def device(text: str) -> str:
    """Check that this machine has a device; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If there is no such device, or nothing can be computed on it.

    Example:
        >>> device("cpu")
        'cpu'
    """
    import torch

    try:
        torch.zeros(1, device=text).tolist()
    except (AssertionError, RuntimeError) as error:  # the former where torch is built without CUDA
        said = str(error).split("\n")[0]
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be used ({said}): name another device, such as cpu"
        ) from None
    return text


def best_device(chosen: str | None) -> str:
    """Give the device that was chosen, or else a GPU where there is one."""
    import torch

    return chosen or ("cuda" if torch.cuda.is_available() else "cpu")


def run_plugin(path: Path | None) -> None:
    """Run the Python file that registers architectures or objectives, if one is given.

    Raises:
        FileNotFoundError: If there is none of that name.
    """
    if path is None:
        return
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: --plugin takes a Python file that registers architectures")
    runpy.run_path(str(path))


def radii_of(attacks: Sequence[str], eps: Sequence[float]) -> dict[str, list[float]]:
    """Protocols to their radii in [0, 1], as :func:`rsnn_zoo.evaluate` takes them.

    Args:
        attacks: Protocols, each with radii of its own in units of 1/255, as ``worst-case=8``, or without.
        eps: The radii of those without, in units of 1/255.

    Raises:
        ValueError: If a radius is no number.

    Example:
        >>> radii_of(["fgsm=51,102", "pgd20"], [255])
        {'fgsm': [0.2, 0.4], 'pgd20': [1.0]}
    """
    found: dict[str, list[float]] = {}
    for attack in attacks:
        name, own = re.fullmatch(r"(.+?)(?:=([^\]=]*))?", attack, re.DOTALL).groups()
        try:
            radii = eps if own is None else [float(radius) for radius in own.split(",")]
        except ValueError:
            raise ValueError(f"{attack}: after = stand radii in units of 1/255, as in worst-case=8 or =2,4,8") from None
        found.setdefault(name, []).extend(radius / 255 for radius in radii)
    return found


def add_plugin(one: argparse.ArgumentParser) -> None:
    """Add ``--plugin``."""
    about = "Python file that registers architectures or objectives"
    one.add_argument("--plugin", type=Path, metavar="FILE.py", help=about)


def add_device(one: argparse.ArgumentParser) -> None:
    """Add ``--device``, None where it is left to :func:`best_device`."""
    one.add_argument("--device", type=device, help="where to compute: cpu, cuda (default: a GPU, if there is one)")


def add_precision(one: argparse.ArgumentParser) -> None:
    """Add ``--precision``."""
    about = "of the attack gradients; folded is float32 too, and faster (%(default)s)"
    one.add_argument("--precision", default=PRECISIONS[0], choices=PRECISIONS, help=about)


def add_data(one: argparse.ArgumentParser) -> None:
    """Add ``--data`` and where named data sets lie."""
    one.add_argument("--data", help="npz file or folder to use instead of the named data set")
    one.add_argument("--data-root", "--root", default="data", help="folder of the data sets (%(default)s)")
    one.add_argument("--download", action="store_true", help="let torchvision download the data set")


def add_split(one: argparse.ArgumentParser) -> None:
    """Add ``--split``."""
    one.add_argument("--split", default="test", choices=SPLITS, help="(%(default)s)")


def add_weights(one: argparse.ArgumentParser) -> None:
    """Add weights of one's own, with what those of an SNN do not say."""
    one.add_argument("--weights", type=Path, help=".safetensors or .pth file in place of the published weights")
    one.add_argument("--key", help="of --weights: under which the state dict is, where the file holds several")
    about = "with --weights of an SNN, which do not say it: reset, leak, initial; e.g. reset=hard for the defaults"
    one.add_argument("--neuron", nargs="+", metavar="KEY=VALUE", help=about)


def add_recipe(one: argparse.ArgumentParser) -> None:
    """Add what a training follows."""
    one.add_argument("--recipe", help="name of a recipe, or a .toml file (default: by tag or data set)")
    about = "change the recipe, e.g. ann.epochs=5"
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "seed of weights, order, augmentation and attacks (%(default)s)"
    one.add_argument("--seed", type=int, default=0, help=about)
