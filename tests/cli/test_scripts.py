"""What the scripts take and say, held to what the command line takes and says elsewhere."""

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import rsnn_zoo

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import _training

    yield _training
    sys.modules.pop("_training")


def test_clean_images_are_held_out_as_in_the_training_of_the_model(monkeypatch):
    """Else images that a model was trained on would count as its validation images."""
    monkeypatch.syspath_prepend(SCRIPTS)
    verify = runpy.run_path(str(SCRIPTS / "verify.py"))
    model = rsnn_zoo.create_model("resnet20_digits_trades_ann")
    model.training_record = {"data": {"validation": 0.2, "seed": 3}}
    args = argparse.Namespace(data="digits", split="validation", data_root="data")
    expected = rsnn_zoo.load_dataset("digits", "validation", validation=0.2, seed=3)
    assert verify["load_clean"](model, args).index.tolist() == expected.index.tolist()


def test_nothing_is_said_of_an_absent_cuda(tmp_path):
    code = (
        "import torch; from rsnn_zoo.neurons import kernels; kernels._compile(lambda x: x)\n"
        "from torch.utils import cpp_extension\n"
        "cpp_extension.logger.warning('another thing')"
    )
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "No CUDA runtime" not in done.stderr and "another thing" in done.stderr


@pytest.mark.parametrize("option", ["--data-root", "--root"])
def test_the_folder_of_the_data_sets_is_called_as_everywhere_and_as_before(training, option):
    args = training.training_parser("").parse_args(["resnet20_digits_at_ann", option, "images"])
    assert args.root == Path("images")
