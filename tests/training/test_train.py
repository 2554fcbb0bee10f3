"""Recipes, checkpoints and the training loop: on the digits, with real networks, at the smallest size that shows it."""

import copy
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rsnn_zoo._utils.provenance import digest
from rsnn_zoo.attacks.inner import ATTACKS, start_noise
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.models import resnet20
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.models.layers import WeightedSum
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, Rate, Surrogate
from rsnn_zoo.report.plots import plot_curves
from rsnn_zoo.spec.datasets import Augmentation
from rsnn_zoo.training import checkpoints, updates
from rsnn_zoo.training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from rsnn_zoo.training.constraints import hold_thresholds, retract
from rsnn_zoo.training.objectives import OBJECTIVES, Objective
from rsnn_zoo.training.recipe import Conversion, Neuron, RecipeError, Stage, load_recipe, recipe_names
from rsnn_zoo.training.train import DivergedError, OtherRunError, TrainingInterrupted, estimate, train

ROOT = Path(__file__).resolve().parents[2]
STAGE = Stage(epochs=2, batch_size=16, lr=0.05, warmup=0.5, validation_eps=0.1, validation_steps=2)
ROBUST = replace(STAGE, objective="trades", weight=2.0, eps=0.1, attack="rfgsm", threshold_lr=0.01)


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch):
    """Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py."""
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "0")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", "train").select(64)


@pytest.fixture(scope="module")
def validation():
    return load_dataset("digits", "validation").select(40)


