"""The table of data sets: whole, with the constants of the field, and free of torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from torchvision import datasets as tv

from rsnn_zoo.spec.datasets import DATASETS

# The table.


@pytest.mark.parametrize("info", DATASETS.values(), ids=DATASETS)
def test_a_record_is_whole(info):
    assert len(info.mean) == len(info.std) == info.in_chans
    assert all(0 < value < 1 for value in info.mean + info.std)
    assert len(set(info.class_names)) == info.num_classes
    assert info.title and info.citation and info.terms
    assert info.augmentation.crop_padding <= info.img_size // 8


def test_the_table_has_the_field_s_constants():
    assert {name: info.num_classes for name, info in DATASETS.items()} == {
        "digits": 10, "cifar10": 10, "cifar100": 100, "svhn": 10, "tinyimagenet": 200, "fmnist": 10,
    }  # fmt: skip
    assert DATASETS["cifar10"].mean == (0.4914, 0.4822, 0.4465) and DATASETS["cifar10"].std == (0.2023, 0.1994, 0.2010)
    assert DATASETS["cifar100"].mean == (0.5071, 0.4867, 0.4408)
    assert DATASETS["cifar100"].std == (0.2675, 0.2565, 0.2761)
    assert list(DATASETS["fmnist"].class_names) == tv.FashionMNIST.classes
    assert not DATASETS["digits"].augmentation.flip and not DATASETS["svhn"].augmentation.flip
    for name in ("cifar100", "tinyimagenet"):
        assert list(DATASETS[name].class_names) == sorted(DATASETS[name].class_names)


def test_the_table_needs_no_torch():
    code = "import sys, rsnn_zoo.spec.datasets; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
