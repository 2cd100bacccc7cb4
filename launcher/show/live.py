"""The live view of a run: a screen in a terminal, lines in a pipe. Reads only the run directory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from rich.console import Group
from rich.live import Live
from rich.markup import escape

from launcher.machine.interrupts import handled
from launcher.machine.language.spoken import said, shown
from launcher.machine.output import printable
from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.logs import visible
from launcher.rundir.picture import Event, Picture
from launcher.rundir.reading import Reader
from launcher.rundir.state import RunState
from launcher.show.frame import frame, one_line
from launcher.show.keys import Keys
from launcher.show.terminal import Console

POLL_SECONDS = 0.1
FRAME_SECONDS = 0.5
"""Seconds between two frames."""
PLAIN_SECONDS = 10.0
"""Seconds between lines about the progress if the output is not a terminal."""
KEYS = "q: leave, the run goes on   Ctrl-C: stop it"
ASKED = "stop the run?   s: after a checkpoint   l: leave it running   other keys: back"
PLAIN_EVENTS = (
    "phase",
    "resumed",
    "length_changed",
    "early_stopping",
    "restart",
    "hang",
    "request",
    "note",
    "engine",
    "warning",
    "tracker",
    "notice",
    "evaluation",
)
"""Events that a pipe gets a line for."""


class Left(Exception):
    """The user left the view; the run goes on."""


class StopRequested(KeyboardInterrupt):
    """The user wants the run to stop, and was asked."""


def watch(
    run: RunDir, state_now: Callable[[], RunState], console: Console, notice: Callable[[], str] = lambda: ""
) -> RunState:
    """Show the run until `state_now` gives a final state, and return that.

    `notice`: what the user should know of the answer, if anything. Raises Left, StopRequested, and KeyboardInterrupt
    where there is no terminal to ask in.
    """
    view: _View
    if summary.is_program(run):  # it may draw progress bars of its own
        view = _ProgramView(run, console)
    else:
        view = _Screen(run, console) if console.is_terminal and not console.is_dumb_terminal else _Lines(run, console)
    with view:
        while True:
            state = state_now()  # before the update, so that nothing written before the end is missed
            view.update(state, notice())
            if state.is_final:
                return state
            view.wait()


class _View(Protocol):
    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> None: ...
    def update(self, state: RunState, notice: str) -> None: ...
    def wait(self) -> None: ...


class _Lines:
    """One line per event, and one about the progress every ten seconds: for files and CI."""

    def __init__(self, run: RunDir, console: Console) -> None:
        self.console = console
        self.reader = Reader(run)
        self.events = 0
        self.printed = 0.0
        self.said = self.noticed = ""

    def __enter__(self) -> object:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def wait(self) -> None:
        time.sleep(POLL_SECONDS)

    def update(self, state: RunState, notice: str) -> None:
        if notice and notice != self.noticed:
            self.console.print(f"  {escape(notice)}", highlight=False)
        self.noticed = notice
        picture = self.reader.read(state)
        self.events = min(self.events, len(picture.events))
        for event in picture.events[self.events :]:
            if line := plain(event):
                self.console.print(line, highlight=False)
        self.events = len(picture.events)
        self._progress(picture)

    def _progress(self, picture: Picture) -> None:
        now = time.monotonic()
        line = one_line(picture)
        if now - self.printed >= PLAIN_SECONDS and line != self.said and self._has_news(picture):
            self.printed, self.said = now, line
            self.console.print(f"  {escape(line)}", highlight=False)

    def _has_news(self, picture: Picture) -> bool:
        """Whether there is more to say than the line of the phase has said."""
        return picture.count is not None and picture.phase != "ended" and bool(picture.count.done)


class _ProgramView(_Lines):
    """The events, and the output of rank 0 line by line."""

    def __init__(self, run: RunDir, console: Console) -> None:
        super().__init__(run, console)
        self.log = run.rank_log(0, 0)
        self.offset = run.record.log_start

    def __exit__(self, *exc: object) -> None:
        self._print(last=True)

    def update(self, state: RunState, notice: str) -> None:
        super().update(state, notice)
        self._print()

    def _print(self, *, last: bool = False) -> None:
        try:
            with self.log.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.offset:  # the log of another host: the first node has changed
                    self.offset = 0
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data if last else data[: data.rfind(b"\n") + 1]
        self.offset += len(complete)
        for line in complete.removesuffix(b"\n").split(b"\n") if complete else ():
            self.console.file.write(f"{printable(visible(line))}\n")
        self.console.file.flush()


class _Screen:
    """The picture on a screen of its own, drawn anew twice a second. The terminal is as before when it ends."""

    def __init__(self, run: RunDir, console: Console) -> None:
        self.reader, self.console = Reader(run), console
        self.keys = Keys()
        self.live = Live(console=console, screen=True, auto_refresh=False, transient=True)
        self.asking = False
        """A Ctrl-C came, and what it means is asked."""
        self.signals = contextlib.ExitStack()

    def __enter__(self) -> object:
        self.keys.__enter__()
        if self.keys.are_there:
            self.signals.enter_context(handled((signal.SIGINT,), self._ctrl_c))
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.stop()
        self.signals.close()
        self.keys.__exit__()

    def _ctrl_c(self, number: int, at: FrameType | None) -> None:
        """The first is a question, so that no conversation with a host breaks off; the second means to stop."""
        if self.asking:
            raise StopRequested
        self.asking = True

    def update(self, state: RunState, notice: str) -> None:
        width, height = self.console.size
        encoding = getattr(self.console.file, "encoding", None) or "utf-8"
        keys = said(KEYS) if self.keys.are_there else said("Ctrl-C: stop the run")
        footer = said(ASKED) if self.asking else shown(notice) or keys
        lines = frame(self.reader.read(state), width=width, height=height, encoding=encoding, footer=footer)
        self.live.update(Group(*lines), refresh=True)

    def wait(self) -> None:
        """Until the next frame is due. Raises Left or KeyboardInterrupt if a key says so."""
        if not self.keys.are_there:
            time.sleep(FRAME_SECONDS)
            return
        try:
            key = self.keys.read(FRAME_SECONDS).lower()
        except EOFError:  # the terminal is gone; its hang-up says what becomes of the run
            time.sleep(FRAME_SECONDS)
            return
        if key == "q" or (key == "l" and self.asking):
            raise Left
        if key in ("s", "y") and self.asking:
            raise StopRequested
        self.asking = self.asking and not key


def plain(event: Event) -> str | None:
    """The line of an event for a pipe, as Rich markup; None: none."""
    if event.text is None or event.event not in PLAIN_EVENTS:
        return None
    text = escape(shown(event.text))
    if event.event == "engine":
        text = escape(shown(str(event.fields.get("reason"))))
    if event.event == "hang":
        text += said("; the stacks: zlaunch status")
    return f"  [yellow]{text}[/yellow]" if event.event in ("restart", "hang") else f"  {text}"
