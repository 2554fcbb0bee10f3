"""``rsnn-zoo leaderboard``: one static page of all entries and attacks."""

from __future__ import annotations

import argparse
from pathlib import Path

from rsnn_zoo._utils.folders import current
from rsnn_zoo.cli._console import Outcome
from rsnn_zoo.hub.resolve import entries_folder
from rsnn_zoo.spec.config import CONFIG, EVIDENCE

HELP = "write a page of all entries and attacks, from their evidence"
EXAMPLE = """\
rsnn-zoo leaderboard --output leaderboard.html
  rsnn-zoo leaderboard submissions/their_snn        # the published entries, and that of somebody else

The page needs no server and fetches nothing: open the file. An entry of somebody else is a folder with its config.json
and evaluation.json; hold it to its word with rsnn-zoo verify first."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Add what is of this command alone."""
    one.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="entries besides the published ones")
    one.add_argument("--folder", type=Path, default=entries_folder(), help="of the published entries (%(default)s)")
    one.add_argument("--output", type=Path, default=Path("leaderboard.html"), help="the page (%(default)s)")


def run(args: argparse.Namespace) -> Outcome:
    """Write the page."""
    from rsnn_zoo.report.leaderboard import save_leaderboard

    published = sorted(
        path.parent for path in args.folder.glob(f"*/{EVIDENCE}") if current(path.parent, CONFIG).is_file()
    )
    count = save_leaderboard(args.output, [*published, *args.folders])
    return f"{count} entries on {args.output}", {"entries": count, "page": str(args.output)}, 0
