"""Which models are held to be the same: whose states are resumed, and whose adversarial examples are verified."""

import copy
import re
import time
from decimal import Decimal
from functools import partial
from operator import itemgetter

import numpy as np
import pytest
import torch
from torch import nn

import rsnn_zoo
from rsnn_zoo._utils.provenance import digest, workings
from rsnn_zoo.evaluation.evaluation import evaluate
from tests import tiny


class Scaled(nn.Module):
    """A network from elsewhere, whose function hangs on attributes that no state dict holds."""

    def __init__(self, scale=1.0, steps=(1, 2), name="mean"):
        super().__init__()
        self.network, self.scale, self.steps, self.name, self._passes = tiny.network(), scale, steps, name, 0

    def forward(self, x):
        self._passes += 1
        return self.network(x) * self.scale


@pytest.mark.parametrize("change", [{"scale": 2.0}, {"scale": None}, {"steps": (1, (2, 3))}, {"name": "max"}], ids=str)
def test_plain_attributes_tell_models_apart(change):
    assert digest(Scaled(**change)) != digest(Scaled())
    assert digest(nn.Sequential(Scaled(**change))) != digest(nn.Sequential(Scaled()))


class Options:
    def __init__(self, gain):
        self.gain = gain


ATTRIBUTES = {
    "dictionary": ({"gain": 1.0}, {"gain": 2.0}),
    "object": (Options(1.0), Options(2.0)),
    "deep": ([Options({"gain": [1]})], [Options({"gain": [2]})]),
    "array": (np.ones(2), np.zeros(2)),
    "function": (torch.relu, torch.tanh),
    "lambda": (lambda x: x + 1, lambda x: x + 2),
    "partial": (partial(torch.clamp, min=0), partial(torch.clamp, min=1)),
    "hidden module": ([nn.ReLU()], [nn.ELU(2.0)]),
    "set": ({"a", "b"}, {"a", "c"}),
    "dtype": (torch.float32, torch.float64),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_that_are_no_tensors_tell_models_apart(kind):
    one, other = (Scaled(name=value) for value in ATTRIBUTES[kind])
    assert digest(one) != digest(other)
    assert digest(copy.deepcopy(one)) == digest(one)


def test_a_model_may_refer_to_itself():
    model = Scaled()
    model.name = {"model": model, "options": Options(model)}
    assert digest(model) == digest(copy.deepcopy(model))


class Shifted(nn.Module):
    """Its function hangs on tensors that no state dict holds."""

    def __init__(self, mean=0.5, std=0.5):
        super().__init__()
        self.network, self.std = tiny.network(), torch.tensor(std)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


def test_tensors_outside_the_state_tell_models_apart_too():
    assert len({digest(Shifted()), digest(Shifted(mean=0.4)), digest(Shifted(std=0.4))}) == 3
    assert digest(copy.deepcopy(Shifted())) == digest(Shifted())


def test_the_digest_of_a_published_network_is_what_it_was(eager):
    """Adversarial examples and states name it."""
    model = rsnn_zoo.create_model("resnet20_cifar10_trades_t4", pretrained=True)
    assert digest(model) == "ffed64503b9a73fca983cc586dcfb0693bf2a34c12352ac2578274f988b1bcd1"


def test_what_says_nothing_about_the_function_does_not():
    model = Scaled()
    before = digest(model)
    model(torch.rand(2, 1, 8, 8))  # counts it in a private attribute
    model.train()
    model.pretrained_name, model.weights_sha256 = "resnet20_digits_at_ann", "0" * 64
    assert digest(model) == digest(copy.deepcopy(model)) == before


def test_a_state_is_not_resumed_for_another_model(tmp_path):
    data, state = tiny.digits().select(8), tmp_path / "state"
    evaluate(Scaled(), data, "fgsm", state=state, checks=0)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(Scaled(scale=-1.0), data, "fgsm", state=state, checks=0)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(Scaled(name={"sign": -1}), data, "fgsm", state=state, checks=0)
    evaluate(Scaled(), data, "fgsm", state=state, checks=0)


@pytest.mark.parametrize("name", ["resnet20_digits_trades_t4", "resnet20_digits_trades_ann"])
def test_a_network_of_the_zoo_stays_the_same(eager, name):
    model = rsnn_zoo.create_model(name, pretrained=True)
    before = digest(model)
    assert digest(rsnn_zoo.create_model(name, pretrained=True)) == digest(copy.deepcopy(model)) == before
    evaluate(model, tiny.digits().select(4), "ensemble-pgd2", checks=0)
    model(tiny.digits().pixels(slice(0, 2)))
    assert digest(model.train()) == before


@pytest.mark.parametrize("change", [{"timesteps": 5}, {"leak": 0.9}], ids=str)
def test_networks_of_the_zoo_with_other_neurons_are_others(eager, change):
    one, other = (rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True, **c) for c in ({}, change))
    assert digest(one) != digest(other)


