"""Query attacks: that each is the published one, keeps to its ball, and treats every sample by itself."""

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st

import rsnn_zoo
from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.queries import Noise, RayS, Square
from rsnn_zoo.attacks.victim import ModelVictim

ATTACKS = [Square(30), RayS(30), Noise(10), Noise(10, "gaussian")]


def linear(seed=0, shape=(1, 4, 4), classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pixels = shape[0] * shape[1] * shape[2]
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, classes)).eval()


def standing(model, n, shape, seed=0):
    """Random images, a little off the limits, with the labels that the model gives them."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 + 0.2 * torch.rand(n, *shape, generator=generator)
    with torch.no_grad():
        return images, model(images).argmax(1)


def two_classes(n):
    """A linear model, images, labels, and how far each image is from the boundary."""
    model = linear(classes=2)
    images, labels = standing(model, n, (1, 4, 4))
    with torch.no_grad():
        logits = model(images)
        needed = (logits.amax(1) - logits.amin(1)) / (model[1].weight[0] - model[1].weight[1]).abs().sum()
    return model, images, labels, needed


def digits_batch(snn, n, eps, seed=0):
    data = rsnn_zoo.load_dataset("digits", "test").select(2 * n)
    images, labels = data.pixels(), data.labels
    right = ~ModelVictim(snn, 16).fallen(images, labels)
    return Batch(images[right][:n], labels[right][:n], eps, tuple(range(n)), seed)


def rows(batch, order):
    index = torch.tensor(order)
    return Batch(batch.images[index], batch.labels[index], batch.eps, tuple(batch.index[i] for i in order), batch.seed)


class Counting:
    """A victim that notes what it is asked."""

    def __init__(self, model):
        self.victim, self.asked = ModelVictim(model, 4), []

    def fallen(self, x, labels):
        self.asked.append(x)
        return self.victim.fallen(x, labels)


@given(
    st.sampled_from(ATTACKS),
    st.floats(0, 1),
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 4),
    st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_they_keep_to_the_ball_and_the_pixels_and_tell_the_truth(attack, eps, shape, batch, seed):
    model = linear(seed, shape)
    images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = model(images).argmax(1)
    victim, before = ModelVictim(model, 4), torch.get_rng_state()
    fell, adversarial = attack(victim, Batch(images, labels, eps, tuple(range(batch)), seed))
    assert fell.shape == (batch,) and fell.dtype == torch.bool and adversarial.shape == images.shape
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert torch.equal(victim.fallen(adversarial, labels), fell)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_fate_of_a_sample_does_not_depend_on_its_batch(snn, eager, attack):
    batch, victim = digits_batch(snn, 8, 48 / 255), ModelVictim(snn, 4)
    fell, adversarial = attack(victim, batch)
    order = [6, 1, 3, 0, 7]
    some_fell, some = attack(victim, rows(batch, order))
    assert torch.equal(some_fell, fell[order]) and torch.equal(some, adversarial[order])
    alone_fell, alone = attack(victim, rows(batch, [2]))
    assert torch.equal(alone_fell, fell[2:3]) and torch.equal(alone, adversarial[2:3])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_model_stays_as_it_was(snn, eager, attack):
    before = {key: value.clone() for key, value in snn.state_dict().items()}
    attack(ModelVictim(snn, 4), digits_batch(snn, 2, 8 / 255))
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
    assert not any(module.training for module in snn.modules())
    assert all(p.requires_grad and p.grad is None for p in snn.parameters())


def test_logits_that_are_no_numbers_are_of_no_class_for_square_too():
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * torch.nan

    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    fell, _ = Square(1)(ModelVictim(Broken(), 2), Batch(images, torch.zeros(2, dtype=torch.uint8), 0.1, (0, 1)))
    assert fell.all()


def test_fallen_samples_are_not_asked_about_again():
    model, images, labels, needed = two_classes(6)
    victim = Counting(model)
    fell, _ = RayS(500)(victim, Batch(images, labels, float(needed.median()) + 0.01, tuple(range(6))))
    asked = [len(x) for x in victim.asked]
    assert 0 < int(fell.sum()) < 6 and len(asked) == 500
    assert asked == sorted(asked, reverse=True) and asked[0] == 6 and asked[-1] == 6 - fell.sum()


def test_draws_of_noise_are_all_different_and_fill_the_ball():
    model = linear()
    images, labels = standing(model, 2, (1, 4, 4))
    for kind, low, high in (("uniform", 0.45, 0.55), ("gaussian", 0.5, 0.75)):
        victim = Counting(model)
        Noise(50, kind)(victim, Batch(images, labels, 1e-4, (0, 1)))
        noise = torch.stack(victim.asked) - images
        assert len(noise.flatten(2).unique(dim=0)) == 50
        assert not torch.equal(noise[:, 0], noise[:, 1])
        # mean |uniform| is eps / 2; mean |normal|, clipped at eps, is 0.63 eps
        assert low < noise.abs().mean() / 1e-4 < high and noise.mean().abs() < 1e-5


# --- Square ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [300, 1000, 5000])
def test_squares_shrink_as_published(queries):
    theirs = torchattacks.Square(linear(), n_queries=queries)
    for size in (8, 32):
        for k in range(queries):
            p = theirs.p_selection(k)
            assert Square(queries).side(k, size, size) == max(round((p * size * size) ** 0.5), 1)


def test_square_finds_the_worst_corner_of_a_linear_model():
    model, images, labels, needed = two_classes(3)
    for i in range(3):
        for factor, expected in ((1.001, True), (0.999, False)):
            eps = factor * float(needed[i])
            batch = Batch(images[i : i + 1], labels[i : i + 1], eps, (i,))
            assert bool(Square(400)(ModelVictim(model, 1), batch)[0]) is expected


def test_square_never_asks_about_its_best_image_again():
    images, eps = torch.full((20, 1, 4, 4), 0.5), 0.1
    best = images + eps * torch.randint(2, images.shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    state = {"x": best, "best": images, "margin": torch.full((20,), torch.inf)}
    generators = Batch(images, torch.zeros(20, dtype=torch.long), eps, tuple(range(20))).generators()
    attack = Square(100)
    for k in (0, 50, 99):
        after = attack.step(k, state, torch.zeros(20), images, eps, generators)
        assert torch.equal(after["best"], best)
        changed = after["x"] != best
        assert changed.flatten(1).any(1).all()
        torch.testing.assert_close(after["x"][changed], (2 * images - best)[changed])


@pytest.mark.slow
def test_square_is_as_strong_as_the_librarys(snn, eager):
    batch, victim = digits_batch(snn, 40, 32 / 255), ModelVictim(snn, 40)
    fell, _ = Square(150)(victim, batch)
    theirs = torchattacks.Square(victim.module, eps=batch.eps, n_queries=150, seed=0)(batch.images, batch.labels)
    assert fell.sum() >= victim.fallen(theirs, batch.labels).sum() > 0


# --- RayS -----------------------------------------------------------------------------------------------------------


def rays_distance(wrong, image, queries, tolerance):
    """Algorithms 1 to 3 of the paper for one image, written plainly: the distances of all that it asks about."""
    best, near, asked = torch.ones(image.numel()), 1.0, []

    def ask(signs, radius):
        asked.append(radius)
        return wrong((image.flatten() + radius * signs).clamp(0, 1).view_as(image))

    def search(signs):
        nonlocal best, near
        if not ask(signs, near):
            return
        low, high = 0.0, near
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (low, middle) if ask(signs, middle) else (middle, high)
        if high < near:
            best, near = signs, high

    search(best)
    level = 0
    while len(asked) < queries and 2**level <= image.numel():
        size = image.numel() // 2**level
        for block in range(2**level):
            signs = best.clone()
            signs[block * size : (block + 1) * size] *= -1
            search(signs)
        level += 1
    return asked[:queries]


def test_rays_asks_what_the_paper_asks(snn, eager):
    batch = digits_batch(snn, 2, 1e-6)
    victim = ModelVictim(snn, 1)
    expected = [
        rays_distance(lambda x, y=y: bool(victim.fallen(x[None], y[None])), x, 60, 0.01)
        for x, y in zip(batch.images, batch.labels, strict=True)
    ]
    asked = []

    class Attack(RayS):
        def step(self, k, state, *args):
            asked.append(state["radius"].tolist())
            return super().step(k, state, *args)

    Attack(60, 0.01)(victim, batch)
    assert all(len(set(radii)) > 15 for radii in expected)
    for i, radii in enumerate(expected):
        assert [row[i] for row in asked][: len(radii)] == pytest.approx(radii, abs=1e-6)


def test_rays_finds_the_nearest_boundary_of_a_linear_model_by_labels_alone():
    model, images, labels, needed = two_classes(3)
    for i in range(3):
        for factor, expected in ((1.01, True), (0.99, False)):
            batch = Batch(images[i : i + 1], labels[i : i + 1], factor * float(needed[i]), (i,))
            assert bool(RayS(1000, 1e-4)(Counting(model), batch)[0]) is expected  # it has no logits, no gradients


def test_rays_begins_again_where_it_is_stuck():
    def directions(index):
        asked = []

        class Deaf(Counting):
            def fallen(self, x, labels):
                asked.append(x[0, 0] > 0.5)
                return torch.zeros(len(x), dtype=torch.bool)

        RayS(20)(Deaf(linear()), Batch(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1).long(), 0.1, (index,)))
        return torch.stack(asked).flatten(1)

    first, other = directions(0), directions(1)
    assert torch.equal(first[:8], other[:8]) and not torch.equal(first[8:], other[8:])
    assert len(first) == 20


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Square(0), "at least 1 query"),
        (lambda: Square(10, p=0.0), "share of the image"),
        (lambda: RayS(-1), "at least 1 query"),
        (lambda: RayS(10, tolerance=0.0), "tolerance"),
        (lambda: Noise(10, "salt"), "uniform, gaussian"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
