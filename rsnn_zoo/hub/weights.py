"""Weights files: safetensors only, read once, and verified before any tensor is used.

``load_weights`` reads the file once into memory of its own, hashes it there, and hands out tensors that are views of
that: what was verified is what is used, whatever becomes of the file, and the bytes are in memory once. The header is
checked here because the safetensors library would open the file a second time, or copy every tensor.

Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from rsnn_zoo._utils.files import MAX_JSON_BYTES, ConfigError, open_regular, parse_json
from rsnn_zoo.spec.config import MAX_WEIGHTS_BYTES, FileInfo, WeightsInfo

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_OTHER_DTYPES = {"U8": torch.uint8, "BOOL": torch.bool}  # no weights, but of other files of tensors
_MAX_DIMS = 8
_LARGE = 2**23  # bytes from which whole large pages are filled
_PIECE = 2**20  # bytes that are hashed while they are still in the cache
_REMEDY = (
    "Delete it and get it again: a file of the download cache is downloaded anew when the model is next loaded, "
    "one of hub_configs/ comes back with `git restore` or by reinstalling rsnn_zoo"
)


class WeightsError(ValueError):
    """A weights file that is not what its config promises, or does not fit the network."""


def load_weights(path: str | os.PathLike[str], sha256: str, size: int | None = None) -> dict[str, Tensor]:
    """Read a safetensors file and verify it.

    Args:
        path: The file.
        sha256: What the file must hash to, as hexadecimal digits; checked over the very bytes that the tensors are of.
        size: How many bytes it must have, if known; a truncated file is then told from a changed one.

    Returns:
        The tensors by name, on the CPU: views of one buffer, which nothing else refers to.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        WeightsError: If size, checksum or header are wrong; names the file and what to do.
    """
    buffer = read_verified(path, sha256, size)
    try:
        return _parsed_tensors(buffer, str(path), _DTYPES)[0]
    except _UNREADABLE as error:
        raise _refused(path, f"is not a safetensors file of ours: {error}") from error


def verified_bytes(path: str | os.PathLike[str], sha256: str, size: int | None = None) -> bytes:
    """Return the bytes of a safetensors file that :func:`load_weights` would read, once it has.

    Raises:
        FileNotFoundError, OSError, WeightsError: As of :func:`load_weights`.
    """
    buffer = read_verified(path, sha256, size)
    try:
        _parsed_tensors(buffer, str(path), _DTYPES)
    except _UNREADABLE as error:
        raise _refused(path, f"is not a safetensors file of ours: {error}") from error
    return buffer.numpy().tobytes()


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read any safetensors file of up to 4 GiB into memory of our own.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        WeightsError: If it is no safetensors file, or damaged.
    """
    try:
        tensors, about = _parsed_tensors(read_verified(path), str(path), _DTYPES | _OTHER_DTYPES)
    except _UNREADABLE as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error
    return {key: one.view(torch.uint8) != 0 if one.dtype == torch.bool else one for key, one in tensors.items()}, about


