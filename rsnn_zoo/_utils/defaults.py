"""What of torch a caller may have changed or be in the middle of, kept out while the library's numbers are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn

__all__ = ["device_of", "no_autocast", "own_generators", "plain_defaults"]


@contextmanager
def plain_defaults() -> Iterator[None]:
    """New tensors are float32 on the CPU unless told otherwise; afterwards all is as before.

    Example:
        >>> torch.set_default_dtype(torch.float64)
        >>> with plain_defaults():
        ...     print(torch.rand(1).dtype)
        torch.float32
        >>> torch.set_default_dtype(torch.float32)
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # entered only where needed, since every call of torch goes through it
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def no_autocast() -> Iterator[None]:
    """Operations inside compute in the dtypes of their operands."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def own_generators(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside, on the CPU or the device, leaves the global generators as they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the default one where it has none.

    Example:
        >>> device_of(nn.ReLU())
        device(type='cpu')
    """
    return next(module.parameters(), torch.zeros(())).device
