"""The spiking neuron against autograd over a written-out loop, in every layout, mode and precision."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsnn_zoo.neurons import kernels
from rsnn_zoo.neurons.dynamics import Dynamics, fire_only
from rsnn_zoo.neurons.integrate_fire import (
    MIN_THRESHOLD,
    Rate,
    Relu,
    SpikingNeuron,
    Surrogate,
    backward_mode,
    current_mode,
    integrate_and_fire,
    model_under,
)
from rsnn_zoo.neurons.modes import ASSG, surrogate_units

SURROGATES = [
    *(Surrogate("pcw", g) for g in (1.0, 2.0, 3.0, 0.5, 0.25)),
    *(Surrogate(kind, g) for kind in ("exp", "exp_d") for g in (0.5, 1.0, 2.0)),
    *(Surrogate("rect", g) for g in (0.25, 0.5, 1.0, 2.0, 4.0)),
    Surrogate("ste"),
]


def written_out_derivative(kind, u, g):
    """The table of definitions, one by one."""
    if kind == "pcw":
        return torch.where(u.abs() < g, (g - u.abs()) / g**2, torch.zeros_like(u))
    if kind == "exp":
        return math.e ** (-g * u.abs())
    if kind == "exp_d":
        return 0.3 * math.e ** (-g * u.abs())
    if kind == "rect":
        return torch.where(u.abs() < g / 2, torch.full_like(u, 1 / g), torch.zeros_like(u))
    return torch.ones_like(u)


class Spike(torch.autograd.Function):
    """One spike with a surrogate derivative: all that autograd needs to be told."""

    @staticmethod
    def forward(ctx, u, surrogate, threshold):
        ctx.save_for_backward(u, threshold)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        u, unit = ctx.saved_tensors
        return grad * written_out_derivative(ctx.surrogate.kind, u / unit, ctx.surrogate.width) / unit, None, None


def written_out(x, threshold, timesteps, leak, reset, initial, surrogate):
    """u = leak v + x; s = [u >= threshold]; v = (1 - s) u, or u - threshold s; step by step, by autograd."""
    v, spikes = initial * threshold.expand(x[0].shape), []
    for t in range(timesteps):
        u = leak * v + x[t]
        s = Spike.apply(u - threshold, surrogate, threshold)
        v = (1 - s) * u if reset == "hard" else u - threshold * s
        spikes.append(s)
    return torch.stack(spikes)


def gradients(function, x, threshold, weights):
    x, threshold = x.clone().requires_grad_(), threshold.clone().requires_grad_()
    out = function(x, threshold)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), (x, threshold))


@pytest.mark.parametrize("compiled", [False, True])
@given(
    timesteps=st.integers(1, 6),
    size=st.integers(1, 9),
    leak=st.sampled_from([1.0, 0.9, 0.5, 0.0]),
    reset=st.sampled_from(["hard", "soft"]),
    initial=st.sampled_from([0.0, 0.5, 0.9]),
    threshold=st.floats(0.05, 2.0),
    surrogate=st.sampled_from(SURROGATES),
    repeated=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_gradients_agree_with_autograd(
    compiled, timesteps, size, leak, reset, initial, threshold, surrogate, repeated, seed
):
    if compiled:  # few combinations, since each is compiled once
        timesteps, surrogate, leak, initial = 3, Surrogate(surrogate.kind, 1.0), 0.9, 0.5 if initial else 0.0
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 2, 3) if not compiled else (size, 40, 120)
    steps = 1 if repeated else timesteps
    x = torch.randn(steps, *shape, generator=generator)
    weights = torch.randn(timesteps, *shape, generator=generator)
    threshold = torch.tensor(threshold)

    def ours(x, threshold):
        flat = x.flatten(0, 1)
        how = {"leak": leak, "reset": reset, "initial": initial, "repeated": repeated, "mode": surrogate}
        out = integrate_and_fire(flat, threshold, timesteps, **how)
        return out.unflatten(0, (timesteps, -1))

    def theirs(x, threshold):
        return written_out(x.expand(timesteps, *shape), threshold, timesteps, leak, reset, initial, surrogate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSNN_ZOO_COMPILE", "1" if compiled else "0")
        found = gradients(ours, x, threshold, weights)
    expected = gradients(theirs, x, threshold, weights)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-3, atol=1e-3 * weights.abs().sum().sqrt().item())


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_equals_eager(monkeypatch, dtype, repeated):
    x = torch.randn(1 if repeated else 4, 20_000).to(dtype)
    weights = torch.randn(4, 20_000).to(dtype)
    results = []
    for compiled in ("0", "1"):
        monkeypatch.setenv("RSNN_ZOO_COMPILE", compiled)

        def function(x, threshold):
            return integrate_and_fire(x, threshold, 4, leak=0.7, repeated=repeated, mode=Surrogate("exp", 0.5))

        results.append(gradients(function, x, torch.tensor(0.4), weights))
    assert torch.equal(results[0][0], results[1][0])
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(results[0][1], results[1][1], **tolerance)


@pytest.mark.parametrize("mode", [Surrogate(), ASSG()], ids=str)
def test_layers_of_any_size_and_layout_share_one_kernel(mode):
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, channels, side in ((4, 16, 16), (16, 16, 16), (5, 64, 8), (5, 8, 15), (1, 32, 32)):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(4 * batch, channels, side, side).contiguous(memory_format=layout).requires_grad_()
                integrate_and_fire(x, torch.tensor(0.5), 4, mode=mode).sum().backward()
    assert not any(kernel.patience.failures for kernel in kernels._kernels.values())


def test_steps_that_a_compiler_would_take_minutes_for_are_not_unrolled(monkeypatch):
    compiled = []
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "1")
    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(
        kernels, "_compile", lambda function: lambda x, *rest: compiled.append(len(x)) or function(x, *rest)
    )
    for timesteps in (32, 33, 100):
        integrate_and_fire(torch.rand(timesteps, 10_000), torch.tensor(0.5), timesteps)
    assert compiled == [32]
    for timesteps in (4, 7, 16):  # one current for all steps, of which a compiler takes twice the time for each
        integrate_and_fire(torch.rand(1, 10_000), torch.tensor(0.5), timesteps, repeated=True)
    assert compiled == [32, 1, 7, 16]  # so from 7 steps on each has a copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("reset, leak, initial", [("hard", 1.0, 0.0), ("soft", 1.0, 0.5), ("soft", 0.9, 0.0)])
def test_no_gradient_gives_the_same_spikes(reset, leak, initial, repeated, dtype):
    x = torch.randn(8, 50, dtype=dtype)
    neuron = SpikingNeuron(4, 0.5, leak, reset, initial=initial, repeated=repeated)
    with torch.no_grad():
        spikes = neuron(x)
    assert torch.equal(spikes, neuron(x).detach()) and spikes.dtype == dtype
    assert not spikes.requires_grad and neuron(x).requires_grad


@pytest.mark.parametrize(("units", "unit"), [("threshold", 0.5), ("absolute", 1.0)])
def test_rate_passes_where_a_neuron_ever_fired(units, unit):
    x = torch.tensor([[1.0, 0.1], [0.0, 0.2]], requires_grad=True)
    with surrogate_units(units):
        out = integrate_and_fire(x, torch.tensor(0.5), 2, mode=Rate())
        (grad,) = torch.autograd.grad((out * torch.tensor([[2.0, 3.0], [5.0, 7.0]])).sum(), x)
    assert torch.equal(grad, torch.tensor([[2.0, 0.0], [5.0, 0.0]]) / unit)


@pytest.mark.parametrize("initial", [0.0, 0.5])
@given(rates=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=9), timesteps=st.integers(1, 8))
def test_spikes_count_a_steady_current_rounded(initial, rates, timesteps):
    """Soft reset: down from 0, and to the nearest number from half the threshold (Bu et al. 2022)."""
    x = torch.tensor([rates], dtype=torch.float64)
    spikes = integrate_and_fire(x, torch.tensor(1.0).double(), timesteps, reset="soft", initial=initial, repeated=True)
    exact = timesteps * x[0] + initial
    near_a_step = (exact - exact.round()).abs() < 1e-9
    assert ((spikes.sum(0) == exact.floor()) | near_a_step).all()


def test_relu_mode_is_a_relu():
    x = torch.randn(6, 3, requires_grad=True)
    neuron = SpikingNeuron(3)
    with backward_mode(Relu()):
        assert torch.equal(neuron(x), torch.relu(x))


def test_threshold_never_acts_below_the_minimum():
    x = torch.full((1, 4), MIN_THRESHOLD - 1e-3)
    assert SpikingNeuron(1, threshold=-1.0)(x).sum() == 0
    assert SpikingNeuron(1, threshold=-1.0)(x + 2e-3).sum() == 4


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_channels_last_is_kept_and_changes_nothing(reset):
    x = torch.randn(8, 3, 5, 4)
    weights = torch.randn(8, 3, 5, 4)
    neuron = SpikingNeuron(4, 0.5, reset=reset)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        y = x.clone(memory_format=layout).requires_grad_()
        out = neuron(y)
        assert out.is_contiguous(memory_format=layout)
        results.append((out, torch.autograd.grad((out * weights).sum(), y)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_strided_input_is_taken():
    x = torch.randn(5, 8).T
    assert torch.equal(SpikingNeuron(2)(x), SpikingNeuron(2)(x.contiguous()))


def test_bfloat16_membranes_are_kept_in_float32():
    # 300 steps of 1/256 add up to 1.17 in float32, and stop growing at 1 in bfloat16
    x = torch.full((300, 1), 1 / 256, dtype=torch.bfloat16)
    assert integrate_and_fire(x, torch.tensor(1.1), 300).sum() == 1


def test_modes_nest_and_are_restored_after_an_error():
    with pytest.raises(RuntimeError), backward_mode(Rate()), backward_mode(Relu()):
        assert current_mode() == Relu()
        raise RuntimeError
    assert current_mode() is None


def test_model_under_shares_weights_and_always_runs_so():
    neuron = SpikingNeuron(2)
    view = model_under(neuron, Relu())
    x = torch.randn(4, 3)
    assert torch.equal(view(x), torch.relu(x))
    assert dict(view.named_parameters())["model.threshold"] is neuron.threshold
    assert set(neuron(x).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SpikingNeuron(0), ValueError, "at least 1"),
        (lambda: SpikingNeuron(-2), ValueError, "at least 1"),
        (lambda: SpikingNeuron(2.0), TypeError, "integer"),
        (lambda: SpikingNeuron(True), TypeError, "integer"),
        (lambda: SpikingNeuron(2, leak=1.5), ValueError, r"\[0, 1\]"),
        (lambda: SpikingNeuron(2, reset="none"), ValueError, "hard"),
        (lambda: SpikingNeuron(2, initial=1.0), ValueError, r"\[0, 1\), got 1\.0"),
        (lambda: SpikingNeuron(2, initial=float("nan")), ValueError, r"\[0, 1\)"),
        (lambda: Surrogate("triangle"), ValueError, "pcw"),
        (lambda: Surrogate("pcw", 0.0), ValueError, "positive"),
        (lambda: model_under(torch.nn.ReLU(), "rate"), TypeError, "Surrogate"),
        (lambda: SpikingNeuron(3)(torch.zeros(4, 2)), ValueError, "multiple of timesteps=3"),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_without_a_compiler_the_numbers_are_the_same_and_one_line_is_logged(tmp_path):
    script = """
import logging, torch
logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
from rsnn_zoo.neurons.integrate_fire import integrate_and_fire
x = torch.arange(80_000).reshape(4, -1) % 7 / 5.0
for _ in range(3):
    y = integrate_and_fire(x, torch.tensor(1.0), 4)
print(int(y.sum()))
"""
    env = {"PATH": "", "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    x = torch.arange(80_000).reshape(4, -1) % 7 / 5.0
    assert int(run.stdout) == int(fire_only(x, torch.tensor(1.0), Dynamics(4)).sum())
    assert run.stderr.count("running eager") == 1
