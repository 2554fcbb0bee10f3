"""Names of a package that are imported at first use, so that importing the package costs next to nothing."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, **names: str) -> Callable[[str], Any]:
    """Make a module's ``__getattr__``.

    Args:
        package: The module's ``__name__``.
        names: For a module inside ``package``, the names that ``package`` takes from it, apart by spaces.

    Returns:
        A function that imports the module of a name, keeps the value in ``package`` and returns it; an unknown name is
        an :class:`AttributeError`.

    Example:
        >>> __getattr__ = lazy("rsnn_zoo.hub", resolve="entries_folder entry_folder")
        >>> __getattr__("entries_folder").__module__
        'rsnn_zoo.hub.resolve'
    """
    home = {name: f"{package}.{module}" for module, listed in names.items() for name in listed.split()}

    def attribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(import_module(package), name, value)
        return value

    return attribute
