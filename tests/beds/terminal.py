"""A terminal of a size, in tmux: what a command shows in it, and keys that are pressed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Terminal:
    """A tmux session of one window. A command that has ended leaves `exit code N` on the screen."""

    def __init__(self, folder: Path, width: int, height: int, environ: Mapping[str, str]) -> None:
        self.size, self.socket = (width, height), str(folder / f"tmux-{width}")
        self.environ = {**os.environ, "LANG": "C.UTF-8", "TERM": "xterm-256color", **environ}
        self.environ.setdefault("PYTHONPATH", str(ROOT))

    def zlaunch(self, *words: str) -> None:
        """Run this command of ours in the window, in place of what it shows now."""
        command = f"{shlex.join([sys.executable, '-m', 'launcher', *words])}; echo exit code $?; cat"
        if Path(self.socket).exists():
            self.tmux("respawn-pane", "-k", command)
        else:
            size: Sequence[str] = ("-x", str(self.size[0]), "-y", str(self.size[1]))
            self.tmux("-f", "/dev/null", "new-session", "-d", *size, command)

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
            assert time.monotonic() < end, self.screen() if Path(self.socket).exists() else "no window"
            time.sleep(0.1)

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        """The screen once it holds the text."""
        shown = ""

        def is_there() -> bool:
            nonlocal shown
            shown = self.screen()
            return text in shown

        self.wait(is_there, seconds)
        return shown

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], capture_output=True, check=False)
