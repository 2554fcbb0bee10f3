"""Reports: what is in them, that old evidence can be read, figures, and adversarial examples that anyone can check."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import rsnn_zoo
from rsnn_zoo._utils.files import load_json
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.hub.resolve import entry_folder
from rsnn_zoo.report.card import model_card
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, EvidenceError, published_runs
from rsnn_zoo.report.plots import plot_accuracy, save_page
from rsnn_zoo.report.report import ALL, STANDS, Flag, Run, wilson
from rsnn_zoo.spec.config import load_config
from tests import tiny

pytestmark = pytest.mark.usefixtures("eager")

SCRIPTS = Path(__file__).parents[2] / "scripts"


NAME = "resnet20_digits_trades_ann"


MEMBER = (("pgd9", "own"),)


@pytest.fixture(scope="module")
def report():
    data, attacks = tiny.digits().select(60), ["ensemble-pgd2", "ensemble-pgd5"]
    return evaluate(tiny.network(True), data, attacks, [8 / 255, 24 / 255], seed=3, chunk=16, checks=16)


@pytest.fixture(scope="module")
def raised(report):
    others = (flag for flag in report.flags if flag.name != "more_eps")
    return replace(report, flags=(Flag("more_eps", True, 0.1, "A <b>long</b> story."), *others))


def test_wilson_is_the_textbook_interval():
    n, p, z = 50, 0.8, 1.959964
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert wilson(40, 50) == pytest.approx(expected, abs=1e-6)


def test_a_radius_is_never_rounded_to_another():
    run = {"protocol": "x", "eps": 127.5 / 255}
    with pytest.raises(EvidenceError, match=r"run x at eps 127\.5/255"):
        published_runs({"n": 1, "clean": {"accuracy": 1.0}, "runs": [run]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e["runs"].clear(), "holds no runs"),
        (lambda e: e.pop("runs"), "holds no runs"),
        (lambda e: e.update(index=[0] * 60), "60 different numbers"),
        (lambda e: e.update(index=[*range(-1, 59)]), "60 different numbers"),
        (lambda e: e.update(index=[*range(59)]), "60 different numbers"),
        (lambda e: e.update(index=[*range(59), 59.0]), "60 different numbers"),
        (lambda e: e.update(index=[*range(59), []]), "60 different numbers"),
        (lambda e: e.update(index="0..59"), "60 different numbers"),
        (lambda e: e["clean"].update(ci95=[0.9, 1.0]), r"claims clean accuracy .* \(0\.9 to 1\), the verdicts say"),
        (lambda e: e["runs"][2].update(ci95=[0.9, 1.0]), "ensemble-pgd5 at eps 8/255 claims robust accuracy"),
        (lambda e: e["robust"][1].update(ci95=[0.9, 1.0]), "worst case at eps 24/255 claims accuracy"),
        (lambda e: e["robust"][1].update(eps=0.5), "worst case at eps 127.5/255 claims accuracy where nothing was run"),
        (lambda e: e["runs"][1]["attacks"][1].update(felled=99), "claims 99 felled by pgd2, the verdicts say"),
        (lambda e: e["runs"][1]["attacks"].clear(), r"holds the verdict \d+, where it lists 0 attacks"),
        (lambda e: e["runs"][0].update(verdicts="-3 " * 60), "holds the verdict -3"),
    ],
)
def test_evidence_claims_nothing_that_its_verdicts_do_not_say(report, change, said):
    evidence = json.loads(json.dumps(report.to_json()))
    assert [run.verdicts for run in published_runs(evidence)] == [run.verdicts for run in report.runs]
    assert len(published_runs(evidence | {"index": [*range(100, 160)]})) == len(report.runs)
    change(evidence)
    with pytest.raises(EvidenceError, match=said):
        published_runs(evidence)


def test_a_number_comes_with_all_that_it_needs(report, tmp_path):
    report.save(tmp_path / "report.json")
    content = load_json(tmp_path / "report.json")
    assert content["n"] == 60 and content["dataset"] == "digits" and content["split"] == "test"
    assert content["settings"]["seed"] == 3 and "torch" in content["versions"]
    assert content["flags"].keys() >= {"zero_gradients", "random_model"} and "created" in content
    for run in content["runs"]:
        verdicts = [int(verdict) for verdict in run["verdicts"].split()]
        assert len(verdicts) == 60 and run["restarts"] == 1
        assert run["robust_accuracy"] == verdicts.count(STANDS) / 60
        assert run["ci95"][0] <= run["robust_accuracy"] <= run["ci95"][1]
        assert len(run["attacks"]) == 19
        for number, attack in enumerate(run["attacks"]):
            assert attack["felled"] == verdicts.count(number)
            assert attack["steps"] == int(run["protocol"].removeprefix("ensemble-pgd"))
        assert run["attacks"][-1]["standing"] == verdicts.count(STANDS)


def test_restarts_are_counted():
    members = (("pgd20", "own"), ("pgd20#2", "own"), ("pgd20#3", "own"), ("pgd20", "rate"))
    assert Run("some", 0.1, members, (0, -1), 1.0).restarts == 3


def test_csv_and_rows_say_what_the_json_says(report, raised, tmp_path):
    raised.save(tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["attack"], row["eps"]) for row in rows] == [
        ("none", "0/255"),
        ("ensemble-pgd2", "8/255"),
        ("ensemble-pgd2", "24/255"),
        ("ensemble-pgd5", "8/255"),
        ("ensemble-pgd5", "24/255"),
        (ALL, "8/255"),
        (ALL, "24/255"),
    ]
    together = [stand / 60 for stand in report.robust.values()]
    assert [float(row["accuracy"]) for row in rows[1:]] == [*(run.robust_accuracy for run in report.runs), *together]
    assert all(row["flags"].startswith("more_eps") and row["n"] == "60" for row in rows)
    summary = raised.summary()
    assert summary["ensemble-pgd5 24/255"] == round(100 * report.runs[3].robust_accuracy, 2)


def test_more_members_steps_or_eps_never_raise_the_worst_case(report):
    """Each single run may find less than one that should be weaker; all of them together do not."""
    two, three = (-1, 0, -1, -2, -1), (0, -1, -1, -2, -1)
    runs = (
        Run("pgd9", 0.2, MEMBER, three, 1.0),
        Run("pgd5", 0.1, MEMBER, two, 1.0),
        Run("pgd9", 0.1, MEMBER, two, 1.0),
    )
    made = replace(report, index=(4, 3, 2, 1, 0), correct=(True, True, True, False, True), runs=runs)
    assert [run.robust_accuracy for run in runs] == [0.6, 0.6, 0.6]
    assert made.robust == {0.1: 3, 0.2: 2}
    assert [(row["attack"], row["eps"], row["accuracy"]) for row in made.rows()[-2:]] == [
        (ALL, "25.5/255", 0.6),
        (ALL, "51/255", 0.4),
    ]
    assert made.robustbench(0.2)["reported"] == "40.00"
    assert [(one["eps"], one["accuracy"]) for one in made.to_json()["robust"]] == [(0.1, 0.6), (0.2, 0.4)]
    alone = replace(made, runs=runs[:1])
    assert not any(row["attack"] == ALL for row in alone.rows()) and "robust" not in alone.to_json()
    assert alone.robustbench(0.2)["reported"] == "60.00"


def test_robustbench_record(report):
    record = report.robustbench(8 / 255)
    together = [
        all(v == STANDS for v in each) for each in zip(*(run.verdicts for run in report.runs[::2]), strict=True)
    ]
    assert record["reported"] == f"{100 * sum(together) / 60:.2f}" and record["attack"] == "ensemble-pgd2+ensemble-pgd5"
    assert record["eps"] == "8/255" and record["threat_model"] == "Linf"
    with pytest.raises(ValueError, match="no run at eps 4/255: there are 8/255"):
        report.robustbench(4 / 255)


def test_the_table_names_attacks_and_raised_flags(raised):
    table = raised.table()
    assert "8/255" in table and "pgd5/" in table and "! more_eps: A <b>long</b> story." in table


def test_the_page_needs_nothing_from_elsewhere(raised, tmp_path):
    text = save_page(raised.to_json(), tmp_path / "report.html").read_text()
    assert "data:image/png;base64,iVBOR" in text and "A &lt;b&gt;long&lt;/b&gt; story." in text
    assert not re.search(r"https?://|<script|<link|src=(?!\"data:)", text)
    for run in raised.runs:
        assert f"{100 * run.robust_accuracy:.1f} %" in text


def test_the_figure_shows_radii_attacks_and_steps(report, tmp_path):
    from rsnn_zoo.report.plots import _figure

    axes = _figure([report.to_json()]).axes
    assert [panel.get_xlabel().split(" ")[0] for panel in axes] == ["eps", "standing", "steps"]
    curve = axes[2].get_lines()[0]
    assert list(curve.get_xdata()) == [2, 5]
    assert list(curve.get_ydata()) == [100 * report.runs[i].robust_accuracy for i in (0, 2)]
    assert list(axes[0].get_lines()[0].get_xdata()) == pytest.approx([0, 8, 24])
    path = plot_accuracy([report.to_json()], tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_attacks_that_felled_nothing_are_not_drawn_and_no_curve_runs_back():
    from rsnn_zoo.report.plots import _figure

    names = ["resnet20_cifar10_trades_ann", "resnet20_cifar10_trades_t4"]
    reports = [load_json(entry_folder(name) / "evaluation.json", MAX_EVIDENCE_BYTES) for name in names]
    axes = _figure(reports).axes[1]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    for curve in axes.get_lines():
        x, y = map(list, (curve.get_xdata(), curve.get_ydata()))
        assert x == sorted(set(x)) and y == sorted(set(y), reverse=True)
        model, protocol, _ = curve.get_label().split(", ")
        found = next(report["runs"] for report in reports if report["model"] == model)
        run = next(run for run in found if run["protocol"] == protocol and run["eps"] == 8 / 255)
        felled = [f"{a['attack']}/{a['mode']}" for a in run["attacks"] if a["felled"]]
        assert [labels[place] for place in x] == felled


def test_each_network_has_a_color_and_no_legend_covers_a_curve(report):
    from rsnn_zoo.report.plots import _figure

    evidence = report.to_json()
    others = [{**evidence, "model": f"another_{number}"} for number in range(6)]
    figure = _figure([evidence, *others])
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().y0 >= axes.bbox.y1
        models = {line.get_label().split(", ")[0]: line.get_color() for line in axes.get_lines()}
        assert len(set(models.values())) == len(models) == 7
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 < min(axes.bbox.y0 for axes in figure.axes)
    assert [text.get_text() for text in legend.get_texts()] == [*models]


def test_one_radius_is_a_point_and_a_protocol_looks_the_same_in_all_panels():
    from rsnn_zoo.report.plots import _figure

    evidence = load_json(entry_folder("resnet20_cifar10_trades_t4") / "evaluation.json", MAX_EVIDENCE_BYTES)
    for reports in ([evidence], [evidence, {**evidence, "model": "another"}]):
        looks = {}
        for axes in _figure(reports).axes:
            for line in axes.get_lines():
                _, protocol, *_ = line.get_label().split(", ")
                assert len(line.get_xdata()) == 1 or protocol != "worst-case-v1" or axes.get_xlabel().startswith("st")
                looks.setdefault(protocol, set()).add((line.get_marker(), len(reports) > 1 or line.get_color()))
        assert all(len(found) == 1 for found in looks.values()) and len(looks) == 3


def test_a_long_title_fits_a_single_panel_and_nothing_to_draw_is_refused(report):
    from rsnn_zoo.report.plots import _figure

    evidence = {**report.to_json(), "model": "wrn28_4_tinyimagenet_natural_ann.research"}
    figure = _figure([{**evidence, "runs": [{**run, "attacks": []} for run in evidence["runs"][:1]]}])
    figure.draw_without_rendering()
    title, page = figure.get_suptitle(), figure._suptitle.get_window_extent()
    assert "wrn28_4_tinyimagenet_natural_ann.research" in title and len(figure.axes) == 1
    assert page.x0 >= 0 and page.x1 <= figure.bbox.x1
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_accuracy([], "figure.png")


@pytest.mark.parametrize("name", ["resnet20_digits_trades_t4", NAME])
def test_published_evidence_goes_on_being_read(name, tmp_path):
    evidence = load_json(entry_folder(name) / "evaluation.json")
    assert save_page(evidence, tmp_path / "page.html").stat().st_size > 10_000
    assert plot_accuracy([evidence, evidence], tmp_path / "figure.svg").exists()
    assert "Wilson" in model_card(load_config(entry_folder(name) / "config.json"), evidence)


def test_flags_are_on_the_card(raised):
    config = load_config(entry_folder(NAME) / "config.json")
    assert "A <b>long</b> story." in model_card(config, raised.to_json())


# --- scripts --------------------------------------------------------------------------------------------------------


def script(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_models_by_wildcard_into_one_file_and_verified(tmp_path):
    table = tmp_path / "all.csv"
    into = ("--output", tmp_path, "--results-file", table)
    options = ("--attack", "fgsm", "pgd3", "--eps", 8, 16, "-n", 30, "--checks", 8)
    options += ("--adversarial", "--html", "--robustbench", "--plot", tmp_path / "all.png")
    done = script("evaluate.py", "--model", "resnet20_digits_*_ann", *into, *options)
    assert done.returncode == 0, done.stderr
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == rsnn_zoo.list_models("resnet20_digits_*_ann", pretrained=True)
    again = script("evaluate.py", "--model", NAME, "--attack", "fgsm", "-n", 10, "--checks", 0, *into)
    assert again.returncode == 0, again.stderr
    with open(table, newline="") as file:
        assert list(csv.DictReader(file))[:-1] == rows  # and one of 10 images
    for ending in ("json", "csv", "html", "robustbench.json", "adversarial.safetensors"):
        assert (tmp_path / f"resnet20_digits_at_ann.{ending}").stat().st_size
        assert (tmp_path / f"{NAME}.1.{ending}").stat().st_size
    assert not list(tmp_path.glob("*.partial")) and (tmp_path / "all.png").exists()

    file = tmp_path / "resnet20_digits_natural_ann.adversarial.safetensors"
    good = script("verify.py", file, "--model", "resnet20_digits_natural_ann", "--data", "digits")
    assert good.returncode == 0 and "fell" in good.stdout, good.stderr
    other = script("verify.py", file, "--model", "resnet20_digits_at_ann")
    assert other.returncode == 1 and "other weights" in other.stderr


@pytest.mark.slow
def test_bad_arguments_end_in_one_line(tmp_path):
    (tmp_path / "corrupt.safetensors").write_bytes(b"no weights")
    for arguments in (
        ("--model", "nothing_*"),
        ("--model", NAME, "--results-file", tmp_path / "x.txt"),
        ("--model", NAME, "--weights", tmp_path / "corrupt.safetensors", "--output", tmp_path),
    ):
        done = script("evaluate.py", *arguments)
        assert done.returncode == 1 and done.stderr.startswith("rsnn-zoo: evaluate: ") and done.stderr.count("\n") == 1


def test_what_is_written_is_json(report):
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["runs"]
