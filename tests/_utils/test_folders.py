"""Files that change together: all or none, whatever is killed, and no writer of the same folder in between."""

import os
import subprocess
import sys

import pytest

from rsnn_zoo._utils.files import load_json, replacing
from rsnn_zoo._utils.folders import commit, current, locked
from rsnn_zoo.report.results_file import add_row, read_rows

OLD, NEW = ({name: f"{name} {when}".encode() for name in "abc"} for when in ("before", "after"))
KILLED = """
import os, signal, sys
from pathlib import Path
from rsnn_zoo._utils.folders import commit
calls = []
def counted(real):
    def call(*args, **kwargs):
        calls.append(real)
        if len(calls) > int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("replace", "fsync", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
commit(Path(sys.argv[1]), lambda: {name: f"{name} after".encode() for name in "abc"})
"""


def held(folder):
    return {name: current(folder, name).read_bytes() for name in "abc"}


@pytest.mark.parametrize("calls", range(10))
def test_a_kill_at_any_moment_leaves_all_old_or_all_new(tmp_path, calls):
    commit(tmp_path, lambda: OLD)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(calls)], capture_output=True, text=True)
    assert ended.returncode in (0, -9), ended.stderr
    before = held(tmp_path)
    assert before in (OLD, NEW) and (before == OLD or calls >= 4)  # three files and the journal
    commit(tmp_path, lambda: {"d": b"else"})  # the next writer goes on, and sweeps
    assert held(tmp_path) == before and sorted(os.listdir(tmp_path)) == [*"abcd"]


def test_an_error_leaves_all_old(tmp_path, monkeypatch):
    commit(tmp_path, lambda: OLD)

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        commit(tmp_path, lambda: NEW)
    assert held(tmp_path) == OLD and sorted(os.listdir(tmp_path)) == [*"abc"]


@pytest.mark.parametrize(
    "journal", [b"[", b'{"a": "/etc/passwd"}', b'{"a": "../a"}', b'{"a": 1}', b'{"../a": ".a.1.new"}']
)
def test_a_journal_of_a_stranger_names_no_file_outside(tmp_path, journal):
    commit(tmp_path, lambda: OLD)
    (tmp_path / ".commit.json").write_bytes(journal)
    assert held(tmp_path) == OLD
    commit(tmp_path, lambda: NEW)
    assert held(tmp_path) == NEW and sorted(os.listdir(tmp_path)) == [*"abc"]


def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".report.json.{pid}.tmp").write_text("half")
    with replacing(tmp_path / "report.json") as temporary:
        temporary.write_text("{}")
    assert sorted(os.listdir(tmp_path)) == [f".report.json.{os.getppid()}.tmp", "report.json"]


ADD = """
import sys
from pathlib import Path
from rsnn_zoo.report.results_file import add_row
for number in range(20):
    add_row(Path(sys.argv[1]), {"model": f"{sys.argv[2]} {number}", "flags": ""})
"""


def test_evaluations_that_end_at_once_lose_no_row(tmp_path):
    path = tmp_path / "results.json"
    several = [subprocess.Popen([sys.executable, "-c", ADD, str(path), who]) for who in "xyz"]
    assert [one.wait() for one in several] == [0, 0, 0]
    assert len(load_json(path)) == 60


def test_rows_go_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "results.csv", tmp_path / "elsewhere" / "results.csv"
    real.write_text("\ufeffmodel,flags\nfirst,\n", encoding="utf-8")  # as spreadsheets write it
    link.symlink_to(real)
    for path, model in ((link, "second"), (real, "third")):
        add_row(path, {"model": model})
    assert [row["model"] for row in read_rows(link)] == ["first", "second", "third"] and link.is_symlink()


def test_a_reader_waits_for_a_writer(tmp_path):
    commit(tmp_path, lambda: OLD)
    code = "import sys; from rsnn_zoo._utils.folders import locked\nwith locked(sys.argv[1], shared=True): print(1)"
    with locked(tmp_path):
        reader = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(2)
    assert reader.communicate(timeout=300)[0] == b"1\n"
