"""What the scripts and the training commands take and say, held to what the command line takes and says elsewhere."""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rsnn_zoo
from rsnn_zoo._utils.files import load_json
from rsnn_zoo.cli import commands
from rsnn_zoo.cli._training import add_making
from rsnn_zoo.cli._weights import load_named
from rsnn_zoo.evaluate_entry import data_of, evaluate_entry, save_report
from rsnn_zoo.hub.resolve import published_names
from rsnn_zoo.report.results import accuracies
from rsnn_zoo.spec.names import ModelName
from rsnn_zoo.training.recipe import load_recipe
from tests.conftest import NAME, small_network

ROOT = Path(__file__).parents[2]
ENTRIES = ROOT / "hub_configs"


def test_clean_images_are_held_out_as_in_the_training_of_the_model():
    """Else images that a model was trained on would count as its validation images."""
    model = rsnn_zoo.create_model("resnet20_digits_trades_ann")
    model.training_record = {"data": {"validation": 0.2, "seed": 3}}
    expected = rsnn_zoo.load_dataset("digits", "validation", validation=0.2, seed=3)
    for source in ("digits", None):
        model.pretrained_name = "resnet20_digits_trades_ann"
        assert data_of(model, source, "validation").index.tolist() == expected.index.tolist()


@pytest.mark.usefixtures("eager")
def test_one_call_gives_report_energy_and_files(tmp_path):
    model = small_network()
    model.pretrained_name = NAME
    for seed, former in ((0, None), (0, None), (1, tmp_path / "report.1.json")):
        report = evaluate_entry(model, {"fgsm": [8 / 255]}, images=4, checks=0, seed=seed)
        assert (report.dataset, report.split, len(report.correct)) == ("digits", "test", 4)
        assert report.extra["energy"]["images"] == 4
        assert save_report(report, tmp_path / "report.json") == former
        assert "clean_on_all" not in report.extra
    data = rsnn_zoo.load_dataset("digits").select([3, 1])
    own = evaluate_entry(model, "fgsm", data=data, with_energy=False, checks=0)
    assert own.index == (3, 1) and "energy" not in own.extra
    model.pretrained_name = "mine"
    with pytest.raises(ValueError, match="mine names no data set"):
        evaluate_entry(model)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("published", [True, False])
def test_evidence_of_an_snn_stands_beside_that_of_its_ann_where_that_is_published(tmp_path, published, monkeypatch):
    """Whichever command evaluated it."""
    monkeypatch.setattr("rsnn_zoo.evaluate_entry.entries_folder", lambda: ENTRIES if published else tmp_path)
    folder = tmp_path / "resnet20_digits_natural_t4"
    shutil.copytree(ENTRIES / folder.name, folder)
    report = evaluate_entry(f"local-dir:{folder}", "fgsm", images=4, checks=0, with_energy=False)
    save_report(report, folder / "evaluation.json")
    evidence = load_json(folder / "evaluation.json")
    assert evidence["n"] == 4 and ("ann" in evidence) == published
    if published:
        ann = load_json(ENTRIES / "resnet20_digits_natural_ann" / "evaluation.json")
        assert evidence["ann"]["clean"] == ann["clean"] and len(evidence["ann"]["runs"]) == len(ann["runs"])


@pytest.mark.usefixtures("eager")
def test_the_accuracy_on_all_images_stands_beside_that_of_the_attacked_ones():
    model = rsnn_zoo.create_model("resnet20_digits_natural_ann", pretrained=True)
    report = evaluate_entry(model, "fgsm", images=5, checks=0, with_energy=False, clean_on_all=True)
    found, whole = report.to_json()["clean_on_all"], rsnn_zoo.load_dataset("digits")
    with torch.inference_mode():
        correct = (model(whole.pixels()).argmax(1) == whole.labels).sum().item()
    assert (found["n"], found["accuracy"], found["data_sha256"]) == (360, correct / 360, whole.sha256)
    assert f"| none, all 360 images | 0 | {100 * correct / 360:.1f} % |" in "\n".join(accuracies(report.to_json()))


def test_nothing_is_said_of_an_absent_cuda(tmp_path):
    code = (
        "import torch; from rsnn_zoo.neurons import kernels; kernels._compile(lambda x: x)\n"
        "from torch.utils import cpp_extension\n"
        "cpp_extension.logger.warning('another thing')"
    )
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "No CUDA runtime" not in done.stderr and "another thing" in done.stderr


@pytest.mark.parametrize("option", ["--data-root", "--root"])
def test_the_folder_of_the_data_sets_is_called_as_everywhere_and_as_before(option):
    parser = argparse.ArgumentParser()
    add_making(parser)
    assert parser.parse_args(["resnet20_digits_at_ann", option, "images"]).data_root == "images"


@pytest.mark.parametrize("name", ["train", "convert", "finetune", "evaluate", "verify", "build_entries", "push_to_hub"])
def test_a_script_is_its_command(name):
    command = {"build_entries": "build", "push_to_hub": "push"}.get(name, name)
    assert command in commands.COMMANDS
    script = ROOT / "scripts" / f"{name}.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert f"usage: rsnn-zoo {command} " in done.stdout


def test_of_several_state_dicts_in_a_file_one_is_chosen(tmp_path):
    network = rsnn_zoo.create_model("resnet20_digits_trades_ann")
    first, second = ({name: tensor + k for name, tensor in network.state_dict().items()} for k in (0, 1))
    torch.save({"state_dict": first, "mine": second}, tmp_path / "two.pth")
    for key, expected in ((None, first), ("mine", second)):
        found = load_named("resnet20_digits_trades_ann", tmp_path / "two.pth", key=key).state_dict()
        assert torch.equal(found["fc.bias"], expected["fc.bias"])
    with pytest.raises(ValueError, match="--key goes with --weights"):
        load_named("resnet20_digits_trades_ann", key="mine")


def test_weights_of_a_converted_network_are_those_of_its_name(tmp_path, eager):
    ann, images = rsnn_zoo.create_model("resnet20_digits_trades_ann", pretrained=True), torch.rand(8, 1, 8, 8)
    snn = rsnn_zoo.convert(ann, 4, images)
    torch.save(snn.state_dict(), tmp_path / "mine.pth")
    found = load_named("resnet20_digits_trades_t4", tmp_path / "mine.pth", ["reset=soft", "initial=0.5"]).eval()
    assert torch.equal(found(images), snn(images)) and found.channel_sums


def test_the_plan_is_of_dry_runs_of_what_is_planned(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    plan = importlib.import_module("plan_entries")
    hours = {name: float(plan.row_of(name, *rest)[1]) for name, *rest in plan.PLANNED}
    assert hours and all(0 < each <= 3.2 for each in hours.values())
    assert not hours.keys() & set(published_names())
    name, recipe, source = plan.PLANNED[0]
    measured = load_json(plan.DOCS / source)
    stage = load_recipe(recipe, ModelName.parse(name).objective).ann
    with pytest.raises(ValueError, match="repeat the dry run"):
        plan.hours_of(replace(stage, epochs=stage.epochs + 1), measured)
