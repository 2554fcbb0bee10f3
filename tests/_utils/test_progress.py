"""Progress in a log file: few lines, each whole."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsnn_zoo._utils import progress

ROOT = Path(__file__).parents[2]


def test_a_log_file_gets_a_line_at_the_beginning_and_the_end_and_no_carriage_return():
    code = (
        "from rsnn_zoo._utils.progress import bar\n"
        "with bar(total=5000, unit='image') as b:\n"
        "    for i in range(5000):\n"
        "        b.set_postfix_str(str(i), refresh=False); b.update(); b.refresh()\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT).stderr
    assert said.count("\n") == 2 and "\r" not in said
    first, last = said.splitlines()
    assert first.endswith(", 0]") and "5000/5000" in last and last.endswith(", 4999]")


def test_long_work_is_told_of_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.sys, "stderr", out := io.StringIO())
    with progress.bar(total=10, file=out, mininterval=0) as shown:
        for _ in range(10):
            now[0] += 20
            shown.update()
            shown.refresh()
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 5 and "10/10" in lines[-1]


def test_nothing_is_said_where_it_is_off(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", out := io.StringIO())
    with progress.bar(total=1, file=out, disable=True) as shown:
        shown.update()
    assert not out.getvalue()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
@pytest.mark.parametrize("terminal", [True, False])
def test_a_process_that_is_killed_while_it_shows_progress_stops_no_other(terminal):
    """Its parent goes on, and so does one that was forked while a thread of its parent drew."""
    code = f"""
import os, signal, sys, threading
signal.alarm(20)
sys.stderr.isatty = lambda: {terminal}
from rsnn_zoo._utils.progress import bar
kind = type(bar(total=1, disable=True))
if not (child := os.fork()):
    kind.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
list(bar(range(2)))
held, over = threading.Event(), threading.Event()
def draw():
    with kind.get_lock():
        held.set(); over.wait()
threading.Thread(target=draw).start()
held.wait()
if not (child := os.fork()):
    signal.alarm(10)
    list(bar(range(2)))
    os._exit(3)
status = os.waitpid(child, 0)[1]
over.set()
print(os.WEXITSTATUS(status))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "3\n", done.stderr
