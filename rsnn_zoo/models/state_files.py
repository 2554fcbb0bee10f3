"""State dicts from elsewhere: out of their wrappers, and read without running what a pickle would run."""

from __future__ import annotations

import argparse
import logging
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rsnn_zoo._utils.archives import UNREADABLE, check_swelling
from rsnn_zoo._utils.files import at_home, open_regular

__all__ = ["read_state_dict"]

_log = logging.getLogger(__name__)

# Keys under which checkpoints keep a state dict. Averaged weights first, as in timm: they are what was evaluated.
WRAPPERS = (
    *("state_dict_ema", "model_state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "module", "shadow"),
)
PREFIXES = ("module.", "model.", "network.", "net.")
"""What DataParallel, averaged models, Lightning and the robustness library put before every name."""
_COMPILED = re.compile(r"(^|\.)(?:_orig_mod\.)+")
_COUNTERS = ("n_averaged",)  # beside the weights of torch.optim.swa_utils.AveragedModel
_COPIES = ("attacker.", "normalizer.")  # of the robustness library: the same weights again, and its mean and std
_LIGHTNING = "pytorch-lightning_version"


class _Kind:
    """Stands for ``numpy.dtype`` while a file is read, since a crafted state of that could reach into memory."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


def _plain_number(kind: _Kind, data: bytes) -> float:
    """Stands for what makes NumPy scalars; gives a plain number."""
    if not re.fullmatch(r"[biuf][1248]", kind.code):
        raise ValueError(f"a NumPy scalar of kind {kind.code!r}")
    return np.frombuffer(data, np.dtype(f"{kind.order}{kind.code}"), count=1)[0].item()


# Beside tensors and plain containers; none of these runs what a file says.
_SAFE: list[Any] = [
    argparse.Namespace,
    _Kind,
    (_Kind, "numpy.dtype"),
    *((_plain_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before and since NumPy 2
]


def read_state_dict(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    key: str | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without whatever wraps them; a logged line says which of several are taken.

    Args:
        source: A ``.safetensors`` file, a ``.pth`` file, which may hold tensors, plain containers, NumPy scalars and an
            ``argparse.Namespace`` alone, or a mapping: a state dict, or one that holds it under ``"state_dict"``,
            ``"model"``, ``"params"`` or the like, or averaged weights under ``"state_dict_ema"`` or the like, which are
            preferred. Names lose ``_orig_mod.`` (torch.compile), and ``module.``, ``model.``, ``network.`` or ``net.``
            where all begin with it.
        key: Under which the wanted state dict is, where there are several.
        names: Of the tensors that are needed; a prefix that these bear too is left.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If there is no state dict in it, none under ``key``, or more than may be in it.

    Example:
        >>> read_state_dict({"state_dict": {"module.weight": torch.ones(2)}, "epoch": 3})
        {'weight': tensor([1., 1.])}
    """
    said = "the mapping"
    if isinstance(source, str | os.PathLike):
        said = os.fspath(source)
        source = _read_file(at_home(source))
    found, trimmed = _innermost(source, key, said)
    if not (isinstance(found, Mapping) and found and all(isinstance(v, Tensor) for v in found.values())):
        raise ValueError(f"{said}: not a state dict: expected a mapping of names to tensors{_choices(source)}")
    if odd := [name for name in found if not isinstance(name, str)]:
        raise ValueError(f"{said}: not a state dict: {odd[0]!r:.80} is no name of a tensor")
    return _unprefixed(dict(found), names, trimmed, said)


def _check_size(path: Path, file: BinaryIO) -> None:
    """Refuse what is small and would take much memory; what is no archive is left to ``torch.load``."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_swelling(archive)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except UNREADABLE:
        pass


def _read_file(path: Path) -> Any:
    with open_regular(path) as file:
        if path.suffix != ".safetensors":
            _check_size(path, file)
        file.seek(0)
        return _load_safely(path, file)


def _load_safely(path: Path, file: BinaryIO) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(file.read())  # the tensors of load_file would change with the file
        with torch.serialization.safe_globals(_SAFE):  # else a checkpoint from elsewhere could run code
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, and torch's own advice is to load it unsafely
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, plain containers, NumPy scalars and an argparse.Namespace"
            f"{f' ({named[1]})' if named else ''}, which is not read since a pickle can run code: have its state dict "
            "alone saved with torch.save"
        ) from error


def _held(source: Any) -> list[str]:
    """Keys under which there is a mapping, the preferred first."""
    if not isinstance(source, Mapping):
        return []
    return [wrapper for wrapper in WRAPPERS if isinstance(source.get(wrapper), Mapping) and source[wrapper]]


def _choices(source: Any) -> str:
    items = source.items() if isinstance(source, Mapping) else ()
    keys = [str(key) for key, value in items if isinstance(value, Mapping)]
    return f"; there are {', '.join(keys[:10])}: name one by key=" if keys else ""


def _innermost(source: Any, key: str | None, said: str) -> tuple[Any, bool]:
    """The innermost state dict, and whether names outside of the network's may stand beside it."""
    if key is not None:
        if not isinstance(source, Mapping) or not isinstance(source.get(key), Mapping):
            raise ValueError(f"{said}: there is no state dict under {key!r}{_choices(source)}")
        return _innermost(source[key], None, said)[0], _LIGHTNING in source
    lightning = False
    outer = {id(source)}
    while held := [wrapper for wrapper in _held(source) if id(source[wrapper]) not in outer]:  # one may hold itself
        lightning |= _LIGHTNING in source
        if len(held) > 1:
            _log.warning("%s: took %s of %s; key= (--key) names another", said, held[0], ", ".join(held))
        else:
            _log.info("%s: took %s", said, held[0])
        source = source[held[0]]
        outer.add(id(source))
    return source, lightning


def _unprefixed(state: dict[str, Tensor], names: Collection[str] | None, trimmed: bool, said: str) -> dict[str, Tensor]:
    """Strip prefixes as long as all names bear one, and no further than ``names`` do."""
    fitting = [state]
    state = {_COMPILED.sub(r"\1", name): tensor for name, tensor in state.items() if name not in _COUNTERS}
    fitting.append(state)
    while prefix := _prefix(state, trimmed):
        state = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        fitting.append(state)
    if names is not None:
        wanted = set(names)
        state = max(reversed(fitting), key=lambda one: len(wanted & one.keys()))
    if left := len(fitting[0]) - len(state):
        _log.warning("%s: left out %d tensors that are no weights of the network", said, left)
    return state


def _prefix(state: Mapping[str, Tensor], trimmed: bool) -> str | None:
    """What every name begins with, or every one but what wrappers of known kinds keep beside the network."""
    for prefix in PREFIXES:
        rest = [name for name in state if not name.startswith(prefix)]
        if len(rest) == len(state):
            continue
        robustness = all(name.startswith(_COPIES) for name in rest)
        if not rest or robustness or trimmed:
            return prefix
    return None
