"""The grammar of model names: ``{architecture}_{dataset}_{objective}_t{T}`` or ``..._ann``, then an optional ``.tag``.

Every name of the grid can be built; it is *published* when ``hub_configs/NAME/`` exists. Nothing here imports torch.

Example:
    >>> name = ModelName.parse("wrn16_4_cifar10_trades_t8.linf8")
    >>> name.architecture, name.timesteps, name.tag
    ('wrn16_4', 8, 'linf8')
    >>> str(name)
    'wrn16_4_cifar10_trades_t8.linf8'
"""

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from rsnn_zoo._utils.renamed import renamed
from rsnn_zoo.spec.datasets import DATASETS

_architectures = ["vgg11", "vgg16", "resnet20", "resnet32", "wrn16_4", "wrn28_4"]
MAX_TIMESTEPS = 1000  # far beyond any published SNN, and small enough that no name asks for absurd amounts of memory

# What a name may say before training.objectives, which needs torch, is imported; a test holds the two together.
_objectives = ["natural", "at", "trades", "mart", "alp", "fast", "qub", "rat"]
_GRAMMAR = (
    "{architecture}_{dataset}_{objective}_t{T} or ..._ann, with an optional .tag, e.g. resnet20_cifar10_trades_t8"
)
_TIME = re.compile("ann|t(?P<steps>[1-9][0-9]{0,9})")
_TAG = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")


class UnknownNameError(ValueError):
    """A model name, or a part of one, that the zoo does not know."""


@dataclass(frozen=True)
class ModelName:
    """A model name, part by part; ``str()`` gives back the text that ``parse`` read.

    Attributes:
        architecture: One of :func:`architectures`.
        dataset: A key of ``rsnn_zoo.spec.datasets.DATASETS``.
        objective: One of :func:`objectives`.
        timesteps: Number of time steps, 1 to ``MAX_TIMESTEPS``; None for the un-converted ReLU network.
        tag: The recipe, e.g. ``"linf8"``; None for the default recipe of that name.

    Raises:
        UnknownNameError: If a part is unknown; says which, with the near matches and the known values.
    """

    architecture: str
    dataset: str
    objective: str
    timesteps: int | None
    tag: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not of the grid."""
        for part, known in (("architecture", _architectures), ("dataset", DATASETS), ("objective", _objectives)):
            if (value := getattr(self, part)) not in known:
                own = "" if part == "dataset" else "; one of your own is to be registered first (--plugin FILE.py)"
                raise UnknownNameError(f"unknown {part} {value!r}{near_matches(value, known)}{own}")
        if self.timesteps is not None and not 1 <= self.timesteps <= MAX_TIMESTEPS:
            raise UnknownNameError(f"time steps must be from 1 to {MAX_TIMESTEPS}, not {self.timesteps}")
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise UnknownNameError(f"tag {self.tag!r} is not lower-case letters and digits joined by single '-' or '_'")

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Read a name such as ``resnet20_digits_trades_t4``.

        Raises:
            UnknownNameError: If the text does not follow the grammar or a part is unknown.
        """
        stem, dot, tag = text.partition(".")
        # The last three parts hold no underscore, so an architecture may.
        parts = stem.rsplit("_", 3)
        try:
            if len(parts) < 4:
                raise UnknownNameError("a name has four parts (a module of your own goes to rsnn_zoo.evaluate)")
            architecture, dataset, objective, time = parts
            if not (match := _TIME.fullmatch(time)):
                raise UnknownNameError(
                    f"{time!r} is neither 'ann' nor 't' and a number of time steps without leading 0"
                )
            steps = int(match["steps"]) if match["steps"] else None
            return cls(architecture, dataset, objective, steps, tag if dot else None)
        except UnknownNameError as error:
            raise UnknownNameError(f"Model name {text[:200]!r}: {error}. Names are {_GRAMMAR}") from None

    def __str__(self) -> str:
        """Return the name as users write it."""
        time = "ann" if self.timesteps is None else f"t{self.timesteps}"
        tag = "" if self.tag is None else f".{self.tag}"
        return f"{self.architecture}_{self.dataset}_{self.objective}_{time}{tag}"


def architectures() -> tuple[str, ...]:
    """Return the known architectures, those of the zoo first, then the registered ones."""
    return tuple(_architectures)


def objectives() -> tuple[str, ...]:
    """Return the known training objectives, those of the papers first, then the registered ones."""
    return tuple(_objectives)


def add_objective(name: str) -> None:
    """Make a new training objective part of the grammar.

    Args:
        name: Lower-case letters and digits; no underscore, which separates the parts of a name.

    Raises:
        ValueError: If the name is malformed or taken.
    """
    check_objective(name, _objectives)
    _objectives.append(name)


def check_objective(name: str, known: Collection[str]) -> None:
    """Raises ValueError if the name of a new objective is malformed, or among the known ones."""
    _check_new_name("Objective", name, known, "[a-z][a-z0-9]*", "lower-case letters and digits, starting with a letter")


def add_architecture(name: str) -> None:
    """Make a new architecture part of the grammar.

    Args:
        name: Lower-case letters and digits, in parts joined by single underscores.

    Raises:
        ValueError: If the name is malformed or taken.
    """
    pattern = "[a-z][a-z0-9]*(_[a-z0-9]+)*"
    _check_new_name(
        "Architecture", name, _architectures, pattern, "lower-case letters and digits joined by single underscores"
    )
    _architectures.append(name)


def _check_new_name(what: str, name: str, known: Collection[str], pattern: str, described: str) -> None:
    if not re.fullmatch(pattern, name):
        raise ValueError(f"{what} {name!r} must be {described}")
    if name in known:
        raise ValueError(f"{what} {name!r} is already registered; choose another name")


def near_matches(value: str, known: Iterable[str]) -> str:
    """Return the end of an error message: what ``value`` may have meant, and all that is known."""
    known = list(known)
    near = difflib.get_close_matches(value[:200], known)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"{hint}; known: {', '.join(known) or 'none'}"


def is_model(name: str) -> bool:
    """Whether ``name`` is of the grid, so that :func:`rsnn_zoo.create_model` can build it.

    Example:
        >>> is_model("resnet20_cifar10_trades_t6"), is_model("resnet21_cifar10_trades_t6")
        (True, False)
    """
    try:
        ModelName.parse(name)
    except UnknownNameError:
        return False
    return True


__getattr__ = renamed(
    __name__,
    ARCHITECTURES="_architectures",
    register_architecture="add_architecture",
    register_objective="add_objective",
)
