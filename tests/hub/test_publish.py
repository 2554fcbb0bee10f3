"""Saving an entry and pushing it, with the real client, to a Hub on this machine."""

import argparse
import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rsnn_zoo._utils.files import ConfigError, load_json, to_json
from rsnn_zoo.attacks.gradients import COMPUTE_DTYPES
from rsnn_zoo.attacks.victim import FOLDED
from rsnn_zoo.cli import build, main
from rsnn_zoo.hub.publish import EvidenceError, push_to_hub, save_pretrained, update_card
from rsnn_zoo.hub.resolve import HubError, NotPublishedError, resolve
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.report import evidence
from rsnn_zoo.report.evidence import check_evidence
from rsnn_zoo.spec.config import load_config
from rsnn_zoo.spec.names import ModelName
from tests.conftest import NAME, evidence_for, small_network
from tests.hub.conftest import FILES, ROOT
from tests.hub_server import TOKEN, Repo

REPO = f"acme/{NAME}"


@pytest.fixture
def push(hub):
    def call(folder, **kwargs):
        return push_to_hub(folder, **{"org": "acme", "token": TOKEN, "endpoint": hub.url} | kwargs)

    return call


# --- pushing ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_file_and_touches_nothing(entry, hub, push):
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    (entry / "checkpoint.pt").write_bytes(pickle.dumps({}))
    report = push(entry, dry_run=True, tag="v9")
    assert report.repo == REPO and report.commit is None
    assert set(report.files) == FILES and report.files["model.safetensors"] == len(before["model.safetensors"])
    assert not hub.requests
    assert {path.name: path.read_bytes() for path in entry.iterdir() if path.suffix != ".pt"} == before


def test_what_was_pushed_is_the_folder_and_nothing_else(entry, hub, push):
    (entry / "checkpoint.pt").write_bytes(pickle.dumps({}))
    report = push(entry)
    files = hub.repos[REPO].commits[report.commit]
    assert {name: file.data for name, file in files.items()} == {name: (entry / name).read_bytes() for name in FILES}
    assert not hub.repos[REPO].private


def test_a_repeated_push_is_a_no_op(entry, hub, push):
    first = push(entry, tag="v1")
    again = push(entry)
    assert (first.changed, again.changed) == (True, False)
    assert again.commit == first.commit == hub.repos[REPO].tags["v1"]
    assert sum(path.endswith("/commit/main") for _, path, _ in hub.requests) == 1
    assert sum(method == "PUT" for method, _, _ in hub.requests) == 1


def test_a_tag_is_pinned_by_the_config_and_never_marks_other_weights(entry, hub, push):
    push(entry, tag="v1")
    assert load_config(entry / "config.json").revision == "v1"
    config = save_pretrained(small_network(seed=1), entry, name=NAME)
    save_pretrained(small_network(seed=1), entry, name=NAME, evaluation=evidence_for(config))
    commits = len(hub.repos[REPO].commits)
    with pytest.raises(HubError, match="tag v1 marks other weights there; choose a new tag"):
        push(entry, tag="v1")
    assert len(hub.repos[REPO].commits) == commits
    second = push(entry, tag="v2")
    assert hub.repos[REPO].tags["v2"] == second.commit != hub.repos[REPO].tags["v1"]


def test_a_malformed_tag_is_refused(entry, hub, push):
    with pytest.raises(ConfigError, match=r"rsnn_zoo\.revision is '\.\./x'"):
        push(entry, tag="../x")
    assert not hub.requests


RUN = {"protocol": "x", "eps": 0, "robust_accuracy": 1, "ci95": [0, 1]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": "360"}, "n is '360', must be an integer"),
        ({"clean": ...}, "clean is missing"),
        ({"clean": {"accuracy": 2.0, "ci95": [0, 1]}}, r"clean\.accuracy is 2\.0"),
        ({"runs": {}}, "runs must be a list"),
        ({"runs": [{"protocol": "pgd20", "eps": 8}]}, r"runs\[0\]\.eps is 8, must be a number from 0"),
        ({"runs": [{**RUN, "ci95": [0]}]}, r"runs\[0\]\.ci95 must be a list of 2"),
        ({"ann": {"name": "x", "n": 1, "clean": {}}}, r"ann\.clean\.accuracy is missing"),
        ({"processes": 0}, "processes is 0"),
        (
            {"runs": [{**RUN, "attacks": [{"attack": "y"}]}]},
            r"runs\[0\]\.attacks\[0\]\.felled is missing",
        ),
        ({"flags": {"far": {"raised": True}}}, r"flags\.far\.message is missing"),
        ({"settings": []}, "settings must be a JSON object"),
        ({"settings": {"chunk": 0}}, r"settings\.chunk is 0, must be an integer from 1 to 4,096"),
        ({"settings": {"chunk": 4097}}, r"settings\.chunk is 4097"),
        ({"settings": {"chunk": "64"}}, r"settings\.chunk is '64'"),
        ({"settings": {"draws": 0}}, r"settings\.draws is 0, must be an integer from 1 to 1,024"),
        ({"settings": {"draws": 1025}}, r"settings\.draws is 1025"),
        ({"settings": {"seed": -1}}, r"settings\.seed is -1"),
        ({"settings": {"seed": 2**64}}, r"settings\.seed is 1844"),
        ({"settings": {"seed": 0.5}}, r"settings\.seed is 0\.5"),
        ({"settings": {"precision": "float8"}}, r"settings\.precision is 'float8'"),
        ({"split": ["test"]}, r"split is \['test'\]"),
    ],
)
def test_evidence_that_no_card_can_be_made_of_is_refused(entry, hub, push, change, said):
    evidence = load_json(entry / "evaluation.json") | change
    (entry / "evaluation.json").write_bytes(to_json({key: v for key, v in evidence.items() if v is not ...}))
    with pytest.raises(ConfigError, match=f"the evidence of {NAME}: {said}"):
        push(entry)
    assert not hub.requests


