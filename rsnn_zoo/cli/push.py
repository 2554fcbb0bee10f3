"""``rsnn-zoo push``: entries to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from rsnn_zoo._utils.folders import current
from rsnn_zoo.cli._arguments import add_plugin
from rsnn_zoo.cli._console import ERRORS, Outcome, complain
from rsnn_zoo.hub.resolve import NotPublishedError, entries_folder
from rsnn_zoo.spec.config import CONFIG

HELP = "check entries and upload them to the Hugging Face Hub"
EXAMPLE = "rsnn-zoo push 'resnet20_digits_*' --tag v1.0 --dry-run"


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("names", nargs="*", help="entry names, wildcards, or folders written by save_pretrained")
    one.add_argument("--all", action="store_true", help="every entry")
    one.add_argument("--folder", type=Path, default=entries_folder(), help="folder of the entries (%(default)s)")
    one.add_argument("--org", help="user or organisation (default: RSNN_ZOO_ORG, or rsnn-zoo)")
    one.add_argument("--tag", help="tag the commit with this release and pin it in the config")
    one.add_argument("--private", action="store_true", help="make the repositories private")
    one.add_argument("--dry-run", action="store_true", help="check everything and list the files, without uploading")
    one.add_argument("--endpoint", help="address of the Hub (default: HF_ENDPOINT)")
    add_plugin(one)


def run(args: argparse.Namespace) -> Outcome:
    """Push what is named, until the first refusal."""
    from rsnn_zoo.hub.publish import Push, push_to_hub

    options = {key: getattr(args, key) for key in ("org", "tag", "private", "dry_run", "endpoint")}
    pushes: list[Push] = []
    lines: list[str] = []
    status = 0
    for folder in _folders(args):
        try:
            push = push_to_hub(folder, **options)
        except ERRORS as error:  # what went up before it is said all the same
            status = complain(folder.name, error)
            break
        what = "would push" if push.commit is None else "pushed" if push.changed else "already there:"
        lines.append(f"{what} {push.repo}{f' at {push.commit}' if push.commit else ''}, from {push.folder}")
        lines += [f"  {size:>12,}  {name}" for name, size in push.files.items()]
        pushes.append(push)
    return "\n".join(lines), [asdict(push) for push in pushes], status


def _folders(args: argparse.Namespace) -> list[Path]:
    """The folders that the names, wildcards and paths of ``push`` mean."""
    known = sorted(path.parent for path in args.folder.glob(f"*/{CONFIG}"))
    found: list[Path] = []
    for pattern in ["*"] if args.all else args.names:
        own = Path(pattern)
        matching = [folder for folder in known if fnmatchcase(folder.name, pattern)]
        here = current(own, CONFIG).is_file()
        if here and matching and not any(folder.samefile(own) for folder in matching):
            raise ValueError(f"{pattern} is a folder here and an entry: name ./{pattern}, or {matching[0]}")
        if not matching and not here:
            there = ", ".join(folder.name for folder in known) or "none"
            raise NotPublishedError(f"no entry matches {pattern} in {args.folder}; there are: {there}")
        found += matching or [own]
    if not found:
        raise NotPublishedError("name an entry, a folder, or --all")
    return list(dict.fromkeys(found))
