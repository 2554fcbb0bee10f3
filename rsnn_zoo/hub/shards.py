"""Weights as an entry keeps them: in one file or, where they are large, in an index and shards, as the Hub has them.

``model.safetensors.index.json`` names the file of each tensor, and holds the SHA-256 of each file: so its own SHA-256
names these weights, and whoever has it knows every byte of the shards. Large tensors of a float32 network may be stored
in bfloat16, from which loading widens them: the network that is loaded, evaluated and attacked is that of the stored
weights. A tensor that is larger than a shard may be is kept as parts of equally many rows, ``NAME#1of2`` and so on;
where there is none, whatever reads the Hub's layout reads these files.

Layout: https://huggingface.co/docs/huggingface_hub/package_reference/serialization
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.files import ConfigError, parse_json, to_json
from rsnn_zoo.hub.weights import (
    WeightsError,
    info_of,
    load_weights,
    memory,
    read_verified,
    saveable,
    to_bytes,
    verified_bytes,
)
from rsnn_zoo.spec.config import INDEX, STORED, WEIGHTS, FileInfo, WeightsInfo

__all__ = ["SHARD_BYTES", "Form", "load_files", "packed", "published_dtype", "stale", "verified_files"]

SHARD_BYTES = 45_000_000
"""The most that a shard has: git and its servers take such files without more ado."""
_OF_HEADER = 128  # bytes in a shard's header that a tensor takes besides its name, or a little less

_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_AHEAD = 2  # files that are read while one is used
_PART = re.compile(r"(.+)#(\d{1,4})of(\d{1,4})")

_Get = Callable[[FileInfo], Path]


@dataclass(frozen=True)
class Form:
    """How weights are stored, beyond what they are.

    Attributes:
        stored: Type of the large tensors in the files, where it is not the network's.
        weight_map: The file of each tensor; None where that is to be found.
    """

    stored: str | None = None
    weight_map: Mapping[str, str] | None = None


def packed(
    model: nn.Module, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> tuple[dict[str, bytes], WeightsInfo]:
    """Return the files of a network's weights, and the record by which they are verified.

    A network that was loaded, and not changed since, gives the files that it was loaded from.

    Args:
        model: The network.
        dtype: What large tensors are stored in: ``"bfloat16"``, which rounds them, or the network's own type. None is
            as it was loaded, or else the network's own.
        shard_bytes: The most that a file has before the weights are split.

    Raises:
        WeightsError: If two tensors share memory, a type is not one that ``load_weights`` reads, or the weights
            cannot be stored as ``dtype``.
    """
    tensors = saveable(model)
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype not in (None, own) and not (own == "float32" and dtype in STORED):
        raise WeightsError(f"{own} weights cannot be stored in {dtype}: choose {own}, or of float32 {STORED[0]}")
    form = _remembered(model, tensors) if dtype is None else Form(None if dtype == own else dtype)
    stored = _narrowed(model, tensors, form.stored)
    stored = _cut(stored, _counts(form.weight_map) if form.weight_map else _needed(stored, shard_bytes))
    weight_map = form.weight_map or _plan(stored, shard_bytes)
    names = sorted(set(weight_map.values()))
    if len(names) > 1 or form.stored:
        _check_untied(tensors)
    if names == [WEIGHTS]:
        data = to_bytes(stored)
        return {WEIGHTS: data}, info_of(model, _file_info(WEIGHTS, data), stored=form.stored)
    files = {name: to_bytes({key: stored[key] for key in stored if weight_map[key] == name}) for name in names}
    shards = tuple(_file_info(name, data) for name, data in files.items())
    about = {"total_size": sum(tensor.nbytes for tensor in stored.values())}
    about |= {"sha256": {shard.file: shard.sha256 for shard in shards}}
    index = to_json({"metadata": about, "weight_map": dict(sorted(weight_map.items()))})
    return {INDEX: index, **files}, info_of(model, _file_info(INDEX, index), stored=form.stored, shards=shards)


def published_dtype(model: nn.Module) -> str | None:
    """Return what a network is stored in when it is to be published: large float32 ones in 16 bits."""
    large = sum(tensor.nbytes for tensor in model.state_dict().values()) > SHARD_BYTES
    return STORED[0] if large and next(model.parameters()).dtype == torch.float32 else None


def load_files(info: WeightsInfo, get: _Get) -> tuple[dict[str, Tensor], Form]:
    """Read and verify all files of an entry's weights, one at a time.

    Args:
        info: The record in its config.
        get: Gives the path of a file.

    Returns:
        The tensors by name in the network's type, on the CPU, and how they were stored.

    Raises:
        FileNotFoundError: If a file is missing; names it.
        OSError: If one cannot be read.
        WeightsError: If one is not what config and index say; names it and what to do.
    """
    weight_map, loading = _weight_map(info, get) if info.shards else None, _Loading(info)
    for file, path, found in _ahead(info.shards or info.files, get):
        expected = {name for name, its in weight_map.items() if its == file.file} if weight_map else found.keys()
        if differing := found.keys() ^ expected:
            raise WeightsError(
                f"Weights file {path} is not what {info.file} says: it differs in {min(differing)[:100]!r}; get both "
                "again from their publisher"
            )
        loading.take(found, str(path))
    tensors = loading.whole()
    return tensors, Form(info.stored, weight_map or dict.fromkeys(tensors, info.file))


def _ahead(files: Iterable[FileInfo], get: _Get) -> Iterator[tuple[FileInfo, Path, dict[str, Tensor]]]:
    """Read and verify the next files while one is used: all of it takes about as long."""

    def read(file: FileInfo) -> tuple[FileInfo, Path, dict[str, Tensor]]:
        path = get(file)
        return file, path, load_weights(path, file.sha256, file.size)

    left = deque(files)
    with ThreadPoolExecutor(_AHEAD) as workers:
        coming = deque(workers.submit(read, left.popleft()) for _ in range(min(_AHEAD, len(left))))
        while coming:
            here = coming.popleft().result()
            if left:
                coming.append(workers.submit(read, left.popleft()))
            yield here
            del here  # its memory


class _Loading:
    """The tensors of a network, while files come in."""

    def __init__(self, info: WeightsInfo):
        self.tensors: dict[str, Tensor] = {}
        self.info, self.left = info, dict[str, set[str]]()
        self.narrow = getattr(torch, info.stored) if info.stored else None

    def take(self, found: dict[str, Tensor], path: str) -> None:
        """Keep tensors in the network's type, in memory of their own where the file's can go, and whole."""
        own: torch.dtype = getattr(torch, self.info.dtype)
        types = {name: own if one.dtype == self.narrow else one.dtype for name, one in found.items()}
        large = [name for name, one in found.items() if types[name] != one.dtype and not _PART.fullmatch(name)]
        room = memory(sum(found[name].numel() for name in large) * own.itemsize)
        for name, one in found.items():
            if part := _PART.fullmatch(name):
                self._place(part[1], int(part[2]), int(part[3]), one, types[name], path)
            elif name in large:
                here, room = room[: one.numel() * own.itemsize], room[one.numel() * own.itemsize :]
                self.tensors[name] = here.view(own).view(one.shape).data.copy_(one)
            else:
                self.tensors[name] = one.clone() if self.info.stored else one

    def _place(self, name: str, number: int, count: int, part: Tensor, dtype: torch.dtype, path: str) -> None:
        """Put a part where it belongs; there cannot be more of them than the files have bytes for."""
        if not (1 <= number <= count and part.ndim and count * part.nbytes <= self.info.total_size):
            raise WeightsError(
                f"Weights file {path} is not usable: it holds part {number} of {count} of {name[:100]!r}"
            )
        shape = (count * len(part), *part.shape[1:])
        whole = self.tensors.get(name)
        if whole is None:
            whole = memory(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
            self.tensors[name], self.left[name] = whole, {f"{k}of{count}" for k in range(1, count + 1)}
        left = self.left.get(name, set())
        if whole.shape != shape or whole.dtype != dtype or f"{number}of{count}" not in left:
            raise WeightsError(f"Weights file {path} is not usable: its part of {name[:100]!r} does not fit the others")
        left.discard(f"{number}of{count}")
        whole[(number - 1) * len(part) : number * len(part)] = part

    def whole(self) -> dict[str, Tensor]:
        """Return all tensors, whole.

        Raises:
            WeightsError: If parts are missing.
        """
        if lacking := sorted(name for name, left in self.left.items() if left):
            raise WeightsError(f"Weights file {self.info.file} lacks parts of {lacking[0][:100]!r}; get it again")
        return self.tensors


def verified_files(info: WeightsInfo, get: _Get) -> dict[str, bytes]:
    """Return the content of all files that :func:`load_files` would read, once it has.

    Raises:
        FileNotFoundError, OSError, WeightsError: As of :func:`load_files`.
    """
    if not info.shards:
        return {info.file: verified_bytes(get(info), info.sha256, info.size)}
    load_files(info, get)
    return {file.file: read_verified(get(file), file.sha256, file.size).numpy().tobytes() for file in info.files}


def _weight_map(info: WeightsInfo, get: _Get) -> dict[str, str]:
    """What the index says, once it is seen to be of these shards."""
    path = get(info)
    data = read_verified(path, info.sha256, info.size).numpy().tobytes()
    try:
        content: Any = parse_json(data, str(path))
        weight_map, hashes = content["weight_map"], content["metadata"]["sha256"]
        named, hashes = set(weight_map.values()), dict(hashes)
    except (ConfigError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"Weights file {path} is no index of ours: {error}; get it again") from error
    for shard in info.shards:
        if hashes.get(shard.file) != shard.sha256 or shard.file not in named:
            raise WeightsError(f"Weights file {path} is not of the {shard.file} that config.json names; get them again")
    if other := named - {shard.file for shard in info.shards}:
        raise WeightsError(f"Weights file {path} names {str(min(other))[:100]!r}, which config.json does not")
    return weight_map


def _needed(tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, int]:
    """Number of parts of equally many rows that tensors are to be cut into, so that each fits."""
    needed = {}
    for name, tensor in tensors.items():
        rows, most = len(tensor) if tensor.ndim else 1, shard_bytes - len(name.encode()) - _OF_HEADER
        if tensor.nbytes > most and (
            fits := [n for n in range(2, rows + 1) if not rows % n and tensor.nbytes <= n * most]
        ):
            needed[name] = fits[0]
    return needed


def _counts(names: Iterable[str]) -> dict[str, int]:
    return {part[1]: int(part[3]) for part in map(_PART.fullmatch, names) if part}


def _cut(tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if count := counts.get(name):
            parts = tensor.view(count, -1, *tensor.shape[1:])
            found |= {f"{name}#{number}of{count}": part.clone() for number, part in enumerate(parts, 1)}
        else:
            found[name] = tensor
    return found


def _plan(tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, str]:
    sizes = {name: tensor.nbytes + len(name.encode()) + _OF_HEADER for name, tensor in tensors.items()}
    pattern = "model{suffix}.safetensors"
    from huggingface_hub import split_state_dict_into_shards_factory  # loading does without the client

    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=int, filename_pattern=pattern, max_shard_size=shard_bytes
    )
    return split.tensor_to_filename


def _remembered(model: nn.Module, tensors: Mapping[str, Tensor]) -> Form:
    """The form as it was loaded, where these weights are still such; else a new one."""
    form = getattr(model, "stored_as", None)
    if (
        not isinstance(form, Form)
        or form.weight_map is None
        or {_whole(name) for name in form.weight_map} != {*tensors}
    ):
        return Form()
    if next(model.parameters()).dtype != torch.float32:
        return Form(None, form.weight_map)
    stored = _narrowed(model, tensors, form.stored)
    same = all(torch.equal(stored[name].to(tensor.dtype), tensor) for name, tensor in tensors.items())
    return form if same else Form()


def _narrowed(model: nn.Module, tensors: Mapping[str, Tensor], stored: str | None) -> Mapping[str, Tensor]:
    """Norms, biases and thresholds stay as they are: they are few, and weigh much."""
    if stored is None:
        return tensors
    large = {name for name, one in model.named_parameters() if one.ndim > 1 and one.dtype == torch.float32}
    return {name: one.to(getattr(torch, stored)) if name in large else one for name, one in tensors.items()}


def _whole(name: str) -> str:
    return part[1] if (part := _PART.fullmatch(name)) else name


def _check_untied(tensors: Mapping[str, Tensor]) -> None:
    """What is shared could not be told once it is rounded, or is in two files."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and (other := first.setdefault(tensor.data_ptr(), name)) != name:
            raise WeightsError(f"Cannot save the network: {other} and {name} share memory; give each its own")


def _file_info(name: str, data: bytes) -> FileInfo:
    return FileInfo(name, hashlib.sha256(data).hexdigest(), len(data))


def stale(names: Iterable[str], info: WeightsInfo) -> list[str]:
    """Return which of these names are files of other weights, that nobody should take for these."""
    return sorted(name for name in names if _OURS.fullmatch(name) and name not in {file.file for file in info.files})
