"""Save a network as an entry, and write evidence and card of one.

An entry is a folder that is its Hub repository, file by file: ``config.json``, ``model.safetensors`` or its index and
shards, ``README.md`` (the generated card) and ``evaluation.json`` (the evidence).
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.files import ConfigError, parse_json, to_json
from rsnn_zoo._utils.folders import commit, current
from rsnn_zoo.hub.describe import check_state, described
from rsnn_zoo.hub.shards import SHARD_BYTES, packed, stale
from rsnn_zoo.report.card import model_card
from rsnn_zoo.report.evidence import EvidenceError, check_evidence, load_evidence, parse_time
from rsnn_zoo.spec.config import CARD, CONFIG, EVIDENCE, ModelConfig, WeightsInfo, load_config, parse_config
from rsnn_zoo.spec.schema import REMEDY

__all__ = ["check_saveable", "save_evidence", "save_pretrained", "update_card"]


def check_saveable(model: Any, name: str) -> None:
    """Find out whether a network can be saved as an entry, before hours are spent on its training.

    Raises:
        TypeError, ConfigError, WeightsError: As :func:`save_pretrained`.
    """
    model = getattr(model, "_orig_mod", model)
    config = replace(described(model, name, None), weights=packed(model)[1])
    check_state(model, _checked_config(config))


def save_pretrained(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    name: str,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ModelConfig:
    """Write a network as an entry: weights, config, card, and the evidence if there is any.

    One rename commits all files: killed at any moment, the folder holds the old entry or the new one.

    Args:
        model: A network of the zoo.
        folder: Where to; made if absent.
        name: The entry's name: one of the grid, or a name of your own for your own organisation.
        training: How the weights came to be (recipe, seed, versions, hardware), as JSON.
        evaluation: The evidence, as JSON; ``evaluation.json`` of the folder counts if it is of the same weights.
        dtype: ``"bfloat16"`` stores the large tensors of a float32 network in half the bytes and rounds them, so
            evaluate what is loaded from there. By default nothing is rounded, and what was loaded, and not changed
            since, is stored as it was.
        shard_bytes: Weights of more bytes are written in shards of at most so many, beside an index of them.

    Returns:
        The config that was written.

    Raises:
        TypeError: If it is not a network of the zoo.
        ConfigError: If its neurons are not all the same, or the network or ``training`` cannot be described within the
            bounds of ``config.json``.
        WeightsError: If the weights cannot be saved, or are not those of the network that the config describes.
        EvidenceError: If ``evaluation`` is not of these weights.
        OSError: If the files cannot be written.

    Example:
        >>> save_pretrained(model, "my_snn", name="resnet20_cifar10_at_t4", training={"seed": 0})  # doctest: +SKIP
    """
    folder, model = Path(folder), getattr(model, "_orig_mod", model)  # what is inside of torch.compile
    config = described(model, name, training)
    data, weights = packed(model, dtype, shard_bytes)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    evaluated = (evaluation or {}).get("created", now)  # weights that were evaluated were there before

    def complete() -> ModelConfig:
        before = _saved_before(folder, weights)
        created = before.created if before else min(now, evaluated, key=parse_time)
        whole = replace(config, weights=weights, created=created, revision=before.revision if before else None)
        return _checked_config(whole)

    def files() -> dict[str, bytes | None]:
        written.append(done := complete())
        if evaluation is not None:
            check_evidence(done, evaluation)
        evidence = _fitting_evidence(folder, done) if evaluation is None else evaluation
        own = {} if evaluation is None else {EVIDENCE: to_json(evaluation)}
        others = dict.fromkeys(stale(os.listdir(folder), weights))
        return {**own, **others, **data, CARD: model_card(done, evidence).encode(), CONFIG: to_json(done.to_json())}

    written: list[ModelConfig] = []
    check_state(model, complete())
    commit(folder, files)
    return written[0]


def _checked_config(config: ModelConfig) -> ModelConfig:
    """The config as it will be read."""
    source = f"the config of {config.name}"
    try:
        return parse_config(parse_json(to_json(config.to_json()), source), source)
    except ConfigError as error:  # nobody can fetch what is not saved yet
        cause = str(error).removesuffix(REMEDY)
        raise ConfigError(f"{cause}; change the network, its training record or its name before it is saved") from error


def update_card(folder: str | os.PathLike[str]) -> None:
    """Write ``README.md`` of an entry anew, from its config and its evidence."""
    folder = Path(folder)
    load_config(current(folder, CONFIG))  # or a folder would be made where there is none

    def files() -> dict[str, bytes]:
        config = load_config(folder / CONFIG)
        return {CARD: model_card(config, _fitting_evidence(folder, config)).encode()}

    commit(folder, files)


def save_evidence(folder: str | os.PathLike[str], evidence: Mapping[str, Any]) -> None:
    """Write ``evaluation.json`` of an entry and the card that is made of it, both or none.

    Evidence that is of other weights is written too, and the card then says that there is none.

    Raises:
        FileNotFoundError, ConfigError: If there is no usable config.
        OSError: If the files cannot be written.
    """
    folder = Path(folder)
    load_config(current(folder, CONFIG))

    def files() -> dict[str, bytes]:
        config = load_config(folder / CONFIG)
        try:
            check_evidence(config, evidence)
        except (ConfigError, EvidenceError):
            return {EVIDENCE: to_json(evidence), CARD: model_card(config).encode()}
        return {EVIDENCE: to_json(evidence), CARD: model_card(config, evidence).encode()}

    commit(folder, files)


def _fitting_evidence(folder: Path, config: ModelConfig) -> Any:
    try:
        return load_evidence(folder / EVIDENCE, config)
    except (FileNotFoundError, ConfigError, EvidenceError):
        return None


def _saved_before(folder: Path, weights: WeightsInfo) -> ModelConfig | None:
    """The config of these same weights, if any: to save them again does not make their evidence old."""
    try:
        before = load_config(folder / CONFIG)
    except (FileNotFoundError, ConfigError):
        return None
    return before if before.weights == weights else None
