"""Adversarial examples in a file that anyone can re-check with nothing but the model: see :func:`verify_examples`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rsnn_zoo._utils.defaults import device_of
from rsnn_zoo._utils.files import parse_json, replacing, write_through
from rsnn_zoo._utils.provenance import digest
from rsnn_zoo._utils.renamed import renamed
from rsnn_zoo.attacks.base import Victim
from rsnn_zoo.attacks.victim import ModelVictim, exact_arithmetic, passes_of
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.evaluation.costs import cost_of
from rsnn_zoo.hub.weights import read_tensors
from rsnn_zoo.report.evidence import SETTINGS
from rsnn_zoo.report.report import Run
from rsnn_zoo.spec.schema import Section

__all__ = ["EPS_TOLERANCE", "ROUNDED", "Examples", "Verification", "save_examples", "to_uint8", "verify_examples"]

EPS_TOLERANCE = 1e-6
"""How far outside its ball or [0, 1] a pixel in float32 may lie."""

_EXAMPLES_FORMAT = "rsnn_zoo adversarial examples 2"
STANDING, CLEAN_WRONG, STANDING_8 = (
    "not misclassified",
    "misclassified without any attack",
    "not misclassified in 8 bits",
)
ROUNDED = {STANDING, CLEAN_WRONG, STANDING_8}
"""Faults that the roundings of another processor can bring about, in a few examples."""
_PASSES = 3  # of each example: as it is, in 8 bits, and its clean image
TENSORS = {
    "images": (torch.float32, 4),
    "images_uint8": (torch.uint8, 4),
    "uint8_fallen": (torch.bool, 1),
    "clean": (torch.float32, 4),
    "labels": (torch.int64, 1),
    "index": (torch.int64, 1),
    "eps": (torch.float64, 1),
    "run": (torch.int64, 1),
    "member": (torch.int64, 1),
}
"""Of each its type and its number of dimensions, of which the first is that of the examples."""


def to_uint8(adversarial: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
    """The nearest images of 8 bits that lie in the ball.

    Args:
        adversarial: (M, C, H, W) in [0, 1].
        clean: Likewise, the centres of the balls.
        eps: (M,), the radii.

    Returns:
        uint8 (M, C, H, W). A pixel whose ball holds no k / 255 gets the one nearest to the clean pixel, outside.
    """
    clean, radius, slack = 255 * clean.double(), 255 * eps.double().reshape(-1, 1, 1, 1), 255 * EPS_TOLERANCE / 2
    low = (clean - radius - slack).ceil().clamp(min=0)
    high = (clean + radius + slack).floor().clamp(max=255)
    nearest = torch.minimum(torch.maximum((255 * adversarial.double()).round(), low), high)
    return torch.where(low <= high, nearest, clean.round()).to(torch.uint8)


def _in_ball(x: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
    near = (x - clean).abs().flatten(1) <= (eps + EPS_TOLERANCE)[:, None]
    return (near & ((x >= 0) & (x <= 1)).flatten(1)).all(1)  # in this form NaN lies outside


@dataclass(frozen=True)
class Examples:
    """Samples that fell, with the images that felled them, one row each.

    Attributes:
        images: (M, C, H, W) in [0, 1], float32.
        clean: The images that they started from, likewise.
        labels: (M,).
        index: (M,), in the data set.
        run: (M,), which run of the report they fell in.
        member: (M,), which member of its protocol felled them.
    """

    images: Tensor
    clean: Tensor
    labels: Tensor
    index: Tensor
    run: Tensor
    member: Tensor


def save_examples(
    path: str | os.PathLike[str],
    examples: Examples,
    victim: Victim,
    runs: Sequence[Run],
    *,
    model: str,
    digest: str,
    chunk: int,
    draws: int = 1,
) -> None:
    """Writes adversarial examples as safetensors, under a temporary name that is then replaced.

    Beside them goes a variant in 8 bits, as an image file would hold it, with a note of which of these lie in the ball
    and are misclassified too.

    Args:
        path: The file.
        examples: What fell.
        victim: Judges the variant in 8 bits.
        runs: Of the report.
        model: Name of the model.
        digest: Of the model: :func:`rsnn_zoo._utils.provenance.digest`.
        chunk: Images that go through the network at once.
        draws: Passes that its logits are averaged over.
    """
    eps = torch.tensor([run.eps for run in runs], dtype=torch.float64)[examples.run]
    rounded = to_uint8(examples.images, examples.clean, eps)
    pixels = rounded.float() / 255
    down = _in_ball(pixels, examples.clean, eps)
    if down.any():
        device = device_of(victim.module)
        down[down.clone()] = victim.fallen(pixels[down].to(device), examples.labels[down].to(device)).cpu()
    about = {
        "format": _EXAMPLES_FORMAT,
        "model": model,
        "model_sha256": digest,
        "chunk": str(chunk),
        "draws": str(draws),
        "runs": json.dumps([{"protocol": r.protocol, "eps": r.eps, "members": r.members} for r in runs]),
    }
    tensors = {**vars(examples), "images_uint8": rounded, "uint8_fallen": down, "eps": eps}
    with replacing(path) as temporary:
        write_through(temporary, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=about))


@dataclass(frozen=True)
class Verification:
    """What :func:`verify_examples` found.

    Attributes:
        n: Examples in the file.
        n_uint8: Those of them that the file claims to fell the model in 8 bits too.
        faults: Indices of samples by what is wrong with them; empty where all claims hold.
    """

    n: int
    n_uint8: int
    faults: dict[str, list[int]]


def verify_examples(
    model: nn.Module, path: str | os.PathLike[str], data: ImageData | None = None, *, allow_cost: bool = False
) -> Verification:
    """Re-checks a file of adversarial examples with nothing but the model.

    Each is to lie in its ball and in [0, 1] and to be misclassified, its clean image to be classified correctly; what
    the file claims of the variants in 8 bits likewise.

    Args:
        model: The model that they are to fell; it is copied, not touched.
        path: What ``evaluate(..., adversarial=path)`` wrote.
        data: What the clean images and the labels of the file must be of.
        allow_cost: Obey the file's chunk and draws at any cost; else what would take too much memory or time is
            refused, as where an entry is verified.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, damaged, made against other weights, or too costly.

    Example:
        >>> verify_examples(model, "adversarial.safetensors").faults  # doctest: +SKIP
        {}
    """
    tensors, about = _read_examples(path)
    if about.value("model_sha256") != digest(model):
        raise ValueError(
            f"{path} was made against another model ({about.value('model')!r:.100}, of other weights or timesteps): "
            "load that one, unchanged"
        )
    x, labels, eps, index = (tensors[name] for name in ("images", "labels", "eps", "index"))
    _check_shape(x, model, data, path)
    pixels = tensors["images_uint8"].float() / 255
    claimed = tensors["uint8_fallen"]
    device = device_of(model)
    settings = {key: about.integer(key, *SETTINGS[key]) for key in ("chunk", "draws")}
    victim = ModelVictim(model, settings["chunk"], draws=settings["draws"])
    if len(x) and not allow_cost:
        _check_cost(ModelVictim(model, 1).module, x[:1].to(device), settings, path)
    radii = torch.tensor([run.number("eps", 0.0, 1.0) for run in about.sections("runs")], dtype=torch.float64)

    def fallen(images: Tensor) -> Tensor:
        with exact_arithmetic():
            return victim.fallen(images.to(device), labels.to(device)).cpu() if len(images) else claimed

    wrong = {
        "of a radius that is not its run's": radii[tensors["run"]] != eps,
        "outside the ball or [0, 1]": ~_in_ball(x, tensors["clean"], eps),
        STANDING: ~fallen(x),
        CLEAN_WRONG: fallen(tensors["clean"]),
        "outside the ball in 8 bits": claimed & ~_in_ball(pixels, tensors["clean"], eps),
        STANDING_8: claimed & ~fallen(pixels),
    }
    # or one easy sample could stand for many
    rows = torch.stack([tensors["run"], index], 1)
    _, same, times = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    wrong["listed more than once"] = times[same] > 1
    if data is not None:
        wrong["not of this data set"] = _foreign(tensors["clean"], labels, index, data)
    faults = {name: index[rows].tolist() for name, rows in wrong.items() if rows.any()}
    return Verification(len(x), int(claimed.sum()), faults)


def _check_shape(x: Tensor, model: nn.Module, data: ImageData | None, path: str | os.PathLike[str]) -> None:
    """Refuse images (M, C, H, W) of another shape than the model takes, where it says so, or the data set holds.

    Raises:
        ValueError: If they are.
    """
    taken = [getattr(model, key, None) for key in ("in_chans", "img_size", "img_size")]
    for size in (taken, x.shape[1:] if data is None else data.images.shape[1:]):
        if any(wanted not in (None, found) for wanted, found in zip(size, x.shape[1:], strict=True)):
            raise ValueError(f"{path} holds images {tuple(x.shape[1:])}, not {tuple(size)}: fetch it again")


def _foreign(clean: Tensor, labels: Tensor, index: Tensor, data: ImageData) -> Tensor:
    """Which clean images (M, C, H, W) with their labels (M,) are not those of the data at their index, (M,) bool."""
    place = {sample: position for position, sample in enumerate(data.index.tolist())}
    at = torch.tensor([place.get(sample, -1) for sample in index.tolist()], dtype=torch.long)
    others = (data.pixels(at).cpu() != clean).flatten(1).any(1) | (data.labels[at].cpu() != labels)
    return (at < 0) | others


def _check_cost(module: nn.Module, image: Tensor, settings: Mapping[str, int], path: str | os.PathLike[str]) -> None:
    """Refuse a chunk and draws that would take more than anybody spends unasked.

    Raises:
        ValueError: If they would; says how much.
    """
    timesteps = getattr(module, "timesteps", None) or 1
    asked = {**settings, "draws": passes_of(settings["draws"])}
    cost = cost_of(module, image, None, _PASSES * timesteps, asked, backward=False)
    if excess := replace(cost, seconds=cost.seconds / timesteps).excess:  # a pass is of all time steps
        raise ValueError(
            f"{path} with {dict(settings)} would take {excess}: allow it by allow_cost (--allow-cost), or have it made "
            "anew with less"
        )


def _read_examples(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Section]:
    """The tensors and what is said about them, once the one fits the other, whoever wrote the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, or damaged.
    """
    tensors, said = read_tensors(path)
    if said.get("format") != _EXAMPLES_FORMAT:
        raise ValueError(f"{path} holds no adversarial examples of rsnn_zoo")
    if missing := [name for name in TENSORS if name not in tensors]:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; fetch it again")
    parsed = {
        key: parse_json(said[key].encode(), f"{path}: {key}") for key in ("chunk", "draws", "runs") if key in said
    }
    about = Section(said | parsed, str(path))
    shape, runs = tensors["images"].shape, len(about.sections("runs"))
    odd = [
        name
        for name, (dtype, dimensions) in TENSORS.items()
        if tensors[name].dtype != dtype or tensors[name].ndim != dimensions or tensors[name].shape != shape[:dimensions]
    ]
    if odd or ((tensors["run"] < 0) | (tensors["run"] >= runs)).any():
        raise ValueError(f"{path} is damaged: {', '.join(odd) or 'run'} does not fit the rest; fetch it again")
    return tensors, about


__getattr__ = renamed(__name__, TOLERANCE="EPS_TOLERANCE", verify="verify_examples")
