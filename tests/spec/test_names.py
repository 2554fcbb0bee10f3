"""The grammar of model names."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsnn_zoo.spec import names
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import MAX_TIMESTEPS, ModelName, UnknownNameError, add_objective, architectures
from rsnn_zoo.training.objectives import OBJECTIVES

tags = st.none() | st.from_regex(r"[a-z0-9]+([_-][a-z0-9]+)?", fullmatch=True)
grid = st.builds(
    ModelName,
    st.sampled_from(architectures()),
    st.sampled_from(sorted(DATASETS)),
    st.sampled_from(names.objectives()),
    st.none() | st.integers(1, MAX_TIMESTEPS),
    tags,
)


@given(grid)
def test_a_name_reads_back_as_it_was_written(name):
    assert ModelName.parse(str(name)) == name


@given(st.text(max_size=60) | st.from_regex(r"(resnet20|wrn16_4)_(digits|svhn)_(at|mart)_(t[0-9]{1,4}|ann)(\..*)?"))
def test_any_text_is_either_refused_or_written_back_unchanged(text):
    try:
        name = ModelName.parse(text)
    except UnknownNameError:
        return
    assert str(name) == text


def test_the_parts_of_a_name():
    name = ModelName.parse("wrn16_4_cifar10_trades_t8.linf8")
    assert name == ModelName("wrn16_4", "cifar10", "trades", 8, "linf8")
    assert ModelName.parse("resnet20_digits_natural_ann").timesteps is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resnet21_digits_at_t4", r"unknown architecture 'resnet21' \(did you mean .*resnet20.*known: vgg11, vgg16"),
        ("resnet20_cifar_at_t4", r"unknown dataset 'cifar' \(did you mean cifar10.*known: .*digits"),
        ("resnet20_digits_trade_t4", r"unknown objective 'trade' \(did you mean trades\?\); known: natural, at"),
        ("resnet20_digits_at_snn", "'snn' is neither 'ann' nor 't' and a number"),
        ("resnet20_digits_at_t04", "without leading 0"),
        ("resnet20_digits_at_t0", "'t0' is neither"),
        ("resnet20_digits_at_t4\n", "is neither"),
        ("resnet20_digits_at_t٤", "is neither"),
        ("resnet20_digits_at_t1001", "time steps must be from 1 to 1000"),
        ("resnet20_digits_at_t4.", "tag '' is not"),
        ("resnet20_digits_at_t4.../x", "tag '../x' is not"),
        ("resnet20", "a name has four parts.*resnet20_cifar10_trades_t8"),
        ("", "a name has four parts"),
    ],
)
def test_a_refusal_says_which_part_and_what_was_meant(text, said):
    with pytest.raises(UnknownNameError, match=said):
        ModelName.parse(text)


def test_the_objectives_of_the_library_are_names_before_torch_is_imported():
    script = """
import sys
from rsnn_zoo.spec.names import objectives
assert 'torch' not in sys.modules
print(*objectives())
"""
    known = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"alp", "fast", "qub", "rat"} < set(known)
    assert set(known) == {name for name, objective in OBJECTIVES.items() if not objective.teacher}


def test_a_registered_objective_joins_the_grammar(monkeypatch):
    monkeypatch.setattr(names, "_objectives", list(names.objectives()))
    add_objective("awp")
    assert ModelName.parse("vgg11_svhn_awp_t2").objective == "awp"
    with pytest.raises(ValueError, match="already registered"):
        add_objective("awp")
    with pytest.raises(ValueError, match="lower-case"):
        add_objective("my_objective")
