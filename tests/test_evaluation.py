"""The evaluation on real images: worst case, independence, resumption, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torchattacks

import rsnn_zoo
import rsnn_zoo.hub
from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.protocols import ENSEMBLE_MODES, protocol
from rsnn_zoo.evaluation import MISCLASSIFIED, STANDS, evaluate, wilson
from rsnn_zoo.neurons import Rate, Relu, Surrogate, model_under


@pytest.fixture(scope="module")
def digits():
    return rsnn_zoo.load_dataset("digits", "test").select(30)


@pytest.fixture(scope="module")
def ann():
    return rsnn_zoo.create_model("resnet20_digits_trades_ann", pretrained=True)


@pytest.fixture(scope="module")
def snn():
    return rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)


def test_the_ensemble_is_the_published_one():
    assert len(set(ENSEMBLE_MODES)) == 19
    assert sum(isinstance(mode, Surrogate) for mode in ENSEMBLE_MODES) == 17


@pytest.mark.parametrize("attack", ["fgsm", "rfgsm", "ensemble-fgsm", "ensemble-pgd3"])
def test_more_eps_and_more_members_never_help(snn, digits, attack):
    report = evaluate(snn, digits, attack, [0.0, 16 / 255, 64 / 255])
    none, small, large = report.runs
    assert none.robust_accuracy <= report.clean_accuracy
    assert large.robust_accuracy <= small.robust_accuracy + 0.05
    if attack.startswith("ensemble"):
        alone = evaluate(snn, digits, attack.removeprefix("ensemble-"), 16 / 255).runs[0]
        # pcw-1, the model's own surrogate, leads the ensemble: what it fells, the ensemble fells
        assert small.robust_accuracy <= alone.robust_accuracy + 0.05


def test_the_worst_case_is_the_worst_of_its_members(snn, digits):
    report = evaluate(snn, digits, "ensemble-pgd3", 32 / 255)
    verdicts = report.runs[0].verdicts
    for correct, verdict in zip(report.correct, verdicts, strict=True):
        assert (verdict == MISCLASSIFIED) == (not correct)
    content = report.runs[0].to_json()
    assert content["attacks"][-1]["standing"] == verdicts.count(STANDS)
    assert sum(a["felled"] for a in content["attacks"]) + verdicts.count(STANDS) == sum(report.correct)


def test_verdicts_do_not_depend_on_batch_size_order_or_company(snn, digits):
    some = digits.select(20)
    expected = evaluate(snn, some, "ensemble-pgd3", 48 / 255, chunk=4).runs[0].verdicts
    assert STANDS in expected and max(expected) >= 0
    for size in (1, 7, 64):
        assert evaluate(snn, some, "ensemble-pgd3", 48 / 255, chunk=4, batch_size=size).runs[0].verdicts == expected
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = evaluate(snn, some.select(order), "ensemble-pgd3", 48 / 255, chunk=4, batch_size=13).runs[0].verdicts
    assert [expected[i] for i in order] == list(shuffled)


def test_bfloat16_gradients_are_confirmed_by_the_exact_network(snn, digits, monkeypatch):
    confirmed = []
    from rsnn_zoo import evaluation as module

    original = module._Victim.fallen

    def noted(self, x, y):
        confirmed.append(original(self, x, y))
        return confirmed[-1]

    monkeypatch.setattr(module._Victim, "fallen", noted)
    report = evaluate(snn, digits, "ensemble-pgd3", 16 / 255, precision="bfloat16")
    felled = sum(v >= 0 for v in report.runs[0].verdicts)
    assert felled and sum(int(c.sum()) for c in confirmed) == felled


def test_an_ann_has_one_way_to_be_differentiated(ann, digits):
    report = evaluate(ann, digits, "ensemble-pgd3", 32 / 255)
    assert report.runs[0].members == (("pgd3", "own"),)


def test_any_module_can_be_evaluated(digits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    report = evaluate(model, (digits.pixels(), digits.labels), "pgd3", 8 / 255)
    assert report.model == "Sequential"


def test_the_published_verdicts_are_reproduced(snn, digits):
    evidence = json.loads((rsnn_zoo.hub.entry_folder("resnet20_digits_trades_t4") / "evaluation.json").read_text())
    published = evidence["runs"][-1]
    found = evaluate(snn, digits, published["protocol"], published["eps"], **evidence["settings"]).runs[0].verdicts
    same = sum(a == int(b) for a, b in zip(found, published["verdicts"].split(), strict=False))
    assert same >= 29  # another processor rounds otherwise


@pytest.mark.parametrize("mode", [Surrogate("pcw", 0.5), Rate(), Relu()], ids=str)
def test_torchattacks_runs_on_a_view_and_agrees(snn, digits, mode):
    view = model_under(snn, mode)
    images, labels = digits.pixels(), digits.labels
    theirs = torchattacks.FGSM(view, eps=8 / 255)(images, labels)
    assert ((theirs - images).abs() <= 8 / 255 + 1e-6).all()
    logits = view(images.requires_grad_())
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), images)
    ours = project(images + 8 / 255 * gradient.sign(), images, 8 / 255)
    torch.testing.assert_close(theirs, ours)


def test_wilson_is_the_textbook_interval():
    n, p, z = 50, 0.8, 1.959964
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert wilson(40, 50) == pytest.approx(expected, abs=1e-6)


def test_nothing_is_touched(snn, digits):
    state = {name: tensor.clone() for name, tensor in snn.state_dict().items()}
    snn.train()
    random_state = torch.get_rng_state()
    evaluate(snn, digits.select(8), "ensemble-fgsm", 8 / 255)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in snn.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in snn.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in snn.parameters())
    snn.eval()


def test_what_is_evaluated_can_be_saved_with_its_evidence(snn, digits, tmp_path):
    report = evaluate(snn, digits.select(4), "fgsm", 8 / 255)
    assert report.weights_sha256 == snn.weights_sha256
    rsnn_zoo.save_pretrained(snn, tmp_path, name="resnet20_digits_trades_t4", evaluation=report.to_json())
    assert json.loads((tmp_path / "evaluation.json").read_text())["n"] == 4


def test_the_report_is_evidence(snn, digits, tmp_path):
    report = evaluate(snn, digits, "pgd2", [2 / 255, 8 / 255], seed=3)
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["n"] == 30 and content["dataset"] == "digits" and content["split"] == "test"
    assert content["settings"]["seed"] == 3 and "torch" in content["versions"]
    for one in content["runs"]:
        assert len(one["verdicts"].split()) == 30
        assert one["ci95"][0] <= one["robust_accuracy"] <= one["ci95"][1]
    assert "8/255" in report.table()


RESUMED = """
import sys, torch, rsnn_zoo
from rsnn_zoo.evaluation import evaluate
torch.set_num_threads(1)
snn = torch.load(sys.argv[1], weights_only=False)
data = rsnn_zoo.load_dataset("digits", "test").select(30)
evaluate(snn, data, "ensemble-pgd3", 32 / 255, batch_size=3, chunk=16, state=sys.argv[2]).save(sys.argv[3])
"""


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_verdicts(snn, digits, tmp_path):
    torch.save(snn, tmp_path / "snn.pt")
    state, output = tmp_path / "state.json", tmp_path / "report.json"
    command = [sys.executable, "-c", RESUMED, str(tmp_path / "snn.pt"), str(state), str(output)]
    kills = 0
    while not output.exists():
        process = subprocess.Popen(command, env={**os.environ, "RSNN_ZOO_COMPILE": "0"})
        before = len(json.loads(state.read_text())["verdicts"].get(repr(32 / 255), {})) if state.exists() else 0
        while process.poll() is None and kills < 3:
            time.sleep(0.02)
            if state.exists() and len(json.loads(state.read_text())["verdicts"].get(repr(32 / 255), {})) > before + 6:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.wait()
    assert kills >= 1
    expected = evaluate(snn, digits, "ensemble-pgd3", 32 / 255, chunk=16).runs[0].verdicts
    assert json.loads(output.read_text())["runs"][0]["verdicts"] == " ".join(map(str, expected))


def test_a_foreign_state_is_refused(snn, digits, tmp_path):
    evaluate(snn, digits.select(4), "fgsm", 8 / 255, state=tmp_path / "state.json")
    before = (tmp_path / "state.json").read_bytes()
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(snn, digits.select(4), "fgsm", 8 / 255, seed=1, state=tmp_path / "state.json")
    assert (tmp_path / "state.json").read_bytes() == before


def bad(images, value):
    images = images.clone()
    images[0, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"eps": -0.1}, ValueError, "eps must lie"),
        ({"eps": 8}, ValueError, "8 / 255"),
        ({"eps": float("nan")}, ValueError, "eps must lie"),
        ({"attack": "pgd"}, ValueError, "ensemble-pgd20"),
        ({"attack": "ensemble-pgd0"}, ValueError, "unknown attack"),
        ({"batch_size": 0}, ValueError, "at least 1"),
        ({"images": lambda x: bad(x, float("nan"))}, ValueError, "NaN"),
        ({"images": lambda x: bad(x, 1.5)}, ValueError, r"\[0, 1\]"),
        ({"images": lambda x: x.repeat(1, 3, 1, 1)}, ValueError, "channels"),
        ({"images": lambda x: x[..., :7]}, ValueError, "8 x 7"),
        ({"images": lambda x: (255 * x).to(torch.uint8)}, TypeError, "floating"),
        ({"labels": lambda y: y + 5}, ValueError, "10 classes"),
        ({"labels": lambda y: y[:-1]}, ValueError, "labels"),
        ({"labels": lambda y: y.float()}, TypeError, "integers"),
    ],
)
def test_bad_input_is_refused_before_any_work(snn, digits, tmp_path, change, error, words):
    images = change.pop("images", lambda x: x)(digits.pixels())
    labels = change.pop("labels", lambda y: y)(digits.labels)
    with pytest.raises(error, match=words):
        evaluate(snn, (images, labels), **{"attack": "fgsm", **change}, state=tmp_path / "state.json")
    assert not list(tmp_path.iterdir())


def test_other_precisions_of_the_model_are_refused(snn, digits):
    import copy

    with pytest.raises(ValueError, match="float32"):
        evaluate(copy.deepcopy(snn).double(), digits, "fgsm")


def test_protocols_name_their_members(snn):
    assert [str(m) for m in protocol("pgd7", snn)] == ["pgd7/own"]
    assert str(protocol("ensemble-rfgsm", snn)[-1]) == "rfgsm/relu"
