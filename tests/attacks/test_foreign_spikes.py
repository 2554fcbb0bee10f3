"""Networks of SpikingJelly and snnTorch under the zoo's surrogate modes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from rsnn_zoo.attacks.foreign_spikes import adopt_surrogates, follows_surrogates
from rsnn_zoo.attacks.gradients import InputGradient, input_gradient
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.neurons.modes import HART, Rate, Relu, Surrogate, backward_mode, parse_mode
from tests import tiny

pytest.importorskip("spikingjelly", reason="an optional peer")
snntorch = pytest.importorskip("snntorch", reason="an optional peer")

from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: E402

MODES = [parse_mode(name) for name in ("pcw-1", "exp-0.5", "exp_d-2", "rect-0.5", "ste")]
STEPS = 5


class Jelly(nn.Module):
    """Two layers of SpikingJelly's neurons."""

    def __init__(self, step_mode="m", make=neuron.LIFNode):
        super().__init__()
        torch.manual_seed(0)
        layers = [layer.Flatten(), layer.Linear(64, 32), make(), layer.Linear(32, 16), make(), layer.Linear(16, 10)]
        self.network = nn.Sequential(*layers)
        functional.set_step_mode(self.network, step_mode)
        self.step_mode = step_mode
        for module in self.network:
            if isinstance(module, layer.Linear):
                module.weight.data *= 3

    def forward(self, x):
        try:
            if self.step_mode == "m":
                return self.network(x.expand(STEPS, *x.shape)).mean(0)
            return torch.stack([self.network(x) for _ in range(STEPS)]).mean(0)
        finally:
            functional.reset_net(self.network)


