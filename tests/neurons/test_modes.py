"""Each backward mode against autograd over a written-out loop; what a mode remembers; modes by name."""

import math
from functools import partial

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.evaluation.protocols import ENSEMBLE_MODES
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron, integrate_and_fire
from rsnn_zoo.neurons.modes import (
    ASSG,
    HART,
    MODES,
    PDSG,
    RGA,
    Rate,
    Relu,
    Surrogate,
    backward_mode,
    model_under,
    parse_mode,
    surrogate_units,
)

# --- the modes, written out -----------------------------------------------------------------------------------------


class Spike(torch.autograd.Function):
    """One spike whose derivative is handed over as a tensor."""

    @staticmethod
    def forward(ctx, u, slope):
        ctx.save_for_backward(slope)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def membranes(x, threshold, leak, reset):
    """u at every step, (T, B, ...), and the spikes, without a gradient."""
    v, every = torch.zeros_like(x[0]), []
    for current in x.detach():
        u = leak * v + current
        v = torch.where(u >= threshold, u - threshold if reset == "soft" else torch.zeros_like(u), u)
        every.append(u)
    return torch.stack(every), (torch.stack(every) - threshold >= 0).to(x.dtype)


def through_time(x, threshold, leak, reset, slopes):
    v, spikes = torch.zeros_like(x[0]), []
    for current, slope in zip(x, slopes, strict=True):
        u = leak * v + current
        s = Spike.apply(u - threshold, slope)
        v = (1 - s) * u if reset == "hard" else u - threshold * s
        spikes.append(s)
    return torch.stack(spikes)


def assg(x, threshold, leak, reset, m=1.0, d=0.0):
    """Spikes, and M and D after this pass."""
    unit = threshold.detach()
    u = membranes(x, threshold, leak, reset)[0] / unit - 1
    m = 0.9 * m + 0.1 * u.abs()
    d = 0.9 * d + 0.1 * (u.abs() - m).abs()
    alpha = 2 * math.tan(math.pi * 0.425) / math.pi / (m + 1.5 * d + 1e-4)
    slopes = alpha / (2 * (1 + (math.pi / 2 * alpha * u) ** 2)) / unit
    return through_time(x, threshold, leak, reset, slopes), m, d


def pdsg(x, threshold, leak, reset):
    unit = threshold.detach()
    u = membranes(x, threshold, leak, reset)[0] / unit
    s = torch.ones_like(u[0])
    for sample in range(u.shape[1]):
        for channel in range(u.shape[2]):
            values = u[:, sample, channel].flatten()
            if len(values) > 1 and values.std() > 0:
                s[sample, channel] = values.std()
    slopes = torch.exp(-(((u - 1 - s / 2) / (math.sqrt(2) * s)) ** 2)) / (math.sqrt(2 * math.pi) * s)
    return through_time(x, threshold, leak, reset, slopes / unit)


