"""What is kept of what a model said while it was attacked."""

import torch

from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.heard import Heard
from rsnn_zoo.attacks.signed import pgd
from rsnn_zoo.attacks.victim import ModelVictim
from tests import tiny


def test_few_are_kept_and_spread_over_all_calls():
    heard = Heard(kept=8)
    for call in range(1000):
        heard.note("one", torch.full((3, 1, 2, 2), float(call)), torch.full((3, 5), float(call)))
    heard.phase = "later"
    heard.note("other", torch.zeros(1, 1, 2, 2), torch.zeros(1, 5))
    x, said = heard.by_asker()["", "one"]
    calls = said[:, 0]
    assert 4 <= len(calls) <= 8 and calls[0] == 0 and calls[-1] > 700
    assert (calls.diff() == calls[1]).all() and torch.equal(x[:, 0, 0, 0], calls)
    assert len(heard.by_asker()["later", "other"][0]) == 1


def test_a_victim_hears_what_it_is_asked_under_each_mode():
    victim = ModelVictim(tiny.network(), 8)
    images, labels = tiny.digits().pixels(slice(0, 4)), tiny.digits().labels[:4]
    pgd(3)(victim, Batch(images, labels, 0.01, tuple(range(4))))
    heard = victim.heard.by_asker()
    assert set(heard) == {("", "gradient None"), ("", "verdict")}
    for x, said in heard.values():
        torch.testing.assert_close(tiny.network()(x), said)
