"""Attacks that come with torchattacks, and transfer: exact verdicts, each sample by itself, nothing left changed."""

import random

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st

import rsnn_zoo
from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.library import TorchAttack, torchattack
from rsnn_zoo.attacks.queries import Noise, RayS, Square
from rsnn_zoo.attacks.signed import FGSM, pgd
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation.transfer import Transfer, unconverted
from rsnn_zoo.neurons.integrate_fire import Rate, Relu
from tests.attacks.test_odd_models import GRAPHLESS, Wrapped

CLASSES = 3
LIBRARY = [
    TorchAttack(torchattacks.PGD, steps=4),  # draws from the global generator
    TorchAttack(torchattacks.Square, n_queries=20),  # sets its seed
    TorchAttack(torchattacks.FAB, steps=3, multi_targeted=True),  # wants the number of classes
    TorchAttack(torchattacks.APGD, steps=5),
    TorchAttack(torchattacks.PGDL2, steps=3),  # another norm
    TorchAttack(torchattacks.DeepFool, steps=3),  # knows no eps
    TorchAttack(torchattacks.OnePixel, steps=2, popsize=4),  # draws from NumPy
]


@pytest.fixture(scope="module")
def digits(snn):
    data = rsnn_zoo.load_dataset("digits", "test").select(16)
    images, labels = data.pixels(), data.labels
    right = ~ModelVictim(snn, 16).fallen(images, labels)
    return images[right], labels[right]


def batch_of(digits, order, eps=32 / 255):
    return Batch(digits[0][order], digits[1][order], eps, tuple(order))


def smooth(seed=0, classes=CLASSES):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, classes)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers).eval()


def standing(model, n, seed=0):
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images, model(images).argmax(1)


# --- torchattacks ---------------------------------------------------------------------------------------------------


