"""The command line: every command, as text and as JSON, and what it says where something is wrong."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rsnn_zoo
from rsnn_zoo import verify_entry as verification
from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.cli import commands as cli
from rsnn_zoo.hub.publish import save_pretrained, update_card
from rsnn_zoo.report.report import wilson
from tests.conftest import NAME, make_entry, small_network
from tests.hub_server import TOKEN

pytestmark = pytest.mark.usefixtures("eager")

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = "resnet20_digits_trades_t4"


@pytest.fixture
def run(capsys):
    """Runs a command; gives exit status, output and errors."""

    def call(*argv):
        try:
            status = cli.main([*map(str, argv)])
        except SystemExit as wrong_usage:
            status = wrong_usage.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An entry whose evidence was made by the command itself."""
    folder = tmp_path_factory.mktemp("entries") / NAME
    save_pretrained(small_network(), folder, name=NAME)
    options = f"--attack pgd2 --eps 8 16 --images 24 --output {folder / 'evaluation.json'}"
    assert cli.main(["evaluate", f"local-dir:{folder}", *options.split()]) == 0  # writes the card anew, too
    return folder


@pytest.fixture
def evaluated(original, tmp_path):
    return shutil.copytree(original, tmp_path / NAME)


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
    assert status == 0 and "A spiking ResNet-20" in out and "| ensemble-pgd20 | 8/255 | 85.0 % |" in out
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


def test_an_honest_entry_holds(run, evaluated):
    status, out, _ = run("verify", f"local-dir:{evaluated}", "--images", 8, "--eps", 8, "--seed", 3)
    assert status == 0, out
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [
        ["holds", what] for what in ("config", "weights", "evidence", "card", "verdicts", "draw")
    ]
    assert "8 of 24 verdicts of pgd2 are equal" in out and out.endswith("is what it claims to be\n")
    assert "verdicts at 8/255" in out and "verdicts at 16/255" not in out and "(seed 3), 0 differ" in out
    assert "7 invented 22 %" in out  # of 24, 8 drawn, 1 tolerated
    assert "verdicts at 16/255" in run("verify", f"local-dir:{evaluated}", "-n", 8, "--eps", 16)[1]
    content = json.loads(run("verify", f"local-dir:{evaluated}", "--all", "--json")[1])
    said = [check["said"] for check in content["checks"][4:]]
    assert content["holds"] and said[:2] == ["24 of 24 verdicts of pgd2 are equal"] * 2
    assert said[2] == "48 verdicts recomputed (all), 0 differ"


def test_nobody_knows_beforehand_which_verdicts_are_recomputed(evaluated, monkeypatch):
    drawn = []
    known = verification._drawn
    monkeypatch.setattr(verification, "_drawn", lambda *args: drawn.append(known(*args)) or drawn[-1])
    for seed in (None, None, 5, 5):
        assert all(check.holds for check in verification.verify(f"local-dir:{evaluated}", 8, seed=seed))
    assert drawn[0] != drawn[1] and drawn[2] == drawn[3]
    rows = [row for draw in drawn for _, mine in draw for row in mine]
    assert {run.eps for draw in drawn for run, _ in draw} == {8 / 255, 16 / 255} and max(rows) > 16


@pytest.mark.parametrize(
    ("change_of", "said"),
    [
        ({"protocol": "transfer[hf-hub:someone/else]-pgd5"}, "which you have not named"),
        ({"protocol": "pgd99999x99@ensemble"}, "a verdict: allow it by allow_cost"),
    ],
)
def test_what_the_user_did_not_ask_for_is_neither_loaded_nor_computed(run, evaluated, change_of, said):
    change(evaluated / "evaluation.json", lambda e: [one.update(change_of) for one in e["runs"]])
    update_card(evaluated)
    status, out, _ = run("verify", f"local-dir:{evaluated}", "-n", 2)
    assert status == 1 and said in out


def test_memory_that_settings_ask_for_is_bounded(run, evaluated):
    def crafted(config):
        config["model_args"]["timesteps"] = 1000
        config["rsnn_zoo"]["name"] = "mine"

    change(evaluated / "config.json", crafted)
    change(
        evaluated / "evaluation.json", lambda e: [e["settings"].update(chunk=4096), e["network"].update(timesteps=1000)]
    )
    update_card(evaluated)
    status, out, _ = run("verify", f"local-dir:{evaluated}", "-n", 2)
    assert status == 1 and "GiB of memory" in out and "--allow-cost" in out


