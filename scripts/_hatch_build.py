"""Build hook: which files of the entries go into the wheel.

``hub_configs/`` goes into the package, but the weights of large entries stay on the Hub, so that an installation stays
small. What is packaged of such an entry, its config, holds the SHA-256 that the download must have.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MAX_ENTRY_BYTES = 5_000_000
"""Weights of an entry that together are larger are left to the Hub."""
_WEIGHTS = ".safetensors"


def packaged_files(entries: Path) -> list[Path]:
    """Return the files of all entries that the wheel holds, relative to ``entries``."""
    found = []
    for folder in sorted(path for path in entries.iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        large = sum(path.stat().st_size for path in files if path.suffix == _WEIGHTS) > MAX_ENTRY_BYTES
        found += [path.relative_to(entries) for path in files if not (large and path.suffix == _WEIGHTS)]
    return found


class EntriesHook(BuildHookInterface):
    """Adds the entries to a wheel; an editable installation finds them in its checkout."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is built."""
        if version == "editable":
            return
        entries = Path(self.root) / "hub_configs"
        into = build_data["force_include"]
        into.update(
            {str(entries / file): f"rsnn_zoo/hub_configs/{file.as_posix()}" for file in packaged_files(entries)}
        )
