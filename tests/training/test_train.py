"""Recipes, checkpoints and the training loop: on the digits, with real networks, at the smallest size that shows it."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsnn_zoo._utils.provenance import digest
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.models.layers import WeightedSum
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD
from rsnn_zoo.report.plots import plot_curves
from rsnn_zoo.spec.datasets import Augmentation
from rsnn_zoo.training import updates
from rsnn_zoo.training.constraints import retract
from rsnn_zoo.training.objectives import OBJECTIVES, Objective
from rsnn_zoo.training.recipe import Stage
from rsnn_zoo.training.train import OtherRunError, estimate, train
from tests.training.conftest import ROBUST, STAGE, new_model, run, same

# Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py.
pytestmark = pytest.mark.usefixtures("eager")

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


def test_weight_decay_spares_residual_sums_by_channel():
    layer = WeightedSum(3)
    groups = updates._groups(
        torch.nn.Sequential(layer, torch.nn.Conv2d(1, 3, 1)), replace(STAGE, weight_decay=0.5), None
    )
    assert {p.shape: group["weight_decay"] for group in groups for p in group["params"]} == {
        (3, 1, 1, 1): 0.5,
        (3,): 0.0,
        (2, 3): 0.0,
    }


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


def test_residual_weights_by_channel_are_held_to_convex_ones_each():
    layer = WeightedSum(3)
    layer.weight = torch.nn.Parameter(torch.tensor([[1.3, 0.5, -2.0], [0.1, 0.7, 0.0]]))
    retract(torch.nn.Sequential(layer), 0.1, torch.Generator())
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.6, 1.0]]))


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


@pytest.fixture
def counted(monkeypatch):
    """A network whose forward passes are the seconds of the clock that estimates go by."""
    model, passes = new_model(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr("rsnn_zoo.training.train.time", SimpleNamespace(perf_counter=lambda: len(passes)))
    return model


def test_natural_epochs_come_first_and_are_those_of_natural_training(tmp_path, data, validation):
    stage = replace(ROBUST, natural_epochs=1)
    mixed, natural, robust = (
        run(data, validation, tmp_path / name, each)[1].history
        for name, each in (("mixed", stage), ("natural", replace(STAGE, objective="natural")), ("robust", ROBUST))
    )
    assert mixed[0]["train_loss"] == natural[0]["train_loss"] and "train_robust" not in mixed[0]
    assert "train_robust" in mixed[1] and mixed[1]["train_loss"] != natural[1]["train_loss"]
    assert mixed[0]["train_loss"] < robust[0]["train_loss"]
    with pytest.raises(ValueError, match="natural_epochs is 2 of 2 epochs"):
        replace(stage, natural_epochs=2)


def test_natural_epochs_need_no_teacher_and_a_batch_of_them_is_not_replayed(tmp_path, data, validation):
    taught = replace(ROBUST, objective="rslad", weight=0.5, natural_epochs=1)
    free = replace(ROBUST, attack="free", attack_steps=2, natural_epochs=1)
    first, second = (
        run(data, validation, tmp_path / name, stage, teacher=teacher)[1].history[0]["train_loss"]
        for name, stage, teacher in (("taught", taught, new_model(seed=1)), ("free", free, None))
    )
    assert first == second


def test_an_estimate_knows_that_natural_epochs_are_cheap(counted, data, validation):
    stage = replace(ROBUST, attack="pgd", attack_steps=9, epochs=4)
    mixed, robust = (
        estimate(counted, data, validation, replace(stage, natural_epochs=natural), steps=1) for natural in (3, 0)
    )
    batches = len(data) // stage.batch_size
    assert robust.seconds_a_step > 9 and robust.seconds == 4 * robust.seconds_an_epoch
    assert mixed.seconds == robust.seconds - 3 * batches * (robust.seconds_a_step - 1), "a natural step is one pass"
    assert mixed.seconds_an_epoch == robust.seconds_an_epoch > batches * robust.seconds_a_step


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


def test_an_estimate_knows_that_the_first_epochs_have_fewer_steps(counted, data, validation):
    stage = replace(ROBUST, attack="pgd", attack_steps=9, epochs=4)
    short, whole = (
        estimate(counted, data, validation, replace(stage, steps_warmup=warmup), steps=1) for warmup in (4.0, 0.0)
    )
    assert short.seconds < 0.9 * 4 * short.seconds_an_epoch
    assert whole.seconds == pytest.approx(4 * whole.seconds_an_epoch)


def test_too_few_images_for_a_batch_are_refused(tmp_path, data, validation):
    with pytest.raises(ValueError, match=r"64 training images do not fill a batch of 65: lower batch_size"):
        run(data, validation, tmp_path, replace(STAGE, batch_size=65))
