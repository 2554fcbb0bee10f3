"""Arguments of timm's networks that have no meaning for these: taken at the value that changes nothing, or refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from rsnn_zoo.models.layers import Spiking
from rsnn_zoo.spec.names import near_matches

__all__ = ["neuron_arguments"]

_NO_DROPOUT = "the networks drop nothing: thresholds are balanced for all units and branches"
_NORMS = "an entry does not record it: set it on the batch norms of the model after it is built"
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "drop_rate": ((0,), _NO_DROPOUT),
    "drop_path_rate": ((0,), _NO_DROPOUT),
    "drop_block_rate": ((0,), _NO_DROPOUT),
    "output_stride": ((32,), "the strides are those of the published architecture, and nothing is dilated"),
    "bn_eps": ((1e-5,), _NORMS),
    "bn_momentum": ((0.1,), _NORMS),
    "bn_tf": ((False,), _NORMS),
    "act_layer": (("relu", nn.ReLU), "the activations are ReLU, or the neurons that `timesteps` asks for"),
    "norm_layer": (("batchnorm", "batchnorm2d", nn.BatchNorm2d), "conversion absorbs batch norms, and no other norm"),
    "zero_init_last": ((False,), "residual branches are weighted from 1/2 on"),
}
_NEURON = tuple(field.name for field in fields(Spiking) if field.name != "timesteps")
_NETWORK = ("num_classes", "in_chans", "img_size", "timesteps", "mean", "std", "global_pool", "device", "dtype")


def neuron_arguments(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns those arguments that describe the neuron, once the others are seen to change nothing.

    Raises:
        TypeError: For an argument that nobody knows; names near matches.
        ValueError: For one of timm's at another value than the one that changes nothing; says why.
    """
    for name, value in arguments.items():
        if name in _NEURON:
            continue
        if name not in _NEUTRAL:
            raise TypeError(f"{architecture} takes no argument {name!r}{near_matches(name, [*_NETWORK, *_NEURON])}")
        values, reason = _NEUTRAL[name]
        if value is not None and value not in values:
            raise ValueError(f"{architecture} takes {name}={values[0]!r} alone, got {value!r}: {reason}")
    return {name: value for name, value in arguments.items() if name in _NEURON}