def new_model(timesteps=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet20(in_chans=1, img_size=8, timesteps=timesteps, threshold=0.3, mean=(0.3,), std=(0.4,))


def run(data, validation, folder, stage=STAGE, timesteps=None, **options):
    model = new_model(timesteps)
    result = train(model, data, validation, stage, folder, progress=False, **options)
    return model, result


def same(first, second):
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


# --- recipes ----------------------------------------------------------------------------------------------------------


class Viewed(torch.nn.Module):
    """Views its feature maps, which are of no other layout then."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().view(len(x), -1))


def test_channels_last_is_for_networks_that_bear_it(tmp_path, data, validation):
    train(Viewed(), data, validation, replace(ROBUST, channels_last=True, epochs=1), tmp_path, progress=False)
    model, _ = run(data, validation, tmp_path / "zoo", replace(STAGE, channels_last=True, epochs=1))
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_finished_run_without_its_checkpoints_is_not_replaced(tmp_path, data, validation):
    stage = replace(STAGE, epochs=1)
    run(data, validation, tmp_path, stage)
    before = (tmp_path / "run.json").read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    with pytest.raises(OtherRunError, match="finished run without its checkpoints"):
        run(data, validation, tmp_path, stage)
    assert ((tmp_path / "run.json").read_bytes(), (tmp_path / "log.jsonl").read_bytes()) == before
    (tmp_path / "run.json").unlink()
    run(data, validation, tmp_path, stage)


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("objective", ["natural", "at", "trades", "mart"])
def test_every_recipe_that_comes_along_can_be_used(name, objective):
    recipe = load_recipe(name, objective)
    assert recipe.ann.objective == objective and recipe.name == name
    assert recipe.direct.objective == objective
    assert recipe.snn.objective == ("natural" if objective == "natural" else "trades")
    assert all(recipe.stage(table).epochs > 1 for table in ("ann", "snn", "direct"))
    assert json.loads(json.dumps(recipe.to_json()))["ann"]["epochs"] == recipe.ann.epochs


def test_recipes_hold_the_published_numbers():
    for name, beta in (("cifar10_linf8", 6), ("cifar10_research", 6), ("cifar100_linf8", 3), ("svhn_linf8", 3)):
        recipe = load_recipe(name, "trades")
        assert (recipe.ann.weight, recipe.ann.eps) == (beta, (2 if name.endswith("research") else 8) / 255)
        assert load_recipe(name, "mart").ann.weight == 4 and load_recipe(name, "at").ann.weight == 0
        assert load_recipe(name, "fast").ann.attack == "nfgsm" and load_recipe(name, "rat").direct.retraction == 0.004
    assert not load_recipe("svhn_linf8", "at").ann.augmentation.flip


def test_a_recipe_says_what_differs_from_its_base(tmp_path):
    (tmp_path / "first.toml").write_text("base = 'digits'\n[ann]\nlr = 0.2")
    mine = load_recipe(write(tmp_path, "base = 'first'\n[ann]\nepochs = 3\n[variants.mart.ann]\nlr = 0.3"), "mart")
    assert (mine.name, mine.ann.epochs, mine.ann.lr, mine.ann.weight) == ("mine", 3, 0.3, 4)
    assert mine.snn == load_recipe("digits", "mart").snn
    for base in ("mine", "digit", "3"):
        with pytest.raises(RecipeError, match=f"base is '{base}'.*file beside it"):
            load_recipe(write(tmp_path, f"base = '{base}'"), "at")


def test_a_table_that_a_recipe_lacks_is_not_made_up(tmp_path):
    recipe = load_recipe(write(tmp_path, "[ann]\neps = '8/255'"), "at")
    assert recipe.stage("ann") == recipe.ann
    for table in ("snn", "direct"):
        with pytest.raises(RecipeError, match=rf"recipe mine has no table \[{table}\]"):
            recipe.stage(table)


def test_a_recipe_may_have_no_table_of_the_ann(tmp_path):
    recipe = load_recipe(write(tmp_path, "[snn]\nobjective = 'trades'\neps = '8/255'"), "trades")
    assert recipe.stage("snn").objective == "trades"
    with pytest.raises(RecipeError, match=r"no table \[ann\]"):
        recipe.stage("ann")


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_variants_and_changes_go_over_the_base(tmp_path):
    path = write(
        tmp_path, "[ann]\neps = '8/255'\nlr = 0.2\n[variants.mart.ann]\nweight = 4\n[variants.mart.snn]\nlr = 0.3"
    )
    mart, trades = load_recipe(path, "mart", ["ann.epochs = 7"]), load_recipe(path, "trades")
    assert (mart.ann.eps, mart.ann.weight, mart.ann.epochs, mart.snn.lr) == (8 / 255, 4, 7, 0.3)
    assert (trades.ann.weight, trades.ann.lr, trades.snn.lr) == (0, 0.2, Stage().lr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ann]\nepoch = 3", "ann: unknown key 'epoch'.*did you mean epochs"),
        ("[an]\nepochs = 3", "unknown key 'an'.*did you mean"),
        ("[ann]\nepochs = 0", "epochs is 0, must be an integer from 1"),
        ("[ann]\nepochs = 1.5", "epochs is 1.5, must be an integer"),
        ("[ann]\nepochs = true", "epochs is True"),
        ("[ann]\nlr = -1", "lr is -1, must be a number from 0 to 100"),
        ("[ann]\nlr = nan", "lr is nan"),
        ("[ann]\neps = 8", "eps is 8, must be a number from 0 to 1"),
        ("[ann]\neps = '8/0'", "no number"),
        ("[ann]\neps = 'eight'", "no number"),
        ("[ann]\nnesterov = 1", "nesterov is 1, must be true or false"),
        ("[ann]\nprecision = 'float16'", "precision is 'float16'"),
        ("[ann]\nattack = 'pdg'", "did you mean pgd"),
        ("[ann]\nattack_start = 'uniforn'", "did you mean uniform"),
        ("[ann]\nattack_mode = 'pcv-1'", 'attack_mode: unknown backward mode.*or "own"'),
        ("[ann]\nattack_mode = 3", "attack_mode"),
        ("[snn]\neps = 0.1\nobjective = 'rslad'\nweight = 6.0", "weight is a share for 'rslad' and 6 here"),
        ("[ann]\nattack = 'free'\nattack_mode = 'rate'", "follows the training's own gradient"),
        ("[ann]\nattack_loss = 'teacher'", "attack_loss is 'teacher'"),
        ("[ann]\nattack_pass = 'train'", "attack_pass is 'train'.*did you mean training"),
        ("[ann]\nmomentum = 0", "Nesterov"),
        ("[ann]\nvalidation_steps = 3", "validation_eps"),
        ("[ann.augmentation]\ncrop_padding = -1", "crop_padding"),
        ("[ann]\naugmentation = 1", "augmentation must be a table"),
        ("[snn]\nobjective = 'trades'", "eps must be more than 0"),
        ("[neuron]\nsurrogate = 'triangle'", "neuron: unknown surrogate"),
        ("[conversion]\nscale = 0", "conversion: scale is 0, must be a number from 0.001"),
        ("[variants.trade.ann]\nlr = 1", "did you mean trades"),
        ("[variants]\nat = 3", "variants must hold tables"),
        ("[snn]\nobjective = ['trades']", "objective is .* must be a string"),
        ("[neuron]\nsurrogate = ['pcw']", "surrogate is .* must be a string"),
        ("[ann.augmentation]\nflip = 'false'", "augmentation.flip is 'false', must be true or false"),
        ("[ann.augmentation]\ncutout = true", "augmentation.cutout is True"),
        ("ann = [", "not TOML"),
        ("ann = 3", "ann must be a table"),
        ("[ann]\nobjective = 'mart'", "ann.objective is 'mart', not 'natural' as the model's name says"),
        ("[variants.natural.direct]\nobjective = 'at'", "direct.objective is 'at'"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_the_cause(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text), "natural")


def test_an_unknown_recipe_or_objective_names_its_near_matches():
    with pytest.raises(FileNotFoundError, match="did you mean digits"):
        load_recipe("digit", "natural")
    with pytest.raises(ValueError, match="did you mean trades"):
        load_recipe("digits", "trade")
    with pytest.raises(RecipeError, match="the change"):
        load_recipe("digits", "natural", ["ann.epochs"])


def test_every_number_of_a_stage_is_bounded():
    for item in fields(Stage):
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            with pytest.raises(RecipeError, match=item.name):
                Stage(**{item.name: math.inf})


# --- checkpoints ------------------------------------------------------------------------------------------------------


STATE = {"settings": {}, "environment": {}, "history": []}


def test_a_checkpoint_comes_back(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for number in range(3):
        save_checkpoint(tmp_path, {**STATE, "number": number, "tensor": torch.full((3,), number)})
    assert load_checkpoint(tmp_path)["tensor"].tolist() == [2, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


@settings(deadline=None, max_examples=30)
@given(position=st.floats(0, 0.999), kind=st.sampled_from(["flip", "cut", "empty"]))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path_factory, position, kind):
    folder = tmp_path_factory.mktemp("run")
    for number in range(2):
        save_checkpoint(folder, {**STATE, "number": number})
    path = folder / checkpoints.CURRENT
    content = bytearray(path.read_bytes())
    at = int(position * len(content))
    content[at] ^= 1
    path.write_bytes({"flip": content, "cut": content[:at], "empty": b""}[kind])
    assert load_checkpoint(folder)["number"] == 0


def test_two_damaged_checkpoints_are_an_error_that_says_what_to_do(tmp_path):
    for number in range(2):
        save_checkpoint(tmp_path, {**STATE, "number": number})
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged.*start the run anew"):
        load_checkpoint(tmp_path)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {**STATE, "number": 0})
    real = os.replace

    def killed(source, target):
        if Path(target).name == checkpoints.CURRENT:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**STATE, "number": 1})
    assert load_checkpoint(tmp_path)["number"] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_checkpoints_as_they_are(tmp_path, monkeypatch):
    for number in range(2):
        save_checkpoint(tmp_path, {**STATE, "number": number})
    monkeypatch.setattr("rsnn_zoo._utils.files.os.getpid", lambda: "full")
    (tmp_path / ".checkpoint.pt.full.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, {**STATE, "number": 2})
    assert load_checkpoint(tmp_path)["number"] == 1
    (tmp_path / checkpoints.CURRENT).unlink()
    assert load_checkpoint(tmp_path)["number"] == 0


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_a_network_learns_and_the_run_is_recorded(tmp_path, data, validation):
    stage = replace(ROBUST, attack="pgd", attack_steps=2, epochs=3)
    model, result = run(data, validation, tmp_path, stage, about={"recipe": "mine"})
    losses = [record["train_loss"] for record in result.history]
    assert losses[-1] < losses[0] and not model.training
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == result.history and [record["epoch"] for record in log] == [1, 2, 3]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == result.record
    assert record["recipe"] == "mine" and record["seed"] == 0 and record["stage"]["eps"] == 0.1
    assert record["train_sha256"] == data.sha256 and record["validation_images"] == len(validation)
    assert record["environment"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["result"]["seconds"] > 0 and record["result"]["peak_memory"] > 2**20


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains_an_ann(tmp_path, data, validation, name):
    stage = replace(ROBUST, objective=name, weight=0.5, epochs=1)
    teacher = new_model(seed=1) if OBJECTIVES[name].teacher else None
    model, result = run(data.select(32), validation, tmp_path, stage, teacher=teacher)
    assert math.isfinite(result.history[0]["train_loss"]) and not same(model, new_model())


def test_a_network_learns_what_its_teacher_says_and_leaves_it_alone(tmp_path, data, validation):
    few = data.select(32)
    stage = replace(ROBUST, objective="rslad", weight=0.5, epochs=20, augmentation=Augmentation())
    teacher = new_model(seed=1).eval()
    teacher.fc.weight.data *= 100  # else it is of no opinion
    before = copy.deepcopy(teacher)
    model, result = run(few, validation, tmp_path, stage, teacher=teacher)
    with torch.no_grad():
        taught = teacher(few.pixels()).argmax(1)
        agreed, labelled = ((model(few.pixels()).argmax(1) == wanted).sum() for wanted in (taught, few.labels))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["teacher_sha256"] == digest(before)
    with pytest.raises(OtherRunError, match="teacher_sha256"):
        run(few, validation, tmp_path, stage, teacher=new_model(seed=2))
    assert agreed > labelled and result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert same(teacher, before) and not teacher.training


def test_an_objective_that_needs_a_teacher_says_so(tmp_path, data, validation):
    with pytest.raises(ValueError, match="'rslad' needs a teacher"):
        run(data, validation, tmp_path, replace(ROBUST, objective="rslad", weight=0.5))
    assert not list(tmp_path.iterdir())


def test_the_kept_weights_are_those_of_the_best_epoch(tmp_path, data, validation):
    model, result = run(data, validation, tmp_path, replace(STAGE, epochs=3))
    best = max(result.history, key=lambda record: (record["validation_robust"], record["validation"], record["epoch"]))
    assert result.epoch == best["epoch"] and result.robust_accuracy == best["validation_robust"]
    with torch.no_grad():
        accuracy = (model(validation.pixels()).argmax(1) == validation.labels).float().mean().item()
    assert accuracy == pytest.approx(result.accuracy)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path, data, validation):
    first, _ = run(data, validation, tmp_path / "first")
    torch.rand(7)  # whoever else draws does not matter
    second, _ = run(data, validation, tmp_path / "second")
    other, _ = run(data, validation, tmp_path / "other", seed=1)
    assert same(first, second) and not same(first, other)


def test_training_leaves_the_global_generator_alone(tmp_path, data, validation):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(data, validation, tmp_path, replace(STAGE, epochs=1))
    assert torch.equal(torch.rand(2), expected)


def test_weight_decay_spares_thresholds_norms_and_biases(tmp_path, data, validation):
    stage = replace(STAGE, lr=0.0, epochs=1, weight_decay=0.5)
    model, _ = run(data, validation, tmp_path / "still", stage, timesteps=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), new_model(2).parameters(), strict=True))
    before = new_model(2)
    loss_free = Objective(lambda clean, adversarial, labels, weight, smoothing: clean.sum() * 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "nothing", loss_free)
        stage = replace(stage, objective="nothing", lr=0.1, threshold_lr=0.1, momentum=0.0, nesterov=False)
        model, _ = run(data, validation, tmp_path / "decay", stage, timesteps=2)
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old) == (old.ndim <= 1), name


def test_thresholds_learn_and_never_fall_below_the_floor(tmp_path, data, validation):
    stage = replace(ROBUST, epochs=1, threshold_lr=10.0, clip=0.1)
    model, _ = run(data, validation, tmp_path, stage, timesteps=2)
    thresholds = [neuron.threshold.item() for _, neuron in model.neurons()]
    assert min(thresholds) >= MIN_THRESHOLD and max(thresholds) != pytest.approx(0.3)


def test_the_schedule_rises_then_falls_along_a_cosine(tmp_path, data, validation):
    stage = replace(STAGE, epochs=4, warmup=1.0, validation_steps=0)
    _, result = run(data, validation, tmp_path, stage)
    rates = [record["lr"] for record in result.history]
    done = [0.75, 1.75, 2.75, 3.75]  # at the last of each epoch's four batches
    cosine = [0.05 * 0.5 * (1 + math.cos(math.pi * (x - 1) / 3)) for x in done[1:]]
    assert rates == pytest.approx([0.05 * (0.75 + 0.25) / 1.25, *cosine])


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


def test_retraction_is_the_published_step(tmp_path, data, validation):
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), WeightedSum(), torch.nn.Linear(5, 400)).double()
    network[0].weight.data.copy_(weight)
    network[1].weight.data.copy_(torch.tensor([1.3, 0.1]))
    before = network[2].weight.detach().clone()
    retract(network, 0.1, torch.Generator().manual_seed(0))
    w = weight.flatten(1)
    expected = 1.1 * w - 0.1 * w.matmul(w.t()).matmul(w)
    torch.testing.assert_close(network[0].weight.flatten(1), expected)
    torch.testing.assert_close(network[1].weight, torch.tensor([1.0, 0.0]).double())  # (1.3, 0.1) - 0.2, then cut at 0
    assert (network[2].weight != before).any(1).sum() == 120  # 30 % of the rows


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5))
def test_residual_weights_are_held_to_the_nearest_convex_ones(values):
    layer = WeightedSum()
    layer.weight = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    retract(torch.nn.Sequential(layer), 0.1, torch.Generator())
    found = layer.weight.detach()
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    start = torch.tensor(values, dtype=torch.float64)
    for corner in torch.eye(len(values), dtype=torch.float64):  # the angle to every corner is obtuse
        assert (start - found) @ (corner - found) <= 1e-9


def test_accumulation_is_the_mean_of_the_parts(tmp_path, data, validation):
    _, whole = run(data, validation, tmp_path / "whole", replace(STAGE, epochs=1, lr=0.0))
    _, parts = run(data, validation, tmp_path / "parts", replace(STAGE, epochs=1, lr=0.0, accumulate=4))
    assert parts.history[0]["train_loss"] != whole.history[0]["train_loss"]  # batch norms see a part
    assert parts.history[0]["train_loss"] == pytest.approx(whole.history[0]["train_loss"], rel=0.2)


def test_accumulated_gradients_are_those_of_the_whole_batch(data):
    images, labels = data.pixels(slice(0, 16)), data.labels[:16]
    stage = Stage(batch_size=16, epochs=1)
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, parts in zip(networks, (1, 4), strict=True):
        update = updates.Updates(network, replace(stage, accumulate=parts), Ranks())
        update(images, labels, torch.Generator(), 0.0, 1.0)
    torch.testing.assert_close(networks[1][1].weight, networks[0][1].weight)


def test_what_outlasts_the_run_is_said(tmp_path, data, validation, caplog):
    run(data, validation, tmp_path, replace(ROBUST, epochs=1, steps_warmup=3.0, eps_warmup=1.0))
    assert caplog.messages == ["steps_warmup is 3 epochs of 1: attack_steps never reaches 10"]


def test_each_epoch_is_handed_to_a_logger_of_ones_own_and_drawn(tmp_path, data, validation):
    pytest.importorskip("matplotlib")
    records = []
    _, result = run(data, validation, tmp_path, on_epoch=records.append)
    assert records == result.history
    assert plot_curves(records, tmp_path / "curves.svg").read_text().count("validation, attacked") == 1


def test_averaged_weights_are_the_ones_validated_and_kept(tmp_path, data, validation):
    plain, _ = run(data, validation, tmp_path / "plain")
    averaged, result = run(data, validation, tmp_path / "ema", replace(STAGE, ema=0.5))
    assert not same(plain, averaged)
    with torch.no_grad():
        accuracy = (averaged(validation.pixels()).argmax(1) == validation.labels).float().mean().item()
    assert accuracy == pytest.approx(result.accuracy)


@pytest.mark.parametrize("timesteps", [None, 2])
def test_bfloat16_and_channels_last_train_nearly_alike(tmp_path, data, validation, timesteps):
    stage = replace(ROBUST, epochs=1)
    _, exact = run(data, validation, tmp_path / "exact", stage, timesteps)
    _, fast = run(
        data, validation, tmp_path / "fast", replace(stage, precision="bfloat16", channels_last=True), timesteps
    )
    assert fast.history[0]["train_loss"] == pytest.approx(exact.history[0]["train_loss"], rel=0.1)


def test_where_nothing_can_be_compiled_the_remedy_is_named(tmp_path, data, validation, monkeypatch):
    def broken(module):
        def call(images):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(OSError, match=r"fails here \(no compiler\): set compile = false"):
        run(data, validation, tmp_path, replace(STAGE, compile=True))


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", [None, 2])
def test_a_network_compiled_as_a_whole_trains_alike(tmp_path, data, validation, timesteps):
    stage = replace(ROBUST, epochs=1)
    _, eager = run(data, validation, tmp_path / "eager", stage, timesteps)
    _, compiled = run(data, validation, tmp_path / "compiled", replace(stage, compile=True), timesteps)
    roundings = 1e-3 if timesteps is None else 0.1  # which flip spikes
    assert compiled.history[0]["train_loss"] == pytest.approx(eager.history[0]["train_loss"], rel=roundings)


def test_epochs_are_validated_in_full_float32(tmp_path, data, validation):
    """Whatever rounding the caller allows: that is for training."""
    model, seen = new_model(), set()
    model.register_forward_hook(lambda model, *_: seen.add((model.training, torch.get_float32_matmul_precision())))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        train(model, data, validation, replace(STAGE, validation_steps=0), tmp_path, progress=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {(True, "high"), (False, "highest")}


def test_only_validation_images_asked_for_select(tmp_path, data, validation):
    _, result = run(data, validation, tmp_path, replace(STAGE, epochs=3, validate_every=2, validation_images=7))
    assert result.record["validation_images"] == 7
    assert ["validation" in record for record in result.history] == [False, True, True]


def test_an_estimate_changes_nothing(tmp_path, data, validation):
    model = new_model().train()
    found = estimate(model, data, validation, ROBUST, steps=1)
    assert same(model, new_model()) and found.seconds >= 2 * found.seconds_an_epoch * 0.99 > 0 and found.peak_memory


def test_an_estimate_knows_that_the_first_epochs_have_fewer_steps(data, validation):
    stage = replace(ROBUST, attack="pgd", attack_steps=9, epochs=4)
    short, whole = (
        estimate(new_model(), data, validation, replace(stage, steps_warmup=warmup), steps=1) for warmup in (4.0, 0.0)
    )
    assert short.seconds < 0.9 * 4 * short.seconds_an_epoch
    assert whole.seconds == pytest.approx(4 * whole.seconds_an_epoch)


def test_too_few_images_for_a_batch_are_refused(tmp_path, data, validation):
    with pytest.raises(ValueError, match=r"64 training images do not fill a batch of 65: lower batch_size"):
        run(data, validation, tmp_path, replace(STAGE, batch_size=65))


# --- never lost -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_says_where(tmp_path, data, validation):
    with pytest.raises(DivergedError, match=r"epoch \d+, batch \d+ of 4: lower lr"):
        run(data, validation, tmp_path, replace(STAGE, lr=100.0, warmup=0.0, momentum=0.99, epochs=20))


def test_another_run_in_the_folder_is_refused_with_what_differs(tmp_path, data, validation):
    run(data, validation, tmp_path, replace(STAGE, epochs=1))
    with pytest.raises(OtherRunError, match=r"seed is 0 there, 1 here; stage\.lr is 0\.05 there, 0\.1 here"):
        run(data, validation, tmp_path, replace(STAGE, epochs=1, lr=0.1), seed=1)
    with pytest.raises(OtherRunError, match="train_sha256"):
        run(data.select(range(1, 64)), validation, tmp_path, replace(STAGE, epochs=1))


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(tmp_path, data, validation):
    about = {"neuron": asdict(Neuron()), "conversion": asdict(Conversion())}
    run(data, validation, tmp_path, replace(STAGE, epochs=1), about=about)
    state = load_checkpoint(tmp_path)
    for table, key in (("stage", "compile"), ("stage", "clip"), ("neuron", "initial"), ("conversion", "max_pool")):
        del state["settings"][table][key]
    del state["settings"]["stage"]["augmentation"]["cutout"], state["settings"]["network_sha256"]
    save_checkpoint(tmp_path, state)
    run(data, validation, tmp_path, replace(STAGE, epochs=1), about=about)
    with pytest.raises(
        OtherRunError, match=r"neuron\.initial is 0\.0 there, 0\.5 here; stage\.clip is 0\.0 there, 1\.0"
    ):
        about["neuron"]["initial"] = 0.5
        run(data, validation, tmp_path, replace(STAGE, epochs=1, clip=1.0), about=about)


def test_a_run_of_another_network_is_not_taken_up(tmp_path, data, validation):
    run(data, validation, tmp_path, replace(ROBUST, epochs=1), timesteps=2)
    with pytest.raises(OtherRunError, match="network_sha256"):
        run(data, validation, tmp_path, replace(ROBUST, epochs=1), timesteps=3)


def test_a_log_that_was_not_written_is_written_when_the_run_is_taken_up(tmp_path, data, validation):
    _, result = run(data, validation, tmp_path)
    (tmp_path / "log.jsonl").unlink()
    run(data, validation, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == result.history


def test_a_finished_run_gives_its_result_at_once(tmp_path, data, validation):
    model, result = run(data, validation, tmp_path)
    again, found = run(data, validation, tmp_path)
    assert same(model, again) and found.history == result.history and found.record == result.record


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("timesteps", [None, 2])
def test_a_run_killed_after_any_batch_ends_with_the_same_weights(
    tmp_path, data, validation, timesteps, ema, monkeypatch
):
    stage = replace(ROBUST, ema=ema, channels_last=bool(ema))
    expected, whole = run(data, validation, tmp_path / "whole", stage, timesteps)
    steps = iter(range(100))
    real = torch.optim.SGD.step

    def killed(*arguments, **keywords):
        if next(steps) % 3 == 2:
            raise Killed
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", killed)
    for _ in range(20):
        try:
            found, result = run(data, validation, tmp_path / "killed", stage, timesteps, interval=0.0)
            break
        except Killed:
            continue
    assert same(found, expected)
    drop = ("seconds", "images_per_second", "peak_memory")
    assert [{k: v for k, v in r.items() if k not in drop} for r in result.history] == [
        {k: v for k, v in r.items() if k not in drop} for r in whole.history
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, data, validation, monkeypatch, number):
    expected, _ = run(data, validation, tmp_path / "whole", replace(STAGE, epochs=8))
    steps, real = itertools.count(), torch.optim.SGD.step

    def signalled(*arguments, **keywords):
        if next(steps) == 12:
            os.kill(os.getpid(), number)
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", signalled)
    handler = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=rf"stopped by {number.name} .* run the same command again"):
        run(data, validation, tmp_path / "stopped", replace(STAGE, epochs=8))
    assert signal.getsignal(number) is handler
    found, _ = run(data, validation, tmp_path / "stopped", replace(STAGE, epochs=8))
    assert same(found, expected)


def test_a_damaged_checkpoint_costs_only_what_came_after_the_one_before(tmp_path, data, validation, caplog):
    expected, _ = run(data, validation, tmp_path / "whole")
    run(data, validation, tmp_path / "damaged", interval=0.0)
    path = tmp_path / "damaged" / checkpoints.CURRENT
    path.write_bytes(path.read_bytes()[:-5])
    found, _ = run(data, validation, tmp_path / "damaged")
    assert same(found, expected) and "falling back to the one before" in caplog.text


def test_what_is_finished_stays_the_work_of_where_it_was_done(tmp_path, data, validation, monkeypatch, caplog):
    def record():
        return json.loads((tmp_path / "run.json").read_text())

    run(data, validation, tmp_path)
    before = record()
    monkeypatch.setattr("rsnn_zoo.training.run.environment", lambda device: {"cpu": "another"})
    run(data, validation, tmp_path)
    assert record() == before and "another environment" not in caplog.text


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path, data, validation, monkeypatch, caplog):
    expected, _ = run(data, validation, tmp_path / "whole")
    calls = []
    real = save_checkpoint

    def sometimes_full(folder, state):
        calls.append(state["epoch"])
        if len(calls) < 4:
            raise OSError(28, "No space left on device")
        real(folder, state)

    monkeypatch.setattr("rsnn_zoo.training.checkpoints.save_checkpoint", sometimes_full)
    found, _ = run(data, validation, tmp_path / "full", interval=0.0)
    assert same(found, expected) and "trying again later: [Errno 28] No space left" in caplog.text


def test_a_disk_that_stays_full_ends_in_an_error(tmp_path, data, validation, monkeypatch):
    def full(folder, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsnn_zoo.training.checkpoints.save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run(data, validation, tmp_path)


# --- the scripts ------------------------------------------------------------------------------------------------------


def script(name, *arguments, cwd, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RSNN_ZOO_COMPILE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finished(process):
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


FEW = ["--quiet", "--interval", "0", "--set", "data.validation=0.8", "--set", "ann.epochs=2", "--set", "snn.epochs=1"]


def weights_of(folder):
    return json.loads((folder / "config.json").read_text())["rsnn_zoo"]["weights"]["sha256"]


@pytest.mark.slow
def test_from_nothing_to_a_robust_snn_by_the_scripts(tmp_path):
    ann, snn = "resnet20_digits_trades_ann", "resnet20_digits_trades_t2"
    code, out, err = finished(script("train.py", ann, *FEW, "--dry-run", cwd=tmp_path))
    assert (
        code == 0
        and json.loads(out)["stage"]["objective"] == "trades"
        and json.loads(out)["estimate"]["seconds"] > 0
        and re.search(r"about .* minutes: .* s a step", err)
        and not list(tmp_path.iterdir())
    ), err
    code, out, err = finished(script("train.py", ann, *FEW, cwd=tmp_path))
    assert code == 0 and re.search(rf"{ann}: epoch \d, validation accuracy .* robust .* saved in runs", out), err
    code, out, err = finished(script("finetune.py", snn, *FEW, cwd=tmp_path))
    assert code == 0 and f"{snn}: epoch 1" in out, err
    training = json.loads((tmp_path / "runs" / snn / "config.json").read_text())["rsnn_zoo"]["training"]
    assert training["ann_sha256"] == weights_of(tmp_path / "runs" / ann)
    assert training["conversion"]["scale"] == 0.3 and training["stage"]["attack"] == "rfgsm"
    assert (tmp_path / "runs" / snn / "curves.png").stat().st_size > 10_000
    code, out, err = finished(script("convert.py", snn, *FEW[3:], "--output", "converted", cwd=tmp_path))
    assert code == 0 and weights_of(tmp_path / "converted") != weights_of(tmp_path / "runs" / snn), err
    tuned = weights_of(tmp_path / "runs" / snn)
    code, out, err = finished(script("convert.py", snn, *FEW[3:], cwd=tmp_path))
    assert code != 0 and "holds a fine-tuned network" in err and weights_of(tmp_path / "runs" / snn) == tuned
    code, out, err = finished(script("convert.py", snn, *FEW[3:], "--dry-run", "--output", "none", cwd=tmp_path))
    assert code == 0 and '"layer1.0.act1"' in out and not (tmp_path / "none").exists(), err

    few = [*FEW[3:], "--quiet", "--images", "64", "-n", "8", "--attack", "fgsm", "--output", "tried.json"]
    for tries, runs in ((1, 2), (2, 3)):  # what is there is not run again
        changes = [part for change in ("snn.lr=0.1", "snn.lr=0")[:tries] for part in ("--try", change)]
        code, out, err = finished(script("ablate.py", snn, *few, *changes, cwd=tmp_path))
        assert code == 0, err
        found = json.loads((tmp_path / "tried.json").read_text())["runs"]
        assert len(found) == runs and len(out.splitlines()) == (2 if tries == 1 else 1)
    assert [one["recipe"]["snn"]["lr"] for one in found] == [0.03, 0.1, 0] and (tmp_path / "tried.png").exists()
    assert {one["ann_sha256"] for one in found} == {weights_of(tmp_path / "runs" / ann)}


def written(path):
    """When; None where there is no such file, as between two renames."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "name"), [(0, "resnet20_digits_at_ann"), (1, "resnet20_digits_at_ann"), (2, "resnet20_digits_trades_t2")]
)
def test_killed_at_random_moments_the_same_command_ends_with_the_same_weights(tmp_path, seed, name):
    command = (name, *FEW, "--set", "direct.epochs=1", "--set", "direct.attack_pass='training'")
    code, _, err = finished(script("train.py", *command, cwd=tmp_path))
    assert code == 0, err
    expected = weights_of(tmp_path / "runs" / command[0])
    random = torch.Generator().manual_seed(seed)
    kills, checkpoint = 0, tmp_path / "killed" / "checkpoint.pt"
    for _ in range(100):
        before = written(checkpoint)
        process = script("train.py", *command, "--output", "killed", cwd=tmp_path)
        while kills < 3 and process.poll() is None:
            if written(checkpoint) not in (None, before):  # it is at work
                break
            time.sleep(0.001)
        try:
            process.communicate(timeout=torch.rand((), generator=random).item() if kills < 3 else 900)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills and weights_of(tmp_path / "killed") == expected


