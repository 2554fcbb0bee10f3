"""The adaptive ensemble: what it learns, where its steps go, and that a sample's fate is its own."""

from dataclasses import replace

import pytest
import torch

import rsnn_zoo
from rsnn_zoo.attacks.adaptive import Adaptive, Switching, adaptive
from rsnn_zoo.attacks.apgd import apgd
from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.neurons.integrate_fire import Rate, Surrogate
from tests import tiny

PCW, RATE = Surrogate("pcw", 1.0), Rate()
CE_PCW, DLR_PCW, CE_RATE = ("ce", PCW), ("dlr", PCW), ("ce", RATE)


class TwoPixels:
    """The label's logit is the first pixel minus the second, and only the rate has a gradient; logs its passes."""

    def __init__(self, log=None, mode=None):
        self.mode, self.log = mode, [] if log is None else log

    def under(self, mode):
        return TwoPixels(self.log, mode)

    def logits(self, x):
        own = x[:, 0, 0, 0] - x[:, 0, 0, 1]
        return torch.stack([own, torch.zeros_like(own), -torch.ones_like(own)], 1)

    def fallen(self, x, labels):
        return self.logits(x).argmax(1) != labels

    def gradient(self, x, labels, loss, aim, memory):
        self.log.append((self.mode, len(x)))
        x = x.clone().requires_grad_()
        logits = self.logits(x)
        (gradient,) = torch.autograd.grad(loss(logits, aim).sum(), x)
        return gradient * (self.mode == RATE), logits.detach(), self.fallen(x.detach(), labels)


def batch(firsts, eps=0.2):
    images = torch.tensor([[[[first, 0.1]]] for first in firsts])
    return Batch(images, torch.zeros(len(firsts), dtype=torch.long), eps, tuple(range(len(firsts))), stream="test")


def test_the_pair_that_fells_most_comes_right_after_the_first():
    attack = Adaptive("a", (2, 4), (CE_PCW, DLR_PCW, CE_RATE))
    # under pcw there is no gradient: samples stay where they start, and only those near to falling race
    samples = batch([0.45, 0.46, 0.47, 0.48, 0.9, 0.91, 0.92, 0.93])
    learned = attack.learned(TwoPixels(), samples)
    assert learned.pairs == (CE_PCW, CE_RATE, DLR_PCW)
    assert len(learned.bars) == 1 and 0 < learned.bars[0] < 0.9


def test_steps_go_to_the_samples_that_are_near():
    attack, samples = Adaptive("a", (3, 5), (CE_PCW,)), batch([0.9, 0.99])
    _, _, margins = attack._round(0, TwoPixels(), samples)
    victim = TwoPixels()
    fell, adversarial = replace(attack, bars=(margins.mean().item(),))(victim, samples)
    assert not fell.any()
    assert [n for _, n in victim.log] == [2] * 3 + [1] * 5
    assert ((adversarial - samples.images).abs() <= 0.2 + 1e-6).all()


def test_without_bars_all_run_all_rounds():
    victim = TwoPixels()
    Adaptive("a", (1, 2), (CE_PCW,))(victim, batch([0.9, 0.95]))
    assert [n for _, n in victim.log] == [2, 2, 2]


def test_a_stalled_sample_turns_to_the_next_pair():
    victim = TwoPixels()
    fell, _ = Switching("s", 30, pairs=(CE_PCW, CE_RATE))(victim, batch([0.4, 0.45]))
    modes = [mode for mode, _ in victim.log]
    assert modes[0] == PCW and modes[-1] == RATE  # no gradient: the loss stalls, and the rate fells both
    assert fell.all()


def test_passes_are_grouped_by_pair_and_come_back_in_order():
    snn = rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)
    data = rsnn_zoo.load_dataset("digits", "test").select(5)
    victim = ModelVictim(snn, 5)
    run = Switching("s", 4, pairs=(CE_PCW, ("dlr", RATE)))
    state = {"x": data.pixels(), "pair": torch.tensor([1, 0, 1, 1, 0])}
    gradient, logits, down = run.gradient(victim, state, data.labels, {})
    for row, pair in enumerate(state["pair"].tolist()):
        loss, mode = run.pairs[pair]
        alone = apgd(1, loss)
        one = {"x": data.pixels()[row : row + 1], "aim": data.labels[row : row + 1]}
        expected = alone.gradient(victim.under(mode), one, data.labels[row : row + 1], {})
        torch.testing.assert_close(gradient[row], expected[0][0])
        torch.testing.assert_close(logits[row], expected[1][0])
        assert down[row] == expected[2][0]


