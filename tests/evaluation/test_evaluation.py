"""The evaluation on real images: worst case, independence, resumption, bad input."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchattacks

import rsnn_zoo
from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation.evaluation import EPSILONS, evaluate
from rsnn_zoo.evaluation.protocols import ENSEMBLE_MODES, protocol
from rsnn_zoo.neurons.integrate_fire import Rate, Relu, Surrogate, model_under
from rsnn_zoo.report.report import MISCLASSIFIED, STANDS
from tests import tiny
from tests.evaluation.conftest import QUIET, comparable

pytestmark = pytest.mark.usefixtures("eager")

ROOT = Path(__file__).resolve().parents[2]


NEWER = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="settings since torch 2.9")


def test_the_ensemble_is_the_published_one():
    assert len(set(ENSEMBLE_MODES)) == 19
    assert sum(isinstance(mode, Surrogate) for mode in ENSEMBLE_MODES) == 17


@pytest.mark.parametrize("attack", ["fgsm", "rfgsm", "ensemble-fgsm", "ensemble-pgd3"])
def test_more_eps_and_more_members_never_help(attack):
    snn, data = tiny.network(True), tiny.digits().select(100)
    report = evaluate(snn, data, attack, [0.0, 16 / 255, 64 / 255], **QUIET)
    none, small, large = report.runs
    assert none.robust_accuracy <= report.clean_accuracy
    assert large.robust_accuracy <= small.robust_accuracy < none.robust_accuracy
    if attack.startswith("ensemble"):
        alone = evaluate(snn, data, attack.removeprefix("ensemble-"), 16 / 255, **QUIET).runs[0]
        # what pcw-1, the model's own surrogate, fells, the ensemble fells, but for other random starts
        assert small.robust_accuracy <= alone.robust_accuracy + (0 if attack == "ensemble-fgsm" else 0.05)


def test_the_worst_case_is_the_worst_of_its_members(snn, digits):
    report = evaluate(snn, digits, "ensemble-pgd3", 32 / 255, **QUIET)
    verdicts = report.runs[0].verdicts
    terms = ("pgd3@pcw-1", "pgd3@rate", "pgd3@relu", "fgsm", "square20")
    together = evaluate(snn, digits, "+".join(terms), 32 / 255, **QUIET).runs[0]
    alone = [evaluate(snn, digits, term, 32 / 255, **QUIET).runs[0].verdicts for term in terms]
    for each, worst in zip(zip(*alone, strict=True), together.verdicts, strict=True):
        first = next((number for number, verdict in enumerate(each) if verdict != STANDS), None)
        assert worst == (STANDS if first is None else MISCLASSIFIED if each[0] == MISCLASSIFIED else first)
    for correct, verdict in zip(report.correct, verdicts, strict=True):
        assert (verdict == MISCLASSIFIED) == (not correct)
    content = report.runs[0].to_json()
    assert content["attacks"][-1]["standing"] == verdicts.count(STANDS)
    assert sum(a["felled"] for a in content["attacks"]) + verdicts.count(STANDS) == sum(report.correct)


def test_each_protocol_may_have_radii_of_its_own():
    snn, data = tiny.network(True), tiny.digits().select(40)
    report = evaluate(snn, data, {"fgsm": [8 / 255, 32 / 255], "pgd5@rate": 16 / 255}, checks=16, chunk=16)
    assert [(run.protocol, round(255 * run.eps)) for run in report.runs] == [
        ("fgsm", 8),
        ("fgsm", 32),
        ("pgd5@rate", 16),
    ]
    alone = evaluate(snn, data, "pgd5@rate", 16 / 255, **QUIET)
    assert report.runs[2].verdicts == alone.runs[0].verdicts
    with pytest.raises(ValueError, match="at least one attack and one eps"):
        evaluate(snn, data, {"fgsm": []}, **QUIET)


def test_a_protocol_named_twice_meets_the_radii_of_both():
    attacks = {"quick": [8 / 255], "quick-v1": [16 / 255, 8 / 255]}
    report = evaluate(tiny.network(), tiny.digits().select(8), attacks, **QUIET)
    assert [(run.protocol, round(255 * run.eps)) for run in report.runs] == [("quick-v1", 8), ("quick-v1", 16)]


class _InPlace(torch.nn.Module):
    """Normalises the very tensor that it is given."""

    def __init__(self):
        super().__init__()
        self.network = tiny.network()

    def forward(self, x):
        return self.network(x.mul_(2).div_(2))


def test_a_model_that_works_in_place_changes_no_images():
    images, labels = tiny.digits().pixels(slice(0, 16)), tiny.digits().labels[:16]
    before = images.clone()
    found = evaluate(_InPlace(), (images, labels), "pgd5+square20", 16 / 255, **QUIET)
    assert torch.equal(images, before)
    assert (
        found.runs[0].verdicts
        == evaluate(tiny.network(), (images, labels), "pgd5+square20", 16 / 255, **QUIET).runs[0].verdicts
    )


def test_what_the_folded_network_lets_stand_is_sampled_and_reported():
    snn, data = tiny.network(), tiny.digits().select(40)
    exact, folded = (
        evaluate(snn, data, "pgd9@rate", 8 / 255, precision=each, **QUIET) for each in ("float32", "folded")
    )
    said = folded.to_json()["agreement"]
    assert said["sampled"] > 0 == said["fell"] and "agreement" not in exact.to_json()
    assert abs(exact.runs[0].robust_accuracy - folded.runs[0].robust_accuracy) <= 0.05
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, folded, got 'float16'"):
        evaluate(snn, data, "fgsm", precision="float16")


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel], ids=["compile", "DataParallel"])
def test_wrappers_are_taken_off(wrap, snn, digits):
    """Not every backward mode bears compilation, and threads of several devices would not see the mode."""
    expected = evaluate(snn, digits.select(8), "pgd2@assg", 32 / 255, **QUIET).to_json()
    found = evaluate(wrap(snn), digits.select(8), "pgd2@assg", 32 / 255, **QUIET).to_json()
    assert comparable(found) == comparable(expected) and found["training"]


@pytest.mark.parametrize("around", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad])
def test_what_the_caller_has_in_force_changes_no_verdict(around, snn, digits):
    images, labels = digits.pixels(slice(0, 12)), digits.labels[:12]
    expected = evaluate(snn, (images, labels), "pgd3+pgd3@rate", 32 / 255, checks=8, chunk=4)
    with around():
        model = copy.deepcopy(snn)
        found = evaluate(model, (images.clone(), labels), "pgd3+pgd3@rate", 32 / 255, checks=8, chunk=4)
        assert torch.is_inference_mode_enabled() == (around is torch.inference_mode)
    assert comparable(found.to_json()) == comparable(expected.to_json())


def test_verdicts_do_not_depend_on_batch_size_order_or_company(snn, digits):
    some = digits.select(12)
    settings = {"attack": "ensemble-pgd2", "eps": 48 / 255, "chunk": 4, "checks": 0}
    expected = evaluate(snn, some, **settings).runs[0].verdicts
    assert STANDS in expected and max(expected) >= 0
    assert evaluate(snn, some, **settings, batch_size=5).runs[0].verdicts == expected
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = evaluate(snn, some.select(order), **settings, batch_size=7).runs[0].verdicts
    assert [expected[i] for i in order] == list(shuffled)


@pytest.mark.parametrize("spiking", [False, True])
def test_the_whole_report_is_the_same_for_any_batch_size(spiking):
    def report(**settings):
        data = tiny.digits().select(100)
        found = evaluate(tiny.network(spiking), data, "ensemble-pgd2", EPSILONS[1:4:2], chunk=25, checks=16, **settings)
        return comparable(found.to_json())

    expected = report()
    assert len({verdict for run in expected["runs"] for verdict in run["verdicts"].split()}) > 2
    for size in (1, 7, 64, 500):
        assert report(batch_size=size) == expected


@pytest.mark.parametrize("network", ["snn", "ann"])
def test_verdicts_on_iterates_are_the_exact_networks_whatever_gives_the_gradients(request, digits, network):
    model = request.getfixturevalue(network)
    exact, fast = ModelVictim(model, 16), ModelVictim(model, 16, "bfloat16")
    for mode in (None, Surrogate("rect", 1.0), Relu()):
        x = (digits.pixels() + 1.6 * torch.rand(digits.pixels().shape).sub(0.5)).clamp(0, 1)
        fell = fast.under(mode).gradient(x, digits.labels, lambda z, y: z.sum(1), digits.labels, {})[2]
        assert torch.equal(fell, exact.fallen(x, digits.labels)) and fell.any() and not fell.all()


def test_gradients_of_16_bits_are_hardly_a_weaker_attack(snn):
    data = tiny.digits().select(60)
    exact, fast = (
        evaluate(snn, data, "pgd10+apgd20-dlr", 32 / 255, precision=precision, **QUIET).runs[0].robust_accuracy
        for precision in ("float32", "bfloat16")
    )
    assert exact < 0.8 and abs(fast - exact) <= 0.1


def test_an_ann_has_one_way_to_be_differentiated(ann, digits):
    report = evaluate(ann, digits, "ensemble-pgd3", 32 / 255, **QUIET)
    assert report.runs[0].members == (("pgd3", "own"),)


def test_any_module_can_be_evaluated(digits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    report = evaluate(model, (digits.pixels(), digits.labels), "pgd3", 8 / 255)
    assert report.model == "Sequential" and report.dataset == "tensors"
    double = evaluate(model, (digits.pixels().double(), digits.labels), "pgd3", 8 / 255)
    assert double.runs[0].verdicts == report.runs[0].verdicts


def test_several_protocols_run_one_after_another():
    report = evaluate(tiny.network(), tiny.digits().select(40), ["fgsm", "pgd5"], [8 / 255, 16 / 255], **QUIET)
    assert [(run.protocol, round(255 * run.eps)) for run in report.runs] == [
        ("fgsm", 8),
        ("fgsm", 16),
        ("pgd5", 8),
        ("pgd5", 16),
    ]
    for run in report.runs:
        alone = evaluate(tiny.network(), tiny.digits().select(40), run.protocol, run.eps, **QUIET).runs[0]
        assert alone.verdicts == run.verdicts


def test_who_met_a_member_in_an_earlier_protocol_does_not_meet_it_again(monkeypatch):
    def gradient(self, x, *rest):
        seen.append(len(x))
        return real(self, x, *rest)

    seen, real = [], ModelVictim.gradient
    monkeypatch.setattr(ModelVictim, "gradient", gradient)

    def cost(attacks):
        seen.clear()
        return evaluate(snn, data, attacks, **QUIET).runs, sum(seen)

    snn, data = tiny.network(True), tiny.digits().select(60)
    first, second = {"ensemble-pgd3": 0.06}, {"pgd3@pcw-1+pgd3@rate+fgsm": [0.06, 0.03]}
    (ensemble,), costs = cost(first)
    mixed, more = cost(second)
    assert {0, STANDS} <= set(mixed[0].verdicts) and max(mixed[0].verdicts) > 0  # the first does not fell all that fall
    both, less = cost(first | second)
    assert [run.verdicts for run in both] == [run.verdicts for run in (ensemble, *mixed)]
    assert less < costs + 0.75 * more  # nothing is known at 0.03, little is new at 0.06


@pytest.mark.slow
def test_the_published_verdicts_are_reproduced(snn, digits):
    evidence = json.loads(
        (rsnn_zoo.hub.resolve.entry_folder("resnet20_digits_trades_t4") / "evaluation.json").read_text()
    )
    (published,) = (run for run in evidence["runs"] if (run["protocol"], run["eps"]) == ("ensemble-pgd20", 8 / 255))
    settings = {"units": "absolute"} | evidence["settings"] | {"checks": 0}  # the verdicts alone, in the old units
    found = evaluate(snn, digits, published["protocol"], published["eps"], **settings).runs[0].verdicts
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


def test_a_model_with_a_state_left_over_is_refused(digits):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model.membrane = model(digits.pixels())
    with pytest.raises(ValueError, match="Reset it"):
        evaluate(model, digits, "fgsm")


def test_nothing_is_touched(snn, digits):
    state = {name: tensor.clone() for name, tensor in snn.state_dict().items()}
    snn.train()
    random_state = torch.get_rng_state()
    evaluate(snn, digits.select(8), "ensemble-fgsm", 8 / 255, chunk=8)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in snn.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in snn.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in snn.parameters())
    snn.eval()


def test_what_is_evaluated_can_be_saved_with_its_evidence(snn, digits, tmp_path):
    report = evaluate(snn, digits.select(4), "fgsm", 8 / 255, **QUIET)
    assert report.weights_sha256 == snn.weights_sha256
    rsnn_zoo.save_pretrained(snn, tmp_path, name="resnet20_digits_trades_t4", evaluation=report.to_json())
    assert json.loads((tmp_path / "evaluation.json").read_text())["n"] == 4


EXACT = """
import torch
from tests import tiny
from rsnn_zoo.evaluation.evaluation import evaluate

