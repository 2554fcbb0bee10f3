"""Activations of few levels in an ANN's last epochs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.conversion.staircase import staircase
from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.models import resnet20
from rsnn_zoo.models.layers import Spiking
from rsnn_zoo.training.checkpoints import load_checkpoint
from rsnn_zoo.training.recipe import RecipeError, Stage
from rsnn_zoo.training.staircases import Staircases, staircase_of
from rsnn_zoo.training.train import TrainingInterrupted, train

STAGE = Stage(epochs=2, batch_size=16, lr=0.05, staircase=4, staircase_epochs=1.0)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", "train").select(64), load_dataset("digits", "validation").select(20)


def network(**kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet20(in_chans=1, img_size=8, mean=(0.3,), std=(0.4,), **kwargs)


def test_it_is_what_the_steps_of_a_neuron_say():
    x, clip = torch.linspace(-1, 4, 97), torch.tensor(2.5)
    expected = clip * staircase(x / clip, Spiking(4, reset="soft", initial=0.5))
    torch.testing.assert_close(staircase_of(x, clip, 4), expected)


def test_its_derivatives_are_those_of_the_clipped_relu_and_of_the_rounding():
    x, clip = torch.tensor([-1.0, 0.7, 5.0], requires_grad=True), torch.tensor(2.0, requires_grad=True)
    staircase_of(x, clip, 4).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert clip.grad.item() == pytest.approx((0.25 - 0.35) + 1)


def test_the_network_is_cut_while_it_lasts_and_keeps_its_parameters():
    ann = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    staircases, x = Staircases(ann, 4), torch.randn(64, 3)
    plain = ann(x)
    with staircases.in_force():
        cut = ann(x)
        assert torch.equal(copy.deepcopy(ann)(x), cut)
    assert len(cut.unique()) <= 5 < len(plain.unique())
    assert 0 < staircases.clips[0].item() <= plain.max().item()
    assert torch.equal(ann(x), plain) and len(ann.state_dict()) == 2


def test_attacks_meet_it():
    ann, x = network().eval(), torch.rand(8, 1, 8, 8)
    staircases = Staircases(ann, 4)
    with staircases.in_force(), torch.no_grad():
        cut = ann(x)
        torch.testing.assert_close(InputGradient(ann, None, "float32", chunk=8).logits(x), cut, rtol=0, atol=1e-6)
    assert (ann(x) - cut).abs().max() > 1e-5


def test_the_last_epochs_train_with_it_and_learn_the_clips(tmp_path, data, monkeypatch):
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "0")
    plain, cut = network(), network()
    without = train(plain, *data, replace(STAGE, staircase=0, staircase_epochs=0.0), tmp_path / "a", progress=False)
    result = train(cut, *data, STAGE, tmp_path / "b", progress=False)
    first, last = ([run.history[epoch]["train_loss"] for run in (without, result)] for epoch in (0, 1))
    assert first[0] == first[1] and last[0] != last[1]
    assert set(plain.state_dict()) == set(cut.state_dict())
    clips = load_checkpoint(tmp_path / "b")["staircases"].values()
    assert len(clips) == 19 and all(clip > 0 for clip in clips)


def test_a_run_stopped_amid_its_epochs_goes_on_to_the_same_weights(tmp_path, data, monkeypatch):
    monkeypatch.setenv("RSNN_ZOO_COMPILE", "0")
    stage, whole, parts = replace(STAGE, objective="at", eps=0.1, attack_steps=1), network(), network()

    def stop(record):
        if record["epoch"] == 1:
            raise TrainingInterrupted

    train(whole, *data, stage, tmp_path / "a", progress=False)
    with pytest.raises(TrainingInterrupted):
        train(parts, *data, stage, tmp_path / "b", progress=False, on_epoch=stop)
    other = network()
    train(other, *data, stage, tmp_path / "b", progress=False)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in whole.state_dict().items())


def test_what_cannot_be_is_refused(tmp_path, data):
    with pytest.raises(RecipeError, match="go together"):
        Stage(staircase=4)
    with pytest.raises(RecipeError, match="compile = false"):
        Stage(staircase=4, staircase_epochs=1.0, compile=True)
    with pytest.raises(ValueError, match="ANNs of ReLU modules"):
        train(network(timesteps=2), *data, STAGE, tmp_path, progress=False)