_UNREADABLE = (ConfigError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def read_verified(path: str | os.PathLike[str], sha256: str | None = None, size: int | None = None) -> Tensor:
    """Return the bytes of a file of at most 4 GiB; if a checksum or a size is given, they have it.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
        WeightsError: If size or checksum are others; names the file and what to do.
    """
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        if not 8 <= length <= MAX_WEIGHTS_BYTES or (size is not None and length != size):
            raise _refused(path, f"has {length:,} bytes, not {size or 'a header'}")
        buffer = memory(length)
        found = _read_into(file, buffer)
    if sha256 is not None and found != sha256:
        raise _refused(path, f"has SHA-256 {found}, not {sha256}")
    return buffer


def memory(length: int) -> Tensor:
    """Return so many bytes of new memory, in pages of 2 MiB where there are such.

    To map small pages takes as long as to hash them.
    """
    if length < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(length, dtype=torch.uint8)
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _read_into(file: BinaryIO, buffer: Tensor) -> str:
    """Fill the buffer; return the SHA-256 of what came, be it less."""
    digest, left = hashlib.sha256(), buffer.numpy().data
    while taken := file.readinto(left[:_PIECE]):  # type: ignore[attr-defined]
        digest.update(left[:taken])
        left = left[taken:]
    return digest.hexdigest()


def serialize(model: nn.Module, file: str) -> tuple[bytes, WeightsInfo]:
    """Return a network's state dict as safetensors bytes, and the record by which a ``file`` of them is verified.

    Raises:
        WeightsError: If two tensors share memory or a dtype is not one that ``load_weights`` reads.
    """
    data = to_bytes(saveable(model))
    return data, info_of(model, FileInfo(file, hashlib.sha256(data).hexdigest(), len(data)))


def saveable(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict on the CPU.

    Raises:
        WeightsError: If a dtype is not one that ``load_weights`` reads.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if odd := {key: value.dtype for key, value in tensors.items() if value.dtype not in _DTYPES.values()}:
        raise WeightsError(f"Cannot save {odd}: convert to one of {', '.join(map(str, _DTYPES.values()))}")
    return tensors


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Return the content of a safetensors file.

    Raises:
        WeightsError: If two tensors share memory.
    """
    try:
        return safetensors.torch.save(tensors, metadata={"format": "pt"})
    except RuntimeError as error:
        raise WeightsError(f"Cannot save the network: {' '.join(str(error).split())}") from error


def info_of(model: nn.Module, file: FileInfo, **how: Any) -> WeightsInfo:
    """Return the record of a network's weights that are in this file, or in the shards that it names.

    Args:
        model: The network.
        file: The one file, or the index.
        **how: ``stored`` and ``shards``, as of :class:`rsnn_zoo.spec.config.WeightsInfo`.
    """
    parameters = list(model.parameters())
    return WeightsInfo(
        file.file,
        file.sha256,
        file.size,
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        **how,
    )


def check_state_dict(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str = "The state dict"
) -> None:
    """Compare names, shapes and dtypes of the tensors at hand with those of the network.

    Args:
        found: The loaded tensors.
        expected: ``model.state_dict()``; tensors on the meta device do.
        source: Where ``found`` came from, for the message.

    Raises:
        WeightsError: If anything differs; lists missing and unexpected tensors, wrong shapes and wrong dtypes.
    """
    both = [key for key in expected if key in found]
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "wrong shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in both
            if found[key].shape != expected[key].shape
        ],
        "wrong dtype": [
            f"{key} {found[key].dtype} instead of {expected[key].dtype}"
            for key in both
            if found[key].dtype != expected[key].dtype
        ],
    }
    listed = "; ".join(f"{fault}: {_some(items)}" for fault, items in faults.items() if items)
    if listed:
        raise WeightsError(
            f"{source} does not fit the network. {listed}. Are they of another architecture, or of other classes? "
            "(For other classes, load them as they are and call model.reset_classifier.)"
        )


def _parsed_tensors(
    buffer: Tensor, source: str, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Views of the buffer, once the header is seen to tile it exactly; and the metadata."""
    raw = buffer.numpy().data
    start = 8 + int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise ValueError("the header claims more bytes than there are")
    header = parse_json(bytes(raw[8 : min(start, 9 + MAX_JSON_BYTES)]), f"the header of {source}")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its metadata are no texts")
    return dict(_tensors(buffer, header, start, dtypes)), about


def _tensors(
    buffer: Tensor, header: Mapping[str, Any], start: int, dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    end, length = start, len(buffer)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, dtype = entry["shape"], dtypes[entry["dtype"]]
        if len(shape) > _MAX_DIMS or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"{name!r} has shape {str(shape)[:100]}")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [begin - start, end - start]:
            raise ValueError(f"the bytes of {name!r} do not follow those of the tensor before it")
        if end > length:
            raise ValueError(f"{name!r} reaches beyond the end")
        # .data: as plain views all would share one version counter, and a batch norm's update would spoil the gradients
        yield name, buffer[begin:end].view(dtype).view(shape).data
    if end != length:
        raise ValueError("bytes are left over after the last tensor")


def _refused(path: str | os.PathLike[str], cause: str) -> WeightsError:
    # A snapshot in the Hub's cache is a link: removing only the link would bring the same bytes back.
    return WeightsError(f"Weights file {os.path.realpath(path)} {cause}. {_REMEDY}")


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
