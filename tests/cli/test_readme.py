"""README and docs say what the result files say, and their commands and names exist."""

import re
import subprocess
import sys
from pathlib import Path

import rsnn_zoo

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))


def test_tables_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "scripts" / "readme_tables.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_changed_figure_is_noticed(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import readme_tables as t; "
    script += f"text = open({str(ROOT / 'README.md')!r}, encoding='utf-8').read(); i = text.index('<!-- end results'); "
    script += "print(t.filled(text[: i - 3] + '9' + text[i - 2 :], t.PAGES[t.ROOT / 'README.md']) == text)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 200, "what users need beyond the start belongs into docs/"


def test_the_opening_names_the_entries():
    opening, names = README[: README.index("```python")], set(rsnn_zoo.list_models(pretrained=True))
    digits = set(rsnn_zoo.list_models("resnet20_digits_*", pretrained=True))
    assert len(digits) == 8 and "eight ResNet-20 entries" in opening
    assert set(re.findall(r"`(\w+_(?:ann|t\d+))`", opening)) == names - digits


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(rsnn_zoo.__version__)}$", text, re.MULTILINE)
    assert "Adversarially Robust Spiking Neural Networks Through Conversion" in text


def test_scripts_and_models_that_it_names_exist():
    for script in set(re.findall(r"scripts/[a-z_]+\.py", PAGES)):
        assert (ROOT / script).is_file(), script
    for name in set(re.findall(r'rsnn_zoo\.create_model\("([a-z0-9_.]+)"', PAGES)):
        known = re.sub("^(resnet18|theirs)_", "resnet20_", name)  # which pages show how to register
        assert rsnn_zoo.is_model(known), name
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGES, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


HELP = """
import pathlib, runpy, sys
for script in sys.argv[1:]:  # in one process, since each of its own imports torch anew
    sys.argv, sys.path[:1] = [script, "--help"], [str(pathlib.Path(script).parent)]
    print("\\n=====", pathlib.Path(script).name)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


def test_every_script_explains_itself():
    scripts = sorted((ROOT / "scripts").glob("[!_]*.py"))
    run = subprocess.run([sys.executable, "-c", HELP, *map(str, scripts)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = dict(part.split("\n", 1) for part in run.stdout.split("\n===== ")[1:])
    assert len(scripts) > 10 and {name for name, text in said.items() if "usage" in text} == {s.name for s in scripts}
