"""Training over several processes, as ``torchrun`` starts them: one model, each process with its part of every batch.

What is random is drawn for the whole batch by every process, and batch norms see the whole batch, so the number of
processes changes nothing but roundings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rsnn_zoo.models.layers import BATCH_NORMS, StaticBatchNorm2d, is_plain_norm

__all__ = ["Ranks", "SyncedBatchNorm2d", "parallel", "unwrapped"]


@dataclass(frozen=True)
class Ranks:
    """The processes of this training; one alone where no process group is there.

    Attributes:
        rank: Number of this process.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> Ranks:
        """The ranks of the default process group."""
        return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through this before the others, who find what it has downloaded."""
        if not self.main:
            dist.barrier()
        yield
        if self.main and self.size > 1:
            dist.barrier()

    def share(self, whole: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """Return this process's share of each of so many equal parts of a batch."""
        return whole.chunk(parts * self.size)[self.rank :: self.size]

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The sums over all processes, the same in each."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()


def parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The module whose forward passes train the model over all processes; its batch norms are synchronised in place.

    Raises:
        ValueError: For a batch norm that cannot be synchronised; names it.
    """
    if ranks.size == 1:
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_plain_norm(child):
                setattr(parent, name, SyncedBatchNorm2d(child))
            elif isinstance(child, BATCH_NORMS):
                raise ValueError(f"{name} ({type(child).__name__}) cannot be synchronised: train it in one process")
    return DistributedDataParallel(model, broadcast_buffers=False)


class _Gather(torch.autograd.Function):
    """A tensor of each process, stacked in the order of ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(found, x)
        return torch.stack(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


class SyncedBatchNorm2d(StaticBatchNorm2d):
    """A batch norm whose statistics are those of the equal batches of all processes, on CPUs too.

    Args:
        norm: The batch norm whose parameters and buffers it shares.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        nn.Module.__init__(self)
        vars(self).update(vars(norm))
        self.copies = getattr(norm, "copies", 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        wide = x.float() if self.running_mean is None else x.to(self.running_mean.dtype)
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        means, variances = _Gather.apply(torch.stack([mean, variance])).unbind(1)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            n = self.copies * dist.get_world_size() * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * (n / (n - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else self.weight * scale
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def unwrapped(model: nn.Module) -> nn.Module:
    """What is inside of torch.compile, which not every backward mode bears, and of wrappers for several devices.

    Their threads would not see the backward mode. What merely has the attributes of such a wrapper is left as it is.
    """
    wrappers = (nn.DataParallel, DistributedDataParallel)
    while isinstance(model, wrappers) or type(model).__module__.startswith("torch._dynamo"):
        model = getattr(model, "module" if isinstance(model, wrappers) else "_orig_mod")
    return model
