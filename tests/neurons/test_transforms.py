"""The neuron under torch.func, forward-mode and second derivatives: right, in all modes; and when compilers fail."""

import logging
import time

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from rsnn_zoo.neurons import kernels
from rsnn_zoo.neurons.integrate_fire import Rate, SpikingNeuron, Surrogate, integrate_and_fire
from rsnn_zoo.neurons.modes import HART, PDSG, RGA
from tests.neurons.test_neurons import written_out

MODES = [Surrogate(), Surrogate("exp", 0.5), Surrogate("rect", 1.0), HART(), PDSG(), Rate(), RGA()]
T, B = 3, 2


def currents(repeated=False, channels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1 if repeated else T) * B, channels, 3, 3, generator=generator, dtype=dtype)


def layer(mode, repeated=False, **how):
    def spikes(x, threshold):
        return integrate_and_fire(x, threshold, T, mode=mode, repeated=repeated, leak=0.8, initial=0.25, **how)

    return spikes


THRESHOLD = torch.tensor(0.4, dtype=torch.float64)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_tangent_is_the_transpose_of_the_gradient(mode, reset, repeated):
    spikes, x = layer(mode, repeated, reset=reset), currents(repeated)
    out, backward = vjp(spikes, x, THRESHOLD)
    weights, of_x, of_threshold = torch.randn_like(out), torch.randn_like(x), torch.tensor(0.7, dtype=torch.float64)
    of_out = jvp(spikes, (x, THRESHOLD), (of_x, of_threshold))[1]
    gradients = backward(weights)
    expected = (gradients[0] * of_x).sum() + gradients[1] * of_threshold
    assert expected != 0
    torch.testing.assert_close((of_out * weights).sum(), expected)

    with torch.autograd.forward_ad.dual_level():  # without torch.func
        dual = torch.autograd.forward_ad.make_dual(x, of_x)
        found = torch.autograd.forward_ad.unpack_dual(spikes(dual, THRESHOLD)).tangent
    torch.testing.assert_close(found, jvp(lambda x: spikes(x, THRESHOLD), (x,), (of_x,))[1])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_gradients_of_torch_func_are_those_of_autograd(mode):
    spikes, x = layer(mode), currents().requires_grad_()
    weights = torch.randn(T * B, 2, 3, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad((spikes(x, THRESHOLD) * weights).sum(), x)
    assert expected.abs().sum() > 0
    loss = lambda x: (spikes(x, THRESHOLD) * weights).sum()  # noqa: E731
    for found in (grad(loss)(x), jacrev(loss)(x), jacfwd(loss)(x)):
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_vmap_is_a_loop(mode, channels_last):
    spikes, xs = layer(mode), torch.randn(4, T * B, 2, 3, 3, dtype=torch.float64)
    if channels_last:
        xs = xs.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    thresholds = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    loss = lambda x, threshold: (spikes(x, threshold) * torch.arange(3)).sum()  # noqa: E731
    each = list(zip(xs, thresholds, strict=True))
    assert torch.equal(vmap(spikes)(xs, thresholds), torch.stack([spikes(*one) for one in each]))
    for found, expected in zip(
        vmap(grad(loss, (0, 1)))(xs, thresholds),
        zip(*(grad(loss, (0, 1))(*one) for one in each), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("surrogate", [Surrogate("pcw", 2.0), Surrogate("exp", 0.5)], ids=str)
def test_second_derivatives_are_those_of_autograd_over_the_steps(surrogate, reset, repeated):
    x = currents(repeated).unflatten(0, (-1, B))
    weights, others = torch.randn(T, B, 2, 3, 3, dtype=torch.float64), torch.randn_like(x)

    def ours(x, threshold):
        out = layer(surrogate, repeated, reset=reset)(x.flatten(0, 1), threshold)
        return out.unflatten(0, (T, B))

    def theirs(x, threshold):
        return written_out(x.expand(T, *x.shape[1:]), threshold, T, 0.8, reset, 0.25, surrogate)

    def second(function):
        a, b = x.clone().requires_grad_(), THRESHOLD.clone().requires_grad_()
        loss = ((function(a, b) - 0.3) * weights).sum() ** 2
        of_x, of_threshold = torch.autograd.grad(loss, (a, b), create_graph=True)
        return torch.autograd.grad((of_x * others).sum() + 0.3 * of_threshold, (a, b))

    for found, expected in zip(second(ours), second(theirs), strict=True):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found, expected)


def test_hessians_of_both_ways_agree():
    x, weights = torch.randn(T, 4, dtype=torch.float64), torch.randn(T, 4, dtype=torch.float64)
    loss = lambda x: (layer(Surrogate("exp", 0.5))(x, THRESHOLD) * weights).sum() ** 2  # noqa: E731
    expected = torch.autograd.functional.hessian(loss, x)
    assert expected.abs().sum() > 0
    for found in (hessian(loss)(x), jacrev(jacrev(loss))(x), jacrev(jacfwd(loss))(x)):
        torch.testing.assert_close(found, expected)


def test_what_pytorch_would_silently_take_for_0_is_refused():
    x = torch.randn(T, 4)
    with pytest.raises(NotImplementedError, match="one in reverse mode"):
        jacfwd(jacfwd(lambda x: layer(Surrogate())(x, torch.tensor(0.4)).sum()))(x)


def test_gradients_of_each_sample_and_ensembles_of_networks():
    def network(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(6, 8), SpikingNeuron(T, 0.3 + seed / 10, repeated=True), nn.Linear(8, 2))

    models, images = [network(seed) for seed in range(3)], torch.randn(5, 6)
    parameters, buffers = stack_module_state(models)
    run = lambda p, b, x: functional_call(models[0], (p, b), (x,))  # noqa: E731
    found = vmap(run, (0, 0, None))(parameters, buffers, images)
    torch.testing.assert_close(found, torch.stack([model(images) for model in models]))

    one = dict(models[0].named_parameters())
    loss = lambda p, x: functional_call(models[0], p, (x[None],)).square().sum()  # noqa: E731
    each = vmap(grad(loss), (None, 0))(one, images)
    (expected,) = torch.autograd.grad(loss(one, images[3]), models[0][1].threshold)
    assert expected != 0
    torch.testing.assert_close(each["1.threshold"][3], expected)


# --- compilers that fail --------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """One that fails as long as ``broken`` is set; a clock that stands, and no kernels yet."""

    class Compiler:
        broken, tried, now = True, 0, 1000.0

        def __call__(self, function):
            self.tried += 1
            if self.broken:
                raise OSError("no space left on device\nand more")
            return function

    fake = Compiler()
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "1")
    monkeypatch.setattr(kernels, "_compile", fake)
    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "_compiler", kernels._Patience(bears=3))
    monkeypatch.setattr(time, "monotonic", lambda: fake.now)
    return fake


