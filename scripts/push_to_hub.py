"""Push entries of hub_configs/ to the Hugging Face Hub: one, several by wildcard, or all.

    python scripts/push_to_hub.py resnet20_digits_trades_t4 --dry-run
    python scripts/push_to_hub.py 'resnet20_digits_*' --tag v1.0
    python scripts/push_to_hub.py --all --org my-lab --private

An entry is checked first (weights, evidence, config); what is on the Hub already is not uploaded again.
"""

import argparse
import fnmatch
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rsnn_zoo.hub import entries_folder
from rsnn_zoo.publish import CONFIG, Push, push_to_hub


def main(argv: list[str] | None = None) -> int:
    """Push what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of entries, wildcards allowed")
    parser.add_argument("--all", action="store_true", help="every entry")
    parser.add_argument("--folder", type=Path, default=entries_folder(), help="where the entries are (%(default)s)")
    parser.add_argument("--org", help="user or organisation (RSNN_ZOO_ORG, or rsnn-zoo)")
    parser.add_argument("--tag", help="mark the commit as this release, and pin it in the config")
    parser.add_argument("--private", action="store_true", help="make the repositories private")
    parser.add_argument("--dry-run", action="store_true", help="check, list every file and its size, upload nothing")
    parser.add_argument("--endpoint", help="address of the Hub (HF_ENDPOINT)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)

    known = sorted(path.parent.name for path in args.folder.glob(f"*/{CONFIG}"))
    wanted = ["*"] if args.all else args.names
    if not wanted:
        parser.error("name an entry, or --all")
    for pattern in wanted:
        if not fnmatch.filter(known, pattern):
            parser.error(f"no entry matches {pattern} in {args.folder}; there are: {', '.join(known) or 'none'}")

    options = {key: getattr(args, key) for key in ("org", "tag", "private", "dry_run", "endpoint")}
    done: list[Push] = []
    for name in known:
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
            continue
        try:
            done.append(push_to_hub(args.folder / name, **options))
        except (LookupError, OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        if not args.json:
            print(_line(done[-1]))
    if args.json:
        print(json.dumps([asdict(push) for push in done], indent=2))
    return 0


def _line(push: Push) -> str:
    what = "would push" if push.commit is None else "pushed" if push.changed else "already there:"
    files = "".join(f"\n  {size:>12,}  {name}" for name, size in push.files.items())
    return f"{what} {push.repo}{f' at {push.commit}' if push.commit else ''}{files}"


if __name__ == "__main__":
    sys.exit(main())
