"""The command line: every command, as text and as JSON, and what it says where something is wrong."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import rsnn_zoo
from rsnn_zoo._utils.files import load_json
from rsnn_zoo.cli import commands as cli
from rsnn_zoo.hub.publish import save_pretrained, update_card
from rsnn_zoo.hub.resolve import entries_folder
from tests.cli.conftest import PUBLISHED
from tests.conftest import NAME, make_entry, small_network
from tests.hub_server import TOKEN

pytestmark = pytest.mark.usefixtures("eager")

ROOT = Path(__file__).resolve().parents[2]


# --- list and info --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["list", "--pretrained"], ["info", PUBLISHED], ["--help"]])
def test_what_only_reads_is_done_before_torch_would_be_imported(command):
    script = f"""
import sys
from rsnn_zoo.cli.commands import main
try:
    main({command})
finally:
    assert not {{"torch", "numpy", "timm"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert PUBLISHED in done.stdout


def test_lists_are_those_of_the_library(run):
    lines = run("list")[1].splitlines()
    assert [line.split()[0] for line in lines] == rsnn_zoo.list_models()
    marked = [line.split()[0] for line in lines if line.endswith("  (published)")]
    assert marked == rsnn_zoo.list_models(pretrained=True) == run("list", "--pretrained")[1].split()
    status, out, _ = run("list", "*trades*", "vgg*", "--dataset", "digits", "--objective", "trades", "--json")
    assert status == 0
    assert json.loads(out) == rsnn_zoo.list_models(["*trades*", "vgg*"], dataset="digits", objective="trades")
    assert run("list", "nothing*", "--json")[1].strip() == "[]"


def test_info_says_what_an_entry_is_and_what_it_achieved(run, evaluated):
    status, out, _ = run("info", PUBLISHED)
    runs = load_json(entries_folder() / PUBLISHED / "evaluation.json")["runs"]
    (robust,) = (run["robust_accuracy"] for run in runs if (run["protocol"], run["eps"]) == ("ensemble-pgd20", 8 / 255))
    assert status == 0 and "A spiking ResNet-20" in out and f"| ensemble-pgd20 | 8/255 | {100 * robust:.1f} % |" in out
    content = json.loads(run("info", f"local-dir:{evaluated}", "--json")[1])
    assert content["config"] == load_json(evaluated / "config.json")
    assert content["evidence"] == load_json(evaluated / "evaluation.json")
    (evaluated / "evaluation.json").unlink()
    status, out, _ = run("info", f"local-dir:{evaluated}")
    assert status == 0 and "Not evaluated yet." in out and "No usable evidence: " in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["info", "resnet20_digits_trade_t4"], "did you mean trades"),
        (["info", "resnet20_digits_trades_t5"], "not published (did you mean resnet20_digits_trades_t4"),
        (["info", "local-dir:/nowhere"], "/nowhere is not the folder of an entry: there is no config.json in it"),
        (["list", "--dataset", "digit"], "did you mean digits"),
        (["verify", "resnet20_svhn_at_t4"], "not published"),
        (["verify", PUBLISHED, "--images", "0"], "at least 1"),
        (["evaluate", PUBLISHED, "--attack", "pdg20"], "pdg20"),
        (["evaluate", PUBLISHED, "--data", "/nowhere.npz"], "/nowhere.npz"),
        (["evaluate", PUBLISHED, "--attack", "fgsm=8,"], "fgsm=8,: after = stand radii"),
        (["evaluate", "local-dir:/nowhere", "--output", "/dev/null/e.json"], "/dev/null/e.json cannot be written"),
        (["push"], "name an entry, a folder, or --all"),
        (["info", PUBLISHED, "--plugin", "/nowhere.py"], "/nowhere.py"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_a_remedy(run, argv, said):
    status, out, err = run(*argv)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"rsnn-zoo: {argv[0]}: ") and said in err


@pytest.mark.parametrize("command", ["evaluate", "verify"])
@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_wrong_usage(run, command, device):
    status, out, err = run(command, PUBLISHED, "--device", device)
    assert (status, out) == (2, "")
    assert f"argument --device: '{device}' cannot be used (" in err and "name another device, such as cpu" in err


@pytest.mark.parametrize("argv", [[], ["lst"], ["list", "--all"], ["evaluate", PUBLISHED, "--eps", "x"]])
def test_wrong_usage_has_a_status_of_its_own(run, argv):
    status, _, err = run(*argv)
    assert status == 2 and "usage: rsnn-zoo" in err


def test_every_command_teaches(run):
    _, about, _ = run("--help")
    for command in cli.COMMANDS:
        status, out, _ = run(command, "--help")
        assert status == 0 and f"\n  rsnn-zoo {command} " in out and "--json" in out and "Exit status" in out
        assert f"rsnn-zoo {command} " in about


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m rsnn_zoo.cli list | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "resnet20_cifar100_alp_ann\n", "")


