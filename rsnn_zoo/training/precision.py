"""Whether 16 bits are worth it on this machine: many a processor has no instructions for them."""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rsnn_zoo.attacks.gradients import COMPUTE_DTYPES

WORTH_SAYING = 1.5  # below that, what a short measurement finds may be noise

logger = logging.getLogger(__name__)


def relative_time(precision: str, device: torch.device | str = "cpu", repeats: int = 5) -> float:
    """Measure how long a convolution takes in ``precision``, in multiples of the time that it takes in float32.

    Args:
        precision: A key of ``COMPUTE_DTYPES``, ``"float32"`` or ``"bfloat16"``.
        device: Where to measure; some hundredths of a second on a CPU.
        repeats: Runs, of which the fastest counts.

    Returns:
        The ratio; 1 for float32. On CPUs with AVX-512 or AMX bfloat16 takes 0.25 to 0.5, on those with AVX2 alone
        (before AMD's Zen 4 and Intel's Ice Lake) 5 and more.

    Example:
        >>> relative_time("float32")
        1.0
    """
    if precision == "float32":
        return 1.0
    return _seconds(COMPUTE_DTYPES[precision], device, repeats) / _seconds(torch.float32, device, repeats)


def warn_where_slow(precision: str, device: torch.device | str) -> None:
    """Log a warning with the remedy where float32 would be faster than ``precision``."""
    ratio = relative_time(precision, device)
    if ratio >= WORTH_SAYING:
        logger.warning(
            "a convolution takes %.1f times as long in %s as in float32 on this machine; a stage with "
            'precision = "float32" (--set \'ann.precision="float32"\', or snn, or direct) is faster here',
            ratio,
            precision,
        )


def _seconds(dtype: torch.dtype, device: torch.device | str, repeats: int) -> float:
    options = {"dtype": dtype, "device": device}
    images = torch.zeros(16, 64, 16, 16, **options).to(memory_format=torch.channels_last)
    weight = torch.zeros(64, 64, 3, 3, **options).to(memory_format=torch.channels_last)
    return min(_timed(lambda: torch.conv2d(images, weight, padding=1)) for _ in range(repeats + 1))


def _timed(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call().sum().item()  # which waits for a GPU, too
    return time.perf_counter() - start