def test_ensembles_are_taught_only_where_a_part_is_attacked(run, evaluated, monkeypatch):
    model = rsnn_zoo.create_model(f"local-dir:{evaluated}", pretrained=True)
    report = rsnn_zoo.evaluate(model, rsnn_zoo.load_dataset("digits").select(8), "adaptive31", checks=0)
    report.save(evaluated / "evaluation.json")
    update_card(evaluated)
    taught, evaluate = [], verification.evaluate
    monkeypatch.setattr(
        verification,
        "evaluate",
        lambda *args, **settings: taught.append(settings["taught"]) or evaluate(*args, **settings),
    )
    for images in (["--images", 4], ["--images", 8], ["--all"]):
        assert run("verify", f"local-dir:{evaluated}", *images)[0] == 0
    assert taught == [{"adaptive31/own": report.runs[0].learned[0]}, None, None]


def change(path, edit):
    content = load_json(path)
    edit(content)
    path.write_bytes(to_json(content))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lie(verdict_of):
    """Other verdicts, and all that follows from them."""

    def edit(evidence):
        for run in evidence["runs"]:
            verdicts = [verdict_of(int(verdict)) for verdict in run["verdicts"].split()]
            run["verdicts"] = " ".join(map(str, verdicts))
            run["robust_accuracy"] = verdicts.count(-1) / len(verdicts)
            run["ci95"] = wilson(verdicts.count(-1), len(verdicts))
            run["attacks"][0]["felled"] = verdicts.count(0)
        del evidence["robust"]

    return edit


@pytest.mark.parametrize(
    ("tamper", "what", "said"),
    [
        (lambda entry: flip(entry / "model.safetensors"), "weights", "has SHA-256"),
        (lambda entry: (entry / "evaluation.json").unlink(), "evidence", "there is no file"),
        (lambda entry: (entry / "README.md").unlink(), "card", "there is no file"),
        (
            lambda entry: change(entry / "evaluation.json", lambda e: (e["runs"].clear(), e.pop("robust"))),
            "evidence",
            "holds no runs",
        ),
        (
            lambda entry: change(entry / "evaluation.json", lambda e: e["robust"][0].update(accuracy=0.99)),
            "evidence",
            "the worst case at eps 8/255 claims accuracy 0.99 (",
        ),
        (
            lambda entry: change(entry / "evaluation.json", lambda e: e["runs"][0].update(robust_accuracy=0.99)),
            "evidence",
            "claims robust accuracy 0.99 (",
        ),
        (
            lambda entry: change(entry / "evaluation.json", lambda e: e["clean"].update(accuracy=0.99)),
            "evidence",
            "claims clean accuracy 0.99 (",
        ),
        (
            lambda entry: change(entry / "evaluation.json", lambda e: e["runs"][0].update(verdicts="-1 -1")),
            "evidence",
            "holds 2 verdicts for 24 images",
        ),
        (
            lambda entry: change(entry / "evaluation.json", lambda e: e["runs"][0].update(verdicts="x")),
            "evidence",
            "no readable verdicts",
        ),
        (
            lambda entry: (entry / "README.md").write_text(
                (entry / "README.md").read_text(encoding="utf-8").replace("| pgd2 | 8/255 |", "| pgd2 | 9/255 |"),
                encoding="utf-8",
            ),
            "card",
            "| pgd2 | 9/255",
        ),
        (
            lambda entry: [
                change(entry / "evaluation.json", lie(lambda verdict: {-1: 0, 0: -1}.get(verdict, verdict))),
                update_card(entry),
            ],
            "verdicts",
            "of 24 verdicts of pgd2 differ",
        ),
    ],
)
def test_a_lie_is_found(run, evaluated, tamper, what, said):
    tamper(evaluated)
    status, out, _ = run("verify", f"local-dir:{evaluated}")
    assert status == 1 and out.endswith("is NOT what it claims to be\n")
    failed = next(line for line in out.splitlines() if line.startswith("FAILS"))
    assert failed.split()[1] == what and said in failed


def test_flags_that_the_verdicts_raise_cannot_be_hidden(run, evaluated):
    model = rsnn_zoo.create_model(f"local-dir:{evaluated}", pretrained=True)
    report = rsnn_zoo.evaluate(model, rsnn_zoo.load_dataset("digits").select(60), "fgsm+square300", 16 / 255, checks=8)
    assert "gradient_free" in {flag.name for flag in report.raised}
    report.save(evaluated / "evaluation.json")
    update_card(evaluated)
    entry = f"local-dir:{evaluated}"
    assert run("verify", entry, "--images", 4)[0] == 0
    for hide in (lambda e: e["flags"]["gradient_free"].update(raised=False), lambda e: e.pop("flags")):
        change(evaluated / "evaluation.json", hide)
        update_card(evaluated)
        status, out, _ = run("verify", entry)
        assert status == 1 and "the flag gradient_free is not raised, and by the verdicts" in out


