"""Every published entry: the logits that it always gave, and the verdicts of its evidence."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rsnn_zoo
from rsnn_zoo.hub.resolve import published_names
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.verify_entry import verify

pytestmark = pytest.mark.usefixtures("eager")

LOGITS = Path(__file__).parents[1] / "logits.json"
"""Logits by entry; ``python -m tests.hub.test_entries`` adds those of new ones."""

DATA = Path(os.environ.get("RSNN_ZOO_DATA", "data"))
"""Where data sets lie that the package does not bring along, as torchvision or as DATASET.npz."""


def fixed_images(name: str) -> Tensor:
    """Two images, the same on every machine and under every version of torch."""
    info = DATASETS[ModelName.parse(name).dataset]
    shape = 2, info.in_chans, info.img_size, info.img_size
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (0.6180339887498949 * steps + 0.3 * (0.01 * steps).sin()).remainder(1).reshape(shape)


@torch.no_grad()
def logits(name: str) -> Tensor:
    """In float64, where no spike hangs on how a processor rounds."""
    return rsnn_zoo.create_model(name, pretrained=True).double().eval()(fixed_images(name))


@pytest.mark.parametrize("name", published_names())
def test_an_entry_gives_the_logits_that_it_always_gave(name):
    expected = torch.tensor(json.loads(LOGITS.read_text())[name], dtype=torch.float64)
    torch.testing.assert_close(logits(name), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", published_names())
def test_an_entry_reproduces_its_verdicts(name):
    """A few verdicts at 8/255; ``rsnn-zoo verify NAME --all`` recomputes them all, in hours."""
    file = DATA / f"{ModelName.parse(name).dataset}.npz"
    try:
        checks = verify(name, images=8, eps=8 / 255, seed=0, source=file if file.is_file() else None, root=DATA)
    except FileNotFoundError as error:
        pytest.skip(f"set RSNN_ZOO_DATA: {error}")
    assert all(check.holds for check in checks), checks
    assert checks[-1].what == "draw"


if __name__ == "__main__":
    known = json.loads(LOGITS.read_text()) if LOGITS.is_file() else {}
    found = {name: known.get(name) or logits(name).tolist() for name in published_names()}
    LOGITS.write_text(json.dumps(found, indent=1) + "\n")
