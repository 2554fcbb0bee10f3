"""Attacks: what each of them keeps to, and that each is the published one."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st

import rsnn_zoo
from rsnn_zoo.attacks.adaptive import adaptive
from rsnn_zoo.attacks.apgd import apgd, checkpoints, on_sphere
from rsnn_zoo.attacks.base import Batch, check_eps
from rsnn_zoo.attacks.fab import FAB, linf_step
from rsnn_zoo.attacks.library import TorchAttack
from rsnn_zoo.attacks.queries import Noise, RayS, Square
from rsnn_zoo.attacks.sapgd import sapgd
from rsnn_zoo.attacks.signed import FGSM, RFGSM, pgd
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.neurons.integrate_fire import Rate, SpikingNeuron, Surrogate
from rsnn_zoo.neurons.modes import MODES as ALL_MODES
from tests.attacks.conftest import MODES

APGDS = [apgd(9, "ce"), apgd(9, "dlr"), apgd(9, "t", 2)]


GRADIENT_ATTACKS = [FGSM, RFGSM, pgd(1), pgd(5), *APGDS, sapgd(9), FAB(6), adaptive(31, MODES)]


class RandomVictim:
    """Random gradients, and each iterate falls by chance; keeps what it is shown."""

    def __init__(self, generator):
        self.generator, self.seen = generator, []
        self.module = None

    def under(self, mode):
        return self

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

    def answers(self, x, labels):
        logits = self.logits(x)
        return logits, logits.argmax(1) != labels


@given(
    st.sampled_from(GRADIENT_ATTACKS),
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


class Small(torch.nn.Module):
    """A spiking network for images of any size."""

    def __init__(self, channels, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = torch.nn.Conv2d(channels, 6, 3, padding=1), torch.nn.Linear(6, 4)
        self.norm, self.neuron = torch.nn.BatchNorm2d(6), SpikingNeuron(3, repeated=True, threshold=0.3)

    def forward(self, x):
        spikes = self.neuron(self.norm(self.first(x)))
        return self.last(spikes.mean((2, 3))).reshape(-1, len(x), 4).mean(0)


@given(
    st.sampled_from([*GRADIENT_ATTACKS, Square(6), RayS(6), Noise(3), TorchAttack(torchattacks.PGD, steps=3)]),
    st.sampled_from([None, *ALL_MODES.values()]),
    st.sampled_from(["float32", "bfloat16"]),
    st.floats(0, 1),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)),
    st.integers(0, 2**20),
)
@settings(max_examples=100)
def test_no_attack_under_any_mode_leaves_the_ball_or_a_trace(eager, attack, mode, precision, eps, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=generator)
    model = Small(shape[1], seed).train()
    victim = ModelVictim(model, 3, precision).under(mode)
    labels = victim.logits(images).argmax(1)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fell, adversarial = attack(victim, Batch(images, labels, eps, tuple(range(len(labels))), seed))
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert torch.equal(victim.fallen(adversarial, labels), fell)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.rand(2, 1, 2, 2) * 255}, ValueError, "not \\[0, 1\\]"),
        ({"images": torch.full((2, 1, 2, 2), torch.nan)}, ValueError, "NaN"),
        ({"images": torch.zeros(2, 4)}, ValueError, "must be \\(B, C, H, W\\)"),
        ({"images": torch.zeros(2, 1, 2, 2, dtype=torch.uint8)}, TypeError, "divide uint8 by 255"),
        ({"labels": torch.zeros(2)}, TypeError, "tensor of integers"),
        ({"labels": torch.tensor([0, -1])}, ValueError, "numbered from 0"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, ValueError, "2 images, 3 labels and 2 indices"),
        ({"index": (0,)}, ValueError, "2 images, 2 labels and 1 indices"),
        ({"eps": 8}, ValueError, "e.g. 8 / 255"),
        ({"eps": -0.1}, ValueError, "must lie in \\[0, 1\\]"),
        ({"eps": float("nan")}, ValueError, "must lie in \\[0, 1\\]"),
        ({"eps": "8/255"}, TypeError, "one number.*8 / 255.*str '8/255'"),
        ({"eps": None}, TypeError, "one number.*None"),
        ({"eps": True}, TypeError, "one number.*bool"),
        ({"eps": np.array([0.1, 0.2])}, TypeError, "one number.*ndarray"),
        ({"eps": torch.tensor([0.1])}, TypeError, "one number.*Tensor"),
        ({"eps": torch.tensor(8.0)}, ValueError, "must lie in \\[0, 1\\]"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_any_work(change, error, message):
    good = {"images": torch.rand(2, 1, 2, 2), "labels": torch.zeros(2, dtype=torch.long), "eps": 0.1, "index": (0, 1)}
    Batch(**good)
    with pytest.raises(error, match=message):
        Batch(**{**good, **change})


@pytest.mark.parametrize(
    "eps", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5], ids=lambda e: type(e).__name__
)
def test_eps_is_any_single_number(eps):
    assert check_eps(eps) == 0.5 and type(check_eps(eps)) is float
    batch = Batch(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int32), eps, (0,))
    assert type(batch.eps) is float and batch.labels.dtype == torch.int64


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


# --- against other people's code, on a smooth network that no attack fools --------------------------------------------


class Smooth(torch.nn.Module):
    """Its logits bend with the image, and a large offset keeps the prediction, so that no sample leaves the batch."""

    def __init__(self, offset=50.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(24, 12, generator=generator, dtype=torch.float64)
        self.last = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        self.offset = torch.zeros(6, dtype=torch.float64)
        self.offset[0] = offset
        self.weight = torch.nn.Parameter(torch.zeros(()))  # torchattacks asks a model for its device
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return torch.tanh(x.flatten(1) @ self.first) @ self.last + self.offset


def smooth_batch(eps=0.1, n=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 2, 3, 4, generator=generator, dtype=torch.float64)
    return Batch(images, torch.zeros(n, dtype=torch.long), eps, tuple(range(n)))


class SmoothVictim(ModelVictim):
    """Shows what it is asked for gradients at."""

    def __init__(self, model):
        super().__init__(model, 64)
        self.iterates = []

    def gradient(self, x, *args):
        self.iterates.append(x.clone())
        return super().gradient(x, *args)


# their first comparison of losses is with 0 instead of the start's, which at 10 steps matters to a negative loss
@pytest.mark.parametrize(("objective", "steps"), [("ce", 10), ("ce", 40), ("dlr", 40), ("t", 40)])
def test_apgd_takes_the_iterates_of_the_published_code(monkeypatch, objective, steps):
    # a smaller offset for the cross-entropy, whose loss would else be flat in float64
    model, batch = Smooth(12.0 if objective == "ce" else 50.0), smooth_batch(0.3)
    victim = SmoothVictim(model)
    apgd(steps, objective, 2)(victim, batch)

    start = (batch.noise() + 1) / 2
    monkeypatch.setattr(torch, "rand", lambda *shape: start)
    if objective == "t":
        theirs = torchattacks.APGDT(model, eps=batch.eps, steps=steps)
        theirs.target_class = 3  # counted from the label
    else:
        theirs = torchattacks.APGD(model, eps=batch.eps, steps=steps, loss=objective)
    model.seen.clear()
    theirs.attack_single_run(batch.images, batch.labels)
    seen = model.seen[1:] if objective == "t" else model.seen  # their targets are those of the clean images
    assert len(seen) == steps + 1 == len(victim.iterates) + 1
    for ours, published in zip(victim.iterates, seen, strict=False):
        torch.testing.assert_close(ours, published)


class Single(torch.nn.Module):
    """For code that casts images to float32."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.double()).float()


