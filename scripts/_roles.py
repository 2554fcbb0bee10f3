"""Docstrings as the site wants them: roles like :func:`name` become links, examples become code.

MkDocs' handler of docstrings loads it (``extensions`` in mkdocs.yml).
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc|obj):`~?([\w.]+)`")
EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Roles(griffe.Extension):
    """Rewrites every docstring once the package is loaded, since a role may name what comes later."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for one in everything_in(pkg):
            if one.docstring:
                text = EXAMPLE.sub(r"\1Examples:", one.docstring.value)
                one.docstring.value = ROLE.sub(lambda found, one=one: link(found[1], one), text)


def everything_in(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from everything_in(member)


def link(name: str, one: griffe.Object) -> str:
    """A link to what a name means at this place, or the name alone, where no page describes it."""
    short = f"`{name.rpartition('.')[2]}`"
    try:
        target = one.modules_collection[name if name.startswith("rsnn_zoo.") else one.resolve(name)]
        path = target.canonical_path
    except (griffe.NameResolutionError, griffe.AliasResolutionError, KeyError):
        return short
    private = any(part.startswith("_") for part in path.split("."))
    return short if private or not target.has_docstring or "." not in path else f"[{short}][{path}]"
