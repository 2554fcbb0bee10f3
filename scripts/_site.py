"""What the site is made of beside docs/*.md: the README as its first page, cards, findings, API pages, the leaderboard.

MkDocs calls the functions below (``hooks`` in mkdocs.yml), so that nothing has to be copied into docs/ by hand. Links
of a page that lead out of docs/ work in the repository and are turned into those of the site here.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rsnn_zoo.report.leaderboard import leaderboard_page, read_entry  # noqa: E402

ENTRIES = sorted(path.parent for path in (ROOT / "hub_configs").glob("*/evaluation.json"))
FOLDERS = {
    "spec": "Names, data sets, configs",
    "neurons": "Neurons and backward modes",
    "data": "Images",
    "models": "Networks and weights",
    "conversion": "Conversion",
    "report": "Reports, cards, figures",
    "hub": "Entries and the Hub",
    "attacks": "Attacks",
    "evaluation": "Evaluation",
    "training": "Training",
    "exports": "Exports",
    "": "One call",
}
"""Folders of the package that have a page of the reference, in the order in which they import each other."""


def on_config(config: Any) -> None:
    """Add to the navigation what is found in the tree: pages nobody listed, cards, and the API reference."""
    listed = set(re.findall(r"[\w/]+\.md", repr(config.nav)))
    more = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in listed]
    cards = [{entry.name: f"hub_configs/{entry.name}/README.md"} for entry in ENTRIES]
    reference = ["api/index.md", *(f"api/{page_of(folder)}.md" for folder in FOLDERS)]
    config.nav += [{"More": [*more, {"Changelog": "CHANGELOG.md"}]}, {"API reference": reference}, {"Cards": cards}]


def page_of(folder: str) -> str:
    return folder or "entry"


def on_files(files: Files, config: Any) -> None:
    """Add the pages that are no files of docs/."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    for name, path in (("index.md", "README.md"), ("CHANGELOG.md", "CHANGELOG.md"), ("CITATION.cff", "CITATION.cff")):
        add(name, (ROOT / path).read_text(encoding="utf-8"))
    for entry in ENTRIES:
        for file in ("README.md", "config.json", "evaluation.json"):
            add(f"hub_configs/{entry.name}/{file}", (entry / file).read_bytes())
    where = {entry: f"hub_configs/{entry.name}" for entry in ENTRIES}
    shown = [
        {**read_entry(entry), "card": f"{there}/index.html", "evidence": f"{there}/evaluation.json"}
        for entry, there in where.items()
    ]
    add("board.html", leaderboard_page(shown))
    add("api/index.md", public_names())
    for folder, title in FOLDERS.items():
        modules = "\n\n".join(f"::: {module}" for module in documented(folder))
        add(f"api/{page_of(folder)}.md", f"# {title}\n\n{modules}\n")


def documented(folder: str) -> Iterator[str]:
    """Public modules of a folder."""
    for path in sorted((ROOT / "rsnn_zoo" / folder).glob("*.py")):
        if not path.name.startswith("_"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def public_names() -> str:
    """A table of what ``rsnn_zoo`` itself offers; each name stands on the page of its module."""
    tree = ast.parse((ROOT / "rsnn_zoo" / "__init__.py").read_text(encoding="utf-8"))
    value = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC"
    )
    rows = [
        f"| `rsnn_zoo.{name}` | [`{module}`][rsnn_zoo.{module}.{name}] |"
        for name, module in sorted(ast.literal_eval(value).items())
    ]
    intro = "What `import rsnn_zoo` offers, and the module where it is described."
    return "\n".join(["# API reference", "", intro, "", "| name | described in |", "|---|---|", *rows, ""])


def findings() -> str:
    """The head of each script of findings/, which states versions, what was expected and what was seen."""
    sections = []
    for path in sorted((ROOT / "findings").glob("*.sh")):
        head = re.match(r"#!.*\n((?:#.*\n)+)", path.read_text(encoding="utf-8"))[1]
        title, _, body = re.sub(r"^# ?", "", head, flags=re.MULTILINE).strip().partition("\n")
        sections.append(f"## {title.rstrip('.')}\n\n{body.strip()}\n\n`bash findings/{path.name}`")
    return "\n\n".join(sections)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into those of the site, and put in what stands on the site alone."""
    path = page.file.src_uri
    if path == "index.md":
        return markdown.replace("](docs/", "](")
    if path.startswith("hub_configs/"):
        return re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)  # metadata for the Hub
    if path == "findings.md":
        markdown = markdown.replace("<!-- findings -->", findings())
    if path == "leaderboard.md":
        markdown = markdown.replace("\n", "\n\n**[Open the leaderboard](board.html)**\n", 1)
    return markdown.replace("](../README.md", "](index.md").replace("](../", "](")
