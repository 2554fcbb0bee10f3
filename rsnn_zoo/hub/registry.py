"""Models by name: build any of the grid, load any that is published."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rsnn_zoo.hub.catalog import is_model, list_models
from rsnn_zoo.hub.resolve import Entry, held, resolve
from rsnn_zoo.hub.weights import check_state_dict
from rsnn_zoo.models import ARCHITECTURES, ForeignNetwork, Network
from rsnn_zoo.models.layers import Normalize
from rsnn_zoo.spec.config import ModelConfig
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import ModelName, add_architecture

__all__ = ["build", "create_model", "is_model", "list_models", "register_architecture"]


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
    **kwargs: Any,
) -> Network:
    """A network of the zoo by name, in evaluation mode.

    Args:
        name: ``"{architecture}_{dataset}_{objective}_t{T}"`` or ``..._ann``, with an optional ``.tag``; with
            ``pretrained`` also ``"hf-hub:org/name"``, ``"hf-hub:org/name@revision"`` or ``"local-dir:path"``.
        pretrained: Load the published weights, verified by their SHA-256; else the weights are random.
        revision: Tag, branch or commit on the Hub, instead of the pinned one.
        cache_dir: Download cache, instead of the one of ``huggingface_hub``.
        local_files_only: Never touch the network.
        endpoint: Address of the Hub or of a mirror, instead of ``HF_ENDPOINT``.
        **kwargs: Arguments of the network in place of those that the name implies (``num_classes``, ``threshold``,
            ``leak``, ``reset``, ``initial``, ``surrogate``, ``device``, ``dtype``, ...). With ``pretrained``, another
            ``num_classes`` gives a new classifier, and ``mean`` and ``std`` replace those of the weights. With
            ``features_only=True`` (and ``out_indices``) timm's wrapper is returned, which gives feature maps.

    Returns:
        The network: images (B, C, H, W) in [0, 1] to logits (B, K). A loaded one carries ``pretrained_name`` and
        ``weights_sha256``, unless its classifier or its normalisation was replaced.

    Raises:
        UnknownNameError: If a part of the name is unknown; names the near matches.
        NotPublishedError: With ``pretrained``, if nobody published that name.
        ConfigError: If a config cannot be used.
        WeightsError: If the weights are damaged, or not those of this network.
        HubError: If the Hub or the cache cannot give a file.
        TypeError: For an argument that the network does not take.
        ValueError: For a value out of range, if a source other than the zoo is named without ``pretrained``, or for
            ``threshold`` with ``pretrained``, since the weights hold the thresholds.

    Example:
        >>> model = create_model("resnet20_digits_trades_t4", pretrained=True)  # doctest: +SKIP
        >>> model(torch.rand(2, 1, 8, 8)).shape  # doctest: +SKIP
        torch.Size([2, 10])
    """
    features_only, out_indices = kwargs.pop("features_only", False), kwargs.pop("out_indices", None)
    if out_indices is not None and not features_only:
        raise ValueError("out_indices says which feature maps: pass features_only=True with it")
    if pretrained:
        network = _load(name, kwargs, revision, cache_dir, local_files_only, endpoint)
    else:
        network = _random(name, kwargs)
    return _features_of(network, out_indices) if features_only else network


def _features_of(network: Network, out_indices: Any) -> Any:
    from timm.models._features import FeatureGetterNet  # takes seconds

    return FeatureGetterNet(network, out_indices=out_indices).eval()


def _random(name: str, kwargs: dict[str, Any]) -> Network:
    if ":" in name:
        raise ValueError(f"{name!r} names weights that are published elsewhere: pass pretrained=True")
    parts = ModelName.parse(name)
    info = DATASETS[parts.dataset]
    implied: dict[str, Any] = {
        "num_classes": info.num_classes,
        "in_chans": info.in_chans,
        "img_size": info.img_size,
        "timesteps": parts.timesteps,
        "mean": info.mean,
        "std": info.std,
    }
    return ARCHITECTURES[parts.architecture](**implied | kwargs).eval()


class _NoInitialisation(TorchFunctionMode):
    """Draws no weights, since loaded ones replace them at once; on the meta device drawing costs seconds of imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__ or func in (Tensor.uniform_, Tensor.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build(config: ModelConfig, **kwargs: Any) -> Network:
    """The network that a config describes, with weights that are to be replaced, on the meta device if that can be.

    Args:
        config: Of an entry.
        **kwargs: Arguments of the network in place of those of the config.
    """
    arguments = {"num_classes": config.num_classes, **config.model_args, **kwargs}
    builder = ARCHITECTURES[config.architecture]
    if getattr(builder, "func", None) is ForeignNetwork:  # may hold tensors that no state dict has
        with torch.random.fork_rng(devices=[]):
            network = builder(**arguments)
    else:
        with torch.device("meta"), _NoInitialisation():
            network = builder(**arguments)
    dtype = getattr(torch, config.weights.dtype) if config.weights else None
    if dtype and any(one.dtype != dtype for one in network.parameters()):
        network.to(dtype)
    return network


def _load(name: str, kwargs: dict[str, Any], *where: Any) -> Network:
    if kwargs.get("threshold") is not None:
        raise ValueError(
            "the published weights hold the threshold of every layer, so threshold=... would say nothing: set them "
            "after loading, as `for _, neuron in model.neurons(): neuron.threshold.data.fill_(...)`"
        )
    with held(name):
        return load_entry(resolve(name, *where), name, **kwargs)


def load_entry(entry: Entry, name: str, **kwargs: Any) -> Network:
    """The network of an entry that was found.

    Args:
        entry: As :func:`rsnn_zoo.hub.resolve.resolve` gives it.
        name: What it is called where its config does not say.
        **kwargs: Arguments of the network in place of those of the config.

    Raises:
        WeightsError: If the weights are damaged, or not those of this network.
        OSError: If they cannot be had.
    """
    config = entry.config
    own = {key: kwargs[key] for key in ("mean", "std") if kwargs.get(key) is not None}
    place = {key: kwargs[key] for key in ("device", "dtype") if kwargs.get(key) is not None}
    classes = kwargs.get("num_classes", config.num_classes)
    new_head = classes != config.num_classes
    apart = ("device", "dtype", "num_classes", *(["global_pool"] if new_head else []))
    network = build(config, **{key: value for key, value in kwargs.items() if key not in apart})
    state, form = entry.load()
    check_state_dict(state, network.state_dict(), str(entry.weights_path))
    # The loaded tensors are views of one buffer; torch.save cannot write one storage under two dtypes.
    state = {key: tensor if tensor.is_floating_point() else tensor.clone() for key, tensor in state.items()}
    network.load_state_dict(state, strict=True, assign=True)
    network.pretrained_name, network.weights_sha256 = config.name or name, entry.sha256
    network.training_record, network.stored_as = config.training, form
    changed = _renormalise(network, own)
    if new_head:
        network.reset_classifier(classes, kwargs.get("global_pool"))
    if changed or new_head:
        network.pretrained_name, network.weights_sha256, network.training_record = None, None, {}
        network.stored_as = None
    return (network.to(**place) if place else network).eval()


def _renormalise(network: Network, own: dict[str, tuple[float, ...]]) -> bool:
    """Mean and std that were asked for in place of those of the weights; returns whether that changes anything."""
    wanted = Normalize(own.get("mean"), own.get("std"), network.in_chans)
    changed = False
    for key in own:
        value, loaded = getattr(wanted, key).to(network.normalize.mean.dtype), getattr(network.normalize, key)
        changed |= not torch.equal(value, loaded)
        setattr(network.normalize, key, value)
    return changed


Builder = Callable[..., nn.Module]


def _is_anew(build: Builder, before: Builder) -> bool:
    """Whether it is the same definition, run again, as the cell of a notebook is."""
    first, second = ((function.__module__, getattr(function, "__qualname__", "<")) for function in (build, before))
    return first == second and "<lambda>" not in first[1]


def register_architecture(name: str) -> Callable[[Builder], Builder]:
    """Decorator that makes a network from elsewhere an architecture: its names can be trained, converted, published.

    What it builds takes images that are normalised by the data set's mean and standard deviation; its activations are
    ReLU modules, for which an SNN has neurons. It stays registered for this process: entries of it can be loaded where
    it is registered too. The same definition may be run again, as in a notebook, and then replaces the one before.

    Args:
        name: Lower-case letters and digits, in parts joined by single underscores.

    Raises:
        ValueError: If the name is malformed or taken.

    Example:
        >>> @register_architecture("resnet18")  # doctest: +SKIP
        ... def resnet18(num_classes, in_chans):
        ...     return timm.create_model("resnet18", num_classes=num_classes, in_chans=in_chans)
        >>> create_model("resnet18_cifar10_at_t4").timesteps  # doctest: +SKIP
        4
    """
    _, *registered = getattr(ARCHITECTURES.get(name), "args", (name,))
    if not registered:
        add_architecture(name)

    def register(build: Builder) -> Builder:
        if registered and not _is_anew(build, registered[0]):
            add_architecture(name)  # which says that it is taken
        ARCHITECTURES[name] = partial(ForeignNetwork, name, build)
        return build

    return register
