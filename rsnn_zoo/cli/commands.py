"""The command line ``rsnn-zoo``: list, info, evaluate, verify, export and push, thin over the functions of the library.

What a command does not need is not imported: ``rsnn-zoo list`` answers before torch would have been loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rsnn_zoo import __version__
from rsnn_zoo._utils.files import check_writable
from rsnn_zoo.hub.catalog import list_models
from rsnn_zoo.hub.resolve import CONFIG, EVIDENCE, NotPublishedError, entries_folder, published_names, resolve
from rsnn_zoo.report.card import summary
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, load_evidence
from rsnn_zoo.spec.names import ModelName

__all__ = ["device", "main", "radii_of"]

_ABOUT = """\
Adversarially robust spiking neural networks: find, inspect, attack, verify and publish them.

  rsnn-zoo list --pretrained                        list the published models
  rsnn-zoo info resnet20_digits_trades_t4           describe one and its robustness
  rsnn-zoo verify resnet20_digits_trades_t4         check its files and published verdicts
  rsnn-zoo evaluate local-dir:my_snn --eps 2 4 8    attack your own
  rsnn-zoo export resnet20_digits_trades_t4         write it as NIR, ONNX or a torch program, checked
  rsnn-zoo push my_snn --org me --dry-run           publish it on the Hugging Face Hub
