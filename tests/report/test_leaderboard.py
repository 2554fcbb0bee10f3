"""The leaderboard: it shows the evidence, nothing in it can break out, and it works in a browser, from a file."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.cli import main
from rsnn_zoo.hub.resolve import entries_folder
from rsnn_zoo.report.leaderboard import leaderboard_page, read_entry, save_leaderboard

NAME = "resnet20_digits_trades_t4"
EVIL = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    assert main(["leaderboard", "--output", str(path)]) == 0
    return path


def entries_of(text):
    return json.loads(text.partition('id="entries">')[2].partition("</script>")[0])


def test_every_published_run_is_on_it(page):
    found = {entry["name"]: entry for entry in entries_of(page.read_text(encoding="utf-8"))}
    folders = sorted(path.parent for path in entries_folder().glob("*/evaluation.json"))
    assert sorted(found) == [folder.name for folder in folders] and len(found) > 5
    for folder in folders:
        evidence, entry = load_json(folder / "evaluation.json", 10**9), found[folder.name]
        assert [run["robust"] for run in entry["runs"]] == [run["robust_accuracy"] for run in evidence["runs"]]
        assert set(entry["flags"]) == {flag for flag, one in evidence["flags"].items() if one["raised"]}
        assert entry["clean"] == evidence["clean"]["accuracy"] and evidence["weights_sha256"] in entry["bibtex"]
        assert (page.parent / entry["card"]).is_file() and (page.parent / entry["evidence"]).is_file()


def test_the_page_fetches_nothing(page):
    text = page.read_text(encoding="utf-8").replace('"http://www.w3.org/2000/svg"', "")
    assert "http:" not in text and "https:" not in text and "default-src 'none'" in text


def test_evidence_that_contradicts_itself_is_refused(tmp_path):
    folder = shutil.copytree(entries_folder() / NAME, tmp_path / "theirs")
    assert save_leaderboard(tmp_path / "page.html", [folder]) == 1
    with pytest.raises(ValueError, match=f"several entries are called {NAME}"):
        save_leaderboard(tmp_path / "page.html", [folder, entries_folder() / NAME])
    evidence = load_json(folder / "evaluation.json", 10**9)
    evidence["runs"][0]["robust_accuracy"] = 0.999
    (folder / "evaluation.json").write_bytes(to_json(evidence))
    with pytest.raises(ValueError, match=r"claims robust accuracy 0\.999"):
        save_leaderboard(tmp_path / "page.html", [folder])


def test_evidence_may_leave_out_its_versions(tmp_path):
    folder = shutil.copytree(entries_folder() / NAME, tmp_path / "theirs")
    evidence = load_json(folder / "evaluation.json", 10**9)
    del evidence["versions"]
    (folder / "evaluation.json").write_bytes(to_json(evidence))
    assert "howpublished = {rsnn\\_zoo}" in read_entry(folder)["bibtex"]


def test_an_entry_whose_commit_was_cut_short_is_read_whole(tmp_path):
    folder = shutil.copytree(entries_folder() / NAME, tmp_path / "theirs")
    names = ("config.json", "evaluation.json", "README.md")
    staged = {name: f".{name}.1.new" for name in names}
    for name, new in staged.items():
        (folder / name).rename(folder / new)
    (folder / ".commit.json").write_bytes(to_json(staged))
    found, whole = read_entry(folder), read_entry(entries_folder() / NAME)
    assert found["runs"] == whole["runs"] and found["bibtex"] == whole["bibtex"] and found["card"]
    assert main(["leaderboard", "--folder", str(tmp_path / "none"), str(folder), "--output", str(tmp_path / "p")]) == 0


def test_no_text_of_an_entry_ends_the_element_that_holds_it():
    entry = read_entry(entries_folder() / NAME) | {"name": EVIL}
    text = leaderboard_page([entry])
    assert EVIL not in text and entries_of(text)[0]["name"] == EVIL


# --- in a browser ---------------------------------------------------------------------------------------------------

FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = os.environ.get("CHROMIUM") or next(filter(None, found), None)
    if path is None:
        pytest.skip("no chromium is installed: apt-get install chromium, or set CHROMIUM to one")
    with sync_api.sync_playwright() as playwright:
        options = [f"--{flag}" for flag in (*FLAGS.split(), "disable-sync")]
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens a page from its file; gives it, and what the console and the network had to say."""
    contexts = []

    def call(path, **options):
        contexts.append(browser.new_context(**options))
        opened, said = contexts[-1].new_page(), []
        opened.on(
            "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
        )
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else said.append(one.url))
        opened.goto(Path(path).resolve().as_uri())
        return opened, said

    yield call
    for context in contexts:
        context.close()


def column(opened, number):
    return opened.locator(f"#board tbody tr td:nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_sorting_and_filtering(page, visit):
    opened, said = visit(page)
    runs = [run["protocol"] for entry in entries_of(page.read_text(encoding="utf-8")) for run in entry["runs"]]
    assert len(column(opened, 1)) == sum(protocol.startswith("worst-case") for protocol in runs)  # what is to be quoted
    assert opened.locator("#curves svg").first.locator("polyline").count() > 3  # a curve needs several radii
    assert opened.locator("#curves svg path").count() == len(column(opened, 1))
    opened.locator("#protocol").select_option("")
    total = len(column(opened, 1))
    assert total == len(runs)
    robust = [float(text.split()[0]) for text in column(opened, 6)]
    assert robust == sorted(robust, reverse=True) and len(set(robust)) > 5
    opened.get_by_role("button", name="entry").click()
    assert column(opened, 1) == sorted(column(opened, 1))
    opened.get_by_role("button", name="entry").click()
    assert column(opened, 1) == sorted(column(opened, 1), reverse=True)
    assert opened.locator('th[aria-sort="descending"]').inner_text().startswith("entry")
    opened.locator("#dataset").select_option("digits")
    opened.locator("#kind").select_option("snn")
    opened.locator("#search").fill("trades")
    assert set(column(opened, 1)) == {NAME} and "ANN" not in column(opened, 3)
    assert opened.locator("#curves svg polyline").count() == 1 and opened.locator("#scatter circle").count() == 2
    opened.locator("#search").fill("nothing of that kind")
    assert not column(opened, 1) and opened.locator("#count").inner_text().startswith(f"0 of {total} rows")
    assert not said


@pytest.mark.slow
def test_text_of_a_stranger_stays_text(tmp_path, visit):
    entry = read_entry(entries_folder() / NAME) | {"name": EVIL, "bibtex": EVIL, "card": "javascript:window.broken=1"}
    entry["flags"] = {EVIL: EVIL}
    (tmp_path / "page.html").write_text(leaderboard_page([entry]), encoding="utf-8")
    opened, said = visit(tmp_path / "page.html")
    opened.locator("#protocol").select_option("")
    assert EVIL in column(opened, 1)[0] and opened.evaluate("window.broken") is None and not said
    assert opened.locator("#board a").all_inner_texts() == ["evidence"] * len(entry["runs"])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_nothing_sticks_out_on_a_phone_or_in_the_dark(page, visit, scheme, width, height, tmp_path):
    opened, said = visit(page, viewport={"width": width, "height": height}, color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width and not said
    channels = opened.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(channels) < 60) == (scheme == "dark")
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    opened.screenshot(path=folder / f"leaderboard_{scheme}_{width}.png")
    opened.locator("#curves").scroll_into_view_if_needed()
    opened.screenshot(path=folder / f"leaderboard_{scheme}_{width}_figures.png")