@pytest.mark.parametrize("target", [1, 3])
def test_fab_takes_the_iterates_of_the_published_code(target):
    batch, model = smooth_batch(1e-9, n=12), Smooth(2.0)  # nothing falls inside so small a ball
    labels = model(batch.images).argmax(1)
    batch = Batch(batch.images.float(), labels, batch.eps, batch.index)
    victim = SmoothVictim(Single(model))
    FAB(30, target)(victim, batch)

    theirs = torchattacks.FAB(Single(model), multi_targeted=True, steps=30)
    theirs.target_class = target + 1  # counted from the label
    model.seen.clear()
    theirs.attack_single_run_targeted(batch.images, labels)
    seen, asked = model.seen[2::2], model.seen[3::2]  # first come the clean images, twice
    assert len(seen) == 30 == len(victim.iterates)
    crossed = model(torch.cat(asked)).argmax(1) != labels.repeat(30)
    assert crossed.float().mean() > 0.2
    for ours, published in zip(victim.iterates, seen, strict=True):
        torch.testing.assert_close(ours.double(), published, rtol=0, atol=1e-4)


@given(st.integers(1, 6), st.integers(0, 2**20), st.floats(-4, 4))
@settings(max_examples=40)
def test_the_step_of_fab_is_the_smallest_that_there_is(pixels, seed, gap):
    generator = torch.Generator().manual_seed(seed)
    point = torch.rand(1, pixels, generator=generator, dtype=torch.float64)
    w = torch.randn(1, pixels, generator=generator, dtype=torch.float64)
    d = linf_step(point, w, torch.tensor([gap], dtype=torch.float64))[0].numpy()
    point, w = point[0].numpy(), w[0].numpy()
    assert (point + d >= -1e-12).all() and (point + d <= 1 + 1e-12).all()
    reach = np.maximum(np.sign(gap) * w * (1 - point), -np.sign(gap) * w * point).sum()
    assert w @ d == pytest.approx(np.sign(gap) * min(abs(gap), reach), abs=1e-9)
    if abs(gap) < reach:  # the shift and its norm, by linear programming
        norm, one = np.r_[np.zeros(pixels), 1], np.eye(pixels)
        above = np.block([[one, -np.ones((pixels, 1))], [-one, -np.ones((pixels, 1))]])
        bounds = [*zip(-point, 1 - point, strict=True), (0, None)]
        best = scipy.optimize.linprog(norm, above, np.zeros(2 * pixels), [np.r_[w, 0]], [gap], bounds)
        assert np.abs(d).max() == pytest.approx(best.fun, abs=1e-7)


