"""The losses against independent, written-out versions of the papers' official code, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.attacks.inner import ATTACKS, INNER_LOSSES, perturb, start_noise
from rsnn_zoo.models import resnet20
from rsnn_zoo.neurons.integrate_fire import Rate, backward_mode
from rsnn_zoo.spec import names
from rsnn_zoo.training.objectives import OBJECTIVES, get_objective, register_objective


def softmax(row):
    top = max(row)
    exponentials = [math.exp(value - top) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def cross_entropy(logits, labels):
    return math.fsum(-math.log(softmax(row)[y]) for row, y in zip(logits, labels, strict=True)) / len(labels)


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def written_out_trades(clean, adversarial, labels, beta):
    pairs = zip(clean, adversarial, strict=True)
    return cross_entropy(clean, labels) + beta * math.fsum(kl(softmax(c), softmax(a)) for c, a in pairs) / len(labels)


def written_out_mart(clean, adversarial, labels, beta):
    total = 0.0
    for c, a, y in zip(clean, adversarial, labels, strict=True):
        p, q = softmax(c), softmax(a)
        margin = -math.log(1.0001 - max(value for k, value in enumerate(q) if k != y) + 1e-12)
        divergence = math.fsum(pk * (math.log(pk) - math.log(qk + 1e-12)) for pk, qk in zip(p, q, strict=True))
        total += -math.log(q[y]) + margin + beta * divergence * (1.0000001 - p[y])
    return total / len(labels)


def written_out_pairing(clean, adversarial, labels, weight):
    squares = [
        (a - c) ** 2 for one, other in zip(clean, adversarial, strict=True) for c, a in zip(one, other, strict=True)
    ]
    both = (cross_entropy(clean, labels) + cross_entropy(adversarial, labels)) / 2
    return both + weight * math.fsum(squares) / len(squares)


def written_out_soft_labels(clean, adversarial, taught, weight):
    rows = zip(clean, adversarial, taught, strict=True)
    total = math.fsum((1 - weight) * kl(t, softmax(c)) + weight * kl(t, softmax(a)) for c, a, t in rows)
    return total / len(taught)


def written_out_bound(clean, adversarial, labels, weight):
    total = 0.0
    for c, a, y in zip(clean, adversarial, labels, strict=True):
        slope = math.fsum((p - (k == y)) * (a[k] - c[k]) for k, p in enumerate(softmax(c)))
        total += (
            -math.log(softmax(c)[y]) + slope + weight / 4 * math.fsum((u - v) ** 2 for u, v in zip(a, c, strict=True))
        )
    return total / len(labels)


WRITTEN_OUT = {
    "qub": written_out_bound,
    "alp": written_out_pairing,
    "fast": lambda clean, adversarial, labels, beta: cross_entropy(adversarial, labels),
    "rat": lambda clean, adversarial, labels, beta: cross_entropy(adversarial, labels),
    "natural": lambda clean, adversarial, labels, beta: cross_entropy(clean, labels),
    "at": lambda clean, adversarial, labels, beta: cross_entropy(adversarial, labels),
    "trades": written_out_trades,
    "mart": written_out_mart,
}


@given(st.integers(0, 2**31), st.integers(2, 7), st.floats(0.0, 30.0), st.sampled_from([0.0, 0.1]))
def test_the_quadratic_bound_is_never_below_the_loss_that_it_bounds(seed, classes, size, smoothing):
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = size * torch.randn(2, 1, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (1,), generator=generator)
    bound = OBJECTIVES["qub"].loss(clean, adversarial, labels, 1.0, smoothing)
    assert bound >= F.cross_entropy(adversarial, labels, label_smoothing=smoothing) - 1e-9
    at_clean = OBJECTIVES["qub"].loss(clean, clean, labels, 1.0, smoothing)
    assert at_clean.item() == pytest.approx(F.cross_entropy(clean, labels, label_smoothing=smoothing).item())


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 7), st.sampled_from(sorted(WRITTEN_OUT)))
def test_the_losses_equal_the_written_out_ones(seed, batch, classes, name):
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    found = OBJECTIVES[name].loss(clean, adversarial, labels, 5.5, 0.0)
    expected = WRITTEN_OUT[name](clean.tolist(), adversarial.tolist(), labels.tolist(), 5.5)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 7))
def test_robust_soft_labels_equal_the_written_out_loss(seed, batch, classes):
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial, teacher = 3 * torch.randn(3, batch, classes, generator=generator, dtype=torch.float64)
    taught = teacher.softmax(1)
    found = OBJECTIVES["rslad"].loss(clean, adversarial, taught, 5 / 6, 0.0)
    expected = written_out_soft_labels(clean.tolist(), adversarial.tolist(), taught.tolist(), 5 / 6)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_trades_tells_its_two_arguments_apart_and_trains_through_both():
    clean, adversarial = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean.requires_grad_(), adversarial.requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    loss = OBJECTIVES["trades"].loss
    there, back = loss(clean, adversarial, labels, 1.0, 0.0), loss(adversarial, clean, labels, 1.0, 0.0)
    assert abs(there - back) > 1e-3
    regulariser = there - F.cross_entropy(clean, labels)
    gradients = torch.autograd.grad(regulariser, (clean, adversarial))
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_a_probability_that_underflows_leaves_the_gradient_a_number(name):
    clean = torch.tensor([[0.0, 200.0]], requires_grad=True)
    adversarial = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = OBJECTIVES[name].loss(clean, adversarial, torch.tensor([1]), 6.0, 0.0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [clean, adversarial]))


def test_label_smoothing_reaches_the_cross_entropy():
    clean, adversarial = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    for objective in OBJECTIVES.values():
        if objective.teacher:  # soft labels are as soft as the teacher is
            continue
        assert objective.loss(clean, adversarial, labels, 1.0, 0.1) != objective.loss(
            clean, adversarial, labels, 1.0, 0
        )


def test_the_papers_inner_attacks():
    assert (OBJECTIVES["natural"].inner, OBJECTIVES["natural"].clean) == (None, True)
    assert (OBJECTIVES["at"].inner, OBJECTIVES["at"].start, OBJECTIVES["at"].clean) == ("ce", "uniform", False)
    assert (OBJECTIVES["trades"].inner, OBJECTIVES["trades"].start) == ("kl", "gaussian")
    assert (OBJECTIVES["mart"].inner, OBJECTIVES["mart"].start) == ("ce", "gaussian")


def test_a_new_objective_is_one_function(monkeypatch):
    monkeypatch.setattr(names, "_objectives", list(names._objectives))
    monkeypatch.setattr("rsnn_zoo.training.objectives.OBJECTIVES", dict(OBJECTIVES))

    @register_objective("mine", inner="ce")
    def mine(clean, adversarial, labels, weight, smoothing):
        return F.cross_entropy(clean, labels) + weight * F.mse_loss(adversarial, clean)

    assert get_objective("mine").loss is mine
    assert str(names.ModelName.parse("resnet20_digits_mine_t4")) == "resnet20_digits_mine_t4"
    with pytest.raises(ValueError, match="already registered"):
        register_objective("mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two_parts"}, "lower-case letters"),
        ({"name": "trades"}, "already registered"),
        ({"name": "fresh", "inner": "klx"}, "did you mean kl"),
        ({"name": "fresh", "inner": "teacher"}, "needs one: say teacher=True"),
        ({"name": "two_parts", "inner": "teacher", "teacher": True}, "lower-case letters"),
        ({"name": "trades", "inner": "teacher", "teacher": True}, "already registered"),
        ({"name": "fresh", "start": "unform"}, "did you mean uniform"),
    ],
)
def test_a_malformed_objective_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        register_objective(**arguments)


def test_an_unknown_objective_names_its_near_matches():
    with pytest.raises(ValueError, match="did you mean trades"):
        get_objective("trade")


# --- the attack inside ------------------------------------------------------------------------------------------------


def small_model(timesteps=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet20(in_chans=1, img_size=8, timesteps=timesteps, threshold=0.3)
    model.fc.weight.data *= 1000  # else its outputs are so alike that the gradients are roundings
    return model


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n), generator


def written_out_pgd(model, images, labels, eps, steps, start, kind):
    """The inner loop of the official TRADES and MART code, and of PGD with a uniform start."""
    model.eval()
    x = start.detach()
    for _ in range(steps):
        x.requires_grad_()
        if kind == "kl":
            criterion = nn.KLDivLoss(reduction="sum")
            loss = criterion(F.log_softmax(model(x), dim=1), F.softmax(model(images), dim=1))
        elif kind == "teacher":
            loss = nn.KLDivLoss(reduction="sum")(F.log_softmax(model(x), dim=1), labels)
        else:
            loss = F.cross_entropy(model(x), labels)
        gradient = torch.autograd.grad(loss, [x])[0]
        x = x.detach() + 2.5 * eps / steps * torch.sign(gradient.detach())
        x = torch.min(torch.max(x, images - eps), images + eps)
        x = torch.clamp(x, 0.0, 1.0)
    return x


def taught(images, labels):
    """What a teacher says of the images, in place of the labels."""
    return F.softmax(torch.eye(10, dtype=images.dtype)[labels] + images.mean((2, 3)).sum(1, keepdim=True), 1)


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@pytest.mark.parametrize("loss", sorted(INNER_LOSSES))
def test_pgd_equals_the_written_out_one(start, loss):
    model = small_model().double()
    images, labels, generator = batch()
    labels = taught(images.double(), labels) if loss == "teacher" else labels
    images, attack, eps = images.double(), ATTACKS["pgd"](10, 2.5, start), 0.1
    noise = start_noise(attack, images, generator)
    found = perturb(model, images, labels, attack=attack, eps=eps, noise=noise, loss=loss)
    first = images + noise if start == "gaussian" else torch.clamp(images + eps * noise, 0, 1)
    expected = written_out_pgd(model, images, labels, eps, 10, first, loss)
    assert torch.equal(found, expected)


def test_the_attack_follows_the_backward_mode():
    model = small_model(timesteps=4).double().eval()
    images, labels, generator = batch()
    images, attack = images.double(), ATTACKS["pgd"](3, 2.5, "uniform")
    noise = start_noise(attack, images, generator)
    options = {"attack": attack, "eps": 0.1, "noise": noise}
    found = perturb(model, images, labels, mode=Rate(), **options)
    with backward_mode(Rate()):
        first = torch.clamp(images + 0.1 * noise, 0, 1)
        expected = written_out_pgd(model, images, labels, 0.1, 3, first, "ce")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert (found - perturb(model, images, labels, **options)).abs().max() > 0.1


def test_nfgsm_leaves_the_ball_and_does_not_come_back():
    model = small_model().double().eval()
    images, labels, generator = batch()
    images, attack, eps = images.double(), ATTACKS["nfgsm"](10, 2.5, "uniform"), 0.05
    noise = start_noise(attack, images, generator)
    found = perturb(model, images, labels, attack=attack, eps=eps, noise=noise)
    x = torch.clamp(images + 2 * eps * noise, 0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    torch.testing.assert_close(found, torch.clamp(x + eps * gradient.sign(), 0, 1), rtol=0, atol=1e-15)
    assert (found - images).abs().max() > 2 * eps


def test_fgsm_starts_at_the_image_and_leaves_it_as_it_is():
    model = small_model().double().eval()
    images, labels, generator = batch()
    images, attack = images.double(), ATTACKS["fgsm"](10, 2.5, "uniform")
    before = images.clone()
    found = perturb(model, images, labels, attack=attack, eps=0.1, noise=start_noise(attack, images, generator))
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    assert torch.equal(images, before)
    torch.testing.assert_close(found, torch.clamp(x + 0.1 * gradient.sign(), 0, 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss", sorted(INNER_LOSSES))
def test_rfgsm_steps_twice_by_half_of_eps(loss):
    model = small_model(timesteps=2).double().eval()
    images, labels, generator = batch()
    labels = taught(images.double(), labels) if loss == "teacher" else labels
    images, attack, eps = images.double(), ATTACKS["rfgsm"](10, 2.5, "uniform"), 0.1
    noise = start_noise(attack, images, generator)
    found = perturb(model, images, labels, attack=attack, eps=eps, noise=noise, loss=loss, chunk=2)
    x = torch.clamp(images + eps / 2 * noise.sign(), 0, 1).requires_grad_()
    target = model(images).softmax(1).detach() if loss == "kl" else labels
    (gradient,) = torch.autograd.grad(INNER_LOSSES[loss](model(x), target).sum(), x)
    expected = torch.clamp(torch.clamp(x + eps / 2 * gradient.sign(), images - eps, images + eps), 0, 1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("timesteps", [None, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_attack_stays_in_the_ball_and_leaves_the_model_alone(timesteps, precision):
    model = small_model(timesteps).train()
    model.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels, generator = batch()
    attack = ATTACKS["pgd"](3, 2.5, "uniform")
    noise = start_noise(attack, images, generator)
    found = perturb(model, images, labels, attack=attack, eps=0.1, noise=noise, loss="kl", precision=precision)
    assert 0 < (found - images).abs().max() <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and model.layer1.training and not model.bn1.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_training_flags_outlive_an_attack_that_fails():
    model = small_model().train()
    images, labels, generator = batch()
    attack = ATTACKS["pgd"](3, 2.5, "uniform")
    with pytest.raises(IndexError):
        perturb(model, images, labels + 10, attack=attack, eps=0.1, noise=start_noise(attack, images, generator))
    assert all(module.training for module in model.modules())


def test_the_same_generator_gives_the_same_start():
    images, _, _ = batch()
    attack = ATTACKS["pgd"](3, 2.5, "uniform")
    first, second = (start_noise(attack, images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() <= 1
