"""What a network is, as its config says it; refused where a config could not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rsnn_zoo._utils.files import ConfigError
from rsnn_zoo.hub.weights import check_state_dict
from rsnn_zoo.report.evidence import NETWORK
from rsnn_zoo.spec.config import ModelConfig

__all__ = ["check_state", "described"]


def described(model: Any, name: str, training: Mapping[str, Any] | None) -> ModelConfig:
    """Return the config of a network, without its weights.

    Raises:
        TypeError: If it is not a network of the zoo.
        ConfigError: If its neurons are not all the same.
    """
    origin = {key: value for key, value in getattr(model, "training_record", {}).items() if key in _ORIGIN}
    try:
        config = ModelConfig(
            architecture=model.architecture,
            num_classes=model.num_classes,
            num_features=model.num_features,
            in_chans=model.in_chans,
            img_size=model.img_size,
            timesteps=model.timesteps,
            mean=tuple(model.normalize.mean.flatten().tolist()),
            std=tuple(model.normalize.std.flatten().tolist()),
            reset=model.reset,
            leak=model.leak,
            initial=model.initial,
            surrogate=model.surrogate,
            hidden_features=getattr(model, "hidden_features", None),
            channel_sums=getattr(model, "channel_sums", False),
            scaled=model.scaled,
            first_conv=model.default_cfg["first_conv"],
            classifier=model.default_cfg["classifier"],
            name=name,
            training={**origin, **(training or {})},
        )
    except AttributeError as error:
        raise TypeError(
            f"Only networks of the zoo can be saved as entries: {error}; convert one that create_model "
            "makes, for which rsnn_zoo.register_architecture takes architectures of yours"
        ) from None
    if config.timesteps:
        _check_neurons(model)
    return config


def check_state(model: Any, config: ModelConfig) -> None:
    """Refuse weights that the network of this config would not take: folded, pruned or parametrised ones."""
    from rsnn_zoo.hub.registry import build  # which imports torch and all networks

    check_state_dict(model.state_dict(), build(config).state_dict(), f"What is to be saved as {config.name}")


_ORIGIN = ("ann", "ann_sha256")
"""What holds of a converted network whatever was done to it since."""


def _check_neurons(model: Any) -> None:
    """Refuse neurons that are not what the config will say of them all."""
    said = replace(model.spiking, scaled=False).activation()
    for layer, neuron in model.neurons():
        for key in (*NETWORK, "surrogate"):
            if (found := getattr(neuron, key)) != (value := getattr(said, key)):
                raise ConfigError(
                    f"{layer}.{key} is {found}, and of the network it is {value}, which is all that a config can say: "
                    "build it with create_model or convert, and load the weights into that"
                )
