"""Attacks of the torchattacks library as attacks of ours: exact verdicts, any iterate counts, each sample by itself.

The library draws for a whole batch at once, from the global generators. So each sample is attacked alone, under a seed
of its own, and the generators are put back afterwards. What has to be fast has a batched implementation in this
package: Square in ``queries``, FAB in ``fab``, and the gradient attacks.

Source:
    Kim, "Torchattacks: a PyTorch repository for adversarial attacks", arXiv 2010.01950.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.base import Batch, Victim, project
from rsnn_zoo.attacks.gradients import checked_logits
from rsnn_zoo.spec.names import near_matches

__all__ = ["TorchAttack", "torchattack"]


class TorchAttack:
    """An attack class of torchattacks 3.3 to 3.5, or one built like them, on the victim under its backward mode.

    A sample leaves the library's loop at the first question about an image in the ball that the victim misclassifies.
    What the library gives back outside of the ball, as attacks in other norms do, is projected into it.

    Args:
        attack: The class, e.g. ``torchattacks.FAB``: called with the model, ``eps``, ``seed`` and ``n_classes`` where
            it takes them, and the options.
        **options: Other arguments of the class. Defaults of step sizes may not fit eps: see its documentation.

    Raises:
        TypeError: For what is not a class, or an option that the class does not take, or that the batch gives.

    Example:
        >>> attack = TorchAttack(torchattacks.FAB, multi_targeted=True)  # doctest: +SKIP
        >>> fell, adversarial = attack(victim, batch)  # doctest: +SKIP
    """

    def __init__(self, attack: type[Any], **options: Any):
        if not isinstance(attack, type):
            raise TypeError(f"pass the class of an attack, e.g. torchattacks.FAB, not {attack!r}")
        self._accepted = set(inspect.signature(attack).parameters) - {"model"}
        if given := {"model", "eps", "seed"} & options.keys():
            raise TypeError(f"leave out {', '.join(sorted(given))}: the victim and the batch say that")
        if unknown := options.keys() - self._accepted:
            known = ", ".join(sorted(self._accepted))
            raise TypeError(f"{attack.__name__} takes no {', '.join(sorted(unknown))}; its options are {known}")
        self.attack, self.options = attack, options

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.attack.__module__.split('.')[0]}.{self.attack.__name__}" + (f"({options})" if options else "")

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the last found)."""
        adversarial = batch.images.clone()
        classes = victim.logits(batch.images[:1]).shape[1]
        for row, generator in enumerate(batch.generators()):
            image, label = batch.images[row : row + 1], batch.labels[row : row + 1]
            seed = int(torch.randint(2**31, (), generator=generator))
            given = {"eps": batch.eps, "seed": seed, "n_classes": classes}
            options = {key: value for key, value in given.items() if key in self._accepted} | self.options
            watch = _Watch(victim, image, label, batch.eps)
            with _seeded(seed):
                try:
                    found = self.attack(watch, **options)(image, label).detach()
                except _FallenError as fall:
                    found = fall.image
            # DeepFool divides by gradients, which may be zero
            adversarial[row : row + 1] = project(torch.where(found.isfinite(), found, image), image, batch.eps)
        return victim.fallen(adversarial, batch.labels), adversarial


def torchattack(name: str, **options: Any) -> TorchAttack:
    """An attack of torchattacks by the name of its class.

    Args:
        name: Of the class.
        **options: Other arguments of the class than its defaults.

    Raises:
        ValueError: For a name that is not there, or of a class that needs more than a model.
        TypeError: For an option that the class does not take.

    Example:
        >>> torchattack("AutoAttack").name  # doctest: +SKIP
        'torchattacks.AutoAttack'
    """
    import torchattacks  # type: ignore[import-untyped]  # here, as it brings torchvision, which takes a second

    known = [key for key, found in vars(torchattacks).items() if _needs_only_a_model(found)]
    if name not in known:
        raise ValueError(f"torchattacks has no attack {name!r} that needs only a model{near_matches(name, known)}")
    return TorchAttack(getattr(torchattacks, name), **options)


def _needs_only_a_model(found: Any) -> bool:
    if not isinstance(found, type):
        return False
    parameters = inspect.signature(found).parameters.values()
    return [p.name for p in parameters if p.default is p.empty] == ["model"]


class _FallenError(Exception):
    """Ends the library's loop."""

    def __init__(self, image: Tensor):
        super().__init__()
        self.image = image


class _Watch(nn.Module):
    """The victim's module, for one sample; raises when it is shown an image that fells the victim."""

    def __init__(self, victim: Victim, image: Tensor, label: Tensor, eps: float):
        super().__init__()
        self.module, self._victim = victim.module, victim
        self._image, self._label, self._eps = image, label, eps
        self.training = False  # the library puts the flag that it finds into all submodules
        self.device = nn.Parameter(image.new_zeros(()), requires_grad=False)  # where the library looks for it

    def forward(self, x: Tensor) -> Tensor:
        # the library wants a gradient of whatever model: a sum of nothing is 0, and so is its gradient
        logits = checked_logits(self.module(x), x) + x.flatten(1)[:, :0].sum(1, keepdim=True)
        wrong = (logits.argmax(1) != self._label) | (not self._victim.faithful)
        if wrong.any():
            suspects = x.detach()[wrong]
            inside = project(suspects, self._image, self._eps)
            inside = inside[((inside - suspects).abs() <= 1e-6).flatten(1).all(1)]
            down = self._victim.fallen(inside, self._label.expand(len(inside))) if len(inside) else inside
            if len(down) and down.any():
                raise _FallenError(inside[down][:1])
        return logits


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds all global generators, and puts them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
