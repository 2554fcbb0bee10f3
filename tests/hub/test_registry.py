"""Models by name: what can be built, what is loaded, what is refused; in our registry and in timm's."""

import copy
import hashlib
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import rsnn_zoo
from rsnn_zoo._utils.files import ConfigError, load_json, to_json
from rsnn_zoo.hub import resolve as hub
from rsnn_zoo.hub.registry import create_model, is_model, list_models
from rsnn_zoo.hub.resolve import NotPublishedError
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.models import ARCHITECTURES
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import ModelName, UnknownNameError, objectives
from tests.conftest import NAME, make_entry, small_network
from tests.hub.conftest import IMAGES, WEIGHTS, flipped

pytestmark = pytest.mark.usefixtures("eager")

# --- the grid -------------------------------------------------------------------------------------------------------


def test_every_listed_name_can_be_built(packaged):
    names = list_models()
    assert len(names) == len(ARCHITECTURES) * len(DATASETS) * len(objectives()) * 3 + 1
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        parts, info = ModelName.parse(name), DATASETS[ModelName.parse(name).dataset]
        assert is_model(name) and not model.training
        assert (model.architecture, model.timesteps) == (parts.architecture, parts.timesteps)
        assert (model.num_classes, model.in_chans, model.img_size) == (info.num_classes, info.in_chans, info.img_size)


def test_a_built_model_normalises_as_its_data_set_wants():
    model = create_model("resnet20_svhn_natural_ann")
    torch.testing.assert_close(model.normalize.mean.tolist(), list(DATASETS["svhn"].mean))
    torch.testing.assert_close(model.normalize.std.tolist(), list(DATASETS["svhn"].std))


def test_any_number_of_steps_and_any_tag_can_be_built():
    assert create_model("resnet20_digits_trades_t13.linf8").timesteps == 13
    assert not any("t13" in name for name in list_models())


def test_arguments_replace_what_the_name_implies():
    model = create_model(
        "resnet20_digits_natural_t4", num_classes=3, timesteps=2, reset="soft", leak=0.5, threshold=0.4
    )
    assert (model.num_classes, model.timesteps, model.reset, model.leak) == (3, 2, "soft", 0.5)
    assert model.act1.threshold.item() == pytest.approx(0.4)
    assert model(IMAGES).shape == (3, 3)


def test_lists_are_filtered_by_wildcards_data_set_and_objective(packaged):
    assert list_models() == sorted(list_models()) and len(set(list_models())) == len(list_models())
    trades = list_models("*cifar10_trades*")
    assert len(trades) == len(ARCHITECTURES) * 3 and all("_cifar10_trades_" in name for name in trades)
    assert list_models(["wrn16_4_svhn_at_*", "resnet20_fmnist_mart_ann"]) == [
        "resnet20_fmnist_mart_ann",
        "wrn16_4_svhn_at_ann",
        "wrn16_4_svhn_at_t4",
        "wrn16_4_svhn_at_t8",
    ]
    both = list_models("resnet20*", dataset="cifar100", objective="at")
    assert both == [f"resnet20_cifar100_at_{time}" for time in ("ann", "t4", "t8")]
    assert list_models(dataset="cifar10") == list_models("*_cifar10_*")
    assert list_models("nothing*") == [] and list_models([]) == []


def test_an_entry_that_cannot_be_built_here_is_not_listed(monkeypatch):
    monkeypatch.setattr(
        "rsnn_zoo.hub.catalog.published_names", lambda: ["mynet_cifar10_at_t4", "resnet20_digits_at_t4"]
    )
    assert list_models(pretrained=True) == ["resnet20_digits_at_t4"]


def test_names_are_matched_in_lower_case():
    assert list_models("RESNET20*") == []


def test_published_names_are_listed_with_the_grid_and_alone(packaged):
    tagged = "resnet20_digits_at_t2.linf8"
    make_entry(packaged.parent, tagged)
    assert list_models(pretrained=True) == [tagged, NAME]
    assert {tagged, NAME} < set(list_models())
    assert list_models("*at*", pretrained=True, objective="at") == [tagged]
    assert list_models(pretrained=True, dataset="cifar10") == []


