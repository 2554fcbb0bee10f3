"""Networks with batch norms and residual weights folded into their convolutions, for attacks and exports."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from rsnn_zoo.models.layers import WeightedSum, is_plain_norm

__all__ = ["FoldedSum", "fold"]


class FoldedSum(nn.Module):
    """What a WeightedSum becomes when the convolutions before it carry its weights: one pass over the data."""

    def __init__(self, shortcut_weight: Tensor):
        super().__init__()
        self.register_buffer("shortcut_weight", shortcut_weight)  # one, or one of each channel; for who reads the state
        self._alpha = shortcut_weight.item() if shortcut_weight.dim() == 0 else None

    def forward(self, shortcut: Tensor, residual: Tensor) -> Tensor:
        """Two tensors of one shape, (B, C, H, W), to their weighted sum."""
        if self._alpha is None:
            return torch.addcmul(residual, shortcut, self.shortcut_weight[:, None, None].to(residual.dtype))
        return torch.add(residual, shortcut, alpha=self._alpha)


def _fold_norm(parent: nn.Module, conv: str, norm: str) -> None:
    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
    setattr(parent, norm, nn.Identity())


def _scale(conv: nn.Conv2d, factor: Tensor) -> None:
    conv.weight.mul_(factor[..., None, None, None])  # one factor, or one of each output channel
    if conv.bias is not None:
        conv.bias.mul_(factor)


def _fold_sum(block: nn.Module) -> None:
    shortcut_weight, residual_weight = block.sum.weight
    _scale(block.conv2, residual_weight)
    shortcuts = [m for m in (block.downsample or nn.Identity()).modules() if isinstance(m, nn.Conv2d)]
    for conv in shortcuts:
        _scale(conv, shortcut_weight)
    block.sum = FoldedSum(shortcut_weight.new_ones(()) if shortcuts else shortcut_weight.clone())


def _hooked(*modules: nn.Module) -> bool:
    """Whether a hook or a parametrisation of one of these makes a weight anew, or sees what folding leaves out."""
    return any(m._forward_pre_hooks or m._forward_hooks or is_parametrized(m) for m in modules)


def _is_plain_conv(module: nn.Module) -> bool:
    """Whether it is a convolution and nothing else: no subclass."""
    return type(module) is nn.Conv2d


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with batch norms and residual weights folded into the convolutions before them.

    Foldable are the pairs that a block names in ``foldable``, a batch norm right behind a convolution in an
    ``nn.Sequential``, and the weighted sum of a residual block, of which the weight of an identity shortcut is left, in
    the state as ``sum.shortcut_weight``. The outputs are the same but for rounding, which may flip single spikes.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for conv, norm in getattr(module, "foldable", ()):
            plain = is_plain_norm(getattr(module, norm))  # and was not folded before
            if plain and not _hooked(getattr(module, conv), getattr(module, norm)):
                _fold_norm(module, conv, norm)
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            names = list(module._modules)
            for conv, norm in pairwise(names):
                first, second = module._modules[conv], module._modules[norm]
                plain = _is_plain_conv(first) and is_plain_norm(second) and not _hooked(first, second)
                if plain and second.running_var is not None:
                    _fold_norm(module, conv, norm)
    for module in list(model.modules()):
        added = getattr(module, "sum", None)
        folded = all(isinstance(getattr(module, norm), nn.Identity) for _, norm in getattr(module, "foldable", ()))
        if isinstance(added, WeightedSum) and folded and not _hooked(*module.modules()):
            _fold_sum(module)
    return model
