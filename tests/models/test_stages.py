"""What a timm user does with a network besides calling it: features, groups of parameters, checkpointing."""

import copy

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from rsnn_zoo.neurons.integrate_fire import Rate, backward_mode
from tests.models.conftest import FAMILIES, build

pytestmark = pytest.mark.usefixtures("eager")
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def snn(request):
    """In float32, as users have it."""
    return build(request.param)


@pytest.mark.parametrize("timesteps", [None, 3])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_feature_maps_are_those_of_feature_info_over_time(architecture, timesteps):
    network = build(architecture, timesteps)
    features, maps = network.forward_intermediates(IMAGES)
    assert torch.equal(features, network.forward_features(IMAGES))
    assert [(y.shape[1], 8 // y.shape[2]) for y in maps] == [
        (info["num_chs"], info["reduction"]) for info in network.feature_info
    ]
    steps = network.forward_intermediates(IMAGES, per_step=True, intermediates_only=True)
    assert steps[-1].shape[:2] == (timesteps or 1, 3)
    for info, mean, each in zip(network.feature_info, maps, steps, strict=True):
        seen = []
        handle = network.get_submodule(info["module"]).register_forward_hook(
            lambda *args, seen=seen: seen.append(args[-1])
        )
        network(IMAGES)
        handle.remove()
        assert torch.equal(seen[0], each.flatten(0, 1)) and torch.equal(mean, each.mean(0))


def test_the_maps_asked_for_are_given(snn):
    every = snn.forward_intermediates(IMAGES, intermediates_only=True)
    last = len(every) - 1
    for indices, expected in ((2, [last - 1, last]), ([-1, 0], [0, last]), ([1], [1])):
        for stop_early in (False, True):
            found = snn.forward_intermediates(IMAGES, indices, intermediates_only=True, stop_early=stop_early)
            assert all(torch.equal(y, every[i]) for y, i in zip(found, expected, strict=True))
    for wrong in ([9], 0, [], 9):
        with pytest.raises(ValueError, match="feature maps"):
            snn.forward_intermediates(IMAGES, wrong)


def test_the_last_norm_is_applied_where_asked():
    wide = build("wrn16_4")
    (last,) = wide.forward_intermediates(IMAGES, 1, norm=True, intermediates_only=True)
    assert torch.equal(last, wide.forward_features(IMAGES).unflatten(0, (3, 3)).mean(0))


@pytest.mark.parametrize("indices", [[0], [1], [0, -1]])
def test_what_is_pruned_is_not_needed(snn, indices):
    expected = snn.forward_intermediates(IMAGES, indices, intermediates_only=True)
    size = sum(p.numel() for p in snn.parameters())
    assert (
        snn.prune_intermediate_layers(indices) == [i % len(expected) if i < 0 else i for i in indices] or -1 in indices
    )
    found = snn.forward_intermediates(IMAGES, snn.feature_info and indices, intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert sum(p.numel() for p in snn.parameters()) < size
    assert snn(IMAGES).shape[:2] == (3, snn.num_features)  # unpooled


@pytest.mark.parametrize("training", [False, True])
def test_checkpointing_changes_no_number(snn, training):
    snn.train(training)
    for module in snn.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    other = copy.deepcopy(snn)
    other.set_grad_checkpointing()
    results = []
    for network in (snn, other):
        torch.manual_seed(0)
        with backward_mode(Rate()):
            loss = network(IMAGES)[:, 3].square().sum()
        loss.backward()
        results.append((loss, [p.grad for p in network.parameters() if p.grad is not None], list(network.buffers())))
    torch.testing.assert_close(*results)


def test_checkpointing_keeps_less():
    def kept(enable):
        network, sizes = build("resnet20").train(), []
        network.set_grad_checkpointing(enable)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            network(IMAGES)
        return sum(sizes)

    assert kept(True) < kept(False) / 2


@pytest.mark.parametrize("coarse", [False, True])
def test_parameters_are_grouped_by_depth(snn, coarse):
    from timm.models import group_parameters

    depth = group_parameters(snn, snn.group_matcher(coarse), reverse=True)
    names = [name for name, _ in snn.named_parameters()]
    assert set(depth) == set(names)
    assert [depth[name] for name in names] == sorted(depth.values())  # registered from images to classifier
    assert depth[names[0]] == 0 and depth[f"{snn.classifier_name}.weight"] == max(depth.values())
    assert max(depth.values()) + 1 == len({*depth.values()})
    assert max(depth.values()) >= (3 if coarse else 7)


def test_layer_decay_and_what_weight_decay_leaves_alone(snn):
    optimizer = create_optimizer_v2(snn, opt="sgd", lr=0.1, weight_decay=0.01, layer_decay=0.5)
    free = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    named = dict(snn.named_parameters())
    assert snn.no_weight_decay() <= set(named) and all(id(named[name]) in free for name in snn.no_weight_decay())
    assert {name for name in named if name.endswith("threshold")} <= snn.no_weight_decay()
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale[id(snn.get_classifier().weight)] == 1
    assert scale[id(snn.get_submodule(snn.first_conv).weight)] == min(scale.values()) < 0.05


def test_a_network_without_classes_may_leave_its_features_unpooled(snn):
    expected = snn.forward_features(IMAGES).unflatten(0, (3, 3)).mean(0)
    snn.reset_classifier(0, "")
    assert torch.equal(snn(IMAGES), expected)
    snn.reset_classifier(5)
    assert snn(IMAGES).shape == (3, 5)
    assert snn.get_classifier(name_only=True) == snn.classifier_name and snn.head_hidden_size == snn.head_features


def test_integers_of_numpy_are_integers():
    snn = build("resnet20", np.int64(2), num_classes=np.int32(4), in_chans=np.int64(1), img_size=np.int16(8))
    snn.timesteps = np.int64(3)
    assert type(snn.timesteps) is int and type(snn.act1.timesteps) is int and type(snn.num_classes) is int
    assert snn(IMAGES).shape == (3, 4)
    for wrong in (2.0, np.float32(2), "2", np.bool_(True)):
        with pytest.raises(TypeError, match="integer"):
            snn.timesteps = wrong


def test_an_unknown_argument_is_named_with_those_near():
    with pytest.raises(TypeError, match=r"resnet20 takes no argument 'treshold' .did you mean threshold"):
        build("resnet20", treshold=1.0)