@given(st.sampled_from(LIBRARY), st.floats(0, 1), st.integers(0, 2**20))
@settings(max_examples=50, deadline=None)
def test_they_keep_to_the_ball_and_tell_the_truth_and_touch_nothing(attack, eps, seed):
    model = smooth(seed)
    images, labels = standing(model, 3, seed)
    victim = ModelVictim(model, 2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    flags = [module.training for module in victim.module.modules()]
    fell, adversarial = attack(victim, Batch(images, labels, eps, (0, 1, 2), seed))
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert torch.equal(victim.fallen(adversarial, labels), fell)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert [module.training for module in victim.module.modules()] == flags
    assert all(p.grad is None for p in [*model.parameters(), *victim.module.parameters()])


@pytest.mark.parametrize("attack", LIBRARY, ids=lambda attack: attack.name)
def test_the_fate_of_a_sample_does_not_depend_on_its_batch(attack):
    model = smooth()
    images, labels = standing(model, 6)
    victim = ModelVictim(model, 2)
    fell, adversarial = attack(victim, Batch(images, labels, 0.2, tuple(range(6))))
    order = [4, 1, 5]
    torch.rand(1), np.random.rand(), random.random()  # nor on what was drawn before
    some_fell, some = attack(victim, Batch(images[order], labels[order], 0.2, tuple(order)))
    assert torch.equal(some_fell, fell[order]) and torch.equal(some, adversarial[order])
    assert not torch.equal(adversarial, images)


@pytest.mark.parametrize("mode", [None, Rate(), Relu()], ids=str)
def test_they_follow_the_backward_mode(snn, eager, digits, mode):
    batch, victim = batch_of(digits, [0, 1]), ModelVictim(snn, 2).under(mode)
    fell, adversarial = TorchAttack(torchattacks.FGSM)(victim, batch)
    expected = torchattacks.FGSM(victim.module, eps=batch.eps)(batch.images, batch.labels)
    assert torch.equal(adversarial[~fell], expected[~fell]) and not fell.all()
    fell, adversarial = TorchAttack(torchattacks.FAB, steps=1)(victim, batch)
    assert torch.equal(victim.fallen(adversarial, batch.labels), fell)


def test_under_the_stand_in_every_question_is_put_to_the_spiking_network(snn, eager, digits):
    """What the ReLU network classifies says nothing."""
    shown = []

    class Heard(ModelVictim):
        def fallen(self, x, labels):
            shown.append(x)
            return super().fallen(x, labels)

    victim = Heard(snn, 2).under(Relu())
    fell, _ = TorchAttack(torchattacks.PGD, steps=4, alpha=1e-4)(victim, batch_of(digits, [0], 1e-3))
    assert not fell.any() and len(shown) == 4 + 1  # and once more at the end


def test_a_random_model_is_averaged_over_its_draws(digits):
    class Shaken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            passes.append(len(x))
            return torch.eye(CLASSES)[:1].repeat(len(x), 1) + torch.randn(len(x), CLASSES) + self.weight * x.sum()

    passes = []
    victim = ModelVictim(Shaken(), 2, draws=7)
    x = torch.rand(1, 1, 2, 2)
    TorchAttack(torchattacks.FGSM)(victim, Batch(x, torch.zeros(1).long(), 0.1, (0,)))
    assert len(passes) % 7 == 0 and len(passes) >= 2 * 7


def test_the_class_is_told_what_it_takes_of_the_batch():
    class Told:
        def __init__(self, model, n_classes=10, eps=8 / 255, seed=0, steps=1):
            told.append((n_classes, eps, steps, seed))

        def __call__(self, images, labels):
            return images

    told = []
    images, labels = standing(smooth(), 2)
    TorchAttack(Told, steps=5)(ModelVictim(smooth(), 2), Batch(images, labels, 0.1, (0, 1)))
    assert [row[:3] for row in told] == [(CLASSES, 0.1, 5)] * 2 and told[0][3] != told[1][3]


def test_the_library_leaves_at_the_first_image_that_falls():
    class Patient:
        """Asks about three images, the second of which falls, and gives back the first."""

        def __init__(self, model):
            self.model = model

        def __call__(self, images, labels):
            for shift in (0.0, 0.2, 0.1):
                asked.append(shift)
                self.model(images - shift)
            return images

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[1].bias = torch.nn.Parameter(torch.tensor([-0.4, 0.0]))
    batch = Batch(torch.full((1, 1, 1, 1), 0.5), torch.zeros(1).long(), 0.3, (0,))
    asked = []
    fell, adversarial = TorchAttack(Patient)(ModelVictim(model, 1), batch)
    assert fell.all() and adversarial.item() == pytest.approx(0.3) and asked == [0.0, 0.2]
    asked.clear()  # the same image lies outside of a smaller ball
    fell, adversarial = TorchAttack(Patient)(ModelVictim(model, 1), Batch(batch.images, batch.labels, 0.05, (0,)))
    assert not fell.any() and adversarial.item() == 0.5 and len(asked) == 3


@pytest.mark.slow
def test_autoattack_is_at_least_as_strong_as_its_members():
    model = smooth(3, classes=10)
    images, labels = standing(model, 8)
    batch, victim = Batch(images, labels, 0.05, tuple(range(8))), ModelVictim(model, 4)
    fell, adversarial = TorchAttack(torchattacks.AutoAttack)(victim, batch)
    assert torch.equal(victim.fallen(adversarial, labels), fell) and 0 < fell.sum() < 8
    for member in (torchattacks.FGSM, torchattacks.APGD, torchattacks.FAB):
        single, _ = TorchAttack(member)(victim, batch)
        assert (fell | ~single).all()


def test_each_sample_has_draws_of_its_own():
    images = torch.full((2, 1, 4, 4), 0.5)
    labels = smooth()(images).argmax(1)
    start = TorchAttack(torchattacks.PGD, steps=1, alpha=0.0)
    _, adversarial = start(ModelVictim(smooth(), 2), Batch(images, labels, 1e-4, (0, 1)))
    assert not torch.equal(adversarial[0], adversarial[1])
    _, other = start(ModelVictim(smooth(), 2), Batch(images, labels, 1e-4, (0, 1), seed=1))
    assert not torch.equal(adversarial, other)


def test_where_there_is_no_gradient_nothing_falls():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([0.0, 1.0, 0.0]) + 0 * x.flatten(1)[:, :3]

    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.ones(2).long(), 0.1, (0, 1))
    for attack in (torchattacks.DeepFool, torchattacks.FAB):
        fell, adversarial = TorchAttack(attack)(ModelVictim(Constant(), 2), batch)
        assert not fell.any() and (adversarial - images).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("function", GRAPHLESS.values(), ids=GRAPHLESS)