@pytest.mark.slow
def test_a_script_that_is_asked_to_stop_says_how_to_go_on(tmp_path):
    process = script("train.py", "resnet20_digits_at_ann", "--quiet", cwd=tmp_path)
    while not (tmp_path / "runs").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, _, err = finished(process)
    assert code == 1 and "run the same command again" in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train.py", ["resnet20_digits_trade_ann"], "did you mean trades"),
        ("train.py", ["resnet20_digits_trades_ann", "--set", "ann.epoch=3"], "did you mean epochs"),
        ("train.py", ["resnet20_digits_trades_ann", "--recipe", "digit"], "did you mean digits"),
        ("train.py", ["resnet20_cifar10_trades_ann", "--data", "none.npz"], "none.npz"),
        ("finetune.py", ["resnet20_digits_trades_ann"], "is an ANN: name the SNN"),
        ("finetune.py", ["resnet20_digits_trades_t4", "--ann", "nowhere"], "nowhere"),
        ("finetune.py", ["resnet20_digits_trades_t4", "--ann", "resnet20_digits_at_ann"], "SNN resnet20_digits_at_t4"),
        ("convert.py", ["resnet32_digits_at_t4", "--ann", "resnet20_digits_at_ann"], "the architecture resnet32"),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_remedy(tmp_path, name, arguments, message):
    code, _, err = finished(script(name, *arguments, cwd=tmp_path))
    assert code != 0 and message in err and "Traceback" not in err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_snn_is_trained_from_scratch_by_two_processes(tmp_path):
    name = "resnet20_digits_rat_t2"
    arguments = [name, *FEW, "--set", "direct.epochs=1", "--tensorboard", "board"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RSNN_ZOO_COMPILE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "scripts" / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0 and done.stdout.count(f"{name}: epoch 1") == 1, done.stderr
    training = json.loads((tmp_path / "runs" / name / "config.json").read_text())["rsnn_zoo"]["training"]
    assert training["environment"]["processes"] == 2 and training["stage"]["retraction"] == 0.004
    if importlib.util.find_spec("tensorboard"):
        assert list((tmp_path / "board").glob("events*"))


@pytest.mark.parametrize(
    "text",
    [
        '[ann]\neps = "1e999999999"',
        '[ann]\neps = "1/1e9"',
        "x = " + "[" * 5000,
        "x = " + "[\n" * 5000,
        "[" + "a." * 30_000 + "a]",
        "\n".join(f"[{'a.' * 9}x{i}]" for i in range(50)),
        f"x = {'9' * 900}",
        "x = 1\n" * 20_000,
        'base = "../../x"',
        "base = [1]",
        "x = \x00",
    ],
)
def test_a_recipe_of_a_stranger_is_refused_at_once(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "mine.toml", "at")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK"], ids=str)
def test_what_is_no_checkpoint_behind_a_right_checksum_is_refused(tmp_path, content):
    (tmp_path / checkpoints.CURRENT).write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(checkpoints.CheckpointError, match="is no state of a run"):
        load_checkpoint(tmp_path)
