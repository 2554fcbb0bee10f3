"""Checkpoints of the published research code for robust ANN-to-SNN conversion, under the names of this package."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rsnn_zoo.models import ARCHITECTURES, VGG, Network, ResNet, WideResNet
from rsnn_zoo.models.state_files import read_state_dict
from rsnn_zoo.spec.datasets import DATASETS

__all__ = ["from_research_checkpoint", "read_state_dict"]

# Names inside a block, and of a neuron's threshold: pattern -> ours.
_COMMON = (
    (r"\.v_th$", ".threshold"),
    (r"\.convex\.comb$", ".sum.weight"),
    (r"\.shortcut\.", ".downsample."),
    (r"\.convShortcut\.", ".downsample."),
)


def _stage_names(network: ResNet | WideResNet) -> list[tuple[str, str]]:
    """The research code numbers the blocks of all stages through, from the first one's position on."""
    first = 3 if isinstance(network, ResNet) else 1
    blocks = [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(len(getattr(network, f"layer{s}")))]
    return [(rf"^features\.{first + i}\.", f"{block}.") for i, block in enumerate(blocks)]


def _renames(network: Network) -> tuple[tuple[str, str], ...]:
    """Pattern -> replacement, the first match at the head of a name counts."""
    if isinstance(network, VGG):
        last = len(network.pre_logits)
        return ((rf"^classifier\.{last}\.", "head."), (r"^classifier\.", "pre_logits."))
    if not isinstance(network, ResNet | WideResNet):
        raise TypeError(f"no research checkpoint is known for {type(network).__name__}")
    stages = _stage_names(network)
    end = 1 + len(stages)
    if isinstance(network, ResNet):
        ends = [(r"^features\.0\.", "conv1."), (r"^features\.1\.", "bn1."), (r"^features\.2\.", "act1.")]
    else:
        ends = [
            (r"^features\.0\.", "conv1."),
            (rf"^features\.{end}\.", "bn."),
            (rf"^features\.{end + 1}\.", "act."),
        ]
    return (*ends, *stages, (r"^classifier\.1\.", "fc."))


def _rename(name: str, heads: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in heads:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    for pattern, replacement in _COMMON:
        name = re.sub(pattern, replacement, name)
    return name


def from_research_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    architecture: str,
    num_classes: int,
    timesteps: int | None,
    reset: str = "hard",
    *,
    dataset: str | None = None,
    img_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    key: str | None = None,
) -> Network:
    """One of our networks with the weights of a checkpoint that the published research code trained.

    Args:
        path_or_state_dict: A ``.pth`` or ``.safetensors`` file, or a state dict, wrapped or not: see
            :func:`rsnn_zoo.models.state_files.read_state_dict`.
        architecture: ``"vgg11"``, ``"vgg16"``, ``"resnet20"``, ``"resnet32"``, ``"wrn16_4"`` or ``"wrn28_4"``.
        num_classes: K of the checkpoint.
        timesteps: T of the SNN, or None for a checkpoint of the ANN.
        reset: ``"hard"`` or ``"soft"``.
        dataset: Whose mean and std normalise the images, since that code keeps them outside the checkpoint; by
            default ``cifar10``, ``cifar100`` or ``tinyimagenet``, told by ``num_classes``.
        img_size: Side of the images; the data set's by default.
        mean: Per channel, of pixels in [0, 1], in place of the data set's: that code trains on SVHN with 0.5.
        std: Likewise; that code trains on SVHN with 0.5.
        key: Under which the state dict is, where the file holds several.

    Returns:
        The network in evaluation mode, in the checkpoint's floating dtype.

    Raises:
        OSError: If the file cannot be read.
        ValueError: For an unknown architecture or data set, a file that is no state dict, or names and shapes that do
            not fit: the message lists the missing, the unknown and the misshapen.

    Example:
        >>> model = from_research_checkpoint("resnet20.pth", "resnet20", 10, 8)  # doctest: +SKIP

    Source:
        Özdenizci & Legenstein, "Adversarially Robust Spiking Neural Networks Through Conversion", TMLR 2024.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    dataset = dataset or {100: "cifar100", 200: "tinyimagenet"}.get(num_classes, "cifar10")
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(DATASETS)}")
    info = DATASETS[dataset]
    mean, std = mean or info.mean, std or info.std
    network = ARCHITECTURES[architecture](
        num_classes=num_classes,
        in_chans=info.in_chans,
        img_size=img_size or info.img_size,
        timesteps=timesteps,
        mean=mean,
        std=std,
        reset=reset,
    )
    found = read_state_dict(path_or_state_dict, key=key)
    heads = _renames(network)
    state = {_rename(name, heads): tensor for name, tensor in found.items()}
    own = network.state_dict()
    outside = {name for name in own if name.startswith("normalize.")}
    # the batch counter is bookkeeping that some exports drop
    missing = [n for n in own if n not in state and n not in outside and not n.endswith("num_batches_tracked")]
    unknown = [old for old in found if _rename(old, heads) not in own or _rename(old, heads) in outside]
    misshapen = [  # a threshold may be () or (1,)
        n for n, t in state.items() if n in own and t.shape != own[n].shape and (t.numel(), own[n].numel()) != (1, 1)
    ]
    if missing or unknown or misshapen:
        raise ValueError(
            f"the checkpoint is not a {architecture} with {num_classes} classes"
            f"{' and thresholds' if timesteps else ''} of the research code:\n"
            f"  missing (our names): {', '.join(missing) or 'none'}\n"
            f"  unknown (their names): {', '.join(unknown) or 'none'}\n"
            f"  of another shape: {', '.join(misshapen) or 'none'}\n"
            "check architecture, num_classes, img_size, and timesteps=None for an ANN"
        )
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    # that code holds them in float32, whatever the dtype of the rest
    state["normalize.mean"] = torch.tensor(mean, dtype=torch.float32).to(dtype)
    state["normalize.std"] = torch.tensor(std, dtype=torch.float32).to(dtype)
    network.to(dtype).load_state_dict(
        {**{n: t for n, t in own.items() if n not in state}, **{n: t.reshape(own[n].shape) for n, t in state.items()}}
    )
    return network.eval()
