"""Recipes: those that come along, one of one's own over its base, and what is wrong with one."""

import json
import math
from dataclasses import fields

import pytest

from rsnn_zoo.training.recipe import RecipeError, Stage, load_recipe, recipe_names

# Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py.
pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("objective", ["natural", "at", "trades", "mart"])
def test_every_recipe_that_comes_along_can_be_used(name, objective):
    recipe = load_recipe(name, objective)
    assert recipe.ann.objective == objective and recipe.name == name
    assert recipe.direct.objective == objective
    assert recipe.snn.objective == ("natural" if objective == "natural" else "trades")
    assert all(recipe.stage(table).batch_size > 1 for table in ("ann", "snn", "direct"))
    assert json.loads(json.dumps(recipe.to_json()))["ann"]["epochs"] == recipe.ann.epochs


def test_recipes_hold_the_published_numbers():
    for name, beta in (("cifar10_linf8", 6), ("cifar10_research", 6), ("cifar100_linf8", 3), ("svhn_linf8", 3)):
        recipe = load_recipe(name, "trades")
        assert (recipe.ann.weight, recipe.ann.eps) == (beta, (2 if name.endswith("research") else 8) / 255)
        assert load_recipe(name, "mart").ann.weight == 4 and load_recipe(name, "at").ann.weight == 0
        assert load_recipe(name, "fast").ann.attack == "nfgsm" and load_recipe(name, "rat").direct.retraction == 0.004
    assert not load_recipe("svhn_linf8", "at").ann.augmentation.flip


def test_a_recipe_says_what_differs_from_its_base(tmp_path):
    (tmp_path / "first.toml").write_text("base = 'digits'\n[ann]\nlr = 0.2")
    mine = load_recipe(write(tmp_path, "base = 'first'\n[ann]\nepochs = 3\n[variants.mart.ann]\nlr = 0.3"), "mart")
    assert (mine.name, mine.ann.epochs, mine.ann.lr, mine.ann.weight) == ("mine", 3, 0.3, 4)
    assert mine.snn == load_recipe("digits", "mart").snn
    for base in ("mine", "digit", "3"):
        with pytest.raises(RecipeError, match=f"base is '{base}'.*file beside it"):
            load_recipe(write(tmp_path, f"base = '{base}'"), "at")


def test_a_table_that_a_recipe_lacks_is_not_made_up(tmp_path):
    recipe = load_recipe(write(tmp_path, "[ann]\neps = '8/255'"), "at")
    assert recipe.stage("ann") == recipe.ann
    for table in ("snn", "direct"):
        with pytest.raises(RecipeError, match=rf"recipe mine has no table \[{table}\]"):
            recipe.stage(table)


def test_a_recipe_may_have_no_table_of_the_ann(tmp_path):
    recipe = load_recipe(write(tmp_path, "[snn]\nobjective = 'trades'\neps = '8/255'"), "trades")
    assert recipe.stage("snn").objective == "trades"
    with pytest.raises(RecipeError, match=r"no table \[ann\]"):
        recipe.stage("ann")