def test_fab_finds_the_boundary_of_a_linear_model():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).requires_grad_(False)
    torch.nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(0))
    images = 0.4 + 0.2 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    logits = model(images)
    labels = logits.argmax(1)
    slopes = (model[1].weight[labels, None] - model[1].weight).abs().sum(2)
    away = ((logits.gather(1, labels[:, None]) - logits) / slopes).nan_to_num(torch.inf).sort(1).values
    nearest = logits.argsort(1, descending=True)[:, 1]
    needed = (logits.amax(1) - logits.gather(1, nearest[:, None])[:, 0]) / slopes.gather(1, nearest[:, None])[:, 0]
    assert (needed < away[:, 1]).any()  # the most likely wrong class is often the one that is nearest
    for share, falls in ((0.9, False), (1.1, True)):
        for i in range(len(images)):
            batch = Batch(images[i : i + 1], labels[i : i + 1], share * needed[i].item(), (i,))
            fell, _ = FAB(20)(ModelVictim(model, 4), batch)
            assert fell.item() is falls or (not falls and away[i, 0] < 0.9 * needed[i])  # into the other class


def test_sapgd_is_its_definition():
    model, batch, steps = Smooth(12.0), smooth_batch(), 20
    victim = SmoothVictim(model)
    sapgd(steps)(victim, batch)
    for i in range(len(batch)):  # sample by sample, in plain words
        image, noise = batch.images[i : i + 1], batch.noise()[i : i + 1]
        x = (image + batch.eps * noise / noise.abs().max()).clamp(0, 1)
        m = v = 0
        eta, halve_at = batch.eps, {4: True}  # int(0.22 * 20), then gaps of 4 - 1 = 3, 2, 1, 1 ...
        gap, at = 4, 4
        while at < steps:
            halve_at[at] = True
            gap = max(gap - 1, 1)
            at += gap
        for k in range(steps):
            if k in halve_at:
                eta /= 2
            torch.testing.assert_close(victim.iterates[k][i : i + 1], x)
            x = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(x), batch.labels[i : i + 1]), x)
            x = x.detach()
            m = 0.5 * m + g / g.abs().mean()
            v = 0.8 * v + g**2 / (g**2).mean()
            x = x + (eta * m / (v.sqrt() + 1e-12)).clamp(-eta, eta)
            x = x.clamp(image - batch.eps, image + batch.eps).clamp(0, 1)


