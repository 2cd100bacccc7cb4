"""The live view in a real terminal: tmux at two sizes, over a run directory that grows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.beds.terminal import ROOT, Terminal

RUN = "demo-20260101-120000-beef"

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tests/testbed/install.sh installs tmux")


class Growing(Terminal):
    """A terminal that watches a living run below `root`."""

    def __init__(self, root: Path, width: int, height: int, **environ: str) -> None:
        super().__init__(root, width, height, {"ZLAUNCH_RUNS": str(root), **environ})
        self.root = root
        bed = [sys.executable, "-m", "tests.beds.growing", str(root), "0.3"]
        self.agent = subprocess.Popen(bed, cwd=ROOT, env=self.environ)
        self.wait((root / RUN / "run.json").exists)
        self.zlaunch("watch")

    def let_it_end(self) -> None:
        (self.root / RUN / "go").touch()

    def close(self) -> None:
        super().close()
        self.agent.kill()
        self.agent.wait()


@pytest.fixture(params=[(80, 24), (160, 50)], ids=["80x24", "160x50"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Growing]:
    found = Growing(tmp_path, *request.param)
    yield found
    found.close()


def test_the_view_shows_the_run_asks_before_it_stops_and_ends_with_the_verdict(terminal: Growing) -> None:
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
    terminal = Growing(tmp_path, 80, 24, NO_COLOR="1")
    try:
        terminal.wait_for("step 31 of 63, 49%")
        assert re.search(r"\x1b\[3[0-8]m", terminal.tmux("capture-pane", "-p", "-e")) is None
        terminal.press("q")
        terminal.wait_for("exit code 0")
        assert "goes on" in terminal.screen()
        assert terminal.agent.poll() is None
        terminal.zlaunch("watch", RUN)
        terminal.wait_for("step 31 of 63, 49%")
        terminal.press("C-c")
        terminal.wait_for("stop the run?")
        terminal.press("s")
        shown = terminal.wait_for("exit code 130")
        assert "CANCELLED" in shown
        terminal.wait(lambda: terminal.agent.poll() is not None)
    finally:
        terminal.close()