def test_chosen_images_are_said_to_be_chosen(run, evaluated):
    model = rsnn_zoo.create_model(f"local-dir:{evaluated}", pretrained=True)
    data = rsnn_zoo.load_dataset("digits").select([3, 5, 8, 13])
    rsnn_zoo.evaluate(model, data, "fgsm", checks=4).save(evaluated / "evaluation.json")
    update_card(evaluated)
    assert "on 4 chosen images (test split)" in run("verify", f"local-dir:{evaluated}")[1]
    assert "On 4 chosen images (test split)" in run("info", f"local-dir:{evaluated}")[1]


def test_one_verdict_of_a_few_may_differ(run, evaluated):
    """By a rounding on another processor."""
    first = load_json(evaluated / "evaluation.json")["runs"][0]["verdicts"].split()[:16]
    stands = first.index("-1")

    def edit(evidence):
        verdicts = evidence["runs"][0]["verdicts"].split()
        verdicts[stands] = "0"
        count = verdicts.count("-1")
        accuracy = {"robust_accuracy": count / 24, "ci95": wilson(count, 24)}
        evidence["runs"][0].update(verdicts=" ".join(verdicts), **accuracy)
        evidence["runs"][0]["attacks"][0]["felled"] += 1
        del evidence["robust"]

    change(evaluated / "evaluation.json", edit)
    update_card(evaluated)
    status, out, _ = run("verify", f"local-dir:{evaluated}", "--images", 24, "--eps", 8)
    assert status == 0 and "are equal but for 1: a rounding each" in out


def test_a_mode_that_is_no_name_is_refused(run, evaluated):
    change(evaluated / "evaluation.json", lambda e: e["runs"][0]["attacks"][0].update(mode=["x"]))
    status, out, _ = run("verify", f"local-dir:{evaluated}")
    assert status == 1 and "attacks[0].mode" in out


def test_validation_images_are_those_of_the_training(run, evaluated):
    """With the usual split, images that it was trained on would count as validation images."""
    data = {"validation": 0.2, "seed": 1}
    save_pretrained(small_network(), evaluated, name=NAME, training={"data": data})
    options = ["--attack", "fgsm", "-n", 24, "--output", evaluated / "evaluation.json"]
    for split in ("validation", "train", "test"):
        assert run("evaluate", f"local-dir:{evaluated}", "--split", split, *options)[0] == 0
        expected = rsnn_zoo.load_dataset("digits", split, **data).select(24)
        assert load_json(evaluated / "evaluation.json")["data_sha256"] == expected.sha256
        assert run("verify", f"local-dir:{evaluated}", "-n", 4)[0] == 0
    assert rsnn_zoo.load_dataset("digits", "train").select(24).sha256 != expected.sha256
    change(evaluated / "config.json", lambda config: config["rsnn_zoo"]["training"].update(data={"seed": "x"}))
    assert run("verify", f"local-dir:{evaluated}", "-n", 4)[0] == 1


def test_settings_of_a_stranger_name_no_files(run, evaluated, tmp_path):
    change(evaluated / "evaluation.json", lambda e: e["settings"].update(state=str(tmp_path / "written"), batch_size=0))
    update_card(evaluated)
    assert run("verify", f"local-dir:{evaluated}", "--images", 4)[0] == 0
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("other", [{"index": [10**6 + i for i in range(24)]}, {"data_sha256": "0" * 64}])
def test_evidence_of_other_images_is_not_compared(run, evaluated, other):
    change(evaluated / "evaluation.json", lambda e: e.update(other))
    update_card(evaluated)
    status, out, _ = run("verify", f"local-dir:{evaluated}")
    assert status == 1 and "of other images than the 360 at hand" in out


def test_a_data_set_of_a_stranger_is_no_path(run, evaluated, tmp_path):
    change(evaluated / "evaluation.json", lambda e: e.update(dataset=str(tmp_path)))
    update_card(evaluated)
    status, _, err = run("verify", f"local-dir:{evaluated}")
    assert status == 1 and "no data set of the zoo: pass it as source (--data)" in err
    assert run("verify", f"local-dir:{evaluated}", "--images", 4, "--data", "digits")[0] == 0


def test_the_figures_of_the_ann_are_said_to_be_unchecked(run, evaluated):
    change(
        evaluated / "evaluation.json",
        lambda e: e.update(ann={"name": "x", "n": 1, **{key: e[key] for key in ("clean", "runs")}}),
    )
    update_card(evaluated)
    status, out, _ = run("verify", f"local-dir:{evaluated}", "--images", 4)
    assert status == 0 and "not checked: accuracies of the ANN" in out


@pytest.mark.slow
def test_a_published_entry_is_what_it_claims_to_be(run):
    status, out, _ = run("verify", PUBLISHED, "--images", 4, "--eps", 8, "--seed", 0)
    assert status == 0 and "4 of 360 verdicts of ensemble-pgd20 are equal" in out


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