class Torch(nn.Module):
    """Two layers of snnTorch's neurons."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(64, 32), snntorch.Leaky(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(32, 10), snntorch.Leaky(beta=0.8, **options)
        self.fc1.weight.data *= 3

    def forward(self, x):
        mem1, mem2, total = torch.zeros(1), torch.zeros(1), 0.0
        for _ in range(STEPS):
            spike, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spike, mem2 = self.lif2(self.fc2(spike), mem2)
            total = total + spike + 0.1 * mem2
        self.lif1.mem, self.lif2.mem = mem1.detach(), mem2.detach()  # else it cannot be copied
        return total


BUILDERS = {
    "spikingjelly-multi-step": Jelly,
    "spikingjelly-single-step": lambda: Jelly("s"),
    "spikingjelly-if": lambda: Jelly(make=lambda: neuron.IFNode(surrogate_function=surrogate.ATan())),
    "snntorch": Torch,
    "snntorch-no-gradient-of-its-own": lambda: Torch(surrogate_disable=True),
}


@pytest.fixture(params=BUILDERS)
def model(request):
    return BUILDERS[request.param]().eval()


@pytest.fixture(scope="module")
def digits():
    data = tiny.digits().select(12)
    return data.pixels(), data.labels


def neurons_of(model):
    return [m for m in model.modules() if hasattr(m, "surrogate_function") or hasattr(m, "spike_grad")]


# --- gradients ------------------------------------------------------------------------------------------------------


def by_hand(x, weights, mode, keep, gain, start, threshold, jump, target, detached):
    """Spikes, and the gradient of sum(weights * spikes), of h = keep v + gain x + start.

    Then v = h - jump where a spike was fired, or v = target where there is no jump.
    """
    v, spikes, charged = torch.full_like(x[0], target or 0.0), [], []
    for current in x:
        h = keep * v + gain * current + start
        s = (h >= threshold).double()
        v = h - jump * s if target is None else torch.where(s > 0, target, h)
        spikes.append(s)
        charged.append(h)
    grads, carry = [], torch.zeros_like(x[0])
    for h, s, w in reversed(list(zip(charged, spikes, weights, strict=True))):
        through_reset = 0.0 if detached else carry * (-jump if target is None else target - h)
        dh = (w + through_reset) * mode.derivative((h - threshold) / threshold) / threshold + carry * (
            1.0 if target is None else 1 - s
        )
        grads.append(gain * dh)
        carry = keep * dh
    return torch.stack(spikes), torch.stack(grads[::-1])


def inputs(low=-1.0, high=2.0):
    generator = torch.Generator().manual_seed(1)
    x = low + (high - low) * torch.rand(STEPS, 40, generator=generator, dtype=torch.float64)
    return x, torch.randn(STEPS, 40, generator=generator).double()  # weights that float32 holds: snnTorch fires in it


def assert_as_by_hand(module, run, mode, x, weights, *dynamics, tolerance=1e-12):
    assert adopt_surrogates(module) == 1
    own = run(module, x)
    x = x.clone().requires_grad_()
    with backward_mode(mode):
        spikes = run(module, x)
    (gradient,) = torch.autograd.grad((weights * spikes).sum(), x)
    expected, expected_gradient = by_hand(x.detach(), weights, mode, *dynamics)
    assert torch.equal(spikes, own) and torch.equal(spikes.double(), expected) and 0 < spikes.mean() < 1
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def run_jelly(module, x):
    functional.reset_net(module)
    return module(x) if module.step_mode == "m" else torch.stack([module(step) for step in x])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("target", [None, 0.0, 0.2])
@pytest.mark.parametrize("kind", ["if", "lif", "lif-decay-input", "simple-lif"])
def test_spikingjelly_differentiates_as_by_hand(kind, target, detached, step_mode):
    x, weights = inputs()
    options = dict(v_threshold=0.8, v_reset=target, detach_reset=detached, step_mode=step_mode)
    keep, gain, start = 1.0, 1.0, 0.0
    if kind == "if":
        module = neuron.IFNode(**options)
    else:
        decays = kind != "lif"
        module = (neuron.SimpleLIFNode if "simple" in kind else neuron.LIFNode)(tau=3.0, decay_input=decays, **options)
        keep, gain, start = 1 - 1 / 3, 1 / 3 if decays else 1.0, (target or 0.0) / 3
        x = 3 * x if decays else x
    if "simple" in kind and target != 0.0:
        pytest.skip("SimpleLIFNode starts from 0 and not from its reset, and knows no soft one")
    mode = Surrogate("exp", 0.7)
    assert_as_by_hand(module.eval(), run_jelly, mode, x, weights, keep, gain, start, 0.8, 0.8, target, detached)


def run_leaky(module, x):
    mem, spikes = torch.zeros(1), []
    for step in x:
        spike, mem = module(step, mem)
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_snntorch_differentiates_as_by_hand(reset, mode):
    x, weights = inputs()
    beta = torch.tensor(0.75)
    jump = {"subtract": 1 / 0.75, "zero": 0.0, "none": 0.0}[reset]  # it leaks first, and is then reset
    target = 0.0 if reset == "zero" else None
    module = snntorch.Leaky(beta=beta, reset_mechanism=reset).eval()
    assert_as_by_hand(module, run_leaky, mode, x, weights, 0.75, 1.0, 0.0, 1.0, jump, target, True)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_snntorch_with_a_reset_at_once_differentiates_as_by_hand(reset):
    x, weights = inputs(high=1.2)  # below twice the threshold: snnTorch takes the second reset in the next step
    module = snntorch.Leaky(beta=torch.tensor(0.75), reset_mechanism=reset, reset_delay=False).eval()
    target = 0.0 if reset == "zero" else None
    dynamics = 0.75, 1.0, 0.0, 1.0, 1.0, target, False
    assert_as_by_hand(module, run_leaky, Surrogate("exp", 0.7), x, weights, *dynamics, tolerance=1e-6)


def test_modes_give_other_gradients_and_the_same_logits_to_the_bit(model, digits):
    x, labels = digits
    gradient = InputGradient(model, folded=False)
    found = {str(mode): gradient.under(mode)(x, labels) for mode in MODES}
    for name, (direction, logits) in found.items():
        assert torch.equal(logits, model(x).detach()), name
        assert direction.abs().sum() > 0, name
        assert all(name == other or not torch.equal(direction, found[other][0]) for other in found)


@pytest.mark.parametrize("mode", [None, Rate(), Relu(), HART(1.0)], ids=str)
def test_under_any_other_mode_the_network_is_its_own(model, digits, mode):
    x, labels = digits
    if isinstance(model, Torch) and model.lif1.surrogate_disable:
        pytest.skip("it has no gradient of its own")
    gradient = InputGradient(model, folded=False)
    gradient.under(MODES[0])(x, labels)
    direction, logits = gradient.under(mode)(x, labels)
    own, own_logits = input_gradient(model, x, lambda z: nn.functional.cross_entropy(z, labels, reduction="none"))
    assert torch.equal(direction, own) and torch.equal(logits, own_logits)


def test_a_spike_at_the_threshold_is_fired_as_the_library_does():
    at = torch.ones(1, 3)
    for module, fires in ((neuron.IFNode(v_threshold=1.0), 1.0), (snntorch.Leaky(beta=0.9), 0.0)):
        adopt_surrogates(module.eval())
        with backward_mode(Surrogate()):
            out = module(at) if fires else module(at, torch.zeros(1))[0]
        assert (out == fires).all()


# --- what is adopted ------------------------------------------------------------------------------------------------


def test_the_model_itself_is_untouched(model, digits):
    before = [{**vars(module)} for module in model.modules()]
    assert follows_surrogates(model)
    InputGradient(model, MODES[0], folded=False)(*digits)
    for module, old in zip(model.modules(), before, strict=True):
        assert not module._forward_pre_hooks
        for name in ("surrogate_function", "spike_grad"):
            assert vars(module).get(name) is old.get(name)


def test_it_is_adopted_once(model, digits):
    x, labels = digits
    first = InputGradient(model, MODES[0], folded=False)
    direction, _ = first(x, labels)
    again = InputGradient(first.model, MODES[0], folded=False)
    assert first.adopted == again.adopted == adopt_surrogates(first.model) == len(neurons_of(model)) == 2
    assert len(again.model._forward_pre_hooks) == 1 and follows_surrogates(first.model)
    assert torch.equal(again(x, labels)[0], direction)
    outer = nn.Sequential(first.model)
    assert torch.equal(InputGradient(outer, MODES[0], folded=False)(x, labels)[0], direction)


def test_its_weights_and_devices_are_as_before(model):
    adopted = copy.deepcopy(model)
    adopt_surrogates(adopted)
    with backward_mode(MODES[0]):
        adopted(torch.rand(2, 1, 8, 8))
    assert adopted.state_dict().keys() == model.state_dict().keys()
    assert [type(module) for module in adopted.modules()] == [type(module) for module in model.modules()]


@pytest.mark.parametrize("last", [None, MODES[0]], ids=str)
@pytest.mark.parametrize("name", ["spikingjelly-multi-step", "snntorch-no-gradient-of-its-own"])
def test_copies_and_pickles_of_it_follow_too(name, last, digits):
    x, labels = digits
    model = BUILDERS[name]().eval()  # snnTorch's closures cannot be pickled, adopted or not
    adopted = InputGradient(model, last, folded=False)
    adopted.logits(x)
    for other in (copy.deepcopy(adopted.model), pickle.loads(pickle.dumps(adopted.model))):
        for mode in MODES[:2]:
            with backward_mode(mode):
                direction, logits = input_gradient(other, x, lambda z: nn.functional.cross_entropy(z, labels))
            expected, _ = adopted.under(mode)(x, labels, lambda z, y: nn.functional.cross_entropy(z, y))
            assert torch.equal(direction, expected) and torch.equal(logits, model(x))


def _random_spike(u):
    return torch.bernoulli(torch.sigmoid(u))


@pytest.mark.parametrize(
    "module",
    [
        neuron.ComplementaryLIFNode(),
        neuron.OTTTLIFNode(),
        neuron.SLTTLIFNode(),
        neuron.ILIFNode(),
        neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False)),
        neuron.IFNode(surrogate_function=surrogate.DeterministicPass(spiking=False)),
        neuron.IFNode(surrogate_function=surrogate.PoissonPass()),
        snntorch.Leaky(beta=0.9, spike_grad=_random_spike),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        tiny.network(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_fires_otherwise_is_left_alone(module):
    state = torch.get_rng_state()
    assert not follows_surrogates(module) and adopt_surrogates(module) == 0
    assert not module._forward_pre_hooks and torch.equal(torch.get_rng_state(), state)


# --- in an evaluation -----------------------------------------------------------------------------------------------


def test_a_victim_and_what_libraries_see_of_it_follow_the_mode(model, digits):
    x, labels = digits
    victim = ModelVictim(model, 16)

    def loss(z, y):
        return nn.functional.cross_entropy(z, y, reduction="none")

    seen = []
    for mode in MODES[:3]:
        direction, logits, down = victim.under(mode).gradient(x, labels, loss, labels, {})
        library, _ = input_gradient(victim.under(mode).module, x, lambda z: loss(z, labels))
        torch.testing.assert_close(library, direction, rtol=1e-4, atol=1e-7)
        assert torch.equal(down, victim.fallen(x, labels)) and torch.equal(logits, victim.logits(x))
        seen.append(library)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


class _Eager(nn.Module):
    """In evaluation mode it fires by a kernel without gradients, as SpikingJelly's neurons up to 0.0.0.0.14 do."""

    def __init__(self):
        super().__init__()
        self.linear, self.surrogate_function = nn.Linear(64, 10), surrogate.Sigmoid()

    def forward(self, x):
        u = self.linear(x.flatten(1))
        return (self.surrogate_function(u) if self.training else (u >= 0).float()) + 0.1 * u.detach()


