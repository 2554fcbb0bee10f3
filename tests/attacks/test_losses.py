"""The DLR losses against their definition, and where they have no meaning."""

import pytest
import torch

from rsnn_zoo.attacks.adaptive import adaptive
from rsnn_zoo.attacks.apgd import apgd, dlr, targeted_dlr
from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.fab import FAB
from rsnn_zoo.attacks.sapgd import sapgd
from rsnn_zoo.attacks.signed import pgd
from rsnn_zoo.attacks.victim import ModelVictim
from tests.attacks.conftest import MODES

# --- the DLR losses ---------------------------------------------------------------------------------------------------


def test_dlr_is_its_definition():
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0], [1.0, 3.0, 2.0, 0.0]])
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-(3.0 - 2.0) / (3 - 1), -(2.0 - 3.0) / (3 - 1)]))
    aim = torch.tensor([[0, 3], [2, 1]])
    torch.testing.assert_close(targeted_dlr(logits, aim), torch.tensor([-4.0 / (3 - 0.0), 1.0 / (3 - 0.5)]))


@pytest.mark.parametrize(("loss", "aim"), [(dlr, torch.tensor([1])), (targeted_dlr, torch.tensor([[1, 2]]))])
def test_dlr_of_equal_logits_is_finite(loss, aim):
    logits = torch.zeros(1, 10, requires_grad=True)
    value = loss(logits, aim)
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all() and logits.grad.abs().max() > 0


@pytest.mark.parametrize(("attack", "classes"), [(apgd(3, "dlr"), 2), (apgd(3, "t"), 3)])
def test_too_few_classes_are_said(attack, classes):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, classes))
    torch.nn.init.zeros_(model[1].weight)
    with pytest.raises(ValueError, match="classes"):
        attack(ModelVictim(model, 4), Batch(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), 0.1, (0,)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: pgd(0),
        lambda: apgd(0, "ce"),
        lambda: apgd(5, "l2"),
        lambda: apgd(5, "t", 0),
        lambda: sapgd(0),
        lambda: FAB(0),
        lambda: FAB(5, 0),
        lambda: adaptive(30, MODES),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"needs at least|unknown loss|from 1"):
        make()