def test_the_published_names_of_this_repository_are_listed():
    assert list_models(pretrained=True) == hub.published_names()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"dataset": "cifar11"}, "unknown data set 'cifar11'.*cifar10"), ({"objective": "trade"}, "did you mean trades")],
)
def test_an_unknown_filter_is_refused(change, said):
    with pytest.raises(UnknownNameError, match=said):
        list_models(**change)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet21_cifar10_trades_t8", "unknown architecture 'resnet21' .did you mean .*resnet20"),
        ("resnet20_cifar11_trades_t8", "unknown dataset 'cifar11' .did you mean cifar10"),
        ("resnet20_cifar10_trade_t8", "unknown objective 'trade' .did you mean trades"),
        ("resnet20_cifar10_trades_t0", "neither 'ann' nor 't'"),
        ("resnet20_cifar10_trades", "four parts"),
        ("resnet20", "four parts"),
        ("", "four parts"),
        ("../resnet20_cifar10_trades_t8", "four parts"),
        ("RESNET20_cifar10_trades_t8", "unknown architecture"),
    ],
)
def test_a_name_that_is_not_of_the_grid_is_refused(packaged, name, said):
    assert not is_model(name)
    for pretrained in (False, True):
        with pytest.raises(UnknownNameError, match=said):
            create_model(name, pretrained=pretrained)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"timesteps": 0}, ValueError),
        ({"timesteps": True}, TypeError),
        ({"leak": 2.0}, ValueError),
        ({"leek": 1.0}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        create_model("resnet20_digits_natural_t4", **kwargs)


# --- published weights ----------------------------------------------------------------------------------------------


def test_a_published_model_is_the_one_that_was_saved(packaged):
    expected, model = small_network(), create_model(NAME, pretrained=True)
    assert torch.equal(model(IMAGES), expected(IMAGES))
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model.pretrained_name == NAME
    assert model.weights_sha256 == hashlib.sha256((packaged / WEIGHTS).read_bytes()).hexdigest()
    assert torch.equal(create_model(f"local-dir:{packaged}", pretrained=True)(IMAGES), expected(IMAGES))


def test_without_pretrained_the_weights_are_random(packaged):
    assert not torch.equal(create_model(NAME)(IMAGES), create_model(NAME, pretrained=True)(IMAGES))


def test_loading_draws_no_random_number(packaged):
    state = torch.get_rng_state()
    create_model(NAME, pretrained=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_model_trains_and_leaves_its_file_alone(packaged):
    data, other = (packaged / WEIGHTS).read_bytes(), create_model(NAME, pretrained=True)
    model = create_model(NAME, pretrained=True).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.nn.functional.cross_entropy(model(IMAGES), torch.arange(3)).backward()
    optimizer.step()
    assert (packaged / WEIGHTS).read_bytes() == data
    assert torch.equal(other(IMAGES), small_network()(IMAGES))
    assert not torch.equal(model.conv1.weight, other.conv1.weight)
    assert torch.equal(copy.deepcopy(model).conv1.weight, model.conv1.weight)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("resnet20_digits_at_ann", {"timesteps": None}),
        ("resnet20_digits_at_t5", {"timesteps": 5, "reset": "soft", "leak": 0.8}),
    ],
)
def test_what_a_network_is_comes_back_with_its_weights(packaged, name, change):
    described = {"num_classes": 10, "in_chans": 1, "img_size": 8, "mean": (0.3,), "std": (0.4,)}
    saved = ARCHITECTURES["resnet20"](**described | change).eval()
    rsnn_zoo.save_pretrained(saved, packaged.parent / name, name=name)
    model = create_model(name, pretrained=True)
    assert torch.equal(model(IMAGES), saved(IMAGES))
    assert (model.timesteps, model.reset, model.leak) == (saved.timesteps, saved.reset, saved.leak)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_precision_comes_back(packaged, dtype):
    saved = small_network().to(dtype)
    rsnn_zoo.save_pretrained(saved, packaged, name=NAME)
    model = create_model(NAME, pretrained=True)
    assert model.conv1.weight.dtype == dtype
    assert torch.equal(model(IMAGES.to(dtype)), saved(IMAGES.to(dtype)))


def test_a_published_model_can_be_given_another_number_of_steps(packaged):
    expected = small_network()
    expected.timesteps = 6
    assert torch.equal(create_model(NAME, pretrained=True, timesteps=6)(IMAGES), expected(IMAGES))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"in_chans": 3, "mean": None, "std": None}, r"wrong shape: .*conv1\.weight"),
        ({"timesteps": None}, r"unexpected: act1\.threshold"),
    ],
)
def test_published_weights_fit_one_network_alone(packaged, kwargs, said):
    with pytest.raises(WeightsError, match=said):
        create_model(NAME, pretrained=True, **kwargs)


def test_another_number_of_classes_gives_a_new_head_on_the_published_features(packaged):
    published, model = create_model(NAME, pretrained=True), create_model(NAME, pretrained=True, num_classes=100)
    assert model(IMAGES).shape == (3, 100) and model.num_classes == 100
    assert torch.equal(model.forward_features(IMAGES), published.forward_features(IMAGES))
    assert model.pretrained_name is None and model.weights_sha256 is None
    same = create_model(NAME, pretrained=True, num_classes=10, global_pool="avg")
    assert torch.equal(same(IMAGES), published(IMAGES)) and same.weights_sha256 == published.weights_sha256
    bare = create_model(NAME, pretrained=True, num_classes=0)
    assert bare(IMAGES).shape == (3, 64)
    maps = create_model(NAME, pretrained=True, num_classes=0, global_pool="")(IMAGES)
    assert torch.allclose(maps.mean((2, 3)), bare(IMAGES)) and maps.shape == (3, 64, 2, 2)


