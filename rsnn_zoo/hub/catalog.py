"""What the zoo holds, by name: the grid that can be built, and what is published. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import product

from rsnn_zoo.hub.resolve import published_names
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.spec.names import ModelName, UnknownNameError, architectures, is_model, near_matches, objectives

__all__ = ["is_model", "list_models"]

# T of the names that list_models shows for what nobody has published; any other T can be built too.
_LISTED_TIMESTEPS = (None, 4, 8)


def list_models(
    filter: str | Sequence[str] = "*",
    *,
    pretrained: bool = False,
    dataset: str | None = None,
    objective: str | None = None,
) -> list[str]:
    """Names of the zoo, sorted.

    Args:
        filter: A wildcard such as ``"*cifar10*trades*"``, or several of which one must match.
        pretrained: Only names with published weights. Without it the grid is listed with T = 4 and 8, though any T
            can be built.
        dataset: Only this data set.
        objective: Only this training objective.

    Raises:
        UnknownNameError: For an unknown data set or objective.

    Example:
        >>> list_models("resnet20_digits*", pretrained=True, objective="trades")  # doctest: +SKIP
        ['resnet20_digits_trades_ann', 'resnet20_digits_trades_t4']
    """
    for what, value, known in (("data set", dataset, DATASETS), ("objective", objective, objectives())):
        if value is not None and value not in known:
            raise UnknownNameError(f"unknown {what} {value!r}{near_matches(value, known)}")
    # an entry of an architecture that is not registered in this process cannot be built in it
    names = [ModelName.parse(name) for name in published_names() if is_model(name)]
    if not pretrained:
        grid = product(architectures(), DATASETS, objectives(), _LISTED_TIMESTEPS)
        names += [ModelName(*parts) for parts in grid]
    patterns = [filter] if isinstance(filter, str) else filter
    return sorted(
        {
            str(name)
            for name in names
            if dataset in (None, name.dataset)
            and objective in (None, name.objective)
            and any(fnmatchcase(str(name), pattern) for pattern in patterns)
        }
    )