# --- evaluate and verify --------------------------------------------------------------------------------------------


def test_evaluate_gives_evidence_that_may_be_pushed(run, evaluated):
    evidence = load_json(evaluated / "evaluation.json")
    assert (evidence["n"], [run["protocol"] for run in evidence["runs"]]) == (24, ["pgd2", "pgd2"])
    assert "energy" in evidence and "spikes" in evidence
    status, out, _ = run("evaluate", f"local-dir:{evaluated}", "--attack", "fgsm", "--images", 8)
    assert status == 0 and f"{NAME} on 8 digits test images" in out and "8/255" in out
    status, out, _ = run("push", evaluated, "--dry-run", "--json")
    assert status == 0 and json.loads(out)[0]["files"]["evaluation.json"] == len(
        (evaluated / "evaluation.json").read_bytes()
    )
    assert {path.name for path in evaluated.iterdir()} == {
        "config.json",
        "README.md",
        "model.safetensors",
        "evaluation.json",
    }


def test_each_protocol_may_have_radii_of_its_own_and_the_former_report_is_kept(run, evaluated):
    output = evaluated / "evaluation.json"
    former = output.read_bytes()
    command = ["evaluate", f"local-dir:{evaluated}", "--attack", "pgd1=16,32", "fgsm", "-n", 8, "--output", output]
    for kept in (True, False):  # the second is a repetition
        status, out, err = run(*command)
        assert status == 0 and (f"kept as {evaluated / 'evaluation.1.json'}" in out) == kept, err
    runs = [(one["protocol"], round(255 * one["eps"])) for one in load_json(output)["runs"]]
    assert runs == [("pgd1", 16), ("pgd1", 32), ("fgsm", 8)]
    assert [path.read_bytes() for path in evaluated.glob("evaluation.*.json")] == [former]
    files = json.loads(run("push", evaluated, "--dry-run", "--json")[1])[0]["files"]
    assert set(files) == {"config.json", "README.md", "model.safetensors", "evaluation.json"}


def test_the_folder_of_a_report_is_made(run, evaluated, tmp_path):
    output = tmp_path / "missing" / "too" / "e.json"
    status, _, err = run("evaluate", f"local-dir:{evaluated}", "--attack", "fgsm", "--images", 4, "--output", output)
    assert status == 0, err
    assert load_json(output)["n"] == 4 and [path.name for path in output.parent.iterdir()] == ["e.json"]


def test_a_name_without_a_data_set_needs_data(run, tmp_path):
    save_pretrained(small_network(), tmp_path / "mine", name="my-snn")
    assert "names no data set: pass --data" in run("evaluate", f"local-dir:{tmp_path / 'mine'}")[2]


PLUGIN = """
import torch, rsnn_zoo

@rsnn_zoo.register_architecture("mine")
def mine(num_classes, in_chans):
    layers = [torch.nn.Conv2d(in_chans, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * 36, num_classes))
"""