def test_a_mean_that_is_asked_for_is_kept(packaged):
    published, model = create_model(NAME, pretrained=True), create_model(NAME, pretrained=True, mean=(0.1,))
    assert torch.equal(model.normalize.mean, torch.tensor([0.1])) and model.weights_sha256 is None
    assert torch.equal(model.normalize.std, published.normalize.std)
    model.normalize.mean = published.normalize.mean
    assert torch.equal(model(IMAGES), published(IMAGES))
    given = timm.create_model(f"local-dir:{packaged}", pretrained=True, mean=(0.1,))
    assert torch.equal(given.normalize.mean, torch.tensor([0.1]))
    assert create_model(NAME, pretrained=True, mean=(0.3,)).weights_sha256 == published.weights_sha256


def test_a_threshold_that_the_weights_would_overwrite_is_refused(packaged):
    with pytest.raises(ValueError, match=r"weights hold the threshold.*after loading"):
        create_model(NAME, pretrained=True, threshold=0.5)


def test_published_weights_come_in_another_precision(packaged):
    model = create_model(NAME, pretrained=True, dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert torch.equal(model(IMAGES.double()), create_model(NAME, pretrained=True).double()(IMAGES.double()))


def test_feature_maps_of_a_published_model(packaged):
    features = create_model(NAME, pretrained=True, features_only=True, out_indices=(1, -1))
    found, model = features(IMAGES), create_model(NAME, pretrained=True)
    expected = model.forward_intermediates(IMAGES, [1, 3], intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert features.feature_info.channels() == [16, 64] and features.feature_info.reduction() == [1, 4]
    with pytest.raises(ValueError, match="features_only=True"):
        create_model(NAME, out_indices=(1,))


def test_a_name_that_nobody_published_is_refused(packaged):
    with pytest.raises(NotPublishedError, match=f"t8 is not published .did you mean {NAME}.*pretrained=False"):
        create_model("resnet20_digits_trades_t8", pretrained=True)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:somewhere"])
def test_a_source_without_pretrained_is_refused(name):
    with pytest.raises(ValueError, match="pass pretrained=True"):
        create_model(name)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], r"has [\d,]+ bytes"),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: data + b"\0", r"has [\d,]+ bytes"),
        (flipped, "has SHA-256"),
        (lambda data: bytes(len(data)), "has SHA-256"),
    ],
)
def test_a_damaged_file_is_refused(packaged, damage, said):
    path = packaged / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=rf"{WEIGHTS} {said}.*git restore"):
        create_model(NAME, pretrained=True)


def test_the_weights_of_another_model_are_refused(packaged):
    other = make_entry(packaged.parent, "resnet20_digits_at_t2", seed=1)
    (packaged / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
    with pytest.raises(WeightsError, match="has SHA-256"):
        create_model(NAME, pretrained=True)


def vouch_for(folder, data):
    """Puts ``data`` in the place of the weights and its checksum into the config, as a careless publisher would."""
    (folder / WEIGHTS).write_bytes(data)
    content = load_json(folder / "config.json")
    content["rsnn_zoo"]["weights"] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "config.json").write_bytes(to_json(content))


@pytest.mark.parametrize(
    ("removed", "added", "said"),
    [
        (None, {"extra": torch.zeros(2)}, "unexpected: extra"),
        ("layer2.0.conv1.weight", {}, r"missing: layer2\.0\.conv1\.weight"),
        (None, {"fc.bias": torch.zeros(11)}, r"wrong shape: fc\.bias \(11,\) instead of \(10,\)"),
        (None, {"fc.bias": torch.zeros(10).half()}, r"wrong dtype: fc\.bias torch\.float16 instead of torch\.float32"),
        ("bn1.num_batches_tracked", {}, r"missing: bn1\.num_batches_tracked"),
    ],
)
def test_other_tensors_are_refused_though_the_checksum_is_theirs(packaged, tmp_path, removed, added, said):
    state = load_file(packaged / WEIGHTS)
    state.pop(removed, None)
    save_file(state | added, tmp_path / "other.safetensors")
    vouch_for(packaged, (tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=said):
        create_model(NAME, pretrained=True)


def test_a_renamed_pickle_is_refused_and_not_run(packaged, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({**small_network().state_dict(), "evil": Evil()}, tmp_path / "evil.pth")
    for data in (pickle.dumps(Evil()), (tmp_path / "evil.pth").read_bytes()):
        vouch_for(packaged, data)
        with pytest.raises(WeightsError, match="not a safetensors file"):
            create_model(NAME, pretrained=True)
    assert not (tmp_path / "ran").exists()


def test_a_config_that_promises_another_network_is_refused(packaged):
    content = load_json(packaged / "config.json")
    content["architecture"] = "rsnn_resnet32"
    (packaged / "config.json").write_bytes(to_json(content))
    with pytest.raises(ConfigError, match="name promises architecture resnet20, but architecture is resnet32"):
        create_model(NAME, pretrained=True)
