"""Save a network as an entry, and push entries to the Hub.

An entry is a folder that is its Hub repository, file by file: ``config.json``, ``model.safetensors``, ``README.md``
(the generated card) and ``evaluation.json`` (the evidence). Nothing else is ever uploaded, a pickle least of all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from rsnn_zoo._utils.files import ConfigError, load_json, parse_json, read_bounded, to_json
from rsnn_zoo._utils.folders import commit, current, locked
from rsnn_zoo.hub.describe import check_state, described
from rsnn_zoo.hub.resolve import (
    CARD,
    CONFIG,
    EVIDENCE,
    ORG,
    WEIGHTS,
    HubError,
    default_org,
    entries_folder,
    entry_folder,
    explained,
    published_names,
    within,
)
from rsnn_zoo.hub.weights import serialize, verified_bytes
from rsnn_zoo.report.card import model_card
from rsnn_zoo.report.evidence import (
    MAX_EVIDENCE_BYTES,
    EvidenceError,
    check_evidence,
    load_evidence,
    parse_time,
)
from rsnn_zoo.spec.config import ModelConfig, WeightsInfo, load_config, parse_config

_PATIENCE = 30.0  # seconds for the first answer to a push, which has no other deadline


@dataclass(frozen=True)
class Push:
    """What a push did, or would do.

    Attributes:
        repo: ``"org/name"``.
        folder: Where the files are from.
        files: Size in bytes of each file.
        commit: The commit on the Hub that holds the files; None for a dry run.
        changed: Whether that commit is new.
    """

    repo: str
    folder: str
    files: dict[str, int]
    commit: str | None = None
    changed: bool = False


def check_saveable(model: Any, name: str) -> None:
    """Find out whether a network can be saved as an entry, before hours are spent on its training.

    Raises:
        TypeError, ConfigError, WeightsError: As :func:`save_pretrained`.
    """
    model = getattr(model, "_orig_mod", model)
    config = replace(described(model, name, None), weights=serialize(model, WEIGHTS)[1])
    check_state(model, _checked_config(config))


def save_pretrained(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    name: str,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Write a network as an entry: weights, config, card, and the evidence if there is any.

    One rename commits all files: killed at any moment, the folder holds the old entry or the new one.

    Args:
        model: A network of the zoo.
        folder: Where to; made if absent.
        name: The entry's name: one of the grid, or a name of your own for your own organisation.
        training: How the weights came to be (recipe, seed, versions, hardware), as JSON.
        evaluation: The evidence, as JSON; ``evaluation.json`` of the folder counts if it is of the same weights.

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
    data, weights = serialize(model, WEIGHTS)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    evaluated = (evaluation or {}).get("created", now)  # weights that were evaluated were there before

    def complete() -> ModelConfig:
        before = _saved_before(folder, weights)
        created = before.created if before else min(now, evaluated, key=parse_time)
        whole = replace(config, weights=weights, created=created, revision=before.revision if before else None)
        return _checked_config(whole)

    def files() -> dict[str, bytes]:
        written.append(done := complete())
        if evaluation is not None:
            check_evidence(done, evaluation)
        evidence = _fitting_evidence(folder, done) if evaluation is None else evaluation
        own = {} if evaluation is None else {EVIDENCE: to_json(evaluation)}
        return {**own, WEIGHTS: data, CARD: model_card(done, evidence).encode(), CONFIG: to_json(done.to_json())}

    written: list[ModelConfig] = []
    check_state(model, complete())
    commit(folder, files)
    return written[0]


def _checked_config(config: ModelConfig) -> ModelConfig:
    """The config as it will be read."""
    source = f"the config of {config.name}"
    return parse_config(parse_json(to_json(config.to_json()), source), source)


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


def push_to_hub(
    name_or_folder: str | os.PathLike[str],
    *,
    org: str | None = None,
    token: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    tag: str | None = None,
    endpoint: str | None = None,
) -> Push:
    """Upload an entry to the Hub; what is there already is not uploaded again.

    Args:
        name_or_folder: Name of a published entry, or a folder that ``save_pretrained`` wrote.
        org: User or organisation, instead of ``RSNN_ZOO_ORG`` or ``rsnn-zoo``.
        token: Access token, instead of ``HF_TOKEN`` or the one of ``hf auth login``.
        private: Make the repository private; refused where a public one is there already.
        dry_run: Check everything that can be checked here, upload and write nothing.
        tag: Release to mark the uploaded commit with; the config is made to pin it, in the folder too, but not where an
            entry of the package goes to another organisation. None keeps the pinned one.
        endpoint: Address of the Hub, instead of ``HF_ENDPOINT``.

    Raises:
        UnknownNameError: If it is neither a folder with a config nor a name of the grid.
        NotPublishedError: If there is no entry of that name.
        ConfigError: If a file of the entry is unusable.
        WeightsError: If the weights are not those of the config.
        EvidenceError: If the evidence is missing, older than the weights, or made with other weights.
        FileNotFoundError: If the folder lacks a file.
        HubError: If the Hub refuses or cannot be reached, or ``tag`` marks other weights there.
        ValueError: If the Hub allows no such repository name, or both a folder and a published entry are called so.

    Example:
        >>> push_to_hub("my_snn", org="me", dry_run=True).files  # doctest: +SKIP
        {'config.json': 1319, 'README.md': 2911, 'model.safetensors': 1094140, 'evaluation.json': 5120}
    """
    folder = _folder_of(name_or_folder)
    with locked(folder, shared=True):
        config, weights, content, evidence, kept = _checked(folder, tag)
    repo = f"{org or default_org()}/{config.name}"
    packaged = entries_folder() in folder.resolve().parents
    by_name = packaged and (org or default_org()) == ORG  # then everybody loads it by its name alone
    files = {
        CONFIG: to_json(content),
        CARD: model_card(config, evidence, None if by_name else repo).encode(),
        **kept,
    }
    sizes = {name: len(data) for name, data in files.items()}
    if dry_run:
        return Push(repo, str(folder), sizes)

    api = HfApi(endpoint=endpoint, token=token)
    with explained(repo):
        within(_PATIENCE, lambda: api.create_repo(repo, private=private, exist_ok=True))
        before = api.model_info(repo)
        if private and not before.private:
            raise HubError("it is there already and public; make it private in its settings first")
        released = config.revision in {ref.name for ref in api.list_repo_refs(repo).tags}
        if released:
            there = load_config(api.hf_hub_download(repo, CONFIG, revision=config.revision)).weights
            if there is None or there.sha256 != weights.sha256:
                raise HubError(f"tag {config.revision} marks other weights there; choose a new tag")
        operations = [CommitOperationAdd(name, data) for name, data in files.items()]
        made = api.create_commit(repo, operations, commit_message=f"Publish {config.name}").oid
        if config.revision and not released:
            api.create_tag(repo, tag=config.revision, revision=made)
    if org in (None, default_org()) or not packaged:  # else it is the zoo's own copy
        written = {name: files[name] for name in (CARD, CONFIG)}
        commit(folder, lambda: written if load_config(folder / CONFIG).weights == weights else {})
    return Push(repo, str(folder), sizes, made, changed=made != before.sha)


def _folder_of(name_or_folder: str | os.PathLike[str]) -> Path:
    """The folder that is meant: a path, or the name of a published entry, where that is not a path as well."""
    given = os.fspath(name_or_folder)
    folder = Path(given)
    if isinstance(name_or_folder, os.PathLike) or (folder.name != given and current(folder, CONFIG).is_file()):
        return folder
    here, published = current(folder, CONFIG).is_file(), given in published_names()
    if here and published and not folder.samefile(entry_folder(given)):
        raise ValueError(
            f"{given} is a folder here and a published entry: name the folder as ./{given}, the entry by its path, "
            f"{entry_folder(given)}"
        )
    return folder if here else entry_folder(given)


def _checked(folder: Path, tag: str | None) -> tuple[ModelConfig, WeightsInfo, Any, Any, dict[str, bytes]]:
    """Check the files of an entry against each other.

    Returns:
        Config, weights, the JSON of config and evidence, and the bytes that were checked of weights and evidence.
    """
    path = current(folder, CONFIG)
    content = load_json(path)
    config = parse_config(content, str(folder / CONFIG))
    weights = config.weights
    if config.name is None or weights is None:
        raise ConfigError(f"{folder / CONFIG}: rsnn_zoo.name and .weights are missing; write it with save_pretrained")
    if tag is not None:
        content["rsnn_zoo"]["revision"] = tag
        config = parse_config(content, f"{folder / CONFIG} with the new tag")
    data = verified_bytes(current(folder, weights.file), weights.sha256, weights.size)
    if not (there := current(folder, EVIDENCE)).is_file():
        raise EvidenceError(f"{folder / EVIDENCE} is missing; evaluate {config.name} with `rsnn-zoo evaluate`")
    text = read_bounded(there, MAX_EVIDENCE_BYTES)
    evidence = parse_json(text, str(there), MAX_EVIDENCE_BYTES)
    check_evidence(config, evidence)
    return config, weights, content, evidence, {weights.file: data, EVIDENCE: text}


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
