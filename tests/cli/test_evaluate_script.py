"""``rsnn-zoo evaluate``: what is asked for is checked before the work, and what there was before is not lost."""

import csv
from pathlib import Path

import pytest

from rsnn_zoo import evaluate, load_dataset
from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.cli import commands as cli
from rsnn_zoo.cli.evaluate import short_name
from rsnn_zoo.hub.publish import save_pretrained
from tests.conftest import NAME, small_network

pytestmark = pytest.mark.usefixtures("eager")

NOWHERE = "local-dir:/nowhere"  # found out first thing when the work begins


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Evaluates in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        assert cli.main(["evaluate", "--output", "results", "--device", "cpu", "--model", *map(str, argv)]) == 0

    return call


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs what is to be refused; gives what is said."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        assert cli.main(["evaluate", "--output", "results", "--model", *map(str, argv)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("rsnn-zoo: evaluate: ") and said.count("\n") == 1
        return said.removeprefix("rsnn-zoo: evaluate: ")

    return call


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """Entries of two networks of the same name; what --model says of them."""
    parent = tmp_path_factory.mktemp("entries")
    for seed in (0, 1):
        save_pretrained(small_network(seed), parent / str(seed) / NAME, name=NAME)
    return [f"local-dir:{parent / str(seed) / NAME}" for seed in (0, 1)]


FAST = ("-n", 4, "--checks", 0)


def table(path):
    if path.endswith(".json"):
        return load_json(path)
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- before any work ------------------------------------------------------------------------------------------------


def test_a_plot_that_cannot_be_written_is_refused_first(refused):
    said = refused(NOWHERE, "--plot", "x.foo")
    assert "--plot x.foo" in said and "'foo' is not supported" in said and "png" in said
    Path("folder.png").mkdir()
    assert "it is a folder" in refused(NOWHERE, "--plot", "folder.png")
    Path("file").touch()
    for option, path in (("--plot", "file/x.png"), ("--results-file", "file/x.csv"), ("--output", "file")):
        said = refused(NOWHERE, option, path)
        assert said.startswith("file/") and "cannot be written: its folder cannot be made" in said


def test_missing_folders_are_made(run, entry):
    run(entry[0], "--attack", "fgsm", *FAST, "--output", "a/b", "--plot", "c/d/x.SVG", "--results-file", "e/f/x.json")
    assert Path("a/b", f"{NAME}.json").is_file() and Path("c/d/x.SVG").stat().st_size and len(table("e/f/x.json")) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("foreign.csv", b"city,inhabitants\nGraz,300000\n"),
        ("header.csv", b"city,inhabitants\n"),
        ("longer.csv", b"model,n\na,1,2\n"),
        ("quotes.csv", b'model,n\n"a"b,1\n'),
        ("binary.csv", b"model,n\n\xff\xfe,1\n"),
        ("half.json", b'[{"model": "a"'),
        ("foreign.json", b'{"model": "a"}'),
        ("rows.json", b'[["model", "a"]]'),
    ],
)
def test_what_is_no_results_file_is_refused_first_and_left_alone(refused, name, content):
    Path(name).write_bytes(content)
    assert refused(NOWHERE, "--results-file", name).startswith(f"{name} is no results file (")
    assert Path(name).read_bytes() == content
    assert "/nowhere" in refused(NOWHERE, "--results-file", "fine.csv")


@pytest.mark.parametrize("names", [("local-dir:a/net", "local-dir:b/net/"), ("hf-hub:alice/net", "hf-hub:bob/net")])
def test_two_models_do_not_write_one_report(refused, names):
    said = refused(*names, "--output", "out")
    assert " and ".join(names) in said and "out/net.json" in said and "an --output of its own" in said
    assert not Path("out").exists()


def test_the_files_of_a_report_have_the_name_of_the_model(monkeypatch, tmp_path):
    (tmp_path / "net").mkdir()
    monkeypatch.chdir(tmp_path / "net")
    name = short_name
    assert {name("local-dir:."), name("local-dir:../net/"), name("hf-hub:me/net"), name("net")} == {"net"}


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_first(run, capsys, device):
    with pytest.raises(SystemExit):
        run(NOWHERE, "--device", device)
    assert f"argument --device: '{device}' cannot be used (" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "convert", "finetune"])
def test_training_needs_a_device_that_is_there_too(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, NAME, "--device", "nonsense"])
    assert "argument --device: 'nonsense' cannot be used (" in capsys.readouterr().err


def test_corrupt_weights_are_refused(refused):
    Path("corrupt.safetensors").write_bytes(b"no weights")
    assert "corrupt.safetensors is damaged" in refused(NAME, "--weights", "corrupt.safetensors", "--neuron", "leak=1")