def settings():
    b = torch.backends
    owners = (b.cudnn.conv, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.matmul) if hasattr(b, "fp32_precision") else ()
    return [torch.get_float32_matmul_precision(), b.cudnn.deterministic, *(owner.fp32_precision for owner in owners)]

model, seen = tiny.network(), []
ALLOW
before = settings()
model.register_forward_hook(lambda *_: seen.append(settings()))
evaluate(model, tiny.digits().select(2), "fgsm", checks=0)
assert seen and all(each == ["highest", True, *["ieee"] * (len(each) - 2)] for each in seen), seen
assert settings() == before, (before, settings())
"""


@pytest.mark.parametrize(
    "allow",
    [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        pytest.param("torch.backends.mkldnn.conv.fp32_precision = 'bf16'", marks=NEWER),
        pytest.param("torch.backends.cudnn.conv.fp32_precision = 'ieee'", marks=NEWER),
    ],
)
def test_verdicts_are_in_full_float32_whatever_the_caller_allows(allow):
    subprocess.run([sys.executable, "-c", EXACT.replace("ALLOW", allow)], check=True, cwd=ROOT)


def test_a_report_says_how_a_published_model_was_trained():
    snn = rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)
    data = tiny.digits().select(2)
    training = evaluate(snn, data, "fgsm", **QUIET).to_json()["training"]
    assert training["objective"] == "trades" and training["eps"] == 32 / 255
    assert training["selection"].endswith("validation images under pgd10 at eps 32/255")
    natural = evaluate(rsnn_zoo.create_model("resnet20_digits_natural_ann", pretrained=True), data, "fgsm", **QUIET)
    assert set(natural.training) == {"objective", "selection"} and natural.training["objective"] == "natural"
    snn.fc.weight.data *= 2  # these weights nobody trained
    assert not evaluate(snn, data, "fgsm", **QUIET).training


def test_time_left_and_robust_accuracy_so_far_are_shown(capsys):
    evaluate(tiny.network(), tiny.digits().select(20), "pgd3", batch_size=5, progress=True)
    shown = capsys.readouterr().err
    assert "robust" in shown and "pgd3 8/255" in shown and "gradient/s" in shown and "100%" in shown


def test_the_documented_spikingjelly_example():
    pytest.importorskip("spikingjelly")
    import doctest

    from rsnn_zoo.evaluation import evaluation as module

    (example,) = doctest.DocTestFinder().find(evaluate, globs=dict(vars(module)))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example).failed == 0 and runner.tries > 5


def test_protocols_name_their_members(snn):
    assert [str(m) for m in protocol("pgd7", snn)] == ["pgd7/own"]
    assert str(protocol("ensemble-rfgsm", snn)[-1]) == "rfgsm/relu"