@pytest.mark.parametrize("name", ["PGD", "APGD", "APGDT", "FAB", "DeepFool", "CW", "SparseFool", "VNIFGSM", "TPGD"])
def test_where_there_is_no_graph_no_library_crashes(name, function):
    victim = ModelVictim(Wrapped(function), 2)
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, victim.logits(images).argmax(1), 1e-6, (0,))
    assert not torchattack(name)(victim, batch)[0].any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TorchAttack(torchattacks.PGD, eps=0.1), "leave out eps"),
        (lambda: TorchAttack(torchattacks.FAB, seed=1), "leave out seed"),
        (lambda: TorchAttack(torchattacks.PGD, stepz=1), "PGD takes no stepz; its options are alpha"),
        (lambda: TorchAttack(torchattacks.PGD(smooth())), "pass the class"),
    ],
)
def test_bad_options_are_refused_at_once(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_attacks_are_found_by_name():
    for name in ("Square", "FAB", "AutoAttack", "PGD", "APGDT"):
        assert torchattack(name).name == f"torchattacks.{name}"
    with pytest.raises(ValueError, match=r"no attack 'Sqare' .*Square"):
        torchattack("Sqare")
    for name in ("MultiAttack", "LGV", "Attack", "attack"):
        with pytest.raises(ValueError, match="needs only a model"):
            torchattack(name)


# --- transfer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, Rate()], ids=str)
@pytest.mark.parametrize("attack", [pgd(3), Square(6), RayS(6), Noise(3)], ids=lambda attack: attack.name)
def test_transfer_from_the_model_itself_is_the_attack(snn, eager, digits, attack, mode):
    batch = batch_of(digits, list(range(8)), 64 / 255)
    victim = ModelVictim(snn, 64).under(mode)
    fell, adversarial = Transfer(snn, attack, "self")(victim, batch)
    expected_fell, expected = attack(victim, batch)
    assert torch.equal(fell, expected_fell) and torch.equal(adversarial, expected)


def test_transfer_is_judged_on_the_victim_and_stops_for_it_alone(snn, eager, digits):
    batch, victim = batch_of(digits, list(range(len(digits[0]))), 48 / 255), ModelVictim(snn, 16)
    ann = rsnn_zoo.create_model("resnet20_digits_natural_ann", pretrained=True)
    before = {key: value.clone() for key, value in ann.state_dict().items()}
    fell, adversarial = Transfer(ann, pgd(5), "natural")(victim, batch)
    assert torch.equal(victim.fallen(adversarial, batch.labels), fell)
    assert 0 < fell.sum() < len(fell)
    # samples that the victim withstood went all the way, though the source fell
    on_source = ModelVictim(ann, 16).fallen(adversarial, batch.labels)
    assert (on_source & ~fell).any()
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())
    assert not ann.training and all(p.grad is None for p in ann.parameters())


@pytest.mark.parametrize("attack", [pgd(2), Square(3), RayS(3), Noise(3), LIBRARY[0]], ids=lambda attack: attack.name)
def test_what_fells_the_source_alone_does_not_count(attack):
    class Stubborn(ModelVictim):
        def fallen(self, x, labels):
            return torch.zeros(len(x), dtype=torch.bool)

    images, labels = standing(smooth(), 4)
    batch = Batch(images, (labels + 1) % CLASSES, 0.1, tuple(range(4)))  # the source is wrong everywhere
    assert not Transfer(smooth(), attack, "other")(Stubborn(smooth(), 4), batch)[0].any()


