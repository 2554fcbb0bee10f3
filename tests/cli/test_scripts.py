"""What the scripts take and say, held to what the command line takes and says elsewhere."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import _training

    yield _training
    sys.modules.pop("_training")


@pytest.mark.parametrize("option", ["--data-root", "--root"])
def test_the_folder_of_the_data_sets_is_called_as_everywhere_and_as_before(training, option):
    args = training.training_parser("").parse_args(["resnet20_digits_at_ann", option, "images"])
    assert args.root == Path("images")
