"""Gradients of the folded network: its word that an image fell is confirmed, that one stands is sampled."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.attacks.victim import FOLDED, ModelVictim, _close, _is_audited
from rsnn_zoo.models.fold import fold
from rsnn_zoo.models.layers import Spiking
from rsnn_zoo.models.resnet import BasicBlock
from rsnn_zoo.neurons.modes import Surrogate
from tests.models.test_fused import network

pytestmark = pytest.mark.usefixtures("eager")


def loss(logits, aim):
    return F.cross_entropy(logits, aim, reduction="none")


def test_gradients_are_those_of_the_exact_network_but_for_rounding():
    model, images, labels = network(), torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.arange(5)
    results = []
    for precision in ("float32", FOLDED):
        victim = ModelVictim(model, 4, precision).under(Surrogate("pcw", 1.0))
        results.append(victim.gradient(images, labels, loss, labels, {}))
    (exact, exact_logits, exact_down), (fast, logits, down) = results
    torch.testing.assert_close(logits, exact_logits)
    assert (fast - exact).abs().max() < 1e-5 * exact.abs().max()
    assert down.equal(exact_down)


def test_weights_that_are_made_anew_are_not_folded():
    model, images = network(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    nn.utils.parametrizations.weight_norm(model.layer1[0].conv1)
    torch.testing.assert_close(fold(model)(images), model(images))


def test_what_the_folded_network_misclassifies_falls_by_the_exact_one_alone():
    model, images = network().float(), torch.rand(6, 3, 8, 8)
    victim = ModelVictim(model, 4, FOLDED)
    labels = victim.logits(images).argmax(1)
    with torch.no_grad():
        victim._fast.model.fc.bias[:] = -1e3 * F.one_hot(labels[0], 10)  # now it finds no image of that class
    assert not victim.gradient(images, labels, loss, labels, {})[2].any()
    assert victim._fast.logits(images).argmax(1).ne(labels).any() and not victim.answers(images, labels)[1].any()


def test_searches_ask_the_folded_network_and_take_the_word_of_the_exact_one():
    model, images, labels = network(), torch.rand(7, 3, 8, 8, dtype=torch.float64), torch.arange(7)
    exact, folded = (ModelVictim(model, 4, precision) for precision in ("float32", FOLDED))
    (logits, down), (fast, fast_down) = (victim.answers(images, labels) for victim in (exact, folded))
    assert logits.equal(exact.logits(images)) and down.equal(exact.fallen(images, labels)) and fast_down.equal(down)
    torch.testing.assert_close(fast, logits)
    asked = []
    folded._exact.logits = lambda x: asked.append(len(x)) or exact.logits(x)
    labels = logits.argmax(1)
    assert not folded.answers(images, labels)[1].any()
    assert sum(asked) <= int(_is_audited(images).sum() + _close(fast).sum()) < len(images)


def test_a_sampled_share_of_what_stands_is_shown_to_the_exact_network():
    model, images = network().float(), torch.rand(64, 3, 8, 8)
    victim = ModelVictim(model, 16, FOLDED)
    labels = (victim.logits(images).argmax(1) + 1) % 10  # by the exact network all have fallen
    with torch.no_grad():
        victim._fast.model.fc.weight.zero_()
        victim._fast.model.fc.bias.zero_()
    labels[:] = 3
    with torch.no_grad():
        victim._fast.model.fc.bias[3] = 1e3  # by the folded one all stand
    truth = victim.fallen(images, labels)
    down = victim.under(None).gradient(images, labels, loss, labels, {})[2]
    drawn = _is_audited(images)
    assert down.equal(truth & drawn)
    assert (victim.agreement.sampled, victim.agreement.fell) == (int(drawn.sum()), int((truth & drawn).sum()))
    assert 0 < victim.agreement.sampled < 16


def test_what_is_sampled_fills_the_chunk_of_suspects_or_goes_without_padding():
    model, images = network().float(), torch.rand(64, 3, 8, 8)
    victim, seen = ModelVictim(model, 16, FOLDED), []
    labels, drawn = victim.logits(images).argmax(1), int(_is_audited(images).sum())
    victim._exact.model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    logits = F.one_hot(labels, 10).float()  # far from any other class
    assert not victim._confirmed(images, labels, logits).any()
    assert 0 < drawn < 16 and seen == [drawn]
    seen.clear()
    logits[0] = 0.0
    assert not victim._confirmed(images, labels, logits).any()
    assert seen == [16]


@pytest.mark.parametrize("timesteps", [4, 8])
def test_a_short_batch_is_padded_to_a_size_of_the_same_bits(timesteps):
    gradient, images = (
        InputGradient(network(timesteps=timesteps).float(), chunk=16, pad=True),
        torch.rand(37, 3, 16, 16),
    )
    labels = torch.arange(37) % 10
    whole, logits = gradient(images, labels)
    for rows in (slice(0, 3), slice(30, 37), slice(16, 32), slice(5, 25)):
        found, told = gradient(images[rows], labels[rows])
        assert found.equal(whole[rows]) and told.equal(logits[rows])
        assert gradient.logits(images[rows]).equal(gradient.logits(images)[rows])


def test_only_where_the_bits_are_the_same_a_chunk_is_cut_short():
    model, images = network().float(), torch.rand(3, 3, 16, 16)
    kept, first = InputGradient(model, chunk=16, pad=True), []
    head = type(model).forward_head

    def in_company(x, **options):
        first.append(len(x))
        return head(model, x, **options) * (1 + 1e-6 * len(x))

    model.forward_head = in_company
    whole = InputGradient(model, chunk=16, pad=True)
    for gradient in (kept, whole):
        gradient.logits(images)
    assert kept._sizes(images)[0] in (2, 4, 8, 16) and whole._sizes(images) == [16] and first[-1] == 16 * model.steps
    assert InputGradient(model, chunk=16)._sizes(images) == [3]


def test_the_is_audited_depends_on_the_image_alone():
    images = torch.rand(200, 3, 8, 8)
    drawn, order = _is_audited(images), torch.randperm(200)
    assert _is_audited(images[order]).equal(drawn[order])
    assert 1 < drawn.sum() < 40


@pytest.mark.parametrize("times", [1, 2])
def test_a_norm_of_another_kind_stays_in_the_folded_network(times):
    torch.manual_seed(0)
    block = BasicBlock(4, 4, 1, Spiking())
    block.bn2 = BatchNormAct2d(4)
    for norm in (block.bn1, block.bn2):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.bias)
    model, folded = block.eval(), block
    for _ in range(times):
        folded = fold(folded)
    x = torch.rand(3, 4, 8, 8)
    assert isinstance(folded.bn1, nn.Identity) and isinstance(folded.bn2, BatchNormAct2d)
    torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize("at", ["0", "1", "4.sum", "4.bn2", "4.conv2", "4.downsample.1"])
def test_what_hooks_change_stays_in_the_folded_network(at):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Identity(), BasicBlock(4, 8, 2, Spiking())
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.bias)
    model.eval().get_submodule(at).register_forward_hook(lambda module, inputs, output: output.relu() + 0.3)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(fold(model)(x), model(x))
