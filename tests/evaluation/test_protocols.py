"""Protocols: which attacks a name stands for."""

import pytest
import torch

import rsnn_zoo
from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation import protocols
from rsnn_zoo.evaluation.protocols import ENSEMBLE_MODES, MODE_LISTS, PROTOCOLS, full_name, plan, protocol
from rsnn_zoo.neurons.integrate_fire import Rate, Relu, Surrogate


def names(name, model):
    return [str(member) for member in protocol(name, model)]


def test_the_ensemble_is_the_published_one_in_its_order():
    widths = {"pcw": (1, 2, 3, 0.5, 0.25), "exp_d": (0.5, 1, 2), "exp": (0.5, 1, 2), "rect": (0.25, 0.5, 1, 2, 4)}
    surrogates = [Surrogate(kind, float(width)) for kind, row in widths.items() for width in row]
    assert list(ENSEMBLE_MODES) == [*surrogates, Surrogate("ste"), Rate(), Relu()]


@pytest.mark.parametrize("attack", ["fgsm", "rfgsm", "pgd20", "apgd100-ce", "sapgd100", "apgd5-t3"])
def test_an_ensemble_is_one_attack_under_19_modes(snn, attack):
    assert names(f"ensemble-{attack}", snn) == [f"{attack}/{mode}" for mode in ENSEMBLE_MODES]
    assert names(f"{attack}@ensemble", snn) == names(f"ensemble-{attack}", snn)
    assert names(attack, snn) == [f"{attack}/own"]


def test_terms_join_and_count_restarts(snn):
    assert names("pgd7x3@rate+square10", snn) == ["pgd7/rate", "pgd7#2/rate", "pgd7#3/rate", "square10/own"]
    assert names("apgd9-ce@hart-2+apgd9-ce@hart-2", snn) == ["apgd9-ce/hart-2"]
    assert len(protocol("ensemble-apgd100", snn)) == 38


def test_named_protocols_join_too(snn):
    assert full_name("quick+square10") == "quick-v1+square10"
    assert names("quick+square10+pgd10@rate", snn) == [*names("quick", snn), "square10/own"]


def test_restarts_begin_elsewhere_and_the_first_where_it_always_did(snn):
    data = rsnn_zoo.load_dataset("digits", "test").select(2)
    one, two = protocol("pgd2x2@rate", snn)
    (alone,) = protocol("pgd2@rate", snn)
    victim = ModelVictim(snn, 2)

    def start(member):
        batch = Batch(data.pixels(), data.labels, 8 / 255, (0, 1), stream=str(member))
        return member.attack.first(victim, batch)["x"]

    assert str(one) == str(alone) == "pgd2/rate"
    assert torch.equal(start(one), start(alone)) and not torch.equal(start(one), start(two))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_named_protocols_have_each_member_once(snn, ann, name):
    for model in (snn, ann):
        found = names(name, model)
        assert found and len(found) == len(set(found))
    assert all(member.endswith("/own") for member in found)  # an ANN has but one way to be differentiated


def test_the_worst_case_holds_what_it_is_the_worst_of(snn, ann):
    found = names("worst-case-v1", snn)
    for attack in ("fgsm", "rfgsm", "pgd20"):
        assert set(names(f"ensemble-{attack}", snn)) <= set(found)
    assert set(names("adaptive", snn)) <= set(found)
    for mode in MODE_LISTS["strong"]:
        assert {f"apgd100-ce/{mode}", f"apgd100-dlr/{mode}"} <= set(found)
    for_ann = names("worst-case-v1", ann)
    assert {"pgd20/own", "apgd100-ce/own", "apgd100-dlr/own", "apgd100-t9/own", "rays1000/own"} <= set(for_ann)
    assert not any("transfer" in member for member in for_ann)


STRONG = ("pcw-1", "pcw-2", "exp_d-1", "rate", "assg", "hart-1", "rga", "pdsg")
ENSEMBLE = (
    *("pcw-1", "pcw-2", "pcw-3", "pcw-0.5", "pcw-0.25"),
    *("exp_d-0.5", "exp_d-1", "exp_d-2", "exp-0.5", "exp-1", "exp-2"),
    *("rect-0.25", "rect-0.5", "rect-1", "rect-2", "rect-4", "ste", "rate", "relu"),
)
WORST_CASE_1 = (
    "adaptive434/own",
    *(f"{attack}/{mode}" for attack in ("fgsm", "rfgsm", "pgd20") for mode in ENSEMBLE),
    *(f"apgd100-ce/{mode}" for mode in STRONG),
    *(f"apgd100-dlr/{mode}" for mode in STRONG),
    "sapgd100/assg",
    *(f"apgd100-t{target}/pcw-1" for target in range(1, 10)),
    *(f"apgd100-t{target}/assg" for target in (1, 2, 3)),
    "transfer-ann-apgd100-ce/own",
    "square5000/own",
    "rays1000/own",
    "uniform-noise10/own",
    "gaussian-noise10/own",
)


