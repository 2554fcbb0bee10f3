"""What a spiking network computes for one image: spikes, synaptic operations, and an estimate of the energy."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo._utils.defaults import plain_defaults
from rsnn_zoo.models import Temporal
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron

__all__ = ["AC_PICOJOULE", "MAC_PICOJOULE", "energy"]

MAC_PICOJOULE = 4.6
"""A 32-bit multiply-accumulate in 45 nm: Horowitz, "Computing's Energy Problem", ISSCC 2014."""
AC_PICOJOULE = 0.9
"""A 32-bit accumulate in 45 nm, likewise."""


def _operations(layer: nn.Conv2d | nn.Linear, x: Tensor) -> float:
    """Multiplications of a layer in which the input is not zero, over the whole batch."""
    active = (x != 0).to(torch.float64)
    if isinstance(layer, nn.Linear):
        return active.sum().item() * layer.out_features
    ones = torch.ones(layer.groups, layer.in_channels // layer.groups, *layer.kernel_size, dtype=torch.float64)
    reached = F.conv2d(
        active, ones.to(x.device), None, layer.stride, layer.padding, layer.dilation, layer.groups
    )  # the padding is no input, and costs nothing
    return reached.sum().item() * (layer.out_channels // layer.groups)


@plain_defaults()
@torch.no_grad()
def energy(model: nn.Module, images: Tensor, batch_size: int = 64) -> dict[str, Any]:
    """Spikes, synaptic operations and energy of one image, on average over the images shown.

    A weight met by a spike costs an accumulate; met by anything else (the analog image, and average-pooled spikes) a
    multiply-accumulate; met by zero nothing. What stands before the first neuron is computed once, not T times. The
    same network as an ANN costs a multiply-accumulate for every weight and position. Left out, as in the literature:
    membranes, batch norms (they fold into the weights), residual sums, and all memory traffic.

    Args:
        model: A network of this zoo or a converted one; it is copied, not touched.
        images: (B, C, H, W) in [0, 1].
        batch_size: Images a forward pass.

    Returns:
        ``{"spikes": {"images", "per_image", "rates"}, "energy": {"images", "ann_macs", "macs", "accumulates",
        "ann_nanojoule", "nanojoule", "ratio", "picojoule_per_mac", "picojoule_per_accumulate"}}``; rates are mean
        spikes a neuron and step, in [0, 1], by layer. For an ANN ``spikes`` is absent and operations on zeros are not
        saved.

    Example:
        >>> energy(model, data.pixels())["energy"]["ratio"]  # doctest: +SKIP
    """
    model = copy.deepcopy(model).eval()
    neurons = {m: name for name, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    totals: dict[str, float] = defaultdict(float)
    spikes: dict[str, float] = defaultdict(float)
    sites: dict[str, float] = defaultdict(float)
    spiking = False  # whether the pass has come to the first neuron

    def count_spikes(neuron: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal spiking
        spiking = True
        spikes[neurons[neuron]] += output.sum(dtype=torch.float64).item()
        sites[neurons[neuron]] += output.numel()

    def count_operations(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        # the dense count of one step: all steps of a spiking layer stand in the batch, perhaps with patches
        if isinstance(model, Temporal) and model.timesteps:
            steps = model.timesteps if spiking or not getattr(model, "stem_once", True) else 1
        else:
            steps = x.shape[0] / shown if neurons else 1
        dense = _operations(layer, torch.ones_like(x)) / steps
        totals["ann"] += dense
        if spiking:
            binary = bool(((x == 0) | (x == 1)).all())
            totals["accumulates" if binary else "macs"] += _operations(layer, x)
        else:
            totals["macs"] += dense

    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(count_spikes)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(count_operations)
    for batch in images.split(batch_size):
        shown, spiking = len(batch), False
        model(batch)

    n = len(images)
    ann, macs, accumulates = totals["ann"] / n, totals["macs"] / n, totals["accumulates"] / n
    joule = 1e-3 * (MAC_PICOJOULE * macs + AC_PICOJOULE * accumulates)
    result: dict[str, Any] = {
        "energy": {
            "images": n,
            "ann_macs": ann,
            "macs": macs,
            "accumulates": accumulates,
            "ann_nanojoule": 1e-3 * MAC_PICOJOULE * ann,
            "nanojoule": joule,
            "ratio": joule / (1e-3 * MAC_PICOJOULE * ann),
            "picojoule_per_mac": MAC_PICOJOULE,
            "picojoule_per_accumulate": AC_PICOJOULE,
        }
    }
    if neurons:
        rates = {name: spikes[name] / sites[name] for name in spikes}
        result["spikes"] = {"images": n, "per_image": sum(spikes.values()) / n, "rates": rates}
    return result