def test_a_converted_network_is_the_same_once_saved_and_loaded(eager, tmp_path):
    ann = rsnn_zoo.create_model("resnet20_digits_trades_ann", pretrained=True)
    snn = rsnn_zoo.convert(ann, 3, tiny.digits().pixels(slice(0, 8)), calibration_timesteps=4, method="published")
    rsnn_zoo.save_pretrained(snn, tmp_path, name="resnet20_digits_trades_t3")
    assert digest(rsnn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)) == digest(snn)


def times(gain):
    class Times(Scaled):
        def forward(self, x):
            return self.network(x) * gain

    return Times()


def hooked(gain):
    model = Scaled()
    model.register_forward_hook(lambda module, inputs, output: output * gain)
    return model


def hidden(gain):
    model = Scaled()
    model._gain = gain
    return model


def held(gain):
    return Scaled(name=type("Options", (), {"gain": gain, "__call__": lambda self, x: x * gain})())


def patched(gain):
    model = rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)
    known = model.forward
    model.forward = lambda x: known(x) * gain
    return model


@pytest.mark.parametrize("make", [times, hooked, hidden, held, patched])
def test_how_a_model_computes_tells_states_apart(make):
    one, other = workings(make(1.0)), workings(make(2.0))
    assert one != other and one == workings(make(1.0)) is not None


@pytest.mark.parametrize(
    "values",
    [
        (range(1), range(2)),
        (Decimal(1), Decimal(2)),
        (re.compile("a"), re.compile("b")),
        (bytearray(b"a"), bytearray(b"b")),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        (itemgetter(1), itemgetter(2)),
        ({1: 2}.get, {1: 3}.get),
    ],
    ids=lambda values: type(values[0]).__name__,  # not what they say of themselves, which may be an address
)
def test_objects_that_keep_their_fields_in_c_tell_models_apart(values):
    one, other = (Scaled(name=value) for value in values)
    assert digest(one) != digest(other) and digest(one) == digest(one)


def test_of_a_network_of_the_zoo_nothing_is_to_be_added():
    """So states of earlier versions are resumed."""
    assert workings(rsnn_zoo.create_model("resnet20_digits_trades_t4", pretrained=True)) is None


def test_a_state_is_not_resumed_for_another_code(tmp_path):
    data, state = tiny.digits().select(8), tmp_path / "state"
    evaluate(times(1.0), data, "fgsm", state=state, checks=0)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(times(-1.0), data, "fgsm", state=state, checks=0)
    evaluate(times(1.0), data, "fgsm", state=state, checks=0)


def test_objects_that_all_know_each_other_are_described_in_a_while():
    friends = [Options(1.0) for _ in range(30)]
    for number, one in enumerate(friends):
        one.friends, one.number = friends, number
    model, nested = Scaled(name=friends), []
    nested += [nested] * 5
    model.steps = nested
    started = time.monotonic()
    assert digest(model) == digest(model) and time.monotonic() - started < 60