def test_every_question_of_a_library_on_the_source_counts():
    """Though the source itself stands."""

    class Brittle(ModelVictim):
        def fallen(self, x, labels):
            return torch.ones(len(x), dtype=torch.bool)

    images, labels = standing(smooth(), 1)
    asked = []
    attack = TorchAttack(torchattacks.PGD, steps=9, alpha=1e-5, random_start=False)
    source = smooth()
    source.register_forward_hook(lambda *_: asked.append(1))
    fell, adversarial = Transfer(source, attack, "other")(Brittle(source, 1), Batch(images, labels, 0.1, (0,)))
    assert fell.all() and torch.equal(adversarial, images)


@pytest.mark.parametrize("attack", [Square(9), RayS(9), Noise(9)], ids=lambda attack: attack.name)
def test_every_question_about_the_source_counts(attack):
    """Though the source itself stands."""
    seen = []

    class Brittle(ModelVictim):
        def fallen(self, x, labels):
            seen.append(x)
            return torch.tensor([len(seen) == 5])

    images, labels = standing(smooth(), 1)
    batch = Batch(images, labels, 1e-5 if attack.name != "rays9" else 1.0, (0,))
    fell, adversarial = Transfer(smooth(), attack, "other")(Brittle(smooth(), 1), batch)
    assert fell.all() and len(seen) == 5 and torch.equal(adversarial, seen[4])


def test_every_iterate_on_the_source_counts():
    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1).long()
    seen = []

    class Brittle(ModelVictim):
        def fallen(self, x, labels):
            seen.append(x)
            return torch.tensor([len(seen) == 2])

    source = smooth()
    fell, adversarial = Transfer(source, pgd(6), "other")(Brittle(source, 1), Batch(images, labels, 0.1, (0,)))
    assert fell.all() and len(seen) == 2 and torch.equal(adversarial, seen[1])


def test_library_attacks_transfer_too(snn, ann, eager, digits):
    batch, victim = batch_of(digits, [0, 1, 2]), ModelVictim(snn, 4)
    fell, adversarial = Transfer(ann, TorchAttack(torchattacks.FGSM), "ann")(victim, batch)
    expected_fell, expected = Transfer(ann, FGSM, "ann")(victim, batch)
    assert torch.equal(fell, expected_fell)
    torch.testing.assert_close(adversarial[~fell], expected[~fell])


def digits_images():
    return rsnn_zoo.load_dataset("digits", "train").pixels(slice(0, 8))


def test_the_unconverted_network_is_found(snn, ann):
    assert unconverted(snn).pretrained_name == "resnet20_digits_trades_ann"
    assert unconverted(ann) is None
    assert unconverted(smooth()) is None
    assert unconverted(rsnn_zoo.create_model("resnet20_digits_trades_t4")) is None
    other = rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)
    other.training_record = other.training_record | {"ann_sha256": "0" * 64}  # by somebody else, from another ANN
    assert unconverted(other) is None
    converted = rsnn_zoo.convert(ann, 2, digits_images(), calibration_timesteps=4, method="published")
    assert unconverted(converted).weights_sha256 == ann.weights_sha256
    assert (converted.pretrained_name, converted.weights_sha256) == (None, None)  # it is not its ANN
    assert rsnn_zoo.evaluate(converted, rsnn_zoo.load_dataset("digits").select(2), "fgsm", checks=0).model == "resnet20"
    orphan = smooth()
    orphan.pretrained_name = "vgg16_svhn_mart_t4"  # of which nobody published the ReLU network
    assert unconverted(orphan) is None


def test_names_say_what_was_run(ann):
    assert TorchAttack(torchattacks.FAB, multi_targeted=True).name == "torchattacks.FAB(multi_targeted=True)"
    assert TorchAttack(torchattacks.FGSM).name == "torchattacks.FGSM"
    assert Transfer(ann, pgd(20), "ann").name == "transfer-ann-pgd20"
    assert (Square().name, RayS(2000).name, Noise(50, "gaussian").name) == (
        "square5000",
        "rays2000",
        "gaussian-noise50",
    )