def test_neurons_that_have_no_gradient_in_evaluation_mode_have_one_under_attack(digits):
    x, labels = digits
    model = nn.Sequential(nn.Dropout(0.9), _Eager()).eval()
    for mode in (None, Surrogate("pcw", 2.0)):
        gradient, logits = InputGradient(model, mode, chunk=16)(x, labels)
        assert gradient.any() and torch.equal(logits, model(x))  # nothing else is in training mode
    victim = ModelVictim(model, 16)
    assert torch.equal(victim.logits(x), model(x)) and not any(module.training for module in model.modules())


class _Kernel(nn.Module):
    """Rounds otherwise where a kernel of its own knows the spike, as SpikingJelly does on a GPU."""

    def __init__(self):
        super().__init__()
        self.surrogate_function = surrogate.Sigmoid()

    def forward(self, x):
        rounding = 0.0 if isinstance(self.surrogate_function, surrogate.Sigmoid) else -1e-7
        return self.surrogate_function(x.flatten(1)[:, :2] - 0.5 + rounding)


def test_verdicts_are_those_of_the_network_with_its_own_spikes():
    x, labels = torch.full((3, 1, 2, 2), 0.5), torch.ones(3, dtype=torch.long)
    x[:, :, 0, 0] = 0.0  # the second class fires at its threshold, and just not by the other kernel
    victim = ModelVictim(_Kernel(), 4).under(Surrogate())
    direction, logits, down = victim.gradient(x, labels, lambda z, y: z.sum(1), labels, {})
    assert direction.any() and (logits == 0).all() and not down.any()