def test_weights_of_an_snn_need_the_neurons_said(run, refused, tmp_path):
    soft = small_network(reset="soft", initial=0.5)
    save_pretrained(soft, "soft", name=NAME)
    assert "give --neuron" in refused(NAME, "--weights", "soft/model.safetensors")
    assert "not init" in refused(NAME, "--weights", "soft/model.safetensors", "--neuron", "init=0.5")
    assert "goes with --weights" in refused(NAME, "--neuron", "reset=soft")
    found = {}
    for kind in ("reset=soft initial=0.5", "reset=hard"):
        weights = ("--weights", "soft/model.safetensors", "--neuron", *kind.split())
        run(NAME, *weights, "--attack", "pgd2", "-n", 64, "--checks", 0, "--results-file", "all.csv")
        found[kind] = load_json(f"results/{NAME}.json")
    data = load_dataset("digits", "test").select(64)
    wanted = evaluate(soft, data, "pgd2", 8 / 255, checks=0).to_json()
    assert found["reset=soft initial=0.5"]["network"] == {"timesteps": 2, "reset": "soft", "leak": 1.0, "initial": 0.5}
    assert found["reset=soft initial=0.5"]["runs"][0]["verdicts"] == wanted["runs"][0]["verdicts"]
    assert found["reset=hard"]["runs"][0]["verdicts"] != wanted["runs"][0]["verdicts"]
    assert [row["network"] for row in table("all.csv")] == [
        "timesteps=2 reset=soft leak=1.0 initial=0.5",
        "timesteps=2 reset=hard leak=1.0 initial=0.0",
    ]


# --- what there was before ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["all.csv", "all.json"])
def test_a_row_gains_attacks_and_loses_nothing(run, entry, path):
    options = (*FAST, "--results-file", path)
    run(entry[0], "--attack", "fgsm", *options)
    (first,) = rows = table(path)
    if path.endswith(".json"):
        Path(path).write_bytes(to_json([{**one, "flags": "more_eps zero_gradients"} for one in rows]))
    else:
        text = Path(path).read_text()
        Path(path).write_text(text.replace(f",,{first['weights_sha256']}", f",more_eps,{first['weights_sha256']}"))
    flags = table(path)[0]["flags"]
    assert flags
    run(entry[0], "--attack", "rfgsm", *options)
    (merged,) = table(path)
    assert {**first, "flags": flags}.items() <= merged.items() and "rfgsm 8/255" in merged
    assert (merged["split"], str(merged["seed"])) == ("test", "0")

    run(entry[1], "--attack", "fgsm", *options)  # other weights
    run(entry[0], "--attack", "fgsm", *options, "--seed", 1)
    run(entry[0], "--attack", "fgsm", *options, "--split", "validation")
    run(entry[0], "--attack", "fgsm", *options, "-n", 5)
    rows = table(path)
    assert len(rows) == 5 and merged.items() <= rows[0].items()
    assert [(row["split"], str(row["n"]), str(row["seed"])) for row in rows[2:]] == [
        ("test", "4", "1"),
        ("validation", "4", "0"),
        ("test", "5", "0"),
    ]


def test_a_report_of_something_else_is_kept(run, entry, capsys):
    report = Path("results", f"{NAME}.json")
    run(entry[0], "--attack", "fgsm", *FAST, "--adversarial")
    run(entry[0], "--attack", "fgsm", *FAST, "--adversarial")  # a repetition
    assert len(list(report.parent.glob("*.json"))) == 1 and "kept" not in capsys.readouterr().out
    examples = report.with_suffix(".adversarial.safetensors").read_bytes()
    changes = (
        ("--attack", "rfgsm", "--adversarial"),
        ("--attack", "rfgsm", "--eps", 16),
        ("--attack", "rfgsm", "--eps", 16, "--seed", 1),
        ("--attack", "rfgsm", "--eps", 16, "--split", "validation"),
        ("--attack", "rfgsm", "--eps", 16, "-n", 3),
    )
    for number, change in enumerate(changes, 1):
        former = report.read_bytes()
        run(entry[0], *FAST, *change)
        kept = report.with_suffix(f".{number}.json")
        assert kept.read_bytes() == former != report.read_bytes() and f"kept as {kept}" in capsys.readouterr().out
        assert kept.with_suffix(".csv").is_file()
    assert report.with_suffix(".1.adversarial.safetensors").read_bytes() == examples
    run(entry[1], *FAST, *changes[-1])  # other weights
    assert load_json(report.with_suffix(f".{len(changes) + 1}.json"))["n"] == 3
    report.write_text("notes")
    run(entry[1], *FAST, *changes[-1])
    assert report.with_suffix(f".{len(changes) + 2}.json").read_text() == "notes"
