"""From training to a stranger who has only the wheel: the same logits, bit for bit, at every step of the way."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from rsnn_zoo.hub.resolve import published_names
from tests.conftest import NAME
from tests.hub_server import TOKEN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "resnet20_digits_trades_t4"
MAX_WHEEL_BYTES = 30e6

LOGITS = """
import torch, rsnn_zoo
def logits(network):
    return network(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))).tolist()
"""
TRAIN = f"""
{LOGITS}
import sys
from tests.conftest import NAME, evidence_for, small_network
network = small_network()
optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
for _ in range(2):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(network.train()(images), torch.arange(16) % 10).backward()
    optimiser.step()
config = rsnn_zoo.save_pretrained(network, sys.argv[1], name=NAME, training={{"steps": 2}})
rsnn_zoo.save_pretrained(network, sys.argv[1], name=NAME, evaluation=evidence_for(config))
print(logits(network.eval()))
"""
LOAD = f"""
{LOGITS}
import sys
print(logits(rsnn_zoo.create_model(sys.argv[1], pretrained=True)))
"""
WHERE = "import rsnn_zoo; print(rsnn_zoo.__file__, *rsnn_zoo.list_models(pretrained=True), sep='\\n')"


class Machine:
    """Runs Python in fresh processes, with a download cache of their own and one Hub."""

    def __init__(self, python: str, place: Path, home: Path, hub: str) -> None:
        self.python, self.place, self.home, self.hub = python, place, home, hub

    def run(self, *arguments: object, **environment: str) -> str:
        variables = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub, "RSNN_ZOO_COMPILE": "0", **environment}
        command = [self.python, *map(str, arguments)]
        options = {"cwd": self.place, "env": {**os.environ, **variables}, "capture_output": True, "text": True}
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, as far as the wheel is made of it."""
    copy = tmp_path_factory.mktemp("story") / "checkout"
    for name in ("rsnn_zoo", "hub_configs", "scripts", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def install_wheel(checkout: Path, environment: Path) -> str:
    """Build the wheel, install it into an empty environment that borrows everything else; return its Python."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", environment.parent, checkout]
    subprocess.run([*map(str, build)], check=True, capture_output=True)
    (wheel,) = environment.parent.glob("*.whl")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*map(str, pip)], check=True)
    # What a .pth file names is searched, but its own .pth files, those of an editable rsnn_zoo, are not obeyed.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return str(python)


def test_from_training_to_a_stranger_with_only_the_wheel(checkout, tmp_path, hub):
    author = Machine(sys.executable, checkout, tmp_path / "author", hub.url)
    folder = checkout / "hub_configs" / NAME
    logits = author.run("-c", TRAIN, folder)
    assert author.run("-c", LOAD, NAME) == logits
    pushed = author.run("scripts/push_to_hub.py", NAME, "--tag", "v1", HF_TOKEN=TOKEN, PYTHONPATH=".")
    assert pushed.startswith(f"pushed rsnn-zoo/{NAME}")
    (folder / "model.safetensors").unlink()

    for machine in (author, Machine(install_wheel(checkout, tmp_path / "env"), tmp_path, tmp_path / "other", hub.url)):
        hub.requests.clear()
        assert machine.run("-c", LOAD, NAME) == logits
        assert sum(path.startswith("/cdn/") and method == "GET" for method, path, _ in hub.requests) == 1
        hub.requests.clear()
        assert machine.run("-c", LOAD, NAME) == logits
        assert machine.run("-c", LOAD, NAME, HF_HUB_OFFLINE="1") == logits
        assert not hub.requests
        assert machine.run("-c", LOAD, f"hf-hub:rsnn-zoo/{NAME}@v1") == logits

    # And what the wheel brings along
    where, *names = machine.run("-c", WHERE).splitlines()
    assert Path(where).is_relative_to(tmp_path / "env")
    assert names == sorted([*published_names(), NAME])
    assert machine.run("-c", LOAD, BUNDLED, HF_HUB_OFFLINE="1") == author.run("-c", LOAD, BUNDLED)
    command = Path(machine.python).with_name("rsnn-zoo")
    assert machine.run(command, "list", "--pretrained").split() == names
