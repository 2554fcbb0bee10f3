"""What it would cost to recompute verdicts as a stranger's evidence says, before anything of it is run."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo.models.rows import hooked

__all__ = ["MAX_MEMORY", "MAX_PASSES", "MAX_SECONDS", "Cost", "chances_of_missing", "cost_of", "missed", "sources_of"]

MAX_MEMORY = 8 * 2**30
"""Bytes that a pass of one chunk may take."""
MAX_PASSES = 200_000
"""Gradient passes of one time step that one verdict may take: four times what ``worst-case-v1`` takes at T = 8."""

MAX_SECONDS = 6 * 3600
"""What one verdict may take here: many passes of a large network, each within its bounds, are days."""

_TRANSFER_SOURCE = re.compile(r"transfer\[([^\]]*)\]")


@dataclass(frozen=True)
class Cost:
    """What one verdict takes at most, of an image that stands to the end.

    Attributes:
        memory: Bytes of a gradient pass of one chunk, about.
        passes: Gradient passes of one time step.
        seconds: Of all of these here, about.
    """

    memory: int
    passes: int
    seconds: float

    @property
    def excess(self) -> str:
        """What of it is too much to be spent unasked; empty if nothing."""
        much = f"some {self.memory / 2**30:,.0f} GiB of memory" if self.memory > MAX_MEMORY else ""
        spends = self.passes > MAX_PASSES or self.seconds > MAX_SECONDS
        long = f"{self.passes:,} passes or {_spoken(self.seconds)} a verdict" if spends else ""
        return " and ".join(filter(None, (much, long)))


def cost_of(
    step: nn.Module,
    image: Tensor,
    timesteps: int | None,
    gradients: int,
    settings: Mapping[str, Any],
    *,
    backward: bool = True,
) -> Cost:
    """Estimate it by one pass of one image through one time step.

    Args:
        step: The network at one time step.
        image: (1, C, H, W).
        timesteps: Of the network itself; None for an ANN.
        gradients: Gradient passes that the protocol's members take a verdict.
        settings: Of the evidence: ``chunk`` and ``draws``.
        backward: Whether the passes go backward too, so that all that is computed is kept on the way.
    """
    held: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        held.append(output.nbytes if isinstance(output, Tensor) else 0)

    layers = [one for one in step.modules() if not any(one.children())]
    with torch.no_grad(), hooked(layers, post=count):
        took = math.inf
        for _ in range(3):  # the fastest: another process may have been in the way of one
            held.clear()
            started = time.perf_counter()
            step(image)
            took = min(took, time.perf_counter() - started)
    times, chunk = timesteps or 1, settings.get("chunk") or 1
    passes = gradients * times * (settings.get("draws") or 1)
    memory = 2 * sum(held) if backward else 4 * max(held, default=0)  # a block's input and shortcut, besides both ends
    return Cost(memory * times * chunk, passes, (3 if backward else 1) * took * passes)


def sources_of(protocol: str) -> list[str]:
    """Return the models that a protocol names to transfer from.

    Example:
        >>> sources_of("pgd20+transfer[hf-hub:me/net]-pgd5")
        ['hf-hub:me/net']
    """
    return _TRANSFER_SOURCE.findall(protocol)


def missed(invented: int, total: int, drawn: int, tolerated: int = 0) -> float:
    """Probability that a draw without replacement holds no more invented verdicts than are tolerated.

    Args:
        invented: How many of the verdicts are.
        total: Verdicts.
        drawn: How many of them are recomputed.
        tolerated: How many of these may differ.

    Example:
        >>> round(missed(5, 100, 50), 4)  # C(95, 50) / C(100, 50)
        0.0281
    """
    least = max(0, drawn - (total - invented))
    return min(
        1.0,
        sum(
            math.exp(_ways(invented, hit) + _ways(total - invented, drawn - hit) - _ways(total, drawn))
            for hit in range(least, min(tolerated, drawn, invented) + 1)
        ),
    )


def chances_of_missing(total: int, drawn: int, tolerated: int) -> str:
    """Return in words how likely it is to miss 1, 5, 10 and 30 percent of all verdicts, were they invented."""
    invented = (max(1, round(share * total)) for share in (0.01, 0.05, 0.1, 0.3))
    return ", ".join(f"{k} invented {_percent(missed(k, total, drawn, tolerated))}" for k in invented)


def _percent(share: float) -> str:
    """A probability in percent: to the unit, or if smaller than that, to two digits."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.2g} %"


def _ways(n: int, k: int) -> float:
    """Logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _spoken(seconds: float) -> str:
    units = (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, size = next((unit for unit in units if seconds >= 2 * unit[1]), units[-1])
    return f"{seconds / size:,.0f} {unit}"
