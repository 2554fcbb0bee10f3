"""What several test files of this folder share."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from rsnn_zoo.data.images import ImageData, load_dataset

SHARED = Path(__file__).resolve().parents[3] / "shared"


DIGITS = load_digits()


# Digits, and what holds of every ImageData.


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits")


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