def test_settings_within_their_bounds_are_those_of_an_evaluation(entry):
    config = load_config(entry / "config.json")
    for settings in ({"chunk": None, "draws": None}, {"chunk": 4096, "draws": 1024, "seed": 2**64 - 1}, {}):
        check_evidence(config, evidence_for(config, settings=settings))
    assert (*COMPUTE_DTYPES, FOLDED) == evidence.PRECISIONS


def test_missing_evidence_is_refused(entry, hub, push):
    (entry / "evaluation.json").unlink()
    with pytest.raises(EvidenceError, match=rf"evaluation\.json is missing; evaluate {NAME}"):
        push(entry)
    assert not hub.requests


def test_evidence_of_other_weights_is_refused(entry, hub, push):
    save_pretrained(small_network(seed=1), entry, name=NAME)
    with pytest.raises(EvidenceError, match="was made with other weights; evaluate"):
        push(entry)
    assert not hub.requests


@pytest.mark.parametrize("created", ["2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00Z", "2020-01-01", "soon", None])
def test_evidence_older_than_its_weights_is_refused(entry, hub, push, created):
    evidence = load_json(entry / "evaluation.json") | {"created": created}
    (entry / "evaluation.json").write_bytes(to_json(evidence))
    with pytest.raises(EvidenceError, match="older than its weights; evaluate"):
        push(entry)
    assert not hub.requests


def test_a_pickle_in_the_place_of_the_weights_is_refused(entry, hub, push):
    data = pickle.dumps({"weight": [1, 2, 3]})
    (entry / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="bytes"):
        push(entry)
    content = load_json(entry / "config.json")  # even where config and evidence vouch for it
    content["rsnn_zoo"]["weights"] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (entry / "config.json").write_bytes(to_json(content))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        push(entry)
    assert not hub.requests


def test_private_stays_private(entry, hub, push):
    push(entry, private=True)
    assert hub.repos[REPO].private
    with pytest.raises(HubError, match="no such repository, or it is private"):
        resolve(f"hf-hub:{REPO}", endpoint=hub.url)


def test_a_public_repository_is_not_taken_for_a_private_one(entry, hub, push):
    hub.repos[REPO] = Repo()
    first = hub.repos[REPO].commit({})
    with pytest.raises(HubError, match="there already and public"):
        push(entry, private=True)
    assert list(hub.repos[REPO].commits) == [first]


def test_pushing_needs_a_token(entry, hub, push):
    with pytest.raises(HubError, match="hf auth login"):
        push(entry, token="hf_wrong")
    assert not hub.repos


def test_an_upload_that_breaks_is_reported(entry, hub, push):
    hub.before = lambda method, path: hub.lfs.clear() if path.startswith("/lfs/verify") else None
    with pytest.raises(HubError, match=f"{REPO}: .*; try again"):
        push(entry)
    hub.before = lambda method, path: None
    assert push(entry).changed


def test_the_card_on_the_hub_is_fresh_and_valid(entry, hub, push):
    (entry / "README.md").write_text("stale")
    push(entry)
    card = ModelCard.load(entry / "README.md")
    assert card.data.eval_results and f"hf-hub:{REPO}" in card.content
    assert "/api/validate-yaml" in {path for _, path, _ in hub.requests}
    update_card(entry)
    assert ModelCard.load(entry / "README.md").data.model_name == NAME


def test_a_folder_may_be_named_by_a_word(entry, hub, push, monkeypatch):
    monkeypatch.chdir(entry.parent)
    assert push(entry.name, dry_run=True).repo == REPO


def test_an_entry_of_the_package_that_goes_elsewhere_stays_as_it_is(entry, hub, push, monkeypatch):
    monkeypatch.setattr("rsnn_zoo.hub.publish.entries_folder", lambda: entry.parent.resolve())
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    push(entry, org="my-lab", tag="v1")
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before


