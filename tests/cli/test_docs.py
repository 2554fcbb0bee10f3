"""Pages of docs/: those that promise it run block by block, and the commands and links of all of them hold."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from rsnn_zoo.cli import commands, main
from rsnn_zoo.evaluation import protocols
from rsnn_zoo.neurons.modes import MODES

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")


def commands_of(text):
    """The lines of a block of a shell, without what they are continued by and remarked with."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.fixture
def forget(forget_architectures):
    """A function after which the plugin that the pages write is unknown too."""

    def call():
        forget_architectures()
        sys.modules.pop("their_network", None)

    yield call
    call()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("page", [pytest.param("start.md", marks=pytest.mark.slow), "submit.md"])
def test_the_page_runs_from_its_first_block_to_its_last(page, tmp_path, monkeypatch, capsys, forget):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    space, ran = {}, []
    for language, text in BLOCK.findall(PAGES[page]):
        if found := FILE.match(text):
            Path(found[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page, "exec"), space)
        elif language == "bash":
            for program, *words in commands_of(text):
                forget()
                assert program == "rsnn-zoo" and main(words) == 0, capsys.readouterr()
        else:
            continue
        ran.append(language)
    assert {"python", "bash"} <= set(ran) and (tmp_path / "leaderboard.html").is_file()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_its_commands_are_understood_and_its_python_is_python(page):
    parser = commands._parser()
    for language, text in BLOCK.findall(PAGES[page]):
        if language == "python":
            ast.parse(text)
        for words in commands_of(text) if language in ("", "bash") else ():
            if words[0] == "torchrun" and "rsnn_zoo.cli" in words:
                words = words[words.index("rsnn_zoo.cli") :]
            elif words[0] != "rsnn-zoo":
                continue
            parser.parse_args(words[1:])


def anchors(text):
    """Those that GitHub and MkDocs give to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(BLOCK, "", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_its_links_lead_somewhere(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(BLOCK, "", PAGES[page])):
        path, _, anchor = target.partition("#")
        if "://" in target or path.startswith("api/"):  # the latter, `make docs` makes and checks
            continue
        there = (folder / path).resolve() if path else folder / page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def test_the_grammar_names_every_attack_protocol_and_mode():
    page = PAGES["protocols.md"]
    attacks = {name.replace("-tK", "-tN").replace("[MODEL]", "[NAME]") for name in protocols._ATTACKS}
    attacks = {re.sub("(transfer.*)-NAME", r"\1-ATTACK", name) for name in attacks}
    versions = {re.sub(r"-v\d+$", "", name) for name in protocols.PROTOCOLS}
    modes = {str(mode).partition("-")[0] for mode in MODES.values()}
    missing = {name for name in attacks | versions if f"`{name}`" not in page}
    assert not missing | {mode for mode in modes if not re.search(rf"`{mode}[`-]", page)}
    assert all(f"`{name}`" in page for name in protocols.MODE_LISTS)