class Averaged(torch.autograd.Function):
    """Nothing, but the gradient is averaged over the steps."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mean(0, keepdim=True).expand_as(grad)


def hart(x, threshold, leak, reset, width=0.7):
    v, spikes = torch.zeros_like(x[0]), []
    for current in Averaged.apply(x):
        u = leak * v.detach() + current
        away = (u / threshold - 1).detach()
        s = Spike.apply(u - threshold, (width - away.abs()).clamp(min=0) / width**2 / threshold.detach())
        v = (1 - s) * u if reset == "hard" else u - threshold * s
        spikes.append(s)
    return torch.stack(spikes)


def rga(x, threshold, leak, reset):
    """The rate in the mean current: 0.2 y up to 1 - leak, from there straight to 1 at y = 2."""
    mean = x.detach().mean(0).requires_grad_()
    with torch.enable_grad():
        y = mean / threshold.detach()
        rate = 0.2 * y.clamp(0, 1 - leak) + (0.8 + 0.2 * leak) / (1 + leak) * (y.clamp(1 - leak, 2) - (1 - leak))
        (slope,) = torch.autograd.grad(rate.sum(), mean)
    return membranes(x, threshold, leak, reset)[1] + slope * (x - x.detach())


WRITTEN_OUT = {ASSG(): lambda *args: assg(*args)[0], HART(0.7): hart, RGA(): rga, PDSG(): pdsg}


def gradients(function, x, threshold, weights):
    x, threshold = x.clone(memory_format=torch.preserve_format).requires_grad_(), threshold.clone().requires_grad_()
    out = function(x, threshold)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), (x, threshold), allow_unused=True)


def both(mode, x, threshold, weights, leak, reset, repeated, layout=torch.contiguous_format):
    """Spikes and gradients, ours and the written-out ones; x (T, B, C, H, W), or (1, ...) where repeated."""
    steps = len(weights)

    def ours(x, threshold):
        flat = x.flatten(0, 1).contiguous(memory_format=layout)
        out = integrate_and_fire(flat, threshold, steps, leak=leak, reset=reset, repeated=repeated, mode=mode)
        return out.unflatten(0, (steps, -1))

    def theirs(x, threshold):
        return WRITTEN_OUT[mode](x.expand(steps, *x.shape[1:]), threshold, leak, reset)

    return gradients(ours, x, threshold, weights), gradients(theirs, x, threshold, weights)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("leak", [1.0, 0.6])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("mode", WRITTEN_OUT, ids=str)
def test_gradients_are_the_written_out_ones_in_float64(mode, reset, leak, repeated, layout):
    torch.manual_seed(0)
    x = torch.randn(1 if repeated else 4, 3, 5, 4, 2, dtype=torch.float64) + 0.3
    weights, threshold = torch.randn(4, 3, 5, 4, 2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    found, expected = both(mode, x, threshold, weights, leak, reset, repeated, layout)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-11, atol=1e-13)
    assert found[1].abs().sum() > 0
    if isinstance(mode, RGA):
        assert found[2] is None
    else:
        torch.testing.assert_close(found[2], expected[2], rtol=1e-10, atol=1e-12)


@given(
    mode=st.sampled_from(list(WRITTEN_OUT)),
    timesteps=st.integers(1, 6),
    batch=st.integers(1, 4),
    leak=st.sampled_from([1.0, 0.9, 0.5, 0.0]),
    reset=st.sampled_from(["hard", "soft"]),
    threshold=st.floats(0.05, 2.0),
    repeated=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=80, deadline=None)
def test_gradients_agree_in_float32(mode, timesteps, batch, leak, reset, threshold, repeated, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1 if repeated else timesteps, batch, 2, 3, 3, generator=generator)
    weights = torch.randn(timesteps, batch, 2, 3, 3, generator=generator)
    found, expected = both(mode, x, torch.tensor(threshold), weights, leak, reset, repeated)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2), (6, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("mode", [*WRITTEN_OUT, Rate(), Surrogate()], ids=str)
def test_any_shape_is_taken(mode, shape):
    x = torch.randn(shape, requires_grad=True)
    out = integrate_and_fire(x, torch.tensor(0.5), 2, mode=mode)
    assert torch.autograd.grad(out.sum(), x)[0].shape == shape


@pytest.mark.parametrize(("units", "unit"), [("threshold", 0.5), ("absolute", 1.0)])
def test_a_membrane_that_does_not_vary_is_as_wide_as_one(units, unit):
    x = torch.full((1, 2), 0.6, requires_grad=True)
    with surrogate_units(units):
        (grad,) = torch.autograd.grad(integrate_and_fire(x, torch.tensor(0.5), 1, mode=PDSG()).sum(), x)
    expected = math.exp(-((0.1 / unit - 0.5) ** 2) / 2) / math.sqrt(2 * math.pi) / unit
    torch.testing.assert_close(grad, torch.full((1, 2), expected))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", [ASSG(), HART(), PDSG()], ids=str)
def test_compiled_equals_eager(monkeypatch, mode, layout):
    x, weights = torch.randn(16, 8, 12, 12), torch.randn(16, 8, 12, 12)
    results = []
    for compiled in ("0", "1"):
        monkeypatch.setenv("RSNN_ZOO_COMPILE", compiled)
        y = x.contiguous(memory_format=layout).requires_grad_()
        out = integrate_and_fire(y, torch.tensor(0.4), 4, leak=0.7, mode=mode)
        results.append((out.detach(), torch.autograd.grad((out * weights).sum(), y)[0]))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


# --- what ASSG remembers --------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two spiking layers, T = 3."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.act1, self.act2 = SpikingNeuron(3, 0.2, repeated=True), SpikingNeuron(3, 0.1)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.act2(self.conv2(self.act1(self.conv1(x)))).unflatten(0, (3, -1)).mean(0).mean((2, 3))

    def written_out(self, x, memory):
        """The same under ASSG, with M and D of both layers in ``memory``."""
        currents, after = self.conv1(x).expand(3, -1, -1, -1, -1), []
        for neuron, (m, d) in zip((self.act1, self.act2), memory or [(1.0, 0.0)] * 2, strict=True):
            spikes, m, d = assg(currents, neuron.threshold, 1.0, "hard", m, d)
            currents = self.conv2(spikes.flatten(0, 1)).unflatten(0, (3, -1)) if neuron is self.act1 else spikes
            after.append((m, d))
        memory[:] = after
        return currents.mean(0).mean((2, 3))


def loss(logits, labels):
    return logits.gather(1, labels[:, None])[:, 0] ** 2


def written_out_gradient(model, x, labels, memory):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(model.written_out(x, memory), labels).sum(), x)[0]


@pytest.mark.parametrize("settings", [{"chunk": 2, "pad": True}, {"chunk": 3}, {"chunk": 8, "pad": True}], ids=str)
def test_a_memory_lasts_from_pass_to_pass_and_loses_the_rows_of_the_fallen(settings):
    model, labels = Small(), torch.arange(5) % 3
    gradient, memory, expected_memory = InputGradient(model, ASSG(), **settings), {}, []
    for step in range(4):
        x = torch.rand(len(labels), 2, 4, 4, dtype=torch.float64)
        found, _ = gradient(x, labels, loss, memory)
        torch.testing.assert_close(
            found, written_out_gradient(model, x, labels, expected_memory), rtol=1e-9, atol=1e-12
        )
        assert all(rows.shape[:2] == (len(labels), 3) for rows in memory.values()) and len(memory) == 4
        if step == 1:  # as the attack loop does it
            left = torch.tensor([True, False, True, True, False])
            memory, labels = {key: rows[left] for key, rows in memory.items()}, labels[left]
            expected_memory[:] = [(m[:, left], d[:, left]) for m, d in expected_memory]


def test_without_a_memory_every_pass_is_the_first():
    model, x, labels = Small(), torch.rand(2, 2, 4, 4, dtype=torch.float64), torch.arange(2)
    gradient = InputGradient(model, ASSG())
    first = gradient(x, labels, loss)[0]
    gradient(x.flip(0), labels, loss)
    assert torch.equal(gradient(x, labels, loss)[0], first)
    torch.testing.assert_close(first, written_out_gradient(model, x, labels, []))
    with backward_mode(ASSG()):
        y = x.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(loss(model(y), labels).sum(), y)[0], first)


def test_a_memory_of_other_samples_is_refused():
    gradient, memory = InputGradient(Small(), ASSG()), {}
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    gradient(x, torch.arange(3), loss, memory)
    with pytest.raises(ValueError, match="not of 2 samples"):
        gradient(x[:2], torch.arange(2), loss, memory)


def test_only_the_first_draw_is_remembered():
    model, x, labels = Small(), torch.rand(3, 2, 4, 4, dtype=torch.float64), torch.arange(3)
    memories, found = ({}, {}), []
    for draws, memory in zip((1, 3), memories, strict=True):
        gradient = InputGradient(model, ASSG(), draws=draws)
        found.append([gradient(x, labels, loss, memory)[0] for _ in range(2)])
    for one, three in zip(*found, strict=True):  # the model is not random, so all draws are the same
        torch.testing.assert_close(one, three)
    assert all(torch.equal(memories[0][key], memories[1][key]) for key in memories[0])


def test_a_memory_is_in_float32_where_convolutions_are_not():
    memory = {}
    gradient = InputGradient(Small().float(), ASSG(), precision="bfloat16")
    gradient(torch.rand(2, 2, 4, 4), torch.arange(2), loss, memory)
    assert {rows.dtype for rows in memory.values()} == {torch.float32}


def view_gradient(view, x, labels):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(view(x), labels).sum(), x)[0]


def test_a_view_remembers_until_it_is_reset_or_shown_another_shape():
    model, x, labels, memory = Small(), torch.rand(2, 2, 4, 4, dtype=torch.float64), torch.arange(2), []
    view = model_under(model, ASSG())
    first, second = (written_out_gradient(model, x, labels, memory) for _ in range(2))
    assert (first - second).abs().max() > 1e-6
    torch.testing.assert_close(view_gradient(view, x, labels), first)
    with torch.no_grad():  # which needs no surrogate
        view(x[:1])
    torch.testing.assert_close(view_gradient(view, x, labels), second)
    view.reset()
    torch.testing.assert_close(view_gradient(view, x, labels), first)
    torch.testing.assert_close(view_gradient(view, x[:1], labels[:1]), first[:1])


@pytest.mark.parametrize("mode", WRITTEN_OUT, ids=str)
def test_torchattacks_runs_on_a_view_and_agrees(mode):
    model, labels = Small().float(), torch.arange(4) % 3
    images = torch.rand(4, 2, 4, 4)
    attack = torchattacks.PGD(model_under(model, mode), eps=0.1, alpha=0.04, steps=4, random_start=False)
    found = attack(images, labels)
    x, memory, gradient = images, {}, InputGradient(model, mode)
    for _ in range(4):
        x = x + 0.04 * gradient(x, labels, "ce", memory)[0].sign()
        x = (images + (x - images).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(found, x)


# --- by name --------------------------------------------------------------------------------------------------------


def test_the_published_ensemble_comes_first_and_every_name_is_read_back():
    assert tuple(MODES.values())[: len(ENSEMBLE_MODES)] == ENSEMBLE_MODES
    assert list(MODES)[len(ENSEMBLE_MODES) :] == ["assg", "hart-1", "rga", "pdsg"]
    assert all(str(mode) == name and parse_mode(name) == mode for name, mode in MODES.items())
    assert (parse_mode("pcw-0.5"), parse_mode("rate"), parse_mode("relu")) == (Surrogate("pcw", 0.5), Rate(), Relu())


@given(
    make=st.sampled_from([HART, *(partial(Surrogate, kind) for kind in ("pcw", "exp", "exp_d", "rect"))]),
    width=st.floats(1e-6, 1e6),
)
def test_any_width_is_read_back(make, width):
    assert parse_mode(str(make(width))) == make(width)


@given(st.floats(0.01, 0.49))
def test_any_sharpness_is_read_back(a):
    assert parse_mode(str(ASSG(a))) == ASSG(a)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asg", "did you mean assg"),
        ("pwc-0.5", "did you mean pcw-0.5"),
        ("pcw", "pcw-1"),
        ("rate-2", "did you mean rate"),
        ("", "known: pcw-1"),
        ("pcw-wide", "unknown backward mode"),
        ("pcw--1", "must be positive"),
        ("hart-nan", "must be positive"),
        ("assg-0.5", "between 0 and 0.5"),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_ones(name, words):
    with pytest.raises(ValueError, match=words):
        parse_mode(name)


def test_what_is_no_mode_is_refused():
    for wrong in ("assg", ASSG):
        with pytest.raises(TypeError, match="ASSG"), backward_mode(wrong):
            pass
