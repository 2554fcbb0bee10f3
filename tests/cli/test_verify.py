"""rsnn-zoo verify: an honest entry holds, a lie is found, and a stranger's entry costs and opens nothing."""

import json

import pytest

import rsnn_zoo
from rsnn_zoo import verify_entry as verification
from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.hub.publish import save_pretrained, update_card
from rsnn_zoo.report.report import wilson
from tests.cli.conftest import PUBLISHED
from tests.conftest import NAME, small_network

pytestmark = pytest.mark.usefixtures("eager")


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
