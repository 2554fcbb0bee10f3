"""What several test files of this folder share."""

import shutil

import pytest

from rsnn_zoo.cli import commands as cli
from rsnn_zoo.hub.publish import save_pretrained
from tests.conftest import NAME, small_network

PUBLISHED = "resnet20_digits_trades_t4"


@pytest.fixture
def run(capsys):
    """Runs a command; gives exit status, output and errors."""

    def call(*argv):
        try:
            status = cli.main([*map(str, argv)])
        except SystemExit as wrong_usage:
            status = wrong_usage.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An entry whose evidence was made by the command itself."""
    folder = tmp_path_factory.mktemp("entries") / NAME
    save_pretrained(small_network(), folder, name=NAME)
    options = f"--attack pgd2 --eps 8 16 --images 24 --output {folder / 'evaluation.json'}"
    assert cli.main(["evaluate", f"local-dir:{folder}", *options.split()]) == 0  # writes the card anew, too
    return folder


@pytest.fixture
def evaluated(original, tmp_path):
    return shutil.copytree(original, tmp_path / NAME)
