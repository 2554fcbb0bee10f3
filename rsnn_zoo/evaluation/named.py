"""The named protocols and lists of backward modes, which papers cite: a version never changes what it runs."""

from __future__ import annotations

from rsnn_zoo.neurons.modes import BackwardMode, parse_mode

__all__ = ["ENSEMBLE_MODES", "MODE_LISTS", "PROTOCOLS"]


def _modes(names: str) -> tuple[BackwardMode, ...]:
    return tuple(map(parse_mode, names.split()))


ENSEMBLE_MODES = _modes(
    "pcw-1 pcw-2 pcw-3 pcw-0.5 pcw-0.25 exp_d-0.5 exp_d-1 exp_d-2 exp-0.5 exp-1 exp-2 "
    "rect-0.25 rect-0.5 rect-1 rect-2 rect-4 ste rate relu"
)
"""The published ensemble: 17 surrogates through time, backward through the rate, and the ReLU stand-in."""

MODE_LISTS: dict[str, tuple[BackwardMode, ...]] = {
    "ensemble": ENSEMBLE_MODES,
    "strong": _modes("pcw-1 pcw-2 exp_d-1 rate assg hart-1 rga pdsg"),
    "adaptive": _modes("pcw-2 hart-1 pcw-1 exp_d-1 pcw-0.5 rate"),
}
"""Modes under one name: the 19 published ones; those that fell most and those published since; what the adaptive
ensemble chooses from."""

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "adaptive-v1": ("adaptive434",),
    "autoattack-v1": (
        "apgd100-ce",
        *(f"apgd100-t{target}" for target in range(1, 10)),
        *(f"fab100-t{target}" for target in range(1, 10)),
        "square5000",
    ),
    "ensemble-fgsm": ("fgsm@ensemble",),
    "ensemble-pgd20": ("pgd20@ensemble",),
    "ensemble-apgd100": ("apgd100-ce@ensemble", "apgd100-dlr@ensemble"),
    "quick-v1": ("pgd10@pcw-1", "apgd30-ce@pcw-2", "apgd30-dlr@pcw-1", "sapgd30@assg", "pgd10@rate"),
    "worst-case-v1": (
        "adaptive434",
        "fgsm@ensemble",
        "rfgsm@ensemble",
        "pgd20@ensemble",
        "apgd100-ce@strong",
        "apgd100-dlr@strong",
        "sapgd100@assg",
        *(f"apgd100-t{target}@pcw-1" for target in range(1, 10)),
        *(f"apgd100-t{target}@assg" for target in range(1, 4)),
        "transfer-apgd100-ce",
        "square5000",
        "rays1000",
        "uniform-noise10",
        "gaussian-noise10",
    ),
    "worst-case-v2": (
        "adaptive434",
        *(f"apgd100-{what}" for what in ("dlr@hart-1", "ce@pcw-1", "ce@rate", "ce@pcw-2", "ce@hart-1", "ce@assg")),
        *("apgd100-dlr@pcw-1", "apgd100-dlr@exp_d-1", "apgd100-t1@pcw-1"),
        "flips",
    ),
}
"""The named protocols, from the strong and cheap to the dear: a sample that has fallen is not attacked again.

``autoattack`` is the standard version of Croce & Hein, ICML 2020: what to hold an ANN to, or an SNN's own gradients.
"""
