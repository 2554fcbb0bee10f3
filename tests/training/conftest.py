"""What several test files of this folder share."""

from dataclasses import replace

import pytest
import torch

from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.models import resnet20
from rsnn_zoo.training.recipe import Stage
from rsnn_zoo.training.train import train

STAGE = Stage(epochs=2, batch_size=16, lr=0.05, warmup=0.5, validation_eps=0.1, validation_steps=2)


ROBUST = replace(STAGE, objective="trades", weight=2.0, eps=0.1, attack="rfgsm", threshold_lr=0.01)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", "train").select(64)


@pytest.fixture(scope="module")
def validation():
    return load_dataset("digits", "validation").select(40)


def new_model(timesteps=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet20(in_chans=1, img_size=8, timesteps=timesteps, threshold=0.3, mean=(0.3,), std=(0.4,))


def run(data, validation, folder, stage=STAGE, timesteps=None, **options):
    model = new_model(timesteps)
    result = train(model, data, validation, stage, folder, progress=False, **options)
    return model, result


def same(first, second):
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
