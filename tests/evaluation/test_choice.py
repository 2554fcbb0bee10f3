"""The page of worst-case-v2 shows what was measured on validation images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def made(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "choose_protocol.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def page():
    return (ROOT / "docs" / "worst_case_v2.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "protocols").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_shows_what_the_script_makes_of_the_measurement(path):
    assert json.loads(path.read_text(encoding="utf-8"))["split"] == "validation"
    assert made("--table", path) in page()


def test_the_page_shows_what_felled_what_by_the_published_evidence():
    names = "resnet20_cifar10_trades_t4", "resnet20_cifar10_trades_t8", "resnet20_digits_trades_t4"
    assert made("--felled", "worst-case-v1", *names) in page()


def test_the_page_shows_what_felled_what_by_reports():
    reports = sorted((ROOT / "docs" / "evaluations").glob("*.json"))
    assert reports and made("--felled", "worst-case-v2", *reports) in page()