def test_evidence_of_other_time_steps_is_refused(entry):
    config = load_config(entry / "config.json")
    check_evidence(config, evidence_for(config, network={"timesteps": 2, "reset": "hard", "leak": 1.0, "initial": 0.0}))
    for changed in ({"timesteps": 8}, {"initial": 0.5}):
        with pytest.raises(EvidenceError, match=f"made with another {next(iter(changed))}"):
            check_evidence(config, evidence_for(config, network=changed))


def test_the_organisation_comes_from_the_environment(entry, hub, push, monkeypatch):
    monkeypatch.setenv("RSNN_ZOO_ORG", "lab")
    assert push(entry, org=None).repo == f"lab/{NAME}"
    # by its name alone it is loaded from the zoo's own organisation
    assert f'create_model("hf-hub:lab/{NAME}"' in (entry / "README.md").read_text(encoding="utf-8")


def test_a_name_that_is_a_folder_here_and_an_entry_is_refused(tmp_path, push, monkeypatch):
    name = "resnet20_digits_trades_t4"
    save_pretrained(small_network(), tmp_path / name, name="x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"\./{name}"):
        push(name, dry_run=True)
    with pytest.raises(EvidenceError, match="is missing"):  # that folder's
        push(f"./{name}", dry_run=True)


def test_a_name_is_looked_up_among_the_packaged_entries(hub, push):
    with pytest.raises(NotPublishedError, match="vgg16_svhn_mart_t7 is not published"):
        push("vgg16_svhn_mart_t7")


def test_an_entry_is_made_of_the_recipe_that_its_card_will_name():
    def check(run, **options):
        args = argparse.Namespace(**{"recipe": None, "set": [], "seed": 0} | options)
        name = ModelName.parse(run.partition(".")[0])
        build.check_trained(args, name, load_json(ROOT / "docs" / "runs" / run / "run.json"))
        return shlex.join(build.recipe_options(args))

    assert check("resnet20_cifar10_trades_ann") == check("resnet20_cifar10_trades_t4") == ""
    with pytest.raises(ValueError, match=r"another recipe .*stage\.epochs is 3 there, 4 here"):
        check("resnet20_cifar10_trades_t4.three_epochs")
    changed = {"set": ["snn.epochs=3", "snn.steps_warmup=1.2"]}
    given = "--set snn.epochs=3 --set snn.steps_warmup=1.2"
    assert check("resnet20_cifar10_trades_t4.three_epochs", **changed) == given
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        check("resnet20_cifar10_trades_t4", seed=1)


def test_conversion_alone_makes_an_entry_whose_card_says_so_and_how(tmp_path, monkeypatch, capsys):
    name = "resnet20_digits_trades_t2"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    how = ["-n", "6", "--attack", "fgsm=4,8", "quick=8", "--set", "conversion.method='absorb'"]
    assert main(["build", name, "--converted", "--output", "made", *how]) == 0
    training = load_config(Path("made", name, "config.json")).training
    assert "without fine-tuning" in Path("made", name, "README.md").read_text()
    assert training["conversion"]["method"] == "absorb"
    command = f"rsnn-zoo build resnet20_digits_trades_ann {name} -n 6 --converted --attack fgsm=4,8 quick=8"
    assert training["command"].startswith(command)
    runs = load_json(Path("made", name, "evaluation.json"))["runs"]
    assert [(run["protocol"], round(run["eps"] * 255)) for run in runs] == [("fgsm", 4), ("fgsm", 8), ("quick-v1", 8)]
    shutil.rmtree("made")
    how[-1] = "conversion.method='published'"
    assert main(["build", name, "--trained", "--output", "made", *how]) == 1
    assert "conversion.method is 'absorb' there, 'published' here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_run_becomes_an_entry_in_two_processes(tmp_path):
    """What the maintainer calls; the verdicts are those of one process."""
    name = "resnet20_digits_trades_t2"
    run = tmp_path / "runs" / name
    save_pretrained(small_network(), run, name=name)
    (run / "run.json").write_text('{"recipe": "digits"}')
    script = Path(__file__).parents[2] / "scripts" / "build_entries.py"
    here = {**os.environ, "RSNN_ZOO_COMPILE": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), name, "--trained", "-n", "12", "--batch-size", "3", "--precision", "folded"]

    def build(processes, output):
        options = ["--processes", processes, "--output", str(output)]
        return subprocess.run([*command, *options], cwd=tmp_path, env=here, capture_output=True, text=True)

    evidence = []
    for processes in ("1", "2"):
        output = tmp_path / processes
        done = build(processes, output)
        assert done.returncode == 0, done.stderr
        evidence.append(json.loads((output / name / "evaluation.json").read_text()))
        (run / "evaluation.sqlite").unlink()  # else there would be nothing left to do for the other
    one, two = (entry["runs"] for entry in evidence)
    assert [run["verdicts"] for run in one] == [run["verdicts"] for run in two] and len(one) > 3
    assert [entry["settings"]["precision"] for entry in evidence] == ["folded", "folded"]
    assert "published already" in build("1", output).stdout
