"""The tables of docs/export.md come from the committed results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"checks": ("check_exports.py", "entries")}


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "exports").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_shows_what_the_script_makes_of_the_results(path):
    script, part = SCRIPTS.get(path.stem, ("benchmark_exports.py", "verdicts"))
    command = [sys.executable, str(ROOT / "scripts" / script), "--table", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(path.read_text())[part]
    assert done.stdout.strip() in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
