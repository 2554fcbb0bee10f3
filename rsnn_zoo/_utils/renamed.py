"""Names that a module had in version 0.1.0, so that what imports them goes on working."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


def renamed(module: str, **names: str) -> Callable[[str], Any]:
    """Make a module's ``__getattr__``.

    Args:
        module: The module's ``__name__``.
        names: What each old name is called now, in the same module.

    Returns:
        A function that warns and gives the value of the new name; an unknown name is an :class:`AttributeError`.

    Example:
        >>> __getattr__ = renamed("rsnn_zoo.evaluation.examples", verify="verify_examples")
        >>> __getattr__("verify").__name__
        'verify_examples'
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(module), names[name])

    return attribute