def test_a_pilot_that_tells_nothing_lets_all_go_on_for_three_rounds():
    attack = adaptive(31, (RATE,))
    nothing = batch([0.9]).rows(torch.tensor([], dtype=torch.long))
    for pilot in (nothing, batch([0.05, 0.0]), batch([0.9] * 7)):
        assert attack.learned(TwoPixels(), pilot) == replace(attack, rounds=(1, 2, 4))
    assert attack.learned(TwoPixels(), batch([0.9] * 8)).rounds == attack.rounds


PAIRS = ["ce/pcw-1", "dlr/pcw-1", "ce/rate"]


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"rounds": []},
        {"rounds": [1]},
        {"rounds": [1, 2], "bars": []},
        {"rounds": [1, 2, 4]},
        {"rounds": [1, 2, 4], "bars": [], "pairs": ["ce/pcw-1", "ce/rate", "dlr/pcw-1"]},
        {"rounds": [2, 4, 8, 16]},
        {"pairs": []},
        {"pairs": PAIRS[:2]},
        {"pairs": [*PAIRS, PAIRS[0]]},
        {"pairs": [PAIRS[0], PAIRS[1], PAIRS[1]]},
        {"pairs": ["dlr/pcw-1", "ce/pcw-1", "ce/rate"]},
        {"pairs": [*PAIRS[:2], "ce/ste"]},
        {"bars": []},
        {"bars": [1, 1]},
        {"bars": [1, 1, 1, 1]},
        {"bars": ["nan", 1, 1]},
        {"bars": [float("nan"), 1, 1]},
        {"bars": [[], 1, 1]},
    ],
)
def test_nothing_is_taught_that_cannot_have_been_learned(known):
    attack = Adaptive("a", (1, 2, 4, 8), (CE_PCW, DLR_PCW, CE_RATE))
    sound = replace(attack, pairs=(CE_PCW, CE_RATE, DLR_PCW), bars=(1.0, -0.5, torch.inf))
    for learned in (sound, replace(attack, rounds=(1, 2, 4))):
        assert attack.taught(learned.to_json()) == learned
    with pytest.raises(ValueError, match="a cannot have learned"):
        attack.taught({**sound.to_json(), **known} if known else {})


@pytest.mark.slow
def test_verdicts_do_not_depend_on_batches_or_order():
    snn = rsnn_zoo.create_model("resnet20_digits_natural_t4", pretrained=True)
    data = rsnn_zoo.load_dataset("digits", "test").select(14)
    options = {"attack": "adaptive31", "eps": 12 / 255, "chunk": 4, "checks": 0}
    expected = rsnn_zoo.evaluate(snn, data, **options).runs[0].verdicts
    assert -1 in expected and 0 in expected
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    found = rsnn_zoo.evaluate(snn, data.select(order), batch_size=5, **options).runs[0].verdicts
    assert [expected[i] for i in order] == list(found)


def test_rounds_double_and_say_their_steps():
    attack = adaptive(496, (RATE,))
    assert attack.rounds == (16, 32, 64, 128, 256) and attack.steps == 496 and attack.name == "adaptive496"
    assert attack.pairs == (("ce", RATE), ("dlr", RATE))
    assert replace(attack, bars=(1.0,)).steps == 496


def test_a_report_says_what_was_learned():
    data = tiny.digits().select(40)
    report = rsnn_zoo.evaluate(tiny.network(True), data, "fgsm+adaptive31", 8 / 255, chunk=16, checks=0)
    fgsm, attack = report.to_json()["runs"][0]["attacks"]
    assert "learned" not in fgsm
    learned = attack["learned"]
    assert learned["rounds"] == [1, 2, 4, 8, 16] and len(learned["bars"]) == 4
    assert len(set(learned["pairs"])) == 12 and learned["pairs"][0] == "ce/pcw-2"
