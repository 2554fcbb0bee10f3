"""What an entry claims besides its verdicts is held against what its protocols run; what it says freely is bounded."""

import shutil

import pytest

from rsnn_zoo._utils.files import ConfigError, load_json, to_json
from rsnn_zoo.evaluation.claims import tolerated_moves
from rsnn_zoo.evaluation.costs import MAX_PASSES, MAX_SECONDS, Cost
from rsnn_zoo.evaluation.flags import MESSAGES
from rsnn_zoo.evaluation.protocols import plan
from rsnn_zoo.evaluation.transfer import packaged_only, published
from rsnn_zoo.hub.publish import update_card
from rsnn_zoo.hub.resolve import entries_folder, published_names
from rsnn_zoo.report.evidence import FLAGS, EvidenceError, check_evidence, check_shown
from rsnn_zoo.report.report import wilson
from rsnn_zoo.spec.config import load_config
from rsnn_zoo.verify_entry import verify

NAME = "resnet20_digits_natural_ann"


@pytest.fixture
def entry(tmp_path):
    return shutil.copytree(entries_folder() / NAME, tmp_path / NAME)


def failing(entry, edit, **how):
    """What fails once the evidence is edited, and the card made of it."""
    evidence = load_json(entry / "evaluation.json", 10**9)
    edit(evidence)
    (entry / "evaluation.json").write_bytes(to_json(evidence))
    update_card(entry)
    return {check.what: check.said for check in verify(f"local-dir:{entry}", **{"images": 6, **how}) if not check.holds}


@pytest.mark.parametrize("wrong", [{"ci95": [0.9, 1.0]}, {"n": 5}, {"accuracy": 1.5}])
def test_an_accuracy_on_all_images_that_cannot_be_is_refused(entry, wrong):
    config, found = load_config(entry / "config.json"), load_json(entry / "evaluation.json", 10**9)
    right = {"n": 1000, "accuracy": 0.9, "ci95": list(wilson(900, 1000)), "data_sha256": "0" * 64}
    check_evidence(config, {**found, "clean_on_all": right})
    with pytest.raises((ConfigError, EvidenceError), match=r"all images|clean_on_all"):
        check_evidence(config, {**found, "clean_on_all": right | wrong})


def worst_case(evidence):
    return next(run for run in evidence["runs"] if run["protocol"].startswith("worst-case"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda run: run["attacks"][0].update(attack="autoattack-5000"), "lists attack 'autoattack-5000' where by its"),
        (lambda run: run["attacks"][-1].update(mode="every"), "lists mode 'every' where by its name it runs 'own'"),
        (lambda run: run["attacks"][1].update(steps=5000), "lists steps 5000 where"),
        (lambda run: run["attacks"].append({"attack": "certified", "mode": "own", "felled": 0}), "lists 6 attacks"),
        (lambda run: run.update(restarts=99), "lists restarts 99 where by its name it runs 1"),
        (lambda run: run.update(left_out={"square": "it is proven"}), "says that it left out square"),
        (lambda run: run["attacks"][0]["learned"].update(rounds=[1]), "cannot have learned"),
        (lambda run: run["attacks"][0].update(learned=5), "cannot have learned"),
    ],
)
def test_a_run_lists_the_attacks_of_its_protocol(entry, edit, said):
    found = failing(entry, lambda evidence: edit(worst_case(evidence)), eps=8 / 255)  # though another one is drawn
    assert set(found) == {"attacks"} and said in found["attacks"]


def test_an_invented_column_is_noticed(entry):
    """All that fell is said to have fallen to one attack of gradients, so that nothing speaks against them."""

    def edit(evidence):
        run = worst_case(evidence)
        verdicts = [min(int(verdict), 4) if int(verdict) < 0 else 4 for verdict in run["verdicts"].split()]
        run["verdicts"] = " ".join(map(str, verdicts))
        for number, attack in enumerate(run["attacks"]):
            attack["felled"] = verdicts.count(number)
        evidence["runs"] = [run]
        evidence.pop("robust", None)

    found = failing(entry, edit)
    assert set(found) == {"verdicts at 32/255", "draw"}
    assert "fall to another attack of it than the evidence says" in found["verdicts at 32/255"]


