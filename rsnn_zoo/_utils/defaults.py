"""The defaults of torch that a caller may have changed, as the library's numbers are defined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

__all__ = ["plain_defaults"]


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
