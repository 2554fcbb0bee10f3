"""Digests by which two models are held to be the same: of all they hold, and of what their functions are made of."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["digest", "workings"]

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
    for part in _of_module(model, _Above(_Seen())):
        found.update(part)
    return found.hexdigest()


_MANY = 20_000
"""Values after which what was described before is not described again: objects that all know each other have no end."""


class _Seen:
    """What was described so far, held so that no other object gets its address."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.count = 0

    def again(self, value: Any) -> bool:
        self.count += 1
        if self.count > _MANY and id(value) in self.values:
            return True
        if isinstance(value, dict | list) or hasattr(value, "__dict__"):
            self.values[id(value)] = value
        return False


class _Above(NamedTuple):
    """Objects that are being described, inside of which another one is; and all that were."""

    seen: _Seen
    whole: bool = False  # with what the classes of objects say
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
    above = above._replace(ids=above.ids.union(id(module) for _, module in modules))  # one may hold its parent
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


_TOLD_ELSEWHERE = {"surrogate", "spiking", "pretrained_cfg", "default_cfg", "stages"}
"""Attributes of the zoo's modules that are not plain, and told by plain ones."""
_CONSTANT = (float, complex, str, bytes, FunctionType, MethodType, BuiltinFunctionType, functools.partial, Enum, type)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def workings(model: nn.Module) -> str | None:
    """SHA-256, in hex, of how a model computes beyond what :func:`digest` takes; None where nothing is to be said.

    That are hooks; the methods of classes from elsewhere that belong to no installed package; of their private
    attributes those that no forward pass changes, functions and numbers that are no counts; and what was hung on a
    module of the zoo. Two models of one digest may differ in it, and then no state of the one is the other's.

    Example:
        >>> workings(nn.Linear(2, 2)) is None
        True
    """
    found, above, is_empty = hashlib.sha256(), _Above(_Seen(), whole=True), True
    for name, module in model.named_modules():
        for what, value in sorted(_workings_of(module).items()):
            is_empty = False
            found.update(f"{name} {what} ".encode("utf-8", "surrogatepass"))
            for part in _of(value, above):
                found.update(part)
    return None if is_empty else found.hexdigest()


def _workings_of(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {key: list(hooks.values()) for key in _HOOKS if (hooks := getattr(module, key, None))}
    fields = vars(module)
    if _is_of(type(module), "rsnn_zoo"):
        own = {
            key: value for key, value in _public(module).items() if key not in _TOLD_ELSEWHERE and not _is_plain(value)
        }
        return found | {key: value for key, value in own.items() if not isinstance(value, Tensor)}
    found |= _of_class(type(module))
    if _is_own(type(module)):
        found |= {key: value for key, value in fields.items() if key[0] == "_" and isinstance(value, _CONSTANT)}
        found |= {key: value for key, value in _public(module).items() if not isinstance(value, Tensor | nn.Module)}
    return found


def _of_class(cls: type) -> dict[str, Any]:
    """Methods and plain attributes of the user's own classes that this one is made of."""
    found: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        if _is_own(one):
            held = {key: getattr(each, "__func__", getattr(each, "fget", each)) for key, each in vars(one).items()}
            found |= {f"{key}()": each for key, each in held.items() if isinstance(each, FunctionType)}
            found |= {f"{key}.": each for key, each in held.items() if key[:2] != "__" and _is_plain(each)}
    return found


def _is_own(cls: type) -> bool:
    """Whether a class is of the user's own code, and not of an installed package."""
    if _is_of(cls, "torch", "builtins", "rsnn_zoo"):
        return False
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    return not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _is_of(cls: type, *packages: str) -> bool:
    return cls.__module__.partition(".")[0] in packages


def _is_plain(value: object, depth: int = 50) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(each, depth - 1) for each in value)
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
    if id(value) in above.ids or above.depth > _DEPTH or above.seen.again(value):
        yield b"...\n"
        return
    ids = above.ids | ({id(value)} if hasattr(value, "__dict__") else set())
    above = above._replace(ids=ids, depth=above.depth + 1)
    for kinds, describe in _KINDS:
        if isinstance(value, kinds):
            yield from describe(value, above)
            break
    else:
        yield from _of_pairs(_inside(value) or _pickled(value), above)
        if above.whole:
            yield from _of_pairs(_of_class(type(value)) | _pickled(value), above)
    yield b"\n"


def _inside(value: Any) -> dict[str, Any]:
    """The fields of an object; none of one that keeps them in C, such as a lock."""
    slots = (key for cls in type(value).__mro__ for key in getattr(cls, "__slots__", ()) if isinstance(key, str))
    return {key: getattr(value, key) for key in slots if hasattr(value, key)} | getattr(value, "__dict__", {})


def _pickled(value: Any) -> dict[str, Any]:
    """What a copy of an object would be made from that keeps its fields in C: of a range, a decimal, a generator.

    None of one that cannot be copied, such as a lock.
    """
    try:
        parts = copyreg.dispatch_table.get(type(value), lambda value: value.__reduce_ex__(2))(value)
    except Exception:  # whatever it raises, that is all there is to say of it
        return {}
    if isinstance(parts, str):
        return {"name": parts}
    return {str(number): list(p) if isinstance(p, Iterator) else p for number, p in enumerate(parts[1:])}


def _of_builtin(value: BuiltinFunctionType, above: _Above) -> Iterator[bytes]:
    yield value.__name__.encode()
    if not isinstance(owner := value.__self__, ModuleType | type(None)):
        yield from _of(owner, above)


def _of_type(value: type, above: _Above) -> Iterator[bytes]:
    yield value.__name__.encode()
    if above.whole:
        yield from _of_pairs(_of_class(value), above)


def _of_defaultdict(value: defaultdict[Any, Any], above: _Above) -> Iterator[bytes]:
    yield from _of_pairs(value, above)
    yield from _of(value.default_factory, above)


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
    (BuiltinFunctionType, _of_builtin),
    (type, _of_type),
    (ModuleType, lambda value, above: [value.__name__.encode()]),
    (FunctionType, _of_function),
    (CodeType, _of_code),
    (MethodType, lambda value, above: _of((value.__func__, value.__self__), above)),
    (functools.partial, lambda value, above: _of((value.func, value.args, value.keywords), above)),
    (defaultdict, _of_defaultdict),
    (Mapping, _of_pairs),
    (Set, lambda value, above: sorted(b"".join(_of(each, above)) for each in value)),
    ((list, tuple, deque), _of_each),
)
"""What is described in a way of its own; of all other objects it is what they hold."""