def test_fine_tuning_that_would_undo_the_conversion_is_refused(tmp_path):
    text = "[snn]\nretraction = 0.004\n[conversion]\nmethod = '{}'"
    assert load_recipe(write(tmp_path, text.format("published")), "rat").snn.retraction == 0.004
    with pytest.raises(RecipeError, match=r"snn.retraction holds .* set snn.retraction = 0"):
        load_recipe(write(tmp_path, text.format("absorb")), "rat")


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_variants_and_changes_go_over_the_base(tmp_path):
    path = write(
        tmp_path, "[ann]\neps = '8/255'\nlr = 0.2\n[variants.mart.ann]\nweight = 4\n[variants.mart.snn]\nlr = 0.3"
    )
    mart, trades = load_recipe(path, "mart", ["ann.epochs = 7"]), load_recipe(path, "trades")
    assert (mart.ann.eps, mart.ann.weight, mart.ann.epochs, mart.snn.lr) == (8 / 255, 4, 7, 0.3)
    assert (trades.ann.weight, trades.ann.lr, trades.snn.lr) == (0, 0.2, Stage().lr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ann]\nepoch = 3", "ann: unknown key 'epoch'.*did you mean epochs"),
        ("[an]\nepochs = 3", "unknown key 'an'.*did you mean"),
        ("[ann]\nepochs = 0", "epochs is 0, must be an integer from 1"),
        ("[ann]\nepochs = 1.5", "epochs is 1.5, must be an integer"),
        ("[ann]\nepochs = true", "epochs is True"),
        ("[ann]\nlr = -1", "lr is -1, must be a number from 0 to 100"),
        ("[ann]\nlr = nan", "lr is nan"),
        ("[ann]\neps = 8", "eps is 8, must be a number from 0 to 1"),
        ("[ann]\neps = '8/0'", "no number"),
        ("[ann]\neps = 'eight'", "no number"),
        ("[ann]\nnesterov = 1", "nesterov is 1, must be true or false"),
        ("[ann]\nprecision = 'float16'", "precision is 'float16'"),
        ("[ann]\nattack = 'pdg'", "did you mean pgd"),
        ("[ann]\nattack_start = 'uniforn'", "did you mean uniform"),
        ("[ann]\nattack_mode = 'pcv-1'", 'attack_mode: unknown backward mode.*or "own"'),
        ("[ann]\nattack_mode = 3", "attack_mode"),
        ("[snn]\neps = 0.1\nobjective = 'rslad'\nweight = 6.0", "weight is a share for 'rslad' and 6 here"),
        ("[ann]\nattack = 'free'\nattack_mode = 'rate'", "follows the training's own gradient"),
        ("[ann]\nattack_loss = 'teacher'", "attack_loss is 'teacher'"),
        ("[ann]\nattack_pass = 'train'", "attack_pass is 'train'.*did you mean training"),
        ("[ann]\nmomentum = 0", "Nesterov"),
        ("[ann]\nvalidation_steps = 3", "validation_eps"),
        ("[ann.augmentation]\ncrop_padding = -1", "crop_padding"),
        ("[ann]\naugmentation = 1", "augmentation must be a table"),
        ("[snn]\nobjective = 'trades'", "eps must be more than 0"),
        ("[neuron]\nsurrogate = 'triangle'", "neuron: unknown surrogate"),
        ("[conversion]\nscale = 0", "conversion: scale is 0, must be a number from 0.001"),
        ("[variants.trade.ann]\nlr = 1", "did you mean trades"),
        ("[variants]\nat = 3", "variants must hold tables"),
        ("[snn]\nobjective = ['trades']", "objective is .* must be a string"),
        ("[neuron]\nsurrogate = ['pcw']", "surrogate is .* must be a string"),
        ("[ann.augmentation]\nflip = 'false'", "augmentation.flip is 'false', must be true or false"),
        ("[ann.augmentation]\ncutout = true", "augmentation.cutout is True"),
        ("ann = [", "not TOML"),
        ("ann = 3", "ann must be a table"),
        ("[ann]\nobjective = 'mart'", "ann.objective is 'mart', not 'natural' as the model's name says"),
        ("[variants.natural.direct]\nobjective = 'at'", "direct.objective is 'at'"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_the_cause(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text), "natural")


def test_an_unknown_recipe_or_objective_names_its_near_matches():
    with pytest.raises(FileNotFoundError, match="did you mean digits"):
        load_recipe("digit", "natural")
    with pytest.raises(ValueError, match="did you mean trades"):
        load_recipe("digits", "trade")
    with pytest.raises(RecipeError, match="the change"):
        load_recipe("digits", "natural", ["ann.epochs"])


def test_every_number_of_a_stage_is_bounded():
    for item in fields(Stage):
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            with pytest.raises(RecipeError, match=item.name):
                Stage(**{item.name: math.inf})
