"""Convolutions that this package compiles itself, for attacks on a CPU: see ``convolutions.cpp``.

What a convolution of spikes sums is looked up: a 3x3 window of one channel is one of 512 patterns, and what it adds to
the outputs a row of a table. A gradient goes back by Winograd's F(4x4, 3x3) (Lavin & Gray, CVPR 2016), which multiplies
a fourth as often. Where no compiler is found PyTorch's convolutions do it, with the same numbers but for rounding.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from rsnn_zoo.models.frozen import FrozenConv2d
from rsnn_zoo.neurons.dynamics import is_channels_last
from rsnn_zoo.neurons.kernels import compiles, is_plain

__all__ = ["NativeConv2d", "go_native"]

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("convolutions.cpp")
_OPTIONS = "-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC"

_WINDOWS = 512
"""Of a window of nine spikes."""

_LARGEST_TABLE, _LARGEST_WEIGHTS = 1 << 22, 1 << 17
"""Elements of a table, and weights of a kernel's place, at most: beyond them what is read leaves the caches."""

_SMALLEST_MAP = 4
"""Side of the maps from which tiles of 4x4 pay."""

_TO_POINTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G of F(4x4, 3x3): three weights to six points."""


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled source; None, and a word in the log, where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "convolutions.so"
        try:
            command = [*shlex.split(os.environ.get("CXX", "c++")), *_OPTIONS, str(_SOURCE), "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            library = ctypes.CDLL(str(target))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error).encode()
            cause = next(iter(told.decode(errors="replace").splitlines()), "")
            _log.info("convolutions.cpp was not compiled, PyTorch's convolutions run (slower): %s", cause)
            return None
    pointers, sizes = [ctypes.c_void_p] * 3, [ctypes.c_long] * 5
    library.convolve.argtypes = [*pointers, *sizes, ctypes.c_int]
    library.convolve_spikes.argtypes = [*pointers, ctypes.c_void_p, *sizes, ctypes.c_long, ctypes.c_int]
    return library


def _table_of_windows(weight: Tensor) -> Tensor:
    """What each pattern of each input channel adds to the outputs, (C_in, 512, C_out)."""
    patterns = torch.arange(_WINDOWS)[:, None] >> torch.arange(9) & 1
    return torch.einsum("pb,kcb->cpk", patterns.to(weight), weight.flatten(2)).contiguous()


def _points_of(weight: Tensor) -> Tensor:
    """The weights that lead a gradient back, (C_out, C_in, 3, 3), at Winograd's points: (36, C_out, C_in)."""
    g = torch.tensor(_TO_POINTS, dtype=torch.float64)
    points = torch.einsum("ay,kcyx,bx->abkc", g, weight.double().flip(2, 3), g)
    return points.flatten(0, 1).to(weight).contiguous()


class NativeConv2d(FrozenConv2d):
    """A frozen 3x3 convolution with ways of its own on a CPU: see :func:`go_native`."""

    _of_spikes: tuple[Tensor, Tensor] | None = None
    _of_gradients: Tensor | None = None

    def of_spikes(self, spikes: Tensor) -> Tensor:
        """The convolution of spikes, (N, C, H, W) of zeros and ones, without a gradient."""
        library, k = self._library_for(spikes), self.out_channels
        small = k % 8 == 0 and k <= 64 and self.in_channels * _WINDOWS * k <= _LARGEST_TABLE
        if library is None or not small:
            return self(spikes)
        if self._of_spikes is None:
            bias = self.weight.new_zeros(k) if self.bias is None else self.bias.detach().contiguous()
            self._of_spikes = _table_of_windows(self.weight.detach()), bias
        n, c, h, w = spikes.shape
        stride, _ = self.stride
        out = spikes.new_empty(n, -(-h // stride), -(-w // stride), k)
        pointers = (spikes, *self._of_spikes, out)
        sizes = n, h, w, c, k, stride, torch.get_num_threads()
        library.convolve_spikes(*(tensor.data_ptr() for tensor in pointers), *sizes)
        return out.permute(0, 3, 1, 2)

    def back(self, grad: Tensor, size: torch.Size) -> Tensor:
        """Gradient with respect to an input of ``size`` (H, W), given that of the output."""
        library, c, k = self._library_for(grad), self.out_channels, self.in_channels
        suits = self.stride == (1, 1) and c % 8 == 0 and k % 16 == 0 and c * k <= _LARGEST_WEIGHTS
        if library is None or not suits or min(size) < _SMALLEST_MAP:
            return super().back(grad, size)
        if self._of_gradients is None:
            self._of_gradients = _points_of(self.weight.detach())
        n, (h, w) = len(grad), size
        out = grad.new_empty(n, h, w, k)
        pointers = (tensor.data_ptr() for tensor in (grad, self._of_gradients, out))
        library.convolve(*pointers, n, h, w, c, k, torch.get_num_threads())
        return out.permute(0, 3, 1, 2)

    def _library_for(self, x: Tensor) -> ctypes.CDLL | None:
        """What to call for x; None where PyTorch has to do it."""
        ours = is_plain(x) and compiles() and not (torch.is_grad_enabled() and x.requires_grad)
        ours = ours and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        return _library() if ours and is_channels_last(x) else None


def go_native(model: nn.Module) -> nn.Module:
    """Let frozen 3x3 convolutions go ways of their own on a CPU.

    The outputs and gradients are the same but for rounding. The weights must not change any more.

    Args:
        model: What :func:`rsnn_zoo.models.frozen.freeze` gave; changed in place.

    Returns:
        The model.

    Example:
        >>> go_native(freeze(copy.deepcopy(model).eval()))(images.requires_grad_())  # doctest: +SKIP
    """
    for module in model.modules():
        plain = type(module) is FrozenConv2d and module.kernel_size == (3, 3) and module.padding == (1, 1)
        if plain and module.dilation == (1, 1) and module.groups == 1 and module.stride in ((1, 1), (2, 2)):
            module.__class__ = NativeConv2d
    return model