def test_as_many_may_move_as_roundings_explain():
    assert [tolerated_moves(fallen) for fallen in (0, 1, 2, 19, 20, 64)] == [0, 0, 1, 1, 2, 6]


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e["flags"].update(certified={"raised": False, "value": 0}),
        lambda e: e["energy"].update({"robust accuracy under AutoAttack": 94.4}),
        lambda e: e["energy"].update(ratio="94.4 % robust"),
        lambda e: e["energy"].update(nanojoule={"robust accuracy, certified": 1.0}),
        lambda e: e["energy"].update(images=[1]),
        lambda e: e["versions"].update({"robust accuracy": "94.4 %"}),
        lambda e: e["versions"].update(torch="94.4 % robust"),
        lambda e: e.update(ann={"name": "x, robust to 94.4 %", "n": 1, **{key: e[key] for key in ("clean", "runs")}}),
    ],
)
def test_nothing_is_shown_that_no_evaluation_writes(entry, edit):
    assert "evidence" in failing(entry, edit)


def test_a_card_shows_no_setting_that_is_none(entry):
    failing(entry, lambda e: e["settings"].update({"robust accuracy": "94.4 %"}), images=1, eps=8 / 255)
    assert "94.4 %" not in (entry / "README.md").read_text()


def test_all_that_is_published_shows_what_evaluations_write():
    assert set(FLAGS) == set(MESSAGES)
    for name in published_names():
        check_shown(load_json(entries_folder() / name / "evaluation.json", 10**9))


def test_no_source_of_a_source_is_loaded_unnamed(ann):
    with packaged_only():
        assert published(NAME, ann).pretrained_name == NAME
        for protocol in ("transfer[hf-hub:a/b]-pgd5", f"transfer[{NAME}]-transfer[local-dir:/nowhere]-pgd5"):
            with pytest.raises(EvidenceError, match=r"which you have not named: allow it by allow_fetch"):
                plan(protocol, ann)
    with pytest.raises(FileNotFoundError, match="/nowhere is not the folder"):
        plan("transfer[local-dir:/nowhere]-pgd5", ann)


def test_a_transfer_s_transfer_costs_what_it_runs(ann, snn):
    source = f"transfer[{NAME}]"
    (direct,), (nested,) = (plan(name, ann).members for name in (f"{source}-pgd99", f"{source}-{source}-pgd99"))
    assert direct.cost == nested.cost == 99 and nested.is_bounded


def test_what_nobody_knows_the_cost_of_is_asked_for(entry):
    def edit(evidence):
        run = next(run for run in evidence["runs"] if run["protocol"] == "ensemble-pgd20")
        run["protocol"] = f"transfer[{NAME}]-torchattacks.JSMA"
        run["attacks"][0].update(attack=f"transfer-{NAME}-torchattacks.JSMA", steps=None)
        evidence["runs"] = [run]
        evidence.pop("robust", None)

    found = failing(entry, edit)
    assert "nobody knows what" in str(found) and "allow it by allow_cost (--allow-cost)" in str(found)


def test_few_passes_of_a_large_network_cost_too():
    assert not Cost(1, MAX_PASSES, MAX_SECONDS).excess
    assert Cost(1, 1, 3 * 86400).excess == "1 passes or 3 days a verdict"


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        ({"sampled": 400, "fell": 80}, "the flag other_network is not raised"),
        ({"sampled": 4, "fell": 5}, "agreement.fell"),
        ({"sampled": True, "fell": 0}, "agreement.sampled"),
    ],
)
def test_a_folded_network_that_was_another_one_cannot_hide(entry, agreement, said):
    found = failing(entry, lambda evidence: evidence.update(agreement=agreement), images=1)
    assert said in found["evidence"]


def test_a_folded_network_that_agreed_is_believed(entry):
    assert not failing(entry, lambda evidence: evidence.update(agreement={"sampled": 400, "fell": 1}), images=1)
