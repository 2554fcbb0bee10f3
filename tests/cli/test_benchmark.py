"""The benchmark: the peers compute what our networks compute, every case runs, and the table says what was measured."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("spikingjelly", reason="the benchmark's peers are not installed")
pytest.importorskip("snntorch", reason="the benchmark's peers are not installed")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import _peers  # noqa: E402
import benchmark  # noqa: E402

from rsnn_zoo import from_research_checkpoint  # noqa: E402
from rsnn_zoo.models import ARCHITECTURES as MODELS  # noqa: E402
from rsnn_zoo.neurons.modes import surrogate_units  # noqa: E402
from tests.parity import needs_parity, read, relative_error, research_state_dict  # noqa: E402


@pytest.fixture(autouse=True)
def without_compiling(monkeypatch):
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "0")  # the same numbers, and the tests need no speed


def answer(model, images, labels):
    images = images.clone().requires_grad_()
    logits = model(images)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, labels), images)[0]


@pytest.mark.parametrize("architecture", benchmark.BATCHES)
def test_peers_compute_the_same_function_as_ours(architecture):
    model = MODELS[architecture](timesteps=4, threshold=0.5).double().eval()
    for name, neuron in model.neurons():  # unequal thresholds: each has to reach its own layer
        nn.init.constant_(neuron.threshold, 0.3 + 0.01 * len(name))
    images, labels = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 7])
    logits, gradient = answer(model, images, labels)
    assert logits[0].sub(logits[1]).abs().max() > 1e-3, "a silent network proves nothing"
    for library, peer in _peers.PEERS.items():
        found, found_gradient = answer(peer(model), images, labels)
        assert relative_error(found, logits) < 1e-9, library
        if library == "spikingjelly":  # snnTorch detaches the reset
            assert relative_error(found_gradient, gradient) < 1e-9


@needs_parity
def test_peers_meet_the_reference_answers():
    description, expected = read("resnet20_t8")
    model = from_research_checkpoint(research_state_dict("resnet20", 10, description["seed"]), "resnet20", 10, 8)
    for library, peer in _peers.PEERS.items():
        with surrogate_units("absolute"):
            theirs = peer(model)
        logits, gradient = answer(theirs, expected["images"], expected["labels"])
        assert relative_error(logits, expected["logits"]) < 1e-9
        if library == "spikingjelly":
            assert relative_error(gradient, expected["grad.bptt.PCW.1.0"]) < 1e-9


def test_a_peer_leaves_our_model_alone():
    model = MODELS["resnet20"](timesteps=2)
    before = str(model)
    for peer in _peers.PEERS.values():
        peer(model)(torch.rand(1, 3, 32, 32))
    assert str(model) == before and model.timesteps == 2


@pytest.mark.parametrize("quantity", benchmark.QUANTITIES)
def test_every_kind_of_case_runs(quantity):
    for case in benchmark.plan(["resnet20"], [2], [quantity], [*benchmark.PEERS, "ann"]):
        run = benchmark.build(case, batch=2)
        shape = {"forward": (2, 10), "attack_gradient": (2, 3, 32, 32), "training_step": None}[quantity]
        for _ in range(2):  # a state that survived the first call would break the second
            found = run()
            assert shape is None or (found.shape == shape and found.isfinite().all()), case


def test_training_step_trains_every_parameter_and_leaves_no_gradient():
    model = _peers.SnnTorch(MODELS["resnet20"](timesteps=2, threshold=0.3).double())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    benchmark.training_step(model, images, torch.tensor([1, 2, 3, 4]), "float32")()
    assert all(parameter.grad is None for parameter in model.parameters())
    moved = [name for name, parameter in model.named_parameters() if not parameter.equal(before[name])]
    assert len(moved) == len(before), sorted(set(before) - set(moved))


def test_peak_memory_is_what_a_call_holds_at_once():
    size = 64 * 2**20

    def run():
        for _ in range(3):  # one after the other
            torch.zeros(size, dtype=torch.uint8)

    run()
    peak = benchmark.peak_bytes(run)
    if peak is None:
        pytest.skip("this kernel cannot tell")
    assert 0.9 * size < peak < 1.5 * size


def results(*cases):
    names = ("model", "timesteps", "quantity", "library", "precision", "median_seconds", "peak_bytes")
    return {
        "cpu": "a CPU",
        "threads": 2,
        "repeats": 5,
        "malloc_tuning": False,
        "date": "2025-01-31",
        "batch": {"resnet20": 64},
        "versions": {"spikingjelly": "2.0.0"},
        "cases": [dict(zip(names, case, strict=True)) for case in cases],
    }


def test_table_gives_ratios_and_gaps():
    measured = results(
        ("resnet20", None, "forward", "ann", "float32", 0.5, 10),
        ("resnet20", 4, "forward", "rsnn_zoo", "float32", 2.5, 40),
        ("resnet20", 4, "forward", "rsnn_zoo", "bfloat16", 1.0, None),
        ("resnet20", 4, "forward", "spikingjelly", "float32", 5.0, 100),
    )
    measured["cases"].append({**measured["cases"][0], "precision": "bfloat16", "error": "killed"})
    del measured["cases"][-1]["median_seconds"]
    header, _, row, _, caption = benchmark.ratios_table(measured).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("ResNet-20", "4", "forward"),  # then faster, smaller, and over 4 ANNs; "-" is not known
        *("2.00 / 5.00", "0.40 / -", "1.25 / -"),
    ]
    assert header.count("SpikingJelly") == 2 and "snnTorch" not in header
    for fact in ("a CPU", "2 threads", "ResNet-20 64", "spikingjelly 2.0.0", "2025-01-31", "5 calls"):
        assert fact in caption


def test_a_case_that_fails_is_recorded_and_does_not_stop_the_others():
    case = benchmark.Case("no-such-network", 4, "forward", "rsnn_zoo", "float32")
    outcome = benchmark.measure_apart(case, batch=1, repeats=1, threads=1, malloc_tuning=True)
    assert list(outcome) == ["error"] and "no-such-network" in outcome["error"]


@pytest.mark.slow
def test_one_run_from_the_command_line(tmp_path, monkeypatch):
    file = tmp_path / "benchmark.json"
    command = [sys.executable, str(SCRIPTS / "benchmark.py")]
    options = "--models resnet20 --timesteps 2 --quantities attack_gradient --batch 2 --repeats 2 --threads 1"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # a bare checkout is not installed
    run = subprocess.run([*command, *options.split(), "--output", file], capture_output=True, text=True, check=True)
    written = json.loads(file.read_text())
    assert {"cpu", "cores", "threads", "versions", "date", "batch", "repeats", "malloc_tuning"} < set(written)
    kinds = {(case["library"], case["precision"]) for case in written["cases"]}
    ours = itertools.product(("rsnn_zoo", "ann"), benchmark.PRECISIONS)
    assert kinds == {*ours, ("spikingjelly", "float32"), ("snntorch", "float32")}
    assert all(0 < case["min_seconds"] <= case["median_seconds"] for case in written["cases"])
    table = subprocess.run([*command, "--table", file], capture_output=True, text=True, check=True).stdout
    assert table == run.stdout and "-" not in table.splitlines()[2].split("ResNet-20")[1]


def test_bad_arguments_are_refused_before_anything_is_measured(monkeypatch, capsys):
    for bad in (["--batch", "0"], ["--models", "resnet18"], ["--timesteps", "-1"]):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *bad])
        with pytest.raises(SystemExit):
            benchmark.main()
        assert bad[0] in capsys.readouterr().err
