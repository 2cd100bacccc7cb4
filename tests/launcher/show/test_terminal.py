"""The live view in a real terminal: tmux at two sizes, over a run directory that grows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

ROOT = Path(__file__).parents[3]
RUN = "demo-20260101-120000-beef"

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tests/testbed/install.sh installs tmux")


class Terminal:
    """A tmux session of one window, and a living run below `root`."""

    def __init__(self, root: Path, width: int, height: int, **environ: str) -> None:
        self.root, self.socket = root, str(root / "tmux")
        self.environ = {**os.environ, "ZLAUNCH_RUNS": str(root), "LANG": "C.UTF-8", "TERM": "xterm-256color", **environ}
        bed = [sys.executable, "-m", "tests.beds.growing", str(root), "0.3"]
        self.agent = subprocess.Popen(bed, cwd=ROOT, env=self.environ)
        self.wait((root / RUN / "run.json").exists)
        command = f"{sys.executable} -m launcher watch; echo exit code $?; cat"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), command)

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-S", self.socket, *words]
        done = subprocess.run(command, cwd=ROOT, env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def press(self, key: str) -> None:
        self.tmux("send-keys", key)

    def wait(self, found: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < end, self.screen() if Path(self.socket).exists() else "no run"
            time.sleep(0.1)

    def wait_for(self, text: str) -> str:
        self.wait(lambda: text in self.screen())
        return self.screen()

    def let_it_end(self) -> None:
        (self.root / RUN / "go").touch()

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], capture_output=True, check=False)
        self.agent.kill()
        self.agent.wait()


@pytest.fixture(params=[(80, 24), (160, 50)], ids=["80x24", "160x50"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path, *request.param)
    yield found
    found.close()


def test_the_view_shows_the_run_asks_before_it_stops_and_ends_with_the_verdict(terminal: Terminal) -> None:
    shown = terminal.wait_for("step 31 of 63, 49%")
    lines = shown.splitlines()
    assert lines[0].split() == [RUN, "local", "·", "2", "ranks", "RUNNING"]
    for text in ("held out    4.7200 to 2.6725, after step 26", "7% of the planned speed", "planned 3.0 GiB", "⠉"):
        assert text in shown
    assert max(map(cell_len, lines)) <= (80 if len(lines) <= 24 else 160)
    terminal.press("C-c")
    terminal.wait_for("stop the run?")
    terminal.press("x")
    terminal.wait_for("q: leave, the run goes on")
    terminal.let_it_end()
    shown = terminal.wait_for("exit code 0")
    assert "learned: 4.72 to 1.83 on the held-out records" in shown
    assert f"next: zlaunch chat {RUN}" in shown


def test_q_leaves_the_run_alone_and_s_after_ctrl_c_stops_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, 80, 24, NO_COLOR="1")
    try:
        terminal.wait_for("step 31 of 63, 49%")
        assert re.search(r"\x1b\[3[0-8]m", terminal.tmux("capture-pane", "-p", "-e")) is None
        terminal.press("q")
        terminal.wait_for("exit code 0")
        assert "goes on" in terminal.screen()
        assert terminal.agent.poll() is None
        again = f"{sys.executable} -m launcher watch {RUN}; echo exit code $?; cat"
        terminal.tmux("respawn-pane", "-k", again)
        terminal.wait_for("step 31 of 63, 49%")
        terminal.press("C-c")
        terminal.wait_for("stop the run?")
        terminal.press("s")
        shown = terminal.wait_for("exit code 130")
        assert "CANCELLED" in shown
        terminal.wait(lambda: terminal.agent.poll() is not None)
    finally:
        terminal.close()