WORST_CASE_2 = (
    "adaptive434/own",
    *("apgd100-dlr/hart-1", "apgd100-ce/pcw-1", "apgd100-ce/rate", "apgd100-ce/pcw-2", "apgd100-ce/hart-1"),
    *("apgd100-ce/assg", "apgd100-dlr/pcw-1", "apgd100-dlr/exp_d-1", "apgd100-t1/pcw-1"),
    "flips20000/own",
)


def test_a_version_never_changes(snn):
    """Papers cite it: whoever must change what it runs gives it another number."""
    assert tuple(names("worst-case-v1", snn)) == WORST_CASE_1
    assert tuple(names("worst-case-v2", snn)) == WORST_CASE_2
    assert names("quick-v1", snn) == [
        "pgd10/pcw-1",
        "apgd30-ce/pcw-2",
        "apgd30-dlr/pcw-1",
        "sapgd30/assg",
        "pgd10/rate",
    ]
    (adaptive,) = protocol("adaptive-v1", snn)
    assert adaptive.attack.rounds == (14, 28, 56, 112, 224)
    modes = ("pcw-2", "hart-1", "pcw-1", "exp_d-1", "pcw-0.5", "rate")
    assert [(loss, str(mode)) for loss, mode in adaptive.attack.pairs] == [
        (loss, mode) for mode in modes for loss in ("ce", "dlr")
    ]


def test_flips_ask_less_about_larger_images(snn):
    larger = rsnn_zoo.create_model("resnet20_cifar10_trades_t4")
    asked = [protocol("flips", model)[0].attack.queries for model in (snn, larger, torch.nn.Flatten())]
    assert asked == [20_000, 5000, 5000]
    first, second = (sum(each.cost for each in protocol(f"worst-case-v{n}", larger)) for n in (1, 2))
    assert second < 0.55 * first  # at most: samples that are far from falling are spared most of flips


def test_autoattack_is_the_standard_version(snn, ann):
    targeted = [f"apgd100-t{target}/own" for target in range(1, 10)]
    fab = [f"fab100-t{target}/own" for target in range(1, 10)]
    assert names("autoattack", ann) == ["apgd100-ce/own", *targeted, *fab, "square5000/own"]
    assert names("fab3-t2@rate+torchattacks.DeepFool", snn) == ["fab3-t2/rate", "torchattacks.DeepFool/own"]


def test_a_name_without_version_means_the_newest(snn, monkeypatch):
    assert full_name("worst-case") == "worst-case-v2" and full_name("worst-case-v1") == "worst-case-v1"
    assert full_name("ensemble-pgd20") == "ensemble-pgd20"
    assert names("quick", snn) == names("quick-v1", snn)
    monkeypatch.setitem(PROTOCOLS, "quick-v10", ("fgsm",))
    monkeypatch.setitem(PROTOCOLS, "quick-v9", ("rfgsm",))
    assert full_name("quick") == "quick-v10" and names("quick", snn) == ["fgsm/own"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pgd", "unknown attack 'pgd'"),
        ("pgd0", "unknown attack"),
        ("", "unknown attack"),
        ("pgd20+", "unknown attack"),
        ("worstcase", "did you mean worst-case-v"),
        ("ensemble-pgd0", "unknown attack"),
        ("worst-case-v9", "unknown attack"),
        ("pgd20@relux", "unknown backward mode"),
        ("square10x2", "no restarts"),
        ("ensemble-square10", "square10 follows no gradient: name it without a mode"),
        ("rays10@rate", "rays10 follows no gradient"),
        ("transfer[resnet20_digits_natural_t4]-square5@rate", "square5 follows no gradient"),
        ("adaptive434@rate", "adaptive434 chooses its modes itself"),
        ("transfer-pgs9", "unknown attack 'pgs9'; known: .* pgdK, apgdK-ce"),
        ("apgd10-l2", "unknown attack"),
        ("torchattacks.Fab", "no attack 'Fab' that needs only a model"),
        ("fab10-t1x2", "no restarts"),
        ("transfer-rays10", "rays10 learns nothing from another model"),
        ("transfer-uniform-noise10", "learns nothing from another model"),
    ],
)
def test_unknown_names_are_refused(snn, name, words):
    with pytest.raises(ValueError, match=words):
        protocol(name, snn)


def test_transfer_needs_a_source(ann):
    with pytest.raises(ValueError, match=r"converted from none: name another, as in transfer\[NAME\]-pgd20"):
        protocol("transfer-pgd20", ann)
    orphan = rsnn_zoo.create_model("resnet20_digits_trades_t4")
    with pytest.raises(ValueError, match=r"is not published: name one, as in transfer\[NAME\]-pgd20"):
        protocol("transfer-pgd20", orphan)