def test_sapgd_survives_vanished_gradients():
    attack, batch = sapgd(3), smooth_batch()
    state = attack.first(None, batch)
    for gradient in (torch.zeros_like(batch.images), torch.full_like(batch.images, 1e-200)):
        x = attack.step(0, state, gradient, None, batch.images, batch.eps)["x"]
        assert x.isfinite().all() and (x - batch.images).abs().max() <= batch.eps + 1e-12


def test_checkpoints_are_the_published_ones():
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(1) == ()


def test_starts_lie_on_the_sphere():
    batch = Batch(torch.full((4, 1, 3, 3), 0.5), torch.zeros(4, dtype=torch.long), 0.1, (0, 1, 2, 3))
    torch.testing.assert_close((on_sphere(batch) - 0.5).abs().amax((1, 2, 3)), torch.full((4,), 0.1))


# --- on a published spiking network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = rsnn_zoo.load_dataset("digits", "test").select(12)
    return data.pixels(), data.labels


def rows(images, labels, order, eps):
    return Batch(images[order], labels[order], eps, tuple(order.tolist()), stream="some")


@pytest.mark.parametrize("mode", [Surrogate("pcw", 2.0), Rate()], ids=str)
@pytest.mark.parametrize("attack", [pgd(4), apgd(10, "ce"), apgd(10, "t"), sapgd(10), FAB(10)], ids=lambda a: a.name)
def test_the_fate_of_a_sample_does_not_depend_on_its_company(snn, digits, attack, mode):
    victim = ModelVictim(snn, 4).under(mode)
    fell, adversarial = attack(victim, rows(*digits, torch.arange(12), 40 / 255))
    assert fell.any() and not fell.all()
    for order in (torch.randperm(12, generator=torch.Generator().manual_seed(0))[:7], torch.tensor([5])):
        again, images = attack(victim, rows(*digits, order, 40 / 255))
        assert torch.equal(again, fell[order]) and torch.equal(images, adversarial[order])


@pytest.mark.parametrize(
    "attack", [pgd(2), apgd(3, "dlr"), apgd(3, "t"), sapgd(3), FAB(3), adaptive(31, MODES)], ids=lambda a: a.name
)
def test_nothing_of_the_model_is_touched(snn, digits, attack):
    snn.train()
    before, random_state = copy.deepcopy(snn.state_dict()), torch.get_rng_state()
    attack(ModelVictim(snn, 12).under(Rate()), rows(*digits, torch.arange(12), 8 / 255))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in snn.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in snn.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in snn.parameters())
    snn.eval()


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda a: a.name)
def test_what_is_said_to_fall_is_misclassified(snn, digits, attack):
    victim = ModelVictim(snn, 12)
    batch = rows(*digits, torch.arange(12), 64 / 255)
    fell, adversarial = attack(victim, batch)
    assert fell.any()
    network = copy.deepcopy(snn).to(memory_format=torch.channels_last)  # as it is judged
    logits = network(adversarial.contiguous(memory_format=torch.channels_last))
    assert torch.equal(fell, logits.argmax(1) != batch.labels)
