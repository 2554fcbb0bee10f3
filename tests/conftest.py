"""What several test files share: a Hub on this machine, and an entry to push to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import rsnn_zoo
from rsnn_zoo import models
from rsnn_zoo.hub.publish import save_pretrained
from rsnn_zoo.models import Network, resnet20
from rsnn_zoo.spec import names
from rsnn_zoo.spec.config import ModelConfig
from tests.hub_server import HubServer

NAME = "resnet20_digits_trades_t2"

settings.register_profile("shared", deadline=None)  # two workers on two cores: time says nothing
settings.load_profile("shared")


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def snn() -> Network:
    """A published SNN."""
    return rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)


@pytest.fixture(scope="module")
def ann() -> Network:
    """The ANN that it was converted from."""
    return rsnn_zoo.create_model("resnet20_digits_trades_ann", pretrained=True)


def small_network(seed: int = 0, **kwargs: Any) -> torch.nn.Module:
    """A ResNet-20 for the digits, whose neurons fire; a seed always gives the same weights."""
    kwargs = {"threshold": 0.3, **kwargs}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet20(num_classes=10, in_chans=1, img_size=8, timesteps=2, mean=(0.3,), std=(0.4,), **kwargs).eval()


@contextmanager
def read_only(folder: Path) -> Iterator[str]:
    """Nobody may write into the folder; gives the statements that bind even a process of root."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for one in folders:
        one.chmod(0o555)
    yield """
import ctypes
libc, numbers = ctypes.CDLL(None), ctypes.c_uint32
if hasattr(libc, "capset"):  # of Linux: gives up root's right to write everywhere
    assert libc.capset((numbers * 2)(0x20080522), (numbers * 6)()) == 0
"""
    for one in folders:
        one.chmod(0o755)


def evidence_for(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """Evidence in the form that ``scripts/evaluate.py`` writes."""
    runs = [
        {
            "protocol": "ensemble-pgd20",
            "eps": eps / 255,
            "robust_accuracy": 0.6 - eps / 100,
            "ci95": [0.5 - eps / 100, 0.7 - eps / 100],
            "attacks": [
                {"attack": "pgd20", "mode": "pcw-1.0", "felled": 2 * eps, "standing": 300},
                {"attack": "pgd20", "mode": "rate", "felled": eps, "standing": 300 - eps},
            ],
            "verdicts": [0, -1, -2],
            "seconds": 3.5,
        }
        for eps in (16, 8)
    ]
    return {
        "schema": 1,
        "model": config.name,
        "weights_sha256": config.weights.sha256 if config.weights else None,
        "dataset": "digits",
        "split": "test",
        "n": 360,
        "index": "0..n-1",
        "clean": {"accuracy": 0.95, "ci95": [0.93, 0.97]},
        "runs": runs,
        "settings": {"seed": 0, "precision": "float32", "chunk": 64},
        "spikes": {"per_image": 1234.5, "rates": {"act1": 0.125}},
        "versions": {"torch": torch.__version__},
        "cpu": "A processor",
        "cores": 2,
        "threads": 1,
        "processes": 2,
        "created": datetime.now(timezone.utc).isoformat(),
        **changes,
    }


def make_entry(parent: Path, name: str = NAME, seed: int = 0) -> Path:
    """Save and 'evaluate' a network under ``parent / name``."""
    config = save_pretrained(small_network(seed), parent / name, name=name, training={"seed": seed})
    save_pretrained(small_network(seed), parent / name, name=name, evaluation=evidence_for(config))
    return parent / name


@pytest.fixture
def entry(tmp_path):
    return make_entry(tmp_path / "hub_configs")


@pytest.fixture
def forget_architectures():
    """A function after which the architectures registered meanwhile are unknown, as they are in another process."""
    known, builders = names.architectures(), dict(models.ARCHITECTURES)

    def forget():
        names._architectures[:] = known
        models.ARCHITECTURES.clear()
        models.ARCHITECTURES.update(builders)

    yield forget
    forget()


@pytest.fixture(scope="module")
def eager():
    """No kernels are compiled: for tests of what stands around the neuron, where compiling takes the longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSNN_ZOO_COMPILE", "0")
        yield
