"""Entries as timm builds and loads them."""

import os
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch

import rsnn_zoo
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.models import ARCHITECTURES
from tests.conftest import NAME, small_network
from tests.hub.conftest import IMAGES
from tests.hub_server import TOKEN

pytestmark = pytest.mark.usefixtures("eager")

# --- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("imports", ["import timm, rsnn_zoo", "import rsnn_zoo, timm"])
def test_timm_knows_our_architectures_whichever_comes_first(imports):
    script = f"""
{imports}, torch
model = timm.create_model("rsnn_resnet20", num_classes=10, timesteps=4, in_chans=1)
assert model.timesteps == 4 and model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
print(*timm.list_models("rsnn_*"))
"""
    run = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == sorted(f"rsnn_{architecture}" for architecture in ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_timm_builds_what_we_build(architecture):
    with torch.device("meta"):
        found = timm.create_model(f"rsnn_{architecture}", timesteps=2, num_classes=7)
        expected = ARCHITECTURES[architecture](timesteps=2, num_classes=7)
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    config = timm.data.resolve_data_config({}, model=found)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
    assert (config["mean"], config["std"]) == ((0, 0, 0), (1, 1, 1))
    assert isinstance(found.get_submodule(found.pretrained_cfg["first_conv"]), torch.nn.Conv2d)
    assert found.get_submodule(found.pretrained_cfg["classifier"]) is found.get_classifier()


NEUTRAL = {
    **{"drop_rate": 0.0, "drop_path_rate": 0.0, "drop_block_rate": None, "global_pool": "avg", "device": "cpu"},
    **{"dtype": torch.float32, "output_stride": 32, "bn_eps": 1e-5, "bn_momentum": 0.1, "act_layer": "relu"},
}


@pytest.mark.parametrize("architecture", ["resnet20", "wrn16_4", "vgg11"])
def test_timms_arguments_are_taken_where_they_change_nothing(architecture):
    small = {"num_classes": 3, "in_chans": 1, "img_size": 8}
    small |= {"hidden_features": 8} if architecture == "vgg11" else {}
    model = timm.create_model(f"rsnn_{architecture}", timesteps=2, **small, **NEUTRAL)
    assert model(IMAGES).shape == (3, 3)
    half = timm.create_model(f"rsnn_{architecture}", **small, dtype=torch.float64)
    assert half(IMAGES.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drop_rate": 0.1}, r"drop_rate=0 alone, got 0\.1: .*drop nothing"),
        ({"drop_path_rate": 0.1}, "drop nothing"),
        ({"output_stride": 8}, "strides are those"),
        ({"bn_eps": 1e-3}, "after it is built"),
        ({"act_layer": "gelu"}, "ReLU"),
        ({"global_pool": "max"}, "global_pool must be 'avg'"),
        ({"global_pool": ""}, "without classes"),
    ],
)
def test_timms_arguments_are_refused_with_a_reason_where_they_would_change_something(change, said):
    for create in (partial(timm.create_model, "rsnn_resnet20"), partial(create_model, "resnet20_digits_natural_t4")):
        with pytest.raises(ValueError, match=said):
            create(**change)


def test_features_through_timm(packaged):
    model = timm.create_model(f"local-dir:{packaged}", pretrained=True, features_only=True).eval()
    found = model(IMAGES)
    assert [tuple(y.shape[1:]) for y in found] == [(16, 8, 8), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    expected = create_model(NAME, pretrained=True).forward_intermediates(IMAGES, intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_timm_gives_a_published_model_a_new_head(packaged):
    model = timm.create_model(f"local-dir:{packaged}", pretrained=True, num_classes=5).eval()
    assert model(IMAGES).shape == (3, 5)
    assert torch.equal(model.forward_features(IMAGES), create_model(NAME, pretrained=True).forward_features(IMAGES))


def test_timm_loads_a_pushed_entry_from_the_hub(packaged, hub, tmp_path):
    rsnn_zoo.push_to_hub(packaged, token=TOKEN, endpoint=hub.url)
    script = """
import sys, timm, torch, rsnn_zoo
images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
theirs = timm.create_model("hf-hub:rsnn-zoo/resnet20_digits_trades_t2", pretrained=True).eval()
ours = rsnn_zoo.create_model("hf-hub:rsnn-zoo/resnet20_digits_trades_t2", pretrained=True)
assert torch.equal(theirs(images), ours(images))
torch.save(ours(images), sys.argv[1])
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "RSNN_ZOO_COMPILE": "0"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "logits")], check=True, env=env)
    assert torch.equal(torch.load(tmp_path / "logits"), small_network()(IMAGES))


def test_timms_own_models_stay_timms():
    assert timm.is_model("vgg11") and "rsnn" not in timm.model_entrypoint("vgg11").__module__


def test_timm_loads_a_published_folder(packaged):
    model = timm.create_model(f"local-dir:{packaged}", pretrained=True).eval()
    assert torch.equal(model(IMAGES), create_model(NAME, pretrained=True)(IMAGES))
    config = timm.data.resolve_data_config({}, model=model)
    assert (config["input_size"], config["mean"], config["std"]) == ((1, 8, 8), [0.0], [1.0])
