"""Attacks: what each of them keeps to, and that each is the published one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.signed import FGSM, RFGSM, pgd


class RandomVictim:
    """Random gradients, and each iterate falls by chance; keeps what it is shown."""

    def __init__(self, generator):
        self.generator, self.seen = generator, []
        self.module = None

    def gradient(self, x, labels, loss, aim, memory):
        logits = self.logits(x)
        return torch.randn(x.shape, generator=self.generator), logits, logits.argmax(1) != labels

    def logits(self, x):
        self.seen.append(x)
        logits = torch.rand(len(x), 10, generator=self.generator)
        logits[:, 0] += 0.7
        return logits

    def fallen(self, x, labels):
        return self.logits(x).argmax(1) != labels


@given(
    st.sampled_from([FGSM, RFGSM, pgd(1), pgd(5)]),
    st.floats(0, 1),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**20),
)
@settings(max_examples=80, deadline=None)
def test_attacks_keep_to_the_ball_and_the_pixels(attack, eps, batch, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, channels, 3, 4, generator=generator)
    victim = RandomVictim(generator)
    labels = torch.zeros(batch, dtype=torch.long)
    fell, adversarial = attack(victim, Batch(images, labels, eps, tuple(range(batch)), seed))
    assert fell.shape == (batch,) and adversarial.shape == images.shape
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert all(x.min() >= 0 and x.max() <= 1 for x in victim.seen)


def test_sign_attacks_start_and_step_as_defined():
    images, noise = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[0.5, -0.25]]]])
    assert torch.equal(FGSM.begin(images, 0.1, noise), images)
    torch.testing.assert_close(RFGSM.begin(images, 0.1, noise), images + 0.05 * noise.sign())
    torch.testing.assert_close(pgd(20).begin(images, 0.1, noise), images + 0.1 * noise)
    assert pgd(20).size == 2.5 / 20 and RFGSM.size == 0.5 and FGSM.size == 1


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    images, labels = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    whole = Batch(images, labels, 0.1, (7, 8, 9), seed=1, stream="pgd20/rate")
    part = Batch(images[1:], labels[1:], 0.1, (8, 9), seed=1, stream="pgd20/rate")
    assert torch.equal(whole.noise()[1:], part.noise())
    assert not torch.equal(whole.noise()[0], whole.noise()[1])
    assert not torch.equal(part.noise(), Batch(images[1:], labels[1:], 0.1, (8, 9), seed=1, stream="other").noise())
