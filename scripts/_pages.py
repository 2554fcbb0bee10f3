"""Figures of a script put into a page of the documentation, between two comments that stay."""

import re
from pathlib import Path

from rsnn_zoo._utils.files import replacing


def put_into(page: Path, name: str, text: str) -> None:
    """Put a text between the two comments of that name.

    Raises:
        ValueError: As :func:`replaced`.
    """
    written = replaced(page.read_text(encoding="utf-8"), name, text)
    with replacing(page) as temporary:
        temporary.write_text(written, encoding="utf-8")


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with a text in place of what stands between ``<!-- NAME: ... -->`` and ``<!-- end NAME -->``.

    Raises:
        ValueError: If the page has no such place, or several.
    """
    pattern = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- end {name} -->)", re.DOTALL)
    page, found = pattern.subn(lambda place: f"{place[1]}{text}\n{place[2]}", page)
    if found != 1:
        raise ValueError(f"the markers of the table {name!r} must be on its page once, and are there {found} times")
    return page


def table(header: str, rows: list[list[object]]) -> str:
    """Return a Markdown table; the header's cells are parted by ``|``."""
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).strip() for cell in line)} |" for line in lines)