def test_any_model_is_a_source_of_transfer(snn, ann):
    source = "resnet20_digits_natural_t4"
    assert names(f"transfer[{source}]-pgd20", ann) == [f"transfer-{source}-pgd20/own"]
    assert names(f"fgsm+transfer[{source}]-apgd9-ce@rate", ann) == [  # the modes are those of the source
        "fgsm/own",
        f"transfer-{source}-apgd9-ce/rate",
    ]
    (member,) = protocol(f"transfer[{source}]-pgd20", snn)
    assert member.attack.source.pretrained_name == source
    with pytest.raises(LookupError, match="vgg16_svhn_mart_t4"):
        protocol("transfer[vgg16_svhn_mart_t4]-pgd20", snn)


def test_the_name_of_a_source_may_hold_anything(ann, monkeypatch):
    """Revisions of the Hub stand behind an @, and a plus may be part of a path."""
    asked = []
    monkeypatch.setattr(protocols, "published", lambda name, victim: asked.append(name) or ann)
    found = names("fgsm+transfer[hf-hub:org/net@v1.0]-pgd5+transfer[local-dir:a+b]-fgsm", ann)
    assert asked == ["hf-hub:org/net@v1.0", "local-dir:a+b"]
    assert found == ["fgsm/own", "transfer-hf-hub:org/net@v1.0-pgd5/own", "transfer-local-dir:a+b-fgsm/own"]


def test_a_source_of_other_classes_is_refused(snn, tmp_path):
    rsnn_zoo.save_pretrained(rsnn_zoo.create_model("resnet20_cifar10_at_t2"), tmp_path, name="resnet20_cifar10_at_t2")
    with pytest.raises(ValueError, match="has in_chans 3, the model under attack 1"):
        protocol(f"transfer[local-dir:{tmp_path}]-pgd20", snn)


def test_what_is_left_out_is_said(snn, ann, caplog):
    orphan = rsnn_zoo.create_model("resnet20_digits_trades_t4")  # nobody published what it was converted from
    found = plan("worst-case-v1", orphan)
    assert [*map(str, found.members)] == [member for member in WORST_CASE_1 if not member.startswith("transfer")]
    assert list(found.left_out) == ["transfer-apgd100-ce"]
    assert "not published: name one, as in transfer[NAME]-apgd100-ce" in found.left_out["transfer-apgd100-ce"]
    assert plan("worst-case", snn).left_out == plan("worst-case-v1", ann).left_out == {}
    assert list(plan("worst-case", orphan).left_out) == ["starts of flips"]
    data = rsnn_zoo.load_dataset("digits", "test").select(2)
    (run,) = rsnn_zoo.evaluate(orphan, data, "fgsm+transfer-fgsm", checks=0).runs
    assert run.to_json()["left_out"] == run.left_out and list(run.left_out) == ["transfer-fgsm"]
    assert "fgsm+transfer-fgsm: left out transfer-fgsm: the network that" in caplog.text


def test_modes_that_a_network_from_elsewhere_does_not_follow_are_left_out():
    elsewhere = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    found = plan("ensemble-pgd20+pgd5@rate", elsewhere)
    assert [*map(str, found.members)] == ["pgd20/own", "pgd5/own"]
    assert found.left_out == {
        "pgd20@ensemble under all its modes": "no neuron of it follows modes: the model's own gradients instead",
        "pgd5@rate under rate": "no neuron of it follows modes: the model's own gradients instead",
    }
    assert list(plan("adaptive", elsewhere).left_out) == ["adaptive434 under all its modes"]


@pytest.mark.parametrize(("classes", "without"), [(2, ("apgd100-dlr", "apgd100-t", "adaptive")), (3, ("apgd100-t",))])
def test_few_classes_leave_out_what_needs_more_of_them(snn, classes, without):
    whole = plan("worst-case-v1", snn)
    few = whole.of_classes(classes)
    assert 0 < len(few.members) < len(whole.members) and set(few.members) < set(whole.members)
    assert not any(str(member).startswith(without) for member in few.members)
    assert {*map(str, few.members), *few.left_out} == {*map(str, whole.members)}
    assert "needs at least" in few.left_out["apgd100-t9/pcw-1"]
    assert whole.of_classes(10) == whole
    with pytest.raises(ValueError, match="apgd5-t9/own: it needs at least 4 classes, and the model has"):
        plan("pgd5+apgd5-t9", snn).of_classes(classes)


def test_quick_fells_what_its_members_fell(snn):
    data = rsnn_zoo.load_dataset("digits", "test").select(6)
    report = rsnn_zoo.evaluate(snn, data, "quick", 48 / 255, checks=0)
    verdicts = report.runs[0].verdicts
    (first, *_) = protocol("quick", snn)
    alone = rsnn_zoo.evaluate(snn, data, str(first).replace("/", "@"), 48 / 255, checks=0).runs[0].verdicts
    assert 0 in alone and all(verdict == 0 for verdict, one in zip(verdicts, alone, strict=True) if one == 0)
