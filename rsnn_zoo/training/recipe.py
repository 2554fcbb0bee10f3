"""Recipes: every number of a training in one file, read strictly.

A recipe file (TOML) has the tables ``data``, ``ann``, ``neuron``, ``conversion``, ``snn`` and ``direct``, and under
``variants.OBJECTIVE`` what differs for one objective of the ANN, or of direct training. With ``base = "NAME"`` it says
only what differs from another recipe. Numbers may be written as fractions: ``eps = "8/255"``.

Example:
    >>> recipe = load_recipe("digits", "trades")
    >>> recipe.ann.objective, recipe.snn.attack
    ('trades', 'rfgsm')
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from rsnn_zoo._utils.files import ConfigError, printable, read_text
from rsnn_zoo.spec.config import FILE_NAME
from rsnn_zoo.spec.names import near_matches
from rsnn_zoo.training.objectives import OBJECTIVES, get_objective
from rsnn_zoo.training.stages import Conversion, Neuron, Recipe, RecipeError, Split, Stage, split_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DEFAULTS",
    "Conversion",
    "Neuron",
    "Recipe",
    "RecipeError",
    "Split",
    "Stage",
    "load_recipe",
    "recipe_names",
    "split_of",
]

FOLDER = Path(__file__).parent / "recipes"
MAX_BYTES = 2**16
_MAX_LINE, _MAX_DEPTH = 1000, 8
_NUMBER = re.compile(
    r"\s*[+-]?(\d{1,16}(\.\d{0,20})?|\.\d{1,20})(e[+-]?\d{1,2}|/\d{1,16})?\s*", re.IGNORECASE | re.ASCII
)


DEFAULTS: dict[str, Any] = {
    name: asdict(table)
    for name, table in {"stage": Stage(), "data": Split(), "neuron": Neuron(), "conversion": Conversion()}.items()
}
"""What the tables in the record of a training hold where that says nothing, as one of an older version does not."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(source: str | Path, objective: str, changes: Iterable[str] = ()) -> Recipe:
    """Reads a recipe for one objective.

    Args:
        source: A name of :func:`recipe_names`, or the path of a ``.toml`` file.
        objective: Objective of the ANN's training, or of direct training.
        changes: What to change, as lines of TOML: ``"ann.epochs = 5"``.

    Raises:
        RecipeError: If the file or a change is no TOML, or a key is unknown, of the wrong type or out of bounds.
        FileNotFoundError: If there is no such recipe.
        OSError: If it cannot be read, or is no regular file.
        ValueError: If the objective is unknown.
    """
    get_objective(objective)
    path = Path(source) if str(source).endswith(".toml") else FOLDER / f"{source}.toml"
    if not os.path.exists(path):
        near = near_matches(str(source), recipe_names())
        raise FileNotFoundError(f"no recipe {printable(source)}{near}, or a .toml file")
    content = _with_base(path, ())
    variants = content.pop("variants", {})
    if not _is_table(variants) or not all(map(_is_table, variants.values())):
        raise RecipeError(f"{path}: variants must hold tables, such as [variants.at.ann]")
    for name in variants:
        if name not in OBJECTIVES:
            raise RecipeError(f"{path}: variants.{name}{near_matches(name, OBJECTIVES)}")
    content = _merged(content, variants.get(objective, {}))
    for change in changes:
        content = _merged(content, _toml(change, f"the change {change!r}"))
    for table in ("ann", "direct"):
        if _is_table(stage := content.get(table)):
            if (given := stage.get("objective", objective)) != objective:
                raise RecipeError(f"{path}: {table}.objective is {given!r}, not {objective!r} as the model's name says")
            content = content | {table: {**stage, "objective": objective}}
    return _build(Recipe, {"name": path.stem} | content, str(path))


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """What a file says, over what its base says."""
    try:
        content = _toml(read_text(path, MAX_BYTES), str(path))
    except ConfigError as error:
        raise RecipeError(str(error)) from None
    if (base := content.pop("base", None)) is None:
        return content
    if not isinstance(base, str) or not FILE_NAME.fullmatch(base):
        raise RecipeError(f"{path}: base is {base!r:.100}, must be the name of a recipe, such as 'digits'")
    beside = path.with_name(f"{base}.toml")
    found = beside if beside.is_file() else FOLDER / beside.name
    if found in (path, *above) or not found.is_file():
        raise RecipeError(f"{path}: base is {base!r}{near_matches(str(base), recipe_names())}, or a file beside it")
    return _merged(_with_base(found, (path, *above)), content)


def _toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML whose size is bounded first: the parser takes the square of the length of a dotted key, and more."""
    if len(text) > MAX_BYTES or max(map(len, text.splitlines()), default=0) > _MAX_LINE:
        raise RecipeError(f"{source} is too long: at most {MAX_BYTES:,} bytes, in lines of {_MAX_LINE}")
    try:
        content = tomllib.loads(text)
        if _is_deep(content):
            raise RecursionError
        return content
    except RecursionError:
        raise RecipeError(f"{source} is nested too deeply: a recipe has tables, such as [ann], of values") from None
    except ValueError as error:  # TOMLDecodeError, and a number that is none
        raise RecipeError(f"{source} is not TOML: {error}; write strings in quotes, tables as [ann]") from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, table by table."""
    both = {key: _merged(base[key], over[key]) for key in over if _is_table(base.get(key)) and _is_table(over[key])}
    return {**base, **over, **both}


def _is_deep(value: Any) -> bool:
    layer = [value]
    for _ in range(_MAX_DEPTH):
        layer = [each for one in layer for each in (one.values() if _is_table(one) else one if _is_list(one) else ())]
    return bool(layer)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


_T = TypeVar("_T")


def _number_of(text: str) -> float:
    """The number that a text of few digits stands for: of 1e999999999 a fraction would fill the memory.

    Raises:
        ValueError: If it is none.
        ZeroDivisionError: If it is divided by 0.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError("no number")
    return float(Fraction(text))


def _build(cls: Callable[..., _T], content: Any, where: str) -> _T:
    """A dataclass from a table, and those in its fields from the tables inside."""
    if not _is_table(content):
        raise RecipeError(f"{where} must be a table")
    known = {item.name: item.default for item in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in content.items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key!r}{near_matches(key, known)}")
        default = known[key]
        if is_dataclass(default):
            value = _build(type(default), value, f"{where}: {key}")
        elif isinstance(default, float) and isinstance(value, str):
            try:
                value = _number_of(value)
            except (ValueError, ZeroDivisionError):
                raise RecipeError(f'{where}: {key} is {value!r:.100}, no number; write 0.1 or "8/255"') from None
        values[key] = value
    try:
        return cls(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
