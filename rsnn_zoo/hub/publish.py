"""Push entries to the Hub.

An entry is a folder that is its Hub repository, file by file: ``config.json``, ``model.safetensors`` or its index and
shards, ``README.md`` (the generated card) and ``evaluation.json`` (the evidence). Nothing else is ever uploaded, a
pickle least of all.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from rsnn_zoo._utils.files import ConfigError, load_json, parse_json, read_bounded, to_json
from rsnn_zoo._utils.folders import commit, current, locked
from rsnn_zoo.hub.asking import explained, within
from rsnn_zoo.hub.errors import HubError
from rsnn_zoo.hub.resolve import (
    ORG,
    default_org,
    entries_folder,
    entry_folder,
    published_names,
)
from rsnn_zoo.hub.saving import check_saveable, save_evidence, save_pretrained, update_card
from rsnn_zoo.hub.shards import stale, verified_files
from rsnn_zoo.report.card import model_card
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, EvidenceError, check_evidence
from rsnn_zoo.spec.config import CARD, CONFIG, EVIDENCE, ModelConfig, WeightsInfo, load_config, parse_config

__all__ = [
    "EvidenceError",
    "Push",
    "check_evidence",
    "check_saveable",
    "push_to_hub",
    "save_evidence",
    "save_pretrained",
    "update_card",
]

_PUSH_PATIENCE = 30.0  # seconds for the first answer to a push, which has no other deadline


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
        within(_PUSH_PATIENCE, lambda: api.create_repo(repo, private=private, exist_ok=True))
        before = api.model_info(repo)
        if private and not before.private:
            raise HubError("it is there already and public; make it private in its settings first")
        released = config.revision in {ref.name for ref in api.list_repo_refs(repo).tags}
        if released:
            there = load_config(api.hf_hub_download(repo, CONFIG, revision=config.revision)).weights
            if there is None or there.sha256 != weights.sha256:
                raise HubError(f"tag {config.revision} marks other weights there; choose a new tag")
        operations: list[Any] = [CommitOperationAdd(name, data) for name, data in files.items()]
        there_now = [sibling.rfilename for sibling in before.siblings or []]
        operations += [CommitOperationDelete(name) for name in stale(there_now, weights)]
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
    data = verified_files(weights, lambda file: current(folder, file.file))
    if not (there := current(folder, EVIDENCE)).is_file():
        raise EvidenceError(f"{folder / EVIDENCE} is missing; evaluate {config.name} with `rsnn-zoo evaluate`")
    text = read_bounded(there, MAX_EVIDENCE_BYTES)
    evidence = parse_json(text, str(there), MAX_EVIDENCE_BYTES)
    check_evidence(config, evidence)
    return config, weights, content, evidence, {**data, EVIDENCE: text}