def test_a_plugin_registers_the_architecture_of_an_entry(run, tmp_path, forget_architectures):
    plugin, entry = tmp_path / "mine.py", tmp_path / "entry"
    plugin.write_text(PLUGIN)
    runpy.run_path(str(plugin))
    save_pretrained(rsnn_zoo.create_model("mine_digits_at_t2", threshold=0.1), entry, name="mine_digits_at_t2")
    card = (entry / "README.md").read_text(encoding="utf-8")
    assert 'register_architecture("mine")' in card and "timm" not in card
    output = ["--output", entry / "evaluation.json", "--attack", "fgsm", "--images", 8]
    for argv, said in (
        (["evaluate", f"local-dir:{entry}", *output], "mine_digits_at_t2 on 8 digits test images"),
        (["info", f"local-dir:{entry}"], "A spiking mine"),
        (["push", entry, "--dry-run"], "would push rsnn-zoo/mine_digits_at_t2"),
        (["verify", f"local-dir:{entry}", "--images", 4], "4 of 8 verdicts of fgsm are equal"),
    ):
        forget_architectures()  # as each command in a process of its own knows nothing of the one before
        assert run(*argv)[0] == 1
        status, out, err = run(*argv, "--plugin", plugin)
        assert status == 0 and said in out, err
        update_card(entry)


# --- push -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def push(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return lambda *argv: run("push", *argv, "--org", "acme", "--endpoint", hub.url)


def test_what_is_a_folder_here_and_an_entry_is_not_pushed_by_that_name(tmp_path, push, monkeypatch):
    make_entry(tmp_path / "theirs")
    make_entry(tmp_path / "mine", seed=1)
    monkeypatch.chdir(tmp_path / "mine")
    status, _, err = push(NAME, "--folder", tmp_path / "theirs", "--dry-run")
    assert status == 1 and f"name ./{NAME}" in err
    status, out, _ = push(f"./{NAME}", "--folder", tmp_path / "theirs", "--dry-run")
    assert status == 0 and f"would push acme/{NAME}, from {NAME}" in out


def test_several_are_pushed_by_wildcard(tmp_path, hub, push):
    for name in ("resnet20_digits_at_t2", "resnet20_digits_mart_t2", "resnet20_digits_natural_t2"):
        make_entry(tmp_path, name)
    some = ("*_at_*", "*_mart_*", "--folder", tmp_path)
    status, out, _ = push(*some, "--dry-run")
    assert status == 0 and out.count("would push") == 2 and out.count("model.safetensors") == 2 and not hub.repos
    status, out, _ = push(*some, "--json")
    assert [(push["repo"], push["changed"]) for push in json.loads(out)] == [
        ("acme/resnet20_digits_at_t2", True),
        ("acme/resnet20_digits_mart_t2", True),
    ]
    _, out, _ = push("--all", "--folder", tmp_path)
    assert out.count("already there: acme/") == 2 and out.count("pushed acme/resnet20_digits_natural_t2") == 1


def test_what_went_up_before_a_refusal_is_said(tmp_path, hub, push):
    make_entry(tmp_path, "resnet20_digits_at_t2")
    (make_entry(tmp_path, "resnet20_digits_mart_t2") / "evaluation.json").unlink()
    status, out, err = push("--all", "--folder", tmp_path)
    assert status == 1 and out.startswith("pushed acme/resnet20_digits_at_t2")
    assert err.startswith("rsnn-zoo: resnet20_digits_mart_t2: ") and "is missing; evaluate" in err
    status, _, err = push("vgg*", "--folder", tmp_path)
    assert status == 1 and f"no entry matches vgg* in {tmp_path}; there are: resnet20_digits_at_t2" in err


def test_the_script_is_the_command(monkeypatch, capsys, tmp_path):
    make_entry(tmp_path, NAME)
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", NAME, "--folder", str(tmp_path), "--dry-run"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(os.fspath(ROOT / "scripts" / "push_to_hub.py"), run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"would push rsnn-zoo/{NAME}")
