"""What an evaluation refuses before any work, and numbers that are none."""

import copy

import pytest
import torch
from safetensors import safe_open

from rsnn_zoo.evaluation.evaluation import evaluate
from tests import tiny
from tests.evaluation.conftest import QUIET

pytestmark = pytest.mark.usefixtures("eager")


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
        ({"checks": -1}, ValueError, "at least 0"),
        ({"draws": 0}, ValueError, "from 1 to 1024"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0"),
        ({"eps": []}, ValueError, "at least one"),
        ({"attack": []}, ValueError, "at least one"),
        ({"images": lambda x: bad(x, float("nan"))}, ValueError, "NaN"),
        ({"images": lambda x: bad(x, 1.5)}, ValueError, r"\[0, 1\]"),
        ({"images": lambda x: x.repeat(1, 3, 1, 1)}, ValueError, "channels"),
        ({"images": lambda x: x[..., :7]}, ValueError, "8 x 7"),
        ({"images": lambda x: (255 * x).to(torch.uint8)}, TypeError, "floating"),
        ({"labels": lambda y: y + 5}, ValueError, "10 classes"),
        ({"labels": lambda y: y[:-1]}, ValueError, "labels"),
        ({"labels": lambda y: y.float()}, TypeError, "integers"),
        ({"chunk": 2.5}, ValueError, "chunk must be an integer from 1 to 4096, got 2.5"),
        ({"adversarial": "/"}, ValueError, "is a folder; name a file in it"),
        ({"attack": "adaptive31", "taught": {"adaptive31/own": {"rounds": [1]}}}, ValueError, "cannot have learned"),
        ({"attack": "rays5@rate"}, ValueError, "follows no gradient"),
    ],
)
def test_bad_input_is_refused_before_any_work(snn, digits, tmp_path, change, error, words):
    images = change.pop("images", lambda x: x)(digits.pixels())
    labels = change.pop("labels", lambda y: y)(digits.labels)
    with pytest.raises(error, match=words):
        evaluate(snn, (images, labels), **{"attack": "fgsm", **change}, state=tmp_path / "state")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [lambda x: x, "resnet20_digits_trades_t4"])
def test_what_is_no_module_is_refused(digits, model):
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module from images to logits, got (function|str)"):
        evaluate(model, digits, "fgsm")


def test_an_attack_that_needs_more_classes_is_refused_before_any_work(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    data = tiny.digits().pixels(slice(0, 8)), torch.arange(8) % 2
    for attack in ("fgsm+apgd5-dlr", "apgd5-t1", "adaptive"):
        with pytest.raises(ValueError, match=r"needs at least [34] classes, and the model has 2"):
            evaluate(model, data, attack, state=tmp_path / "state", **QUIET)
    assert not list(tmp_path.iterdir())
    evaluate(model, data, "apgd5-ce", **QUIET)
    (quick,) = evaluate(model, data, "quick", **QUIET).runs  # named protocols have something for every model
    assert [attack for attack, _ in quick.members] == ["pgd10", "apgd30-ce", "sapgd30"]
    assert "needs at least 3 classes, and the model has 2" in quick.left_out["apgd30-dlr/own"]


class _Rooted(torch.nn.Module):
    """Its gradient is no number at black pixels; its logits are none of a white image."""

    def __init__(self):
        super().__init__()
        self.network = tiny.network()

    def forward(self, x):
        return self.network((x * x).sqrt() / (x < 1).flatten(1).any(1)[:, None, None, None])


@pytest.mark.parametrize("attack", ["sapgd5", "pgd5", "apgd5-ce"])
def test_what_is_no_number_leads_no_attack_out_of_its_ball(attack, tmp_path):
    data, path = tiny.digits().select(30), tmp_path / "adversarial"
    report = evaluate(_Rooted(), data, attack, 0.1, adversarial=path, chunk=16)
    assert 0 < report.runs[0].robust_accuracy < report.clean_accuracy
    with safe_open(path, "pt") as file:
        x, clean = file.get_tensor("images"), file.get_tensor("clean")
    assert len(x) and x.isfinite().all() and (x - clean).abs().max() <= 0.1 + 1e-6
    white = evaluate(_Rooted(), (torch.ones(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)), "fgsm", **QUIET)
    assert white.clean_accuracy == 0


def test_other_precisions_of_the_model_are_refused(snn, digits):
    mixed = copy.deepcopy(snn)
    mixed.fc.to(torch.bfloat16)
    for model in (mixed, copy.deepcopy(snn).double()):
        with pytest.raises(ValueError, match="float32"):
            evaluate(model, digits, "fgsm")
