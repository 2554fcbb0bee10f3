"""What a model said while it was attacked, of a few iterates: to be asked again when the attacks are over."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Heard"]


@dataclass
class Heard:
    """Iterates and their logits, by who asked: under which backward mode, and whether for a gradient.

    They are spread over all that was asked, however much that was: every k-th call gives one, and k doubles when there
    are as many as are kept.

    Attributes:
        kept: Most iterates of each asker.
        phase: Of the evaluation: what is noted in different ones is kept apart.

    Example:
        >>> heard = Heard(kept=2)
        >>> for call in range(5):
        ...     heard.note("verdict", torch.full((1, 1, 2, 2), call / 4), torch.tensor([[1.0, float(call)]]))
        >>> heard.by_asker()["", "verdict"][1][:, 1]
        tensor([0., 4.])
    """

    kept: int = 12
    phase: str = ""
    _said: dict[tuple[str, str], list[tuple[int, Tensor, Tensor]]] = field(default_factory=dict)
    _calls: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def note(self, asker: str, x: Tensor, logits: Tensor) -> None:
        """Keeps one of the iterates (B, C, H, W), with its logits of (B, K), at every k-th call."""
        key = self.phase, asker
        call, every = self._calls.get(key, (0, 1))
        if call % every == 0 and len(x):
            said = self._said.setdefault(key, [])
            if len(said) == self.kept:
                every *= 2
                said[:] = [one for one in said if one[0] % every == 0]
            if call % every == 0:
                row = call // every % len(x)
                said.append((call, x[row].detach().clone(), logits[row].detach().clone()))
        self._calls[key] = call + 1, every

    def by_asker(self) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        """Iterates (N, C, H, W) and what was said of them, (N, K), by phase and asker."""
        return {
            asker: (torch.stack([x for _, x, _ in said]), torch.stack([logits for *_, logits in said]))
            for asker, said in self._said.items()
        }
