"""The attack inside a training step: what the recipe says of it, and how it grows."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rsnn_zoo.attacks.inner import ATTACKS, start_noise
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.neurons.integrate_fire import Rate, Surrogate
from rsnn_zoo.training import updates
from rsnn_zoo.training.constraints import hold_thresholds
from rsnn_zoo.training.objectives import OBJECTIVES
from tests.training.conftest import ROBUST, new_model, run, same

# Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py.
pytestmark = pytest.mark.usefixtures("eager")


def test_eps_grows_over_its_warmup(tmp_path, data, validation, monkeypatch):
    seen = []
    real = updates.perturb
    monkeypatch.setattr("rsnn_zoo.training.updates.perturb", lambda *a, **k: seen.append(k["eps"]) or real(*a, **k))
    run(data, validation, tmp_path, replace(ROBUST, eps_warmup=1.0, validation_steps=0))
    assert seen == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])


def test_the_steps_of_the_attack_grow_over_their_warmup(tmp_path, data, validation, monkeypatch):
    seen = []
    real = updates.perturb
    monkeypatch.setattr(
        "rsnn_zoo.training.updates.perturb", lambda *a, **k: seen.append(k["attack"].steps) or real(*a, **k)
    )
    run(data, validation, tmp_path, replace(ROBUST, attack="pgd", attack_steps=3, steps_warmup=1.0, validation_steps=0))
    assert seen == [1, 1, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("changes", "start", "mode"),
    [
        ({}, "gaussian", None),
        ({"attack_start": "uniform", "attack_mode": "pcw-2"}, "uniform", Surrogate("pcw", 2.0)),
        ({"attack_start": "sign", "attack_mode": "rate"}, "sign", Rate()),
    ],
)
def test_the_recipe_says_where_pgd_starts_and_how_it_differentiates(
    tmp_path, data, validation, monkeypatch, changes, start, mode
):
    seen = []
    real = updates.perturb

    def watched(*arguments, **options):
        seen.append((options["attack"].start, options["mode"]))
        return real(*arguments, **options)

    monkeypatch.setattr("rsnn_zoo.training.updates.perturb", watched)
    stage = replace(ROBUST, attack="pgd", attack_steps=2, epochs=1, validation_steps=0, **changes)
    run(data, validation, tmp_path, stage, timesteps=2)
    assert set(seen) == {(start, mode)}


@pytest.mark.parametrize("objective", ["at", "trades"])
@pytest.mark.parametrize("timesteps", [None, 2])
def test_the_attack_may_meet_the_pass_that_trains(data, objective, timesteps):
    """PGD against batch statistics equals one written out; whatever happens, nothing of it stays in the model."""
    stage = replace(ROBUST, objective=objective, attack="pgd", attack_steps=3, attack_pass="training", eps=0.1)
    model = new_model(timesteps).double().train()
    model.fc.weight.data *= 1000  # else its outputs are so alike that the gradients are roundings
    model.fc.bias.requires_grad_(False)
    images, labels = data.pixels(slice(0, 8)).double(), data.labels[:8]
    network, before = copy.deepcopy(model), copy.deepcopy(model)
    ours = updates.Updates(model, stage, Ranks())
    attack = ATTACKS["pgd"](3, 2.5, "gaussian")
    noise = start_noise(attack, images, torch.Generator().manual_seed(0))
    options = {"attack": attack, "eps": 0.1, "noise": noise, "loss": ours.objective.inner}
    found = ours._attack_as_trained(images, labels, network(images), **options)

    target, x = network(images).softmax(1).detach(), images + noise
    for _ in range(3):
        x = x.detach().requires_grad_()
        logits = network(x)
        kl = F.kl_div(logits.log_softmax(1), target, reduction="sum")
        loss = kl if objective == "trades" else F.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x + 2.5 * 0.1 / 3 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-12)

    two = torch.zeros(8, 2, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="takes images"):
        ours._attack_as_trained(two, labels, None, **options | {"noise": two})
    assert same(model, before) and all(m.training and getattr(m, "track_running_stats", True) for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("attack_pass", ["evaluation", "training"])
@pytest.mark.parametrize(("objective", "published"), [("at", "ce"), ("trades", "kl"), ("rslad", "teacher")])
def test_the_recipe_says_what_the_attack_meets_and_maximises(
    tmp_path, data, validation, monkeypatch, objective, published, attack_pass
):
    seen = []
    for name in ("ascend", "perturb"):
        real = getattr(updates, name)

        def watched(*arguments, name=name, real=real, **options):
            attacked = real(*arguments, **options)
            seen.append((name, options["loss"], arguments[2].ndim))
            return attacked

        monkeypatch.setattr(updates, name, watched)
    for loss in ("objective", "ce", "kl"):
        attack = {"attack_pass": attack_pass, "attack_loss": loss}
        stage = replace(ROBUST, objective=objective, weight=0.5, epochs=1, validation_steps=0, **attack)
        folder = tmp_path / loss
        run(data.select(16), validation, folder, stage, timesteps=2, teacher=new_model(seed=1))
        maximised = published if loss == "objective" else loss
        called = "ascend" if attack_pass == "training" else "perturb"
        soft = maximised == "teacher" or (maximised == "kl" and called == "ascend")
        assert seen.pop() == (called, maximised, 2 if soft else 1) and not seen


@pytest.mark.parametrize("objective", ["at", "trades"])
def test_a_replayed_batch_trains_at_each_step_of_its_attack(data, objective):
    """Free adversarial training, written out: one backward pass updates the weights and moves the attack."""
    stage = replace(ROBUST, objective=objective, attack="free", attack_steps=3, attack_step=4.0, lr=1e-3, warmup=0.0)
    model = new_model(2).double().train()
    model.fc.weight.data *= 30
    images, labels = data.pixels(slice(0, 8)).double(), data.labels[:8]
    network = copy.deepcopy(model)
    ours = updates.Updates(model, stage, Ranks())
    measured = ours(images, labels, torch.Generator().manual_seed(0), 0.0, 0.5)

    theirs = updates.Updates(network, stage, Ranks())
    attack = ATTACKS["pgd"](3, 4.0, ours.objective.start)
    noise = start_noise(attack, images, torch.Generator().manual_seed(0))
    x, losses = attack.begin(images, 0.1, noise), []
    for replay in range(3):
        x = x.detach().requires_grad_()
        theirs.optimizer.zero_grad()
        clean = network(images) if objective == "trades" else None
        losses.append(OBJECTIVES[objective].loss(clean, network(x), labels, stage.weight, 0.0))
        losses[-1].backward()
        for group in theirs.optimizer.param_groups:
            group["lr"] = group["peak"] * theirs._schedule(replay * 0.5 / 3, 0.5 / 3)
        theirs.optimizer.step()
        hold_thresholds(network)
        x = (x + 4 * 0.1 / 3 * x.grad.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    assert measured[0] == pytest.approx(sum(loss.item() for loss in losses) / 3, rel=1e-9)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-7, atol=1e-9, msg=key)
