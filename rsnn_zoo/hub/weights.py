"""Weights files: safetensors only, read once, and verified before any tensor is used.

``load_weights`` maps the file once, hashes that mapping, and hands out tensors that are views of it: what was verified
is what is used, even where another file takes its name meanwhile, and the bytes are in memory once. The header is
checked here because the safetensors library would open the file a second time, or copy every tensor.

Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import math
import mmap
import os
from collections.abc import Iterator, Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from rsnn_zoo._utils.files import MAX_JSON_BYTES, ConfigError, parse_json
from rsnn_zoo.spec.config import WeightsInfo

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_MAX_DIMS = 8
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
        The tensors by name, on the CPU: views of the mapped file, as those of safetensors' own ``load_file``. The
        mapping is private: changing a tensor leaves the file alone.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If size, checksum or header are wrong; names the file and what to do.
    """
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length < 8 or (size is not None and length != size):
            raise _refused(path, f"has {length:,} bytes, not {size or 'a header'}")
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)
    if (found := hashlib.sha256(mapped).hexdigest()) != sha256:
        raise _refused(path, f"has SHA-256 {found}, not {sha256}")
    buffer = torch.frombuffer(mapped, dtype=torch.uint8)
    try:
        return dict(_tensors(buffer, str(path)))
    except (ConfigError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(path, f"is not a safetensors file of ours: {error}") from error


def serialize(model: nn.Module, file: str) -> tuple[bytes, WeightsInfo]:
    """Return a network's state dict as safetensors bytes, and the record by which a ``file`` of them is verified.

    Raises:
        WeightsError: If two tensors share memory or a dtype is not one that ``load_weights`` reads.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if odd := {key: value.dtype for key, value in tensors.items() if value.dtype not in _DTYPES.values()}:
        raise WeightsError(f"Cannot save {odd}: convert to one of {', '.join(map(str, _DTYPES.values()))}")
    try:
        data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    except RuntimeError as error:
        raise WeightsError(f"Cannot save the network: {' '.join(str(error).split())}") from error
    parameters = list(model.parameters())
    return data, WeightsInfo(
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        num_parameters=sum(parameter.numel() for parameter in parameters),
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


def _tensors(buffer: Tensor, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield views of the buffer, once the header is seen to tile it exactly."""
    raw = buffer.numpy().data
    start = 8 + int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise ValueError("the header claims more bytes than there are")
    header = parse_json(bytes(raw[8 : min(start, 9 + MAX_JSON_BYTES)]), f"the header of {source}")
    header.pop("__metadata__", None)
    end = start
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, dtype = entry["shape"], _DTYPES[entry["dtype"]]
        if len(shape) > _MAX_DIMS or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"{name!r} has shape {str(shape)[:100]}")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [begin - start, end - start]:
            raise ValueError(f"the bytes of {name!r} do not follow those of the tensor before it")
        if end > len(raw):
            raise ValueError(f"{name!r} reaches beyond the end")
        # .data: as plain views all would share one version counter, and a batch norm's update would spoil the gradients
        yield name, buffer[begin:end].view(dtype).view(shape).data
    if end != len(raw):
        raise ValueError("bytes are left over after the last tensor")


def _refused(path: str | os.PathLike[str], cause: str) -> WeightsError:
    # A snapshot in the Hub's cache is a link: removing only the link would bring the same bytes back.
    return WeightsError(f"Weights file {os.path.realpath(path)} {cause}. {_REMEDY}")


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
