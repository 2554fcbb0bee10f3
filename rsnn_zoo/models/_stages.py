"""Networks as a sequence of stages: what lies between images and classifier, tapped, checkpointed, or grouped by depth.

These are the habits of a timm user: ``forward_intermediates``, ``feature_info``, ``features_only``, ``group_matcher``,
``set_grad_checkpointing``, ``no_weight_decay``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsnn_zoo.models.layers import BATCH_NORMS, Spiking, WeightedSum
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron, backward_mode, current_mode
from rsnn_zoo.neurons.modes import ASSG, BackwardMode

__all__ = ["FeatureStage", "Staged"]


@dataclass(frozen=True)
class FeatureStage:
    """Modules that follow one another.

    Attributes:
        modules: Names within the network; a single sequence of blocks is known block by block.
        channels: Of what comes out, where it is a feature map to be handed out; else None.
        reduction: Pixels of the image for one of the map, along a side.
        norm: It belongs to the feature map before it, as the last norm of a pre-activation network does.
    """

    modules: tuple[str, ...]
    channels: int | None = None
    reduction: int = 1
    norm: bool = False


@contextmanager
def _recomputing(network: nn.Module, mode: BackwardMode | None) -> Iterator[None]:
    """Statistics of batch norms are not counted twice, and spikes are differentiated as in the first pass."""
    kept = [(m, dict(m._buffers)) for m in network.modules() if isinstance(m, BATCH_NORMS) and m.training]
    try:
        for norm, buffers in kept:
            norm._buffers.update({key: None if value is None else value.clone() for key, value in buffers.items()})
        with backward_mode(mode):
            yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)


def _places(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Indices from 0 of feature maps: all, the last so many, or those asked for, negative ones from the end."""
    if indices is None:
        return list(range(count))
    asked = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not asked or not all(-count <= index < count for index in asked):
        raise ValueError(f"the network has {count} feature maps, 0 to {count - 1}, asked for {indices!r}")
    return [index % count for index in asked]


class Staged(nn.Module):
    """A network whose ``stages`` make its features; ``normalize`` comes before them, ``reset_classifier`` after.

    Attributes:
        stages: From images to features; none of a network from elsewhere.
        grad_checkpointing: Backward passes compute activations anew, block by block, in place of keeping them.
    """

    architecture: str
    spiking: Spiking
    normalize: nn.Module
    stages: tuple[FeatureStage, ...] = ()
    grad_checkpointing = False

    def _staged(self) -> tuple[FeatureStage, ...]:
        if not self.stages:
            raise ValueError(
                f"{self.architecture} comes from elsewhere, and where its stages are is not known here: ask its own "
                "module, model.network (its activations are the neurons)"
            )
        return self.stages

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, reduction and last module of each feature map, as timm has it."""
        maps = [stage for stage in self.stages if stage.channels]
        return [{"num_chs": s.channels, "reduction": s.reduction, "module": s.modules[-1]} for s in maps]

    # --- forward ---

    def _blocks(self, stage: FeatureStage) -> list[nn.Module]:
        """What is computed anew together: the blocks of a sequence, or all of the stage."""
        modules = [self.get_submodule(name) for name in stage.modules]
        if len(modules) == 1 and isinstance(modules[0], nn.Sequential):
            return list(modules[0])
        return [nn.Sequential(*modules)]

    def _through(self, stage: FeatureStage, x: Tensor) -> Tensor:
        mode = current_mode()
        # ASSG remembers what each layer of a pass was shown, once
        if not (self.grad_checkpointing and torch.is_grad_enabled()) or isinstance(mode, ASSG):
            for name in stage.modules:
                x = self.get_submodule(name)(x)
            return x

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _recomputing(self, mode)

        for block in self._blocks(stage):
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to the last feature map, (T * B, num_features, h, w), time-major."""
        stages = self._staged()
        x = self.normalize(x)
        for stage in stages:
            x = self._through(stage, x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        per_step: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps on the way, and what ``forward_features`` returns.

        Args:
            x: Images (B, C, H, W) in [0, 1].
            indices: Which of ``feature_info``: a list, the last so many, or None for all.
            norm: The last map comes behind the last norm, where the network ends with one.
            stop_early: Compute no more than is asked for.
            output_fmt: ``"NCHW"``.
            intermediates_only: Return the maps alone.
            per_step: Maps of each step in place of their mean over time.

        Returns:
            Maps (B, C, h, w), the mean over time; with ``per_step`` (T, B, C, h, w). Before the first neuron, where all
            steps are one, T is 1. Before them, unless ``intermediates_only``, the features (T * B, C, h, w).

        Raises:
            ValueError: For an index out of range or another format.

        Example:
            >>> [tuple(f.shape) for f in model.forward_intermediates(images, intermediates_only=True)]  # doctest: +SKIP
            [(2, 16, 32, 32), (2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        stages, batch = self._staged(), len(x)
        asked = _places(indices, len(self.feature_info))
        maps: list[Tensor] = []
        x = self.normalize(x)
        for stage in stages:
            if stop_early and len(maps) > max(asked) and not (norm and stage.norm):
                break
            x = self._through(stage, x)
            if stage.channels:
                maps.append(x)
            elif stage.norm and norm:
                maps[-1] = x
        steps = [y.unflatten(0, (-1, batch)) for y in maps]
        found = [steps[index] if per_step else steps[index].mean(0) for index in sorted(asked)]
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Takes away what ``forward_intermediates`` does not need for these indices, as timm's ``features_only`` does.

        Args:
            indices: Which of ``feature_info``.
            prune_norm: The last norm too.
            prune_head: The classifier too.

        Returns:
            The indices, from 0.
        """
        maps = self.feature_info
        asked, seen, kept = _places(indices, len(maps)), -1, []
        last = max(asked)
        for stage in self._staged():
            seen += stage.channels is not None
            wanted = seen < last or (seen == last and stage.channels is not None)
            if wanted or (stage.norm and not prune_norm and last == len(maps) - 1):
                kept.append(stage)
                continue
            for name in stage.modules:
                self.set_submodule(name, nn.Identity())
        ended = len(kept) < len(self.stages)
        if ended:
            self.num_features = maps[last]["num_chs"]
        self.stages = tuple(kept)
        if not any(isinstance(module, SpikingNeuron) for module in self.modules()):
            self.spiking = replace(self.spiking, timesteps=None)  # nothing is left that takes time
        if prune_head or ended:
            self.reset_classifier(0, "")
        return sorted(asked)

    # --- training ---

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Backward passes compute activations anew, block by block: less memory for more time, the same numbers."""
        if enable:
            self._staged()
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions of parameter names by depth, for learning rates that decay with it.

        Args:
            coarse: One group a feature map; else one a block or convolution.
        """
        groups: dict[str, str] = {}
        together: list[str] = []
        for number, stage in enumerate(self._staged()):
            names = [name.replace(".", r"\.") for name in stage.modules]
            blocks = len(names) == 1 and isinstance(self.get_submodule(stage.modules[0]), nn.Sequential)
            if blocks and not coarse:
                groups[f"stage{number}"] = rf"^{names[0]}\.(\d+)\."
                continue
            together += names
            if not coarse or stage.channels or number == len(self.stages) - 1:
                groups[f"stage{number}"] = rf"^(?:{'|'.join(together)})\."
                together = []
        return groups

    def no_weight_decay(self) -> set[str]:
        """Names of thresholds and of the weights of residual sums: no size of theirs is better than another."""
        free = {name for name, module in self.named_modules() if isinstance(module, SpikingNeuron | WeightedSum)}
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[0] in free}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier."""
        raise NotImplementedError
