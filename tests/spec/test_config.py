"""``config.json``: what is accepted, what is refused, and that timm reads it too."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.models import PretrainedCfg

from rsnn_zoo._utils.files import ConfigError, parse_json, to_json
from rsnn_zoo.neurons.modes import Surrogate
from rsnn_zoo.spec.config import FileInfo, ModelConfig, WeightsInfo, load_config, parse_config

CONFIG = ModelConfig(
    architecture="resnet20",
    num_classes=10,
    num_features=64,
    in_chans=1,
    img_size=8,
    timesteps=4,
    mean=(0.305,),
    std=(0.376,),
    name="resnet20_digits_trades_t4",
    weights=WeightsInfo("model.safetensors", "0" * 64, 1_100_000, "float32", 272_000),
    revision="v1.0",
    created="2026-01-02T03:04:05+00:00",
    training={"seed": 0, "recipe": {"epochs": 30}},
)
SURROGATES = st.sampled_from(["pcw", "exp", "exp_d", "rect"])
WIDTHS = st.floats(1e-6, 1000.0)  # those of a recipe
configs = st.builds(
    ModelConfig,
    architecture=st.sampled_from(["vgg11", "vgg16", "resnet20", "resnet32", "wrn16_4", "wrn28_4"]),
    num_classes=st.integers(1, 10_000),
    num_features=st.integers(1, 65_536),
    in_chans=st.just(3),
    img_size=st.integers(4, 128),
    timesteps=st.none() | st.integers(1, 1000),
    mean=st.tuples(*[st.floats(-10, 10)] * 3),
    std=st.tuples(*[st.floats(1e-6, 10)] * 3),
    reset=st.sampled_from(["hard", "soft"]),
    leak=st.floats(1e-6, 1),
    initial=st.just(0.0) | st.floats(0.0, 0.99),
    surrogate=st.none() | st.sampled_from(["ste"]) | st.builds(Surrogate, SURROGATES, WIDTHS).map(str),
    name=st.none() | st.just("my-network.v2"),
)


def broken(path: str, value: object) -> dict:
    """The content of a good config with one key set, or deleted where the value is ``...``."""
    content = copy.deepcopy(CONFIG.to_json())
    *outer, last = path.split(".")
    section = content
    for key in outer:
        section = section[key]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return content


@given(configs)
def test_a_config_reads_back_as_it_was_written(config):
    assert parse_config(parse_json(to_json(config.to_json()), "x"), "x") == config


@pytest.mark.parametrize("changed", [("reset", "soft"), ("leak", 0.5), ("initial", 0.25)])
def test_neurons_are_those_that_were_trained(changed):
    key, value = changed
    trained = replace(
        CONFIG, timesteps=4, initial=0.5, training={"neuron": {"initial": 0.5, "leak": 1.0, "width": 2.0}}
    )
    for config in (trained, replace(trained, name=None, timesteps=None, initial=0.0)):
        assert parse_config(config.to_json(), "x") == config
    content = trained.to_json()
    content["rsnn_zoo"]["training"]["neuron"]["reset"] = "hard"
    content["model_args"][key] = value
    with pytest.raises(ConfigError, match=f"model_args.{key} is {value!r}, but training.neuron.{key}.*damaged"):
        parse_config(content, "x")


def test_the_whole_record_reads_back(tmp_path):
    (tmp_path / "config.json").write_bytes(to_json(CONFIG.to_json()))
    assert load_config(tmp_path / "config.json") == CONFIG


def test_timm_accepts_the_description_and_would_not_normalise_again():
    content = CONFIG.to_json()
    cfg = PretrainedCfg(**content["pretrained_cfg"])  # raises for a key that timm does not know
    assert (cfg.mean, cfg.std, cfg.crop_pct, cfg.input_size) == ([0.0], [1.0], 1.0, [1, 8, 8])
    assert content["architecture"] == "rsnn_resnet20"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("architecture", "resnet20", "architecture is 'resnet20' .did you mean rsnn_resnet20"),
        ("architecture", "os.system", "known: rsnn_vgg11"),
        ("architecture", ["rsnn_vgg11"], "architecture is"),
        ("num_classes", 0, "num_classes is 0, must be an integer from 1 to 10,000"),
        ("num_classes", 10**15, "num_classes"),
        ("num_features", True, "num_features is True, must be an integer"),
        ("num_classes", 10.0, "num_classes is 10.0, must be an integer"),
        ("num_classes", "10", "num_classes is '10'"),
        ("num_classes", 11, "name promises num_classes 10, but num_classes is 11"),
        ("num_features", ..., "num_features is missing"),
        ("model_args", [], "model_args must be a JSON object"),
        ("model_args", ..., "model_args is missing"),
        ("model_args.img_size", 10**6, "model_args.img_size is 1000000"),
        ("model_args.img_size", 32, "promises img_size 8"),
        ("model_args.in_chans", 17, "model_args.in_chans"),
        ("model_args.timesteps", 0, "model_args.timesteps is 0"),
        ("model_args.timesteps", 10**9, "model_args.timesteps"),
        ("model_args.timesteps", None, "promises timesteps 4"),
        ("model_args.mean", [0.1, 0.2], "model_args.mean must be a list of 1 numbers"),
        ("model_args.mean", ["0"], "model_args.mean is '0'"),
        ("model_args.std", [0.0], "model_args.std is 0.0"),
        ("model_args.reset", "none", "model_args.reset is 'none'"),
        ("model_args.leak", 1.5, "model_args.leak is 1.5"),
        ("model_args.initial", 1.0, "model_args.initial is 1.0"),
        ("model_args.surrogate", "relu", "model_args.surrogate is 'relu'"),
        ("model_args.block", "evil", "model_args.block is not an argument of resnet20"),
        ("model_args.hidden_features", 512, "model_args.hidden_features is not an argument of resnet20"),
        ("pretrained_cfg.classifier", "fc; import os", "pretrained_cfg.classifier"),
        ("rsnn_zoo", 3, "rsnn_zoo must be a JSON object"),
        ("rsnn_zoo.schema", 2, "rsnn_zoo.schema is not 1.*upgrade rsnn_zoo"),
        ("rsnn_zoo.name", "../evil", "rsnn_zoo.name is '../evil'"),
        ("rsnn_zoo.name", "vgg11_digits_at_t4", "promises architecture vgg11"),
        ("rsnn_zoo.revision", "../../refs", "rsnn_zoo.revision"),
        ("rsnn_zoo.training", "x", "rsnn_zoo.training must be a JSON object"),
        ("rsnn_zoo.weights.file", "../model.safetensors", "rsnn_zoo.weights.file"),
        ("rsnn_zoo.weights.file", "a/../../model.safetensors", "rsnn_zoo.weights.file"),
        ("rsnn_zoo.weights.file", "/etc/x.safetensors", "rsnn_zoo.weights.file"),
        ("rsnn_zoo.weights.file", "model.bin", "rsnn_zoo.weights.file"),
        ("rsnn_zoo.weights.sha256", "0" * 63, "rsnn_zoo.weights.sha256"),
        ("rsnn_zoo.weights.sha256", ..., "rsnn_zoo.weights.sha256 is missing"),
        ("rsnn_zoo.weights.size", 2**50, "rsnn_zoo.weights.size"),
        ("rsnn_zoo.weights.size", -1, "rsnn_zoo.weights.size is -1"),
        ("rsnn_zoo.weights.dtype", "object", "rsnn_zoo.weights.dtype"),
        ("rsnn_zoo.weights.num_parameters", 0, "rsnn_zoo.weights.num_parameters"),
    ],
)
def test_a_refusal_names_file_key_and_remedy(path, value, said):
    with pytest.raises(ConfigError, match=rf"^some/config\.json: .*{said}.*(again|upgrade)"):
        parse_config(broken(path, value), "some/config.json")


SHARDS = (
    FileInfo("model-00001-of-00002.safetensors", "1" * 64, 44_000_000),
    FileInfo("model-00002-of-00002.safetensors", "2" * 64, 9_000_000),
)
SHARDED = WeightsInfo("model.safetensors.index.json", "0" * 64, 9000, "float32", 26_000_000, "bfloat16", SHARDS)


def test_weights_in_shards_are_read_as_they_were_written():
    content = json.loads(json.dumps(replace(CONFIG, weights=SHARDED).to_json()))
    assert parse_config(content, "x").weights == SHARDED
    assert SHARDED.total_size == 53_009_000 and [one.file for one in SHARDED.files[1:]] == [one.file for one in SHARDS]
    assert set(CONFIG.to_json()["rsnn_zoo"]["weights"]) == {"file", "sha256", "size", "dtype", "num_parameters"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights["shards"].reverse(), "shards must be 2 files from model-00001-of-00002"),
        (lambda weights: weights["shards"].pop(), "shards must be 1 files"),
        (lambda weights: weights["shards"][1].update(file="../../etc/x.safetensors"), r"shards\[1\]\.file"),
        (lambda weights: weights["shards"][1].update(sha256="x"), r"shards\[1\]\.sha256"),
        (lambda weights: weights["shards"][0].update(size=2**32), "shards have 4,3.* bytes"),
        (lambda weights: weights["shards"][0].update(size="1"), r"shards\[0\]\.size"),
        (lambda weights: weights.update(shards=3), "shards must be a list"),
        (lambda weights: weights.update(shards=[3]), r"shards\[0\] must be a JSON object"),
        (lambda weights: weights.update(shards=[]), r"weights\.file is 'model.safetensors.index.json'"),
        (lambda weights: weights.update(file="model.safetensors"), r"weights\.file is 'model.safetensors'"),
        (lambda weights: weights.update(stored="int3"), r"weights\.stored is 'int3'"),
        (lambda weights: weights.update(stored=["bfloat16"]), r"weights\.stored is"),
        (lambda weights: weights.update(dtype="float16"), "stored is bfloat16, which only float32"),
    ],
)
def test_shards_that_cannot_be_are_refused(change, said):
    content = json.loads(json.dumps(replace(CONFIG, weights=SHARDED).to_json()))
    change(content["rsnn_zoo"]["weights"])
    with pytest.raises(ConfigError, match=said):
        parse_config(content, "x")


def test_a_resnet_alone_has_sums_by_channel():
    resnet = replace(CONFIG, architecture="resnet20", name=None, channel_sums=True)
    assert parse_config(resnet.to_json(), "x").channel_sums
    with pytest.raises(ConfigError, match="channel_sums is not an argument of wrn16_4"):
        parse_config(replace(resnet, architecture="wrn16_4").to_json(), "x")


@pytest.mark.parametrize(("value", "fine"), [(1, True), (16_384, True), (0, False), (10**6, False), (None, False)])
def test_a_vgg_has_hidden_layers_of_a_sane_width(value, fine):
    vgg = replace(CONFIG, architecture="vgg11", name=None)
    assert parse_config(vgg.to_json(), "x").hidden_features is None
    content = replace(vgg, hidden_features=64).to_json()
    assert parse_config(content, "x").hidden_features == 64
    content["model_args"]["hidden_features"] = value
    if fine:
        assert parse_config(content, "x").model_args["hidden_features"] == value
    else:
        with pytest.raises(ConfigError, match=r"model_args\.hidden_features is .*from 1 to 16,384"):
            parse_config(content, "x")


def test_a_name_outside_the_grid_promises_nothing():
    config = parse_config(broken("rsnn_zoo.name", "my-robust-snn"), "x")
    assert config == replace(CONFIG, name="my-robust-snn")


def test_what_timm_wrote_without_our_section_is_accepted():
    content = CONFIG.to_json()
    del content["rsnn_zoo"], content["pretrained_cfg"]
    assert parse_config(content, "x").weights is None


leaves: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@given(st.data())
def test_any_one_value_changed_gives_a_config_within_bounds_or_a_refusal(data):
    content = copy.deepcopy(CONFIG.to_json())
    section = content
    while True:
        key = data.draw(st.sampled_from(sorted(section)))
        if not isinstance(section[key], dict) or not section[key] or data.draw(st.booleans()):
            break
        section = section[key]
    section[key] = data.draw(leaves)
    try:
        config = parse_config(content, "x")
    except ConfigError:
        return
    assert config.in_chans <= 16 and config.img_size <= 128 and config.num_classes <= 10_000
    assert config.weights is None or Path(config.weights.file).name == config.weights.file
    json.dumps(config.to_json())


def test_an_architecture_that_nobody_registered_here_is_read_where_nothing_is_built():
    content = replace(CONFIG, name=None).to_json() | {"architecture": "rsnn_their_net"}
    with pytest.raises(ConfigError, match="to be registered first"):
        parse_config(content, "x")
    for name in ("rsnn_their_net", "rsnn_resnet20"):
        parse_config(content | {"architecture": name}, "x", registered=False)
    for name in ("rsnn_Bad", "rsnn_" + "a" * 65, "os.system", 3):
        with pytest.raises(ConfigError, match="architecture is"):
            parse_config(content | {"architecture": name}, "x", registered=False)
