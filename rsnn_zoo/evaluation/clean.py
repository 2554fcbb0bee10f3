"""Accuracy without attack, of many more images than are attacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rsnn_zoo._utils.defaults import device_of, own_generators
from rsnn_zoo.attacks.victim import ModelVictim, default_chunk, exact_arithmetic
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.report.report import wilson

__all__ = ["clean_accuracy"]


@exact_arithmetic()
def clean_accuracy(model: nn.Module, data: ImageData, *, chunk: int | None = None) -> dict[str, Any]:
    """Accuracy without attack, by the exact float32 network.

    Under ``torchrun`` every process calls it alike, and takes its share of the images.

    Args:
        model: From images (B, C, H, W) in [0, 1] to logits (B, K); it is copied, not touched.
        data: What it is shown, such as a whole test split.
        chunk: Images that go through the network at once; by image size and device by default.

    Returns:
        ``{"n", "accuracy", "ci95", "data_sha256"}``, as JSON: accuracy in [0, 1], with its Wilson interval.

    Example:
        >>> from rsnn_zoo import create_model, load_dataset
        >>> found = clean_accuracy(create_model("resnet20_digits_natural_ann", pretrained=True), load_dataset("digits"))
        >>> found["n"], found["accuracy"] > 0.9
        (360, True)
    """
    device = device_of(model)
    chunk = chunk or default_chunk(data.images[:1].to(device))
    with own_generators(device):
        torch.manual_seed(0)  # for models that draw
        victim, ranks, correct = ModelVictim(model, chunk), Ranks.current(), 0
        for start in range(ranks.rank * chunk, len(data), ranks.size * chunk):
            part = slice(start, start + chunk)
            labels = data.labels[part].to(device)
            correct += int((~victim.fallen(data.pixels(part).to(device), labels)).sum())
    n, correct = len(data), int(ranks.sum([correct], device)[0])
    return {"n": n, "accuracy": correct / n, "ci95": list(wilson(correct, n)), "data_sha256": data.sha256}
