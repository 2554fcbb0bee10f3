"""Where a number came from: versions, hardware, git revision, peak memory."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rsnn_zoo

__all__ = ["digest", "environment", "git_revision", "peak_memory"]

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "torchattacks", "huggingface_hub", "safetensors")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What this process computes with, as JSON; names neither the host nor the user.

    Args:
        device: Where the model runs; a GPU is named only if it is this.

    Example:
        >>> sorted(environment())
        ['cores', 'cpu', 'git_revision', 'gpu', 'platform', 'python', 'threads', 'versions']
    """
    device = torch.device(device)
    return {
        "versions": {"rsnn_zoo": rsnn_zoo.__version__} | {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_revision": git_revision(),
    }


def git_revision() -> str | None:
    """The commit of the checkout that this package is part of, with ``-dirty`` where files differ from it.

    None where the package is installed: the repository that a virtual environment happens to lie in says nothing.
    """
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory(device: torch.device | str = "cpu") -> int:
    """The most memory in bytes that this process has held so far: resident on a CPU, allocated on a GPU.

    On a CPU it is 0 where the system does not tell (Windows).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


_LABELS = {"training", "pretrained_name", "weights_sha256"}  # attributes that say nothing about what a model computes


def digest(model: nn.Module) -> str:
    """SHA-256, in hex, by which two models are held to be the same.

    Taken over the state dict, what ``print(model)`` says of each layer, and each layer's attributes that are tensors,
    and public ones that are numbers, strings, booleans or None, or lists or tuples of these, such as
    ``self.timesteps``. Other attributes and code do not count.

    Example:
        >>> digest(nn.ReLU()) == digest(nn.ReLU()) != digest(nn.Tanh())
        True
    """
    found = hashlib.sha256()
    for name, module in model.named_modules():
        said = re.sub(r" at 0x[0-9a-f]+", "", module.extra_repr())
        found.update(f"{name} {type(module).__name__}({said})\n".encode())
        for attribute, value in sorted(vars(module).items()):
            if not attribute.startswith("_") and attribute not in _LABELS and _is_plain(value):
                found.update(f"{attribute}={value!r}\n".encode())
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(_bytes(tensor))
    for name, module in model.named_modules():
        unsaved = {key: value for key, value in module._buffers.items() if key in module._non_persistent_buffers_set}
        unsaved |= {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        for key, tensor in sorted(unsaved.items()):
            found.update(f"{name} {key}".encode())
            found.update(_bytes(tensor) if tensor is not None else b"")
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)  # a bool is an int
