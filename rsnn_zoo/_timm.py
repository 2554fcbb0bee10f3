"""Our architectures in timm's registry, as ``rsnn_NAME``, as soon as timm is imported, and not before.

Importing timm takes seconds, and most who import this package never need it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wrapt

from rsnn_zoo.spec.names import architectures
from rsnn_zoo.spec.timm_cfg import pretrained_cfg

__all__ = ["register_with_timm"]  # and, through timm, one entry point an architecture


def _keep_normalisation(state: dict[str, Any], model: Any) -> dict[str, Any]:
    """Mean and std that were asked for in place of the weights' own stay."""
    for key, own in model.normalize.state_dict(prefix="normalize.").items():
        if key in state and state[key].shape == own.shape and not (state[key] == own.to(state[key].dtype)).all():
            state[key] = own
    return state


_PLACE = ("source", "file", "hf_hub_id")


def _of_shards(source: dict[str, Any], cache_dir: Any) -> dict[str, Any] | None:
    """The verified weights of an entry that has them in shards, which timm cannot read; None for any other."""
    from rsnn_zoo.hub.resolve import resolve

    names = {"local-dir": f"local-dir:{source.get('file')}", "hf-hub": f"hf-hub:{source.get('hf_hub_id')}"}
    try:
        entry = resolve(names[source.get("source", "")], cache_dir=cache_dir)
    except (KeyError, OSError, ValueError):  # timm's own, or somebody else's: timm says what is wrong with it
        return None
    return entry.load_weights() if entry.config.weights and entry.config.weights.shards else None


def _entry_point(architecture: str) -> Callable[..., Any]:
    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        from timm.models import build_model_with_cfg

        from rsnn_zoo import models

        source = kwargs.get("pretrained_cfg")
        state = _of_shards(source, kwargs.get("cache_dir")) if pretrained and isinstance(source, dict) else None
        if state is not None:
            kwargs["pretrained_cfg"] = {**source, "source": "", "file": None, "hf_hub_id": None, "state_dict": state}
        model = build_model_with_cfg(
            models.ARCHITECTURES[architecture],
            f"rsnn_{architecture}",
            pretrained,
            feature_cfg={"feature_cls": "getter", "out_indices": None},  # all there are
            pretrained_filter_fn=_keep_normalisation,
            **kwargs,
        )
        if state is not None:
            model.pretrained_cfg.pop("state_dict", None)
            model.pretrained_cfg.update({key: source[key] for key in _PLACE if key in source})
        return model

    build.__name__ = build.__qualname__ = f"rsnn_{architecture}"
    build.__doc__ = f"{architecture} of rsnn_zoo: an ANN, or with ``timesteps=T`` an SNN."
    return build


def _register(_: Any) -> None:
    from timm.models import register_model

    for architecture in architectures():
        register_model(_entry_point(architecture))


# timm looks for this table beside an entry point.
default_cfgs = {
    f"rsnn_{architecture}": pretrained_cfg(
        *(10, 3, 32), *(("features.0", "head") if architecture.startswith("vgg") else ("conv1", "fc"))
    )
    for architecture in architectures()
}


def register_with_timm() -> None:
    """Registers now if timm is imported already, else when it is."""
    wrapt.register_post_import_hook(_register, "timm.models")
