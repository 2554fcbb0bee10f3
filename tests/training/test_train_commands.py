"""Training by the commands, as processes: from nothing to an SNN, killed and gone on."""

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rsnn_zoo
from rsnn_zoo.cli import main
from rsnn_zoo.training import checkpoints
from rsnn_zoo.training.checkpoints import load_checkpoint
from rsnn_zoo.training.recipe import RecipeError, load_recipe

# Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py.
pytestmark = pytest.mark.usefixtures("eager")

ROOT = Path(__file__).resolve().parents[2]


# --- the scripts ------------------------------------------------------------------------------------------------------


def script(name, *arguments, cwd, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RSNN_ZOO_COMPILE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finished(process):
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


FEW = ["--quiet", "--interval", "0", "--set", "data.validation=0.8", "--set", "ann.epochs=2", "--set", "snn.epochs=1"]


def weights_of(folder):
    return json.loads((folder / "config.json").read_text())["rsnn_zoo"]["weights"]["sha256"]


@pytest.mark.slow
def test_from_nothing_to_a_robust_snn_by_the_scripts(tmp_path):
    ann, snn = "resnet20_digits_trades_ann", "resnet20_digits_trades_t2"
    code, out, err = finished(script("train.py", ann, *FEW, "--dry-run", cwd=tmp_path))
    assert (
        code == 0
        and json.loads(out)["stage"]["objective"] == "trades"
        and json.loads(out)["estimate"]["seconds"] > 0
        and re.search(r"about .* minutes: .* s a step", err)
        and not list(tmp_path.iterdir())
    ), err
    code, out, err = finished(script("train.py", ann, *FEW, cwd=tmp_path))
    assert code == 0 and re.search(rf"{ann}: epoch \d, validation accuracy .* robust .* saved in runs", out), err
    code, out, err = finished(script("finetune.py", snn, *FEW, cwd=tmp_path))
    assert code == 0 and f"{snn}: epoch 1" in out, err
    training = json.loads((tmp_path / "runs" / snn / "config.json").read_text())["rsnn_zoo"]["training"]
    assert training["ann_sha256"] == weights_of(tmp_path / "runs" / ann)
    assert training["conversion"]["scale"] == 0.3 and training["stage"]["attack"] == "rfgsm"
    assert (tmp_path / "runs" / snn / "curves.png").stat().st_size > 10_000
    code, out, err = finished(script("convert.py", snn, *FEW[3:], "--output", "converted", cwd=tmp_path))
    assert code == 0 and weights_of(tmp_path / "converted") != weights_of(tmp_path / "runs" / snn), err
    tuned = weights_of(tmp_path / "runs" / snn)
    code, out, err = finished(script("convert.py", snn, *FEW[3:], cwd=tmp_path))
    assert code != 0 and "holds a fine-tuned network" in err and weights_of(tmp_path / "runs" / snn) == tuned
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("notes")
    code, out, err = finished(script("convert.py", snn, *FEW[3:], "--output", "mine", cwd=tmp_path))
    assert code != 0 and "files that are no entry's" in err and (tmp_path / "mine" / "README.md").read_text() == "notes"
    code, out, err = finished(script("convert.py", snn, *FEW[3:], "--dry-run", "--output", "none", cwd=tmp_path))
    assert code == 0 and '"layer1.0.act1"' in out and not (tmp_path / "none").exists(), err

    few = [*FEW[3:], "--quiet", "--images", "64", "-n", "8", "--attack", "fgsm", "--output", "tried.json"]
    for tries, runs in ((1, 2), (2, 3)):  # what is there is not run again
        changes = [part for change in ("snn.lr=0.1", "snn.lr=0")[:tries] for part in ("--try", change)]
        code, out, err = finished(script("ablate.py", snn, *few, *changes, cwd=tmp_path))
        assert code == 0, err
        found = json.loads((tmp_path / "tried.json").read_text())["runs"]
        assert len(found) == runs and len(out.splitlines()) == (2 if tries == 1 else 1)
    assert [one["recipe"]["snn"]["lr"] for one in found] == [0.03, 0.1, 0] and (tmp_path / "tried.png").exists()
    assert {one["ann_sha256"] for one in found} == {weights_of(tmp_path / "runs" / ann)}


def test_training_begins_with_the_weights_that_are_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "resnet20_digits_trades_ann"
    how = ["--quiet", *(f"--set={change}" for change in ("data.validation=0.8", "ann.epochs=1", "ann.lr=0.0"))]
    assert main(["train", name, "--init", "resnet20_digits_at_ann", *how]) == 0
    found = rsnn_zoo.create_model(f"local-dir:runs/{name}", pretrained=True)
    start = rsnn_zoo.create_model("resnet20_digits_at_ann", pretrained=True)
    assert torch.equal(found.layer2[0].conv1.weight, start.layer2[0].conv1.weight)
    given = found.training_record["init"], found.training_record["init_sha256"]
    assert given == ("resnet20_digits_at_ann", start.weights_sha256)
    Path("runs", name).rename("runs/first")  # a run is found by its name
    assert main(["train", name, "--init", "first", *how]) == 0
    again = rsnn_zoo.create_model(f"local-dir:runs/{name}", pretrained=True)
    assert again.training_record["init_sha256"] == found.weights_sha256
    capsys.readouterr()
    for source, said in (("resnet20_digits_natural_ann", "init is"), ("vgg11_digits_at_ann", "not published")):
        assert main(["train", name, "--init", source, *how]) == 1
        assert said in capsys.readouterr().err


def written(path):
    """When; None where there is no such file, as between two renames."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "name"), [(0, "resnet20_digits_at_ann"), (1, "resnet20_digits_at_ann"), (2, "resnet20_digits_trades_t2")]
)
def test_killed_at_random_moments_the_same_command_ends_with_the_same_weights(tmp_path, seed, name):
    command = (name, *FEW, "--set", "direct.epochs=1", "--set", "direct.attack_pass='training'")
    code, _, err = finished(script("train.py", *command, cwd=tmp_path))
    assert code == 0, err
    expected = weights_of(tmp_path / "runs" / command[0])
    random = torch.Generator().manual_seed(seed)
    kills, checkpoint = 0, tmp_path / "killed" / "checkpoint.pt"
    for _ in range(100):
        before = written(checkpoint)
        process = script("train.py", *command, "--output", "killed", cwd=tmp_path)
        while kills < 3 and process.poll() is None:
            if written(checkpoint) not in (None, before):  # it is at work
                break
            time.sleep(0.001)
        try:
            process.communicate(timeout=torch.rand((), generator=random).item() if kills < 3 else 900)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills and weights_of(tmp_path / "killed") == expected


@pytest.mark.slow
def test_a_script_that_is_asked_to_stop_says_how_to_go_on(tmp_path):
    process = script("train.py", "resnet20_digits_at_ann", "--quiet", cwd=tmp_path)
    while not (tmp_path / "runs").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, _, err = finished(process)
    assert code == 1 and "run the same command again" in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train.py", ["resnet20_digits_trade_ann"], "did you mean trades"),
        ("train.py", ["resnet20_digits_trades_ann", "--set", "ann.epoch=3"], "did you mean epochs"),
        ("train.py", ["resnet20_digits_trades_ann", "--recipe", "digit"], "did you mean digits"),
        ("train.py", ["resnet20_cifar10_trades_ann", "--data", "none.npz"], "none.npz"),
        ("finetune.py", ["resnet20_digits_trades_ann"], "is an ANN: name the SNN"),
        ("finetune.py", ["resnet20_digits_trades_t4", "--ann", "nowhere"], "nowhere"),
        ("finetune.py", ["resnet20_digits_trades_t4", "--ann", "resnet20_digits_at_ann"], "SNN resnet20_digits_at_t4"),
        ("convert.py", ["resnet32_digits_at_t4", "--ann", "resnet20_digits_at_ann"], "the architecture resnet32"),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_remedy(tmp_path, name, arguments, message):
    code, _, err = finished(script(name, *arguments, cwd=tmp_path))
    assert code != 0 and message in err and "Traceback" not in err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_snn_is_trained_from_scratch_by_two_processes(tmp_path):
    name = "resnet20_digits_rat_t2"
    arguments = [name, *FEW, "--set", "direct.epochs=1", "--tensorboard", "board"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RSNN_ZOO_COMPILE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "scripts" / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0 and done.stdout.count(f"{name}: epoch 1") == 1, done.stderr
    training = json.loads((tmp_path / "runs" / name / "config.json").read_text())["rsnn_zoo"]["training"]
    assert training["environment"]["processes"] == 2 and training["stage"]["retraction"] == 0.004
    if importlib.util.find_spec("tensorboard"):
        assert list((tmp_path / "board").glob("events*"))


@pytest.mark.parametrize(
    "text",
    [
        '[ann]\neps = "1e999999999"',
        '[ann]\neps = "1/1e9"',
        "x = " + "[" * 5000,
        "x = " + "[\n" * 5000,
        "[" + "a." * 30_000 + "a]",
        "\n".join(f"[{'a.' * 9}x{i}]" for i in range(50)),
        f"x = {'9' * 900}",
        "x = 1\n" * 20_000,
        'base = "../../x"',
        "base = [1]",
        "x = \x00",
    ],
)
def test_a_recipe_of_a_stranger_is_refused_at_once(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "mine.toml", "at")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK"], ids=str)
def test_what_is_no_checkpoint_behind_a_right_checksum_is_refused(tmp_path, content):
    (tmp_path / checkpoints.CURRENT).write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(checkpoints.CheckpointError, match="is no state of a run"):
        load_checkpoint(tmp_path)