def fire(timesteps=2):
    return integrate_and_fire(torch.ones(timesteps, 10_000), torch.tensor(0.5), timesteps)


def test_an_error_of_the_compiler_marks_its_kernel_and_is_tried_again(compiler, caplog):
    with caplog.at_level(logging.WARNING):
        assert fire(2).all() and fire(2).all()
    assert compiler.tried == 1 and caplog.text.count("running eager") == 1
    compiler.broken = False
    fire(3)  # another kernel
    assert compiler.tried == 2
    fire(2)
    assert compiler.tried == 2
    compiler.now += 60
    assert fire(2).all() and fire(2).all()
    assert compiler.tried == 3 and not any(kernel.patience.failures for kernel in kernels._kernels.values())


def test_where_nothing_compiles_not_every_kernel_is_tried(compiler):
    for timesteps in range(1, 9):
        assert fire(timesteps).all()
    assert compiler.tried == 3
    compiler.now += 60
    for timesteps in range(1, 9):
        fire(timesteps)
    assert compiler.tried == 4


def test_memory_that_does_not_suffice_is_no_fault_of_the_compiler(compiler, monkeypatch):
    def raises(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(kernels, "_compile", lambda function: raises)
    with pytest.raises(torch.OutOfMemoryError):
        fire()
    assert not any(kernel.patience.failures for kernel in kernels._kernels.values())


def test_a_trace_runs_eager_and_leaves_the_compiler_alone(compiler):
    neuron = SpikingNeuron(2, 0.5)
    x = torch.rand(2, 10_000)
    with torch.no_grad():
        traced = torch.jit.trace(neuron, x, check_trace=False)  # the check would run it outside of the trace
    assert compiler.tried == 0 and torch.equal(traced(x), neuron(x))
    fire()
    assert compiler.tried > 0