def test_the_published_ensemble_is_run_as_far_as_its_neurons_follow(digits):
    """A narrow surrogate of the network's own hides its gradients; those of the ensemble find the way."""
    network = Jelly(make=lambda: neuron.IFNode(surrogate_function=surrogate.Rect(alpha=1e4))).eval()
    data = tiny.digits().select(40)
    with torch.no_grad():
        labels = network(data.pixels()).argmax(1)
    alone, ensemble = evaluate(network, (data.pixels(), labels), ["pgd5", "ensemble-pgd5"], 16 / 255, checks=0).runs
    assert len(ensemble.members) == 18 and [mode for _, mode in ensemble.members].count("own") == 1
    assert {"pcw-1", "ste", "rect-4"} < {mode for _, mode in ensemble.members}
    assert list(ensemble.left_out) == ["ensemble-pgd5 under rate, relu"]
    assert ensemble.robust_accuracy < alone.robust_accuracy - 0.2


def _rescaled(model, scales):
    """The same function: thresholds and the currents before them times as much, layer by layer."""
    model, layers = copy.deepcopy(model), []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            layers.append(module)
        elif hasattr(module, "v_threshold"):
            module.v_threshold *= scales[len(layers) - 1]
        elif isinstance(getattr(module, "threshold", None), torch.Tensor):
            module.threshold.data *= scales[len(layers) - 1]
    with torch.no_grad():
        for scale, linear in zip(scales, layers, strict=False):
            linear.weight *= scale
            linear.bias *= scale
    return model


FOREIGN = {
    "soft": lambda: Jelly(make=lambda: neuron.IFNode(v_reset=None)),
    "hard": lambda: Jelly(make=lambda: neuron.IFNode(surrogate_function=surrogate.ATan())),
    "leaky": Jelly,
    "learned leak": lambda: Jelly(make=neuron.ParametricLIFNode),
    "snntorch": Torch,
    "learned thresholds": lambda: Torch(learn_threshold=True, reset_mechanism="zero"),
}


@pytest.mark.parametrize("mode", [None, *MODES[:2]], ids=str)
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_no_rescaling_of_a_layer_changes_a_gradient(make, mode):
    images, labels = tiny.digits().pixels(slice(0, 8)), tiny.digits().labels[:8]
    model = make()
    expected, logits = InputGradient(model, mode)(images, labels)
    assert expected.abs().sum() > 0
    last = 16.0 if isinstance(model, Jelly) else 1.0  # the other gives its last membranes, in their unit
    for scales in ((32.0, 1 / last), (0.125, last)):
        found, again = InputGradient(_rescaled(model, scales), mode)(images, labels)
        assert torch.equal(again, logits)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


def test_thresholds_of_each_channel_are_units_of_it():
    """Of ours a layer has one."""
    images, labels = tiny.digits().pixels(slice(0, 8)), tiny.digits().labels[:8]
    model = Torch()
    expected, _ = InputGradient(model)(images, labels)
    scale = 2.0 ** torch.arange(-16.0, 16.0)
    model.lif1.threshold = scale.clone()
    with torch.no_grad():
        model.fc1.weight *= scale[:, None]
        model.fc1.bias *= scale
    torch.testing.assert_close(InputGradient(model)(images, labels)[0], expected)
