"""Digests by which two models are held to be the same: of all they hold, and of what their functions are made of."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["digest"]

_LABELS = {"training", "training_record", "pretrained_name", "weights_sha256", "stored_as"}
"""Attributes that say nothing about what a model computes."""
_DEPTH = 12
"""Containers and objects inside of each other that are looked into."""


def digest(model: nn.Module) -> str:
    """SHA-256, in hex, by which two models are held to be the same.

    Taken over the state dict, what ``print(model)`` says of each layer, and each layer's public attributes: tensors,
    arrays, numbers, strings, functions by what they were compiled to, containers and objects of these; and plain ones
    of its class. Private attributes do not count, since what a forward pass keeps is there, nor the code of methods,
    nor the labels of the zoo, such as ``pretrained_name``.

    Example:
        >>> digest(nn.ReLU()) == digest(nn.ReLU()) != digest(nn.Tanh())
        True
    """
    found = hashlib.sha256()
    for part in _of_module(model, _Above()):
        found.update(part)
    return found.hexdigest()


class _Above(NamedTuple):
    """Objects that are being described, inside of which another one is."""

    ids: frozenset[int] = frozenset()
    depth: int = 0


def _of_module(model: nn.Module, above: _Above) -> Iterator[bytes]:
    """What has always been taken, in the same order, since states and examples are known by it; then all else."""
    modules = list(model.named_modules())
    for name, module in modules:
        said = re.sub(r" at 0x[0-9a-f]+", "", module.extra_repr())
        yield f"{name} {type(module).__name__}({said})\n".encode()
        for attribute, value in sorted(_public(module).items()):
            if _is_plain(value):
                yield f"{attribute}={value!r}\n".encode("utf-8", "surrogatepass")
    for name, tensor in model.state_dict().items():
        yield name.encode()
        yield _bytes(tensor)
    for name, module in modules:
        unsaved = {key: value for key, value in module._buffers.items() if key in module._non_persistent_buffers_set}
        unsaved |= {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        for key, tensor in sorted(unsaved.items()):
            yield f"{name} {key}".encode()
            yield _bytes(tensor) if tensor is not None else b""
    above = _Above(above.ids.union(id(module) for _, module in modules), above.depth)  # one may hold its parent
    for name, module in modules:
        if besides := _besides(module):
            yield f"{name} ".encode()
            yield from _of_pairs(besides, above)


def _public(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key[0] != "_" and key not in _LABELS}


def _besides(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module from elsewhere that are not plain, and plain ones of its classes."""
    found: dict[str, Any] = {}
    if _is_of(type(module), "rsnn_zoo"):  # their plain attributes tell everything
        return found
    for cls in reversed(type(module).__mro__):
        if not _is_of(cls, "torch", "builtins"):
            found |= {key: value for key, value in vars(cls).items() if key[0] != "_" and _is_plain(value)}
    own = _public(module)
    return {key: value for key, value in found.items() if key not in own} | {
        key: value for key, value in own.items() if not isinstance(value, Tensor) and not _is_plain(value)
    }


def _is_of(cls: type, *packages: str) -> bool:
    return cls.__module__.partition(".")[0] in packages


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)  # a bool is an int


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _of_pairs(pairs: Mapping[Any, Any], above: _Above) -> Iterator[bytes]:
    for name, value in sorted(((str(key), value) for key, value in pairs.items()), key=lambda pair: pair[0]):
        yield f"{name}=".encode("utf-8", "surrogatepass")
        yield from _of(value, above)


def _of(value: Any, above: _Above) -> Iterator[bytes]:
    """A value as bytes, the same for an equal one of another process; of what lies deep inside only its type."""
    yield f"{type(value).__qualname__} ".encode()
    if id(value) in above.ids or above.depth > _DEPTH:
        yield b"...\n"
        return
    above = _Above(above.ids | ({id(value)} if hasattr(value, "__dict__") else set()), above.depth + 1)
    for kinds, describe in _KINDS:
        if isinstance(value, kinds):
            yield from describe(value, above)
            break
    else:
        yield from _of_pairs(_inside(value), above)
    yield b"\n"


def _inside(value: Any) -> dict[str, Any]:
    """The fields of an object; none of one that keeps them in C, such as a lock."""
    slots = (key for cls in type(value).__mro__ for key in getattr(cls, "__slots__", ()) if isinstance(key, str))
    return {key: getattr(value, key) for key in slots if hasattr(value, key)} | getattr(value, "__dict__", {})


def _of_tensor(value: Tensor, above: _Above) -> Iterator[bytes]:
    yield f"{value.dtype} {tuple(value.shape)} ".encode()
    if not value.is_meta:
        yield _bytes((value.to_dense() if value.layout != torch.strided else value).resolve_conj().resolve_neg())


def _of_array(value: np.ndarray | np.generic, above: _Above) -> Iterator[bytes]:
    yield f"{value.dtype} {value.shape} ".encode()
    yield from _of(value.tolist(), above) if value.dtype.hasobject else [value.tobytes()]


def _of_function(value: FunctionType, above: _Above) -> Iterator[bytes]:
    yield f"{value.__module__}.{value.__qualname__} ".encode()
    yield from _of_code(value.__code__, above)
    for held in (value.__defaults__, value.__kwdefaults__, tuple(map(_cell_content, value.__closure__ or ()))):
        yield from _of(held, above)


def _cell_content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _of_code(value: CodeType, above: _Above) -> Iterator[bytes]:
    yield value.co_code
    yield from _of((value.co_names, value.co_consts), above)


def _of_each(values: Any, above: _Above) -> Iterator[bytes]:
    for value in values:
        yield from _of(value, above)


_Describe = Callable[[Any, _Above], Iterable[bytes]]
_KINDS: tuple[tuple[Any, _Describe], ...] = (
    (
        (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout),
        lambda value, above: [repr(value).encode()],
    ),
    (Tensor, _of_tensor),
    ((np.ndarray, np.generic), _of_array),
    (nn.Module, _of_module),
    (Enum, lambda value, above: [str(value).encode()]),
    ((type, ModuleType, BuiltinFunctionType), lambda value, above: [value.__name__.encode()]),
    (FunctionType, _of_function),
    (CodeType, _of_code),
    (MethodType, lambda value, above: _of((value.__func__, value.__self__), above)),
    (functools.partial, lambda value, above: _of((value.func, value.args, value.keywords), above)),
    (Mapping, _of_pairs),
    (Set, lambda value, above: sorted(b"".join(_of(each, above)) for each in value)),
    ((list, tuple, deque), _of_each),
)
"""What is described in a way of its own; of all other objects it is what they hold."""
