"""The network that a command names, with published weights or those of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.shards import packed
from rsnn_zoo.hub.weights import check_state_dict
from rsnn_zoo.models import ForeignNetwork, Network
from rsnn_zoo.models.state_files import read_state_dict

__all__ = ["load_file", "load_init", "load_named"]

NEURON = {"reset": str, "leak": float, "initial": float}
"""What an SNN computes by and its weights do not say."""


def load_file(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> None:
    """Load the weights of a file, which are of the network alone where it is one from elsewhere.

    Args:
        model: The network, which is changed.
        path: A ``.safetensors`` or ``.pth`` file.
        key: Under which the state dict is, where the file holds several.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If its weights are those of another network.
    """
    own = model.network if isinstance(model, ForeignNetwork) else model
    state = read_state_dict(path, key=key, names=own.state_dict())
    if isinstance(own, Network) and any(n.endswith(".sum.weight") and w.dim() == 2 for n, w in state.items()):
        own.free_channels()  # as those of what convert gave
    check_state_dict(state, own.state_dict(), str(path))
    own.load_state_dict(state)


def load_init(model: Network, source: str) -> dict[str, str]:
    """Load the weights that a training starts from.

    Args:
        model: The network, which is changed.
        source: A folder of an entry, a run's in ``runs/``, a published name, or a file of weights.

    Returns:
        What is to be recorded of it: its name, and the SHA-256 of the weights as ``save_pretrained`` writes them.

    Raises:
        NotPublishedError: If nobody published it.
        OSError: If it cannot be read.
        ValueError: If its weights are those of another network.
    """
    if Path(source).is_file():
        load_file(model, source)
    else:
        folder = next((each for each in (Path(source), Path("runs") / source) if each.is_dir()), None)
        found = create_model(f"local-dir:{folder}" if folder else source, pretrained=True)
        check_state_dict(found.state_dict(), model.state_dict(), source)
        model.load_state_dict(found.state_dict())
    return {"init": Path(source).name, "init_sha256": packed(model)[1].sha256}


def load_named(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    neuron: Sequence[str] | None = None,
    key: str | None = None,
) -> Network:
    """Create the network of a name, published or with weights from a file.

    Args:
        name: As of :func:`rsnn_zoo.create_model`.
        weights: A ``.safetensors`` or ``.pth`` file.
        neuron: For the weights of an SNN, how its neurons compute, as ``["reset=soft"]``.
        key: Under which the state dict is, in a file that holds several.

    Raises:
        LookupError: If nobody published that name.
        OSError: If a file cannot be read.
        ValueError: If the weights or what is said of the neurons cannot be used.
    """
    if weights is None:
        if key is not None:
            raise ValueError("--key goes with --weights: a published model has one state dict")
        if neuron:
            raise ValueError("--neuron goes with --weights: a published model says itself what neurons it has")
        return create_model(name, pretrained=True)
    given = dict(part.partition("=")[::2] for part in neuron or [])
    if unknown := given.keys() - NEURON.keys():
        raise ValueError(f"--neuron takes {', '.join(NEURON)}, not {', '.join(sorted(unknown))}")
    model = create_model(name, **{key: NEURON[key](value) for key, value in given.items()})
    if getattr(model, "timesteps", None) and neuron is None:
        raise ValueError(
            f"{weights} does not say how the neurons of {name} reset, leak and start: give --neuron, such as "
            "reset=soft, or the folder of the run, --model local-dir:FOLDER"
        )
    load_file(model, weights, key)
    model.pretrained_name = name
    return model
