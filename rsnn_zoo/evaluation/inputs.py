"""Labelled images in the forms in which users hold them, to what an evaluation attacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from rsnn_zoo.data.images import ImageData

__all__ = ["Data", "labelled"]

Data = ImageData | tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray] | Dataset[Any] | DataLoader[Any]
"""What :func:`rsnn_zoo.evaluate` takes."""

_WHOLE = "pass an ImageData, images and labels as two tensors or arrays, a Dataset of such pairs, or a DataLoader"


def labelled(data: Data) -> ImageData | tuple[Tensor, Tensor]:
    """The images and labels of ``data``, in the order of its data set: also of a loader that shuffles.

    Args:
        data: An :class:`ImageData`, images and labels as tensors or NumPy arrays, a map-style data set or one that is
            iterated, or a data loader. A part of an ``ImageData`` stays one, so its samples keep their index.

    Raises:
        TypeError: If it is something else, or its samples are no pairs of a tensor and a label.
        ValueError: If images differ in size, or there are none.

    Example:
        >>> images, labels = labelled((np.zeros((2, 1, 8, 8), np.float32), [3, 4]))
        >>> images.shape, labels
        (torch.Size([2, 1, 8, 8]), tensor([3, 4]))
    """
    if isinstance(data, DataLoader):
        data = _of_loader(data)
    if (known := _part(data)) is not None:
        return known
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = data
        return _tensor(images), _tensor(labels)
    if isinstance(data, DataLoader):  # which batches in a way of its own
        return _joined(data, data.dataset)
    if isinstance(data, Dataset):
        return _joined(_single_samples(data), data)
    raise TypeError(f"{_WHOLE}, not {type(data).__name__}")


def _part(data: Any) -> ImageData | None:
    """The ``ImageData`` that this is, or is a part of."""
    if isinstance(data, Subset):
        parent = _part(data.dataset)
        return None if parent is None else parent.select(list(data.indices))
    return data if isinstance(data, ImageData) else None


def _of_loader(loader: DataLoader[Any]) -> Any:
    """The data set of a loader that shows it whole, one by one; another loader itself."""
    known, batches = loader.dataset, loader.batch_sampler
    if isinstance(known, IterableDataset) or type(batches) not in (BatchSampler, type(None)):
        return loader
    sampler = loader.sampler if batches is None else batches.sampler
    if isinstance(sampler, SubsetRandomSampler):
        known = Subset(known, sorted(int(index) for index in sampler.indices))
    elif isinstance(sampler, WeightedRandomSampler) or (
        isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != len(known))
    ):
        raise ValueError("a loader that draws at random shows other images each time; pass its data set")
    elif not isinstance(sampler, SequentialSampler | RandomSampler):
        return loader
    if batches is not None and batches.drop_last and len(known) % batches.batch_size:
        if not isinstance(sampler, SequentialSampler):
            raise ValueError(
                "a loader that shuffles and drops the last shows other images each time; pass its data set"
            )
        return loader
    if batches is not None and loader.collate_fn is default_collate:
        return known
    return DataLoader(known, batch_size=batches and batches.batch_size, collate_fn=loader.collate_fn)


def _single_samples(data: Dataset[Any]) -> Iterable[Any]:
    samples = iter(data) if isinstance(data, IterableDataset) else (data[i] for i in range(len(data)))
    for sample in samples:
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise TypeError(f"samples must be pairs of an image and a label, not {_type_name(sample)}; {_WHOLE}")
        image, label = sample
        yield _tensor(image)[None], torch.as_tensor(label).reshape(1)


def _joined(batches: Iterable[Any], source: object) -> tuple[Tensor, Tensor]:
    """Join all batches, on the CPU."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batches must be pairs of images and labels, not {_type_name(batch)}; {_WHOLE}")
        image, label = _tensor(batch[0]).cpu(), batch[1]
        label = torch.tensor(int(label), device="cpu") if isinstance(label, Integral) else _tensor(label).cpu()
        alone = image.ndim == 3 and label.ndim == 0  # a loader that does not batch
        images.append(image[None] if alone else image)
        labels.append(label.reshape(1) if alone else label)
    if not images:
        raise ValueError(f"{type(source).__name__} holds no images")
    if len(shapes := {tuple(image.shape[1:]) for image in images}) > 1:
        raise ValueError(f"images differ in size, {', '.join(map(str, sorted(shapes)[:3]))}: resize them")
    return torch.cat(images), torch.cat(labels)


def _tensor(values: Any) -> Tensor:
    """Make a tensor of a tensor, an array, or numbers in a list."""
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise TypeError(f"images and labels must be dense and hold values, not {values.device} {values.layout}")
        return values
    if isinstance(values, np.ndarray) or (isinstance(values, Sequence) and not isinstance(values, str)):
        try:
            array = np.asarray(values)
            return torch.from_numpy(array.copy() if not array.flags.writeable else array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"images and labels must be tensors or arrays of numbers: {error}") from error
    raise TypeError(
        f"images and labels must be tensors or arrays, not {_type_name(values)}; of PIL images make tensors by "
        "transform=torchvision.transforms.ToTensor()"
    )


def _type_name(value: object) -> str:
    return type(value).__name__
