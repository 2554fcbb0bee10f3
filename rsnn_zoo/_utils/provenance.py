"""Where a number came from: versions, hardware, git revision, peak memory; and the digest of a model."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import rsnn_zoo
from rsnn_zoo._utils.digests import digest, workings

__all__ = ["digest", "environment", "git_revision", "peak_memory", "workings"]

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
