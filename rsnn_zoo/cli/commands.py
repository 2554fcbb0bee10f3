"""The command line ``rsnn-zoo``: its commands, each in a module of its own, thin over the functions of the library.

What a command does not need is not imported: ``rsnn-zoo list`` answers before torch would have been loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module

from rsnn_zoo import __version__
from rsnn_zoo.cli._arguments import device, radii_of, run_plugin
from rsnn_zoo.cli._console import ERRORS, complain, enough, say
from rsnn_zoo.cli._process import set_up_process

__all__ = ["COMMANDS", "device", "main", "program", "radii_of", "run_plugin"]

COMMANDS = {
    "list": "listing",
    "info": "info",
    "train": "train",
    "convert": "convert",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "verify": "verify",
    "export": "export",
    "build": "build",
    "push": "push",
    "leaderboard": "leaderboard",
}
"""Commands and their modules, each with HELP, EXAMPLE, ``add_arguments(parser)`` and ``run(args)``."""

_ABOUT = """\
Adversarially robust spiking neural networks: find, inspect, make, attack, verify, export and publish them.

  rsnn-zoo list --pretrained                        list the published models
  rsnn-zoo info resnet20_digits_trades_t4           describe one and its robustness
  rsnn-zoo verify resnet20_digits_trades_t4         check its files and published verdicts
  rsnn-zoo train resnet20_digits_trades_ann         train an ANN, or an SNN directly
  rsnn-zoo convert resnet20_digits_trades_t4        turn an ANN into an SNN
  rsnn-zoo finetune resnet20_digits_trades_t4       turn an ANN into an SNN and train that
  rsnn-zoo evaluate local-dir:my_snn --eps 2 4 8    attack your own
  rsnn-zoo build resnet20_digits_trades_t4          all of these: an entry with its evidence
  rsnn-zoo export resnet20_digits_trades_t4         write it as NIR, ONNX or a torch program, checked
  rsnn-zoo push my_snn --org me --dry-run           publish it on the Hugging Face Hub
  rsnn-zoo leaderboard                              a page of all entries and attacks
"""
_STATUS = "Exit status: 0 success; 1 failure (explained in one line on stderr) or a failed verification; 2 wrong usage."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    if argv is None:
        set_up_process()
    args = _parser().parse_args(argv)
    try:
        run_plugin(getattr(args, "plugin", None))
        text, content, status = args.run(args)
        say(json.dumps(content, indent=2, ensure_ascii=False) if args.json else text)
    except BrokenPipeError:
        enough()
        return 0
    except ERRORS as error:
        return complain(args.command, error)
    except KeyboardInterrupt:
        return 130
    return status


def program(*first: str) -> None:
    """Run the command line of this process, behind the words given, and end with its status; for scripts."""
    set_up_process()
    sys.exit(main([*first, *sys.argv[1:]]))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("rsnn-zoo", description=_ABOUT, epilog=_STATUS, formatter_class=raw)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = import_module(f"rsnn_zoo.cli.{module}")
        about = f"{command.HELP[0].upper()}{command.HELP[1:]}.\n\n  {command.EXAMPLE}"
        one = commands.add_parser(name, help=command.HELP, description=about, epilog=_STATUS, formatter_class=raw)
        one.add_argument("--json", action="store_true", help="print JSON")
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
