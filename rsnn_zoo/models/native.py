"""Convolutions that this package compiles itself, for attacks on a CPU: see ``convolutions.cpp``.

Winograd's F(4x4, 3x3) multiplies a fourth as often (Lavin & Gray, CVPR 2016). Where no compiler is found PyTorch's
convolutions run, with the same numbers but for rounding.
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

_WIDEST = 1 << 18
"""Channels of input times those of output, at most: beyond VGG's nothing was measured."""

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
    library.convolve.argtypes = [*[ctypes.c_void_p] * 4, *[ctypes.c_long] * 5, ctypes.c_int]
    library.convolve.restype = None
    return library


def _points_of(weight: Tensor) -> Tensor:
    """A kernel (C_out, C_in, 3, 3) at Winograd's points, (36, C_in, C_out)."""
    g = torch.tensor(_TO_POINTS, dtype=torch.float64)
    return torch.einsum("ay,kcyx,bx->abck", g, weight.double(), g).flatten(0, 1).to(weight).contiguous()


class NativeConv2d(FrozenConv2d):
    """A frozen 3x3 convolution that goes its own way on a CPU: see :func:`go_native`."""

    _points_forth: Tensor | None = None
    _points_back: Tensor | None = None

    def forth(self, x: Tensor) -> Tensor:
        """The convolution of (N, C, H, W), without a gradient."""
        library = self._library_for(x, self.in_channels, self.out_channels)
        if library is None:
            return super().forth(x)
        if self._points_forth is None:
            self._points_forth = _points_of(self.weight.detach())
        return self._convolved(library, x, self._points_forth, self.bias)

    def back(self, grad: Tensor, size: torch.Size) -> Tensor:
        """Gradient with respect to an input of ``size`` (H, W), given that of the output."""
        library = self._library_for(grad, self.out_channels, self.in_channels)
        if library is None:
            return super().back(grad, size)
        if self._points_back is None:
            self._points_back = _points_of(self.weight.detach().transpose(0, 1).flip(2, 3))
        return self._convolved(library, grad, self._points_back, None)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        differentiated = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        own = weight is self.weight and bias is self.bias
        return self.forth(input) if own and not differentiated else super()._conv_forward(input, weight, bias)

    def _library_for(self, x: Tensor, c: int, k: int) -> ctypes.CDLL | None:
        """What to call for x, of c channels that become k; None where PyTorch has to do it."""
        ours = is_plain(x) and compiles() and not (torch.is_grad_enabled() and x.requires_grad)
        ours = ours and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        suits = c % 8 == 0 and k % 16 == 0 and c * k <= _WIDEST and x.dim() == 4 and min(x.shape[2:]) >= _SMALLEST_MAP
        return _library() if ours and suits and is_channels_last(x) else None

    @staticmethod
    def _convolved(library: ctypes.CDLL, x: Tensor, points: Tensor, bias: Tensor | None) -> Tensor:
        (n, c, h, w), k = x.shape, points.shape[2]
        out = x.new_empty(n, h, w, k)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in (x, points, bias, out))
        library.convolve(*pointers, n, h, w, c, k, torch.get_num_threads())
        return out.permute(0, 3, 1, 2)


def go_native(model: nn.Module) -> nn.Module:
    """Let frozen 3x3 convolutions go their own way on a CPU.

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
        if plain and module.dilation == module.stride == (1, 1) and module.groups == 1:
            module.__class__ = NativeConv2d
    return model