"""
_STATUS = "Exit status: 0 success; 1 failure (explained in one line on stderr) or a failed verification; 2 wrong usage."
_NAME = "a published name, hf-hub:org/name, hf-hub:org/name@revision, or local-dir:path"

_ERRORS = (NotPublishedError, OSError, ValueError)  # what the library raises where something outside it is wrong
_SUFFIXES = {"nir": "nir", "onnx": "onnx", "torch": "pt2"}
_Outcome = tuple[str, Any, int]  # what is printed, what --json prints in its place, exit status


def device(text: str) -> str:
    """A device that this machine has; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If there is no such device, or nothing can be computed on it.

    Example:
        >>> device("cpu")
        'cpu'
    """
    import torch

    try:
        torch.zeros(1, device=text).tolist()
    except (AssertionError, RuntimeError) as error:  # the former where torch is built without CUDA
        said = str(error).split("\n")[0]
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be used ({said}): name another device, such as cpu"
        ) from None
    return text


def run_plugin(path: Path | None) -> None:
    """Run the Python file that registers architectures or objectives, if one is given.

    Raises:
        FileNotFoundError: If there is none of that name.
    """
    if path is None:
        return
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: --plugin takes a Python file that registers architectures")
    runpy.run_path(str(path))


def radii_of(attacks: Sequence[str], eps: Sequence[float]) -> dict[str, list[float]]:
    """Protocols to their radii in [0, 1], as :func:`rsnn_zoo.evaluate` takes them.

    Args:
        attacks: Protocols, each with radii of its own in units of 1/255, as ``worst-case=8``, or without.
        eps: The radii of those without, in units of 1/255.

    Raises:
        ValueError: If a radius is no number.

    Example:
        >>> radii_of(["fgsm=51,102", "pgd20"], [255])
        {'fgsm': [0.2, 0.4], 'pgd20': [1.0]}
    """
    found: dict[str, list[float]] = {}
    for attack in attacks:
        name, own = re.fullmatch(r"(.+?)(?:=([^\]=]*))?", attack, re.DOTALL).groups()
        try:
            radii = eps if own is None else [float(radius) for radius in own.split(",")]
        except ValueError:
            raise ValueError(f"{attack}: after = stand radii in units of 1/255, as in worst-case=8 or =2,4,8") from None
        found.setdefault(name, []).extend(radius / 255 for radius in radii)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    args = _parser().parse_args(argv)
    try:
        run_plugin(getattr(args, "plugin", None))
        text, content, status = args.run(args)
        print(json.dumps(content, indent=2, ensure_ascii=False) if args.json else text, flush=True)
    except BrokenPipeError:  # `rsnn-zoo list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _ERRORS as error:
        return _complain(args.command, error)
    except KeyboardInterrupt:
        return 130
    return status


def _complain(about: str, error: Exception) -> int:
    print(f"rsnn-zoo: {about}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def _list(args: argparse.Namespace) -> _Outcome:
    names = list_models(args.filter or "*", pretrained=args.pretrained, dataset=args.dataset, objective=args.objective)
    published = set() if args.pretrained else set(published_names())  # else all are
    return "\n".join(f"{name}  (published)" if name in published else name for name in names), names, 0


def _info(args: argparse.Namespace) -> _Outcome:
    entry = resolve(args.name)
    try:
        evidence, missing = load_evidence(entry.get(EVIDENCE, MAX_EVIDENCE_BYTES), entry.config), None
    except (OSError, ValueError) as error:
        evidence, missing = None, f"No usable evidence: {error}"
    content = {"name": args.name, "origin": entry.origin, "config": entry.config.to_json(), "evidence": evidence}
    lines = [f"{args.name} ({entry.origin})", "", summary(entry.config, evidence), *([missing] if missing else [])]
    return "\n".join(lines), content, 0


def _evaluate(args: argparse.Namespace) -> _Outcome:
    import rsnn_zoo
    from rsnn_zoo.evaluation.energy import energy
    from rsnn_zoo.hub.publish import update_card
    from rsnn_zoo.report.outputs import keep_former
    from rsnn_zoo.training.recipe import split_of

    if args.output:
        check_writable(args.output)
    model = rsnn_zoo.create_model(args.name, pretrained=True).to(args.device)
    name = str(model.pretrained_name)
    dataset = ModelName.parse(name).dataset if rsnn_zoo.is_model(name) else None
    if (source := args.data or dataset) is None:
        raise ValueError(f"{name} names no data set: pass --data")
    where = {"root": args.data_root, "download": args.download, **split_of(model.training_record)}
    data = rsnn_zoo.load_dataset(source, args.split, dataset=dataset, **where)
    data = data if args.images is None else data.select(args.images)
    state = args.output.with_name(f"{args.output.name}.partial") if args.output else None
    attacks = radii_of(args.attack, args.eps)
    report = rsnn_zoo.evaluate(model, data, attacks, state=state, progress=sys.stderr.isatty())
    report.extra.update(energy(model, data.pixels(slice(0, 256)).to(args.device)))
    text = report.table()
    if state:
        if kept := keep_former([args.output], report.to_json()):
            text += f"\n\n  {args.output} was of another evaluation: kept as {kept}"
        report.save(args.output)
        state.unlink(missing_ok=True)
        if args.output.name == EVIDENCE and (args.output.parent / CONFIG).is_file():
            update_card(args.output.parent)  # which is of the evidence too
    return text, report.to_json(), 0


def _verify(args: argparse.Namespace) -> _Outcome:
    from rsnn_zoo.verify_entry import verify

    checks = verify(
        args.name,
        None if args.all else args.images,
        eps=args.eps / 255,
        source=args.data,
        root=args.data_root,
        download=args.download,
        device=args.device,
        progress=sys.stderr.isatty(),
    )
    holds = all(check.holds for check in checks)
    lines = [f"{'holds' if check.holds else 'FAILS'}  {check.what:<18} {check.said}" for check in checks]
    lines += [f"{args.name} {'is what it claims to be' if holds else 'is NOT what it claims to be'}"]
    return "\n".join(lines), {"name": args.name, "holds": holds, "checks": [*map(asdict, checks)]}, int(not holds)


def _export(args: argparse.Namespace) -> _Outcome:
    import rsnn_zoo

    model = rsnn_zoo.create_model(args.name, pretrained=True)
    images = None
    if args.data:
        images = rsnn_zoo.load_dataset(args.data, "test").pixels(slice(0, args.images))
    path = args.output or Path(f"{model.pretrained_name}.{_SUFFIXES[args.format]}")
    try:
        report = rsnn_zoo.export(model, path, args.format, batch=args.batch, images=images)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return str(report), asdict(report), 0


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'dynamic' nor a number of images, such as 1")
    return int(text)


def _push(args: argparse.Namespace) -> _Outcome:
    from rsnn_zoo.hub.publish import Push, push_to_hub

    options = {key: getattr(args, key) for key in ("org", "tag", "private", "dry_run", "endpoint")}
    pushes: list[Push] = []
    lines: list[str] = []
    status = 0
    for folder in _folders(args):
        try:
            push = push_to_hub(folder, **options)
        except _ERRORS as error:  # what went up before it is said all the same
            status = _complain(folder.name, error)
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
        here = (own / CONFIG).is_file()
        if here and matching and not any(folder.samefile(own) for folder in matching):
            raise ValueError(f"{pattern} is a folder here and an entry: name ./{pattern}, or {matching[0]}")
        if not matching and not here:
            there = ", ".join(folder.name for folder in known) or "none"
            raise NotPublishedError(f"no entry matches {pattern} in {args.folder}; there are: {there}")
        found += matching or [own]
    if not found:
        raise NotPublishedError("name an entry, a folder, or --all")
    return list(dict.fromkeys(found))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("rsnn-zoo", description=_ABOUT, epilog=_STATUS, formatter_class=raw)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], _Outcome], help: str, example: str) -> argparse.ArgumentParser:
        about = f"{help[0].upper()}{help[1:]}.\n\n  {example}"
        one = commands.add_parser(run.__name__[1:], help=help, description=about, epilog=_STATUS, formatter_class=raw)
        one.add_argument("--json", action="store_true", help="print JSON")
        one.set_defaults(run=run)
        return one

    def add_data(one: argparse.ArgumentParser) -> None:
        one.add_argument("--data", help="npz file or folder to use instead of the named data set")
        one.add_argument("--data-root", default="data", help="folder of the data sets (%(default)s)")
        one.add_argument("--download", action="store_true", help="let torchvision download the data set")
        one.add_argument("--device", type=device, default="cpu", help="where to compute: cpu, cuda (%(default)s)")

    def add_plugin(one: argparse.ArgumentParser) -> None:
        about = "Python file that registers architectures or objectives"
        one.add_argument("--plugin", type=Path, metavar="FILE.py", help=about)

    one = command(_list, "list the names of the zoo", "rsnn-zoo list '*trades*' --pretrained --dataset digits")
    one.add_argument("filter", nargs="*", help="wildcards; names that match any of them are listed")
    one.add_argument("--pretrained", action="store_true", help="only those with published weights")
    one.add_argument("--dataset", help="only this data set")
    one.add_argument("--objective", help="only this training objective")

    one = command(_info, "describe an entry and its published results", "rsnn-zoo info hf-hub:colleague/their_snn")
    one.add_argument("name", help=_NAME)
    add_plugin(one)

    example = (
        "rsnn-zoo evaluate local-dir:my_snn --attack ensemble-pgd20=2,4,8,16 worst-case=8 -n 1000 \\\n"
        "      --output my_snn/evaluation.json"
    )
    one = command(_evaluate, "attack a model and report its robust accuracy, with evidence that push accepts", example)
    one.add_argument("name", help=_NAME)
    about = "protocols; each may have radii of its own, as worst-case=8 (ensemble-pgd20)"
    one.add_argument("--attack", nargs="+", default=["ensemble-pgd20"], metavar="PROTOCOL", help=about)
    one.add_argument("--eps", type=float, nargs="+", default=[8], metavar="K", help="radii in units of 1/255 (8)")
    one.add_argument("-n", "--images", type=int, metavar="N", help="only the first N images")
    one.add_argument("--split", default="test", choices=("test", "validation", "train"), help="(%(default)s)")
    about = "file for the report; repeat the command to resume; the report of another evaluation is renamed"
    one.add_argument("--output", type=Path, help=about)
    add_data(one)
    add_plugin(one)

    one = command(_verify, "check the files of an entry and recompute some of its verdicts", "rsnn-zoo verify NAME")
    one.add_argument("name", help=_NAME)
    one.add_argument("-n", "--images", type=int, default=64, metavar="N", help="recompute the first N (%(default)s)")
    one.add_argument(
        "--eps", type=float, default=8, metavar="K", help="of the run at K/255, or next to it (%(default)s)"
    )
    one.add_argument("--all", action="store_true", help="recompute every published verdict")
    add_data(one)
    add_plugin(one)

    example = "rsnn-zoo export resnet20_digits_trades_t4 --format onnx --batch 1"
    one = command(_export, "write a network for other simulators, runtimes and hardware, and check the file", example)
    one.add_argument("name", help=_NAME)
    one.add_argument("--format", choices=(*_SUFFIXES,), default="nir", help="(%(default)s)")
    one.add_argument("--batch", type=_batch, default="dynamic", metavar="N", help="fixed size of a batch (%(default)s)")
    one.add_argument("--output", type=Path, help="the file (NAME.nir, NAME.onnx or NAME.pt2 here)")
    one.add_argument("--data", help="npz file whose test images check the file, in place of the embedded digits")
    one.add_argument("-n", "--images", type=int, default=256, metavar="N", help="that many of them (%(default)s)")
    add_plugin(one)

    example = "rsnn-zoo push 'resnet20_digits_*' --tag v1.0 --dry-run"
    one = command(_push, "check entries and upload them to the Hugging Face Hub", example)
    one.add_argument("names", nargs="*", help="entry names, wildcards, or folders written by save_pretrained")
    one.add_argument("--all", action="store_true", help="every entry")
    one.add_argument("--folder", type=Path, default=entries_folder(), help="folder of the entries (%(default)s)")
    one.add_argument("--org", help="user or organisation (default: RSNN_ZOO_ORG, or rsnn-zoo)")
    one.add_argument("--tag", help="tag the commit with this release and pin it in the config")
    one.add_argument("--private", action="store_true", help="make the repositories private")
    one.add_argument("--dry-run", action="store_true", help="check everything and list the files, without uploading")
    one.add_argument("--endpoint", help="address of the Hub (default: HF_ENDPOINT)")
    add_plugin(one)
    return parser


if __name__ == "__main__":
    sys.exit(main())
