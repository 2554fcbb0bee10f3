"""The page of worst-case-v2 shows what was measured on validation images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "protocols").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_shows_what_the_script_makes_of_the_measurement(path):
    command = [sys.executable, str(ROOT / "scripts" / "choose_protocol.py"), "--table", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(path.read_text(encoding="utf-8"))["split"] == "validation"
    assert done.stdout.strip() in (ROOT / "docs" / "worst_case_v2.md").read_text(encoding="utf-8")
