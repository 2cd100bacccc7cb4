"""What the terminal shows while a run lasts. Reads only the run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from launcher.rundir import summary, timeline
from launcher.rundir.directory import RunDir
from launcher.rundir.jsonl import JsonlTail
from launcher.rundir.logs import visible
from launcher.rundir.state import RunState

POLL_SECONDS = 0.1
PLAIN_SECONDS = 10.0
"""Seconds between progress lines if the output is not a terminal."""


def watch(run: RunDir, state_now: Callable[[], RunState], console: Console) -> RunState:
    """Show the run until `state_now` gives a final state, and return that."""
    if summary.is_program(run):  # it may draw progress bars of its own
        view: _PlainView = _ProgramView(run, console)
    else:
        view = _LiveView(run, console) if console.is_terminal else _PlainView(run, console)
    with view:
        while True:
            state = state_now()  # before the update, so that nothing written before the end is missed
            view.update()
            if state.is_final:
                return state
            time.sleep(POLL_SECONDS)


class _PlainView:
    """One line per event, and one per ten seconds of training: for files and CI."""

    def __init__(self, run: RunDir, console: Console) -> None:
        self.console = console
        self.events = JsonlTail(run.events)
        self.metrics = JsonlTail(run.metrics)
        self.total: int | None = None
        self.last: dict[str, Any] = {}
        self.printed = 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass

    def update(self) -> None:
        for event in self.events.read():
            self.total = event.get("total_steps", self.total)
            if line := describe(event):
                self.console.print(line, highlight=False)
        for metric in self.metrics.read():
            if "loss" in metric:
                self.last = metric
                self.metric(metric)

    def metric(self, metric: dict[str, Any]) -> None:
        if time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.console.print(f"  step {metric['step']}/{self.total or '?'}  {_numbers(metric)}", highlight=False)


class _ProgramView(_PlainView):
    """The events, and the output of rank 0 line by line."""

    def __init__(self, run: RunDir, console: Console) -> None:
        super().__init__(run, console)
        self.log = run.rank_log(0, 0)
        self.offset = run.record.log_start

    def __exit__(self, *exc: object) -> None:
        self._print(last=True)

    def update(self) -> None:
        super().update()
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
            self.console.file.write(f"{visible(line)}\n")
        self.console.file.flush()


class _LiveView(_PlainView):
    """The events, above one progress bar."""

    def __init__(self, run: RunDir, console: Console) -> None:
        super().__init__(run, console)
        self.progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("starting", total=None)
        self.live = Live(self.progress, console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> None:
        self.live.start()

    def __exit__(self, *exc: object) -> None:
        self.live.stop()

    def metric(self, metric: dict[str, Any]) -> None:
        self.progress.update(
            self.task, total=self.total, completed=metric["step"], description=_numbers(metric), refresh=False
        )


def describe(event: dict[str, Any]) -> str | None:
    """The line for an event that is shown, or None."""
    name = event.get("event")
    if name == "phase":
        return f"  {timeline.PHASES.get(event.get('name', ''), event.get('name'))}"
    if name == "resumed":
        return f"  resumed from the checkpoint of step {event.get('step')}"
    if name == "length_changed":
        return f"  {event.get('steps')} steps in total instead of {event.get('planned')}; the learning rate follows"
    if name == "restart":
        return f"  [yellow]restart {event.get('count')}[/yellow]: {escape(str(event.get('reason')))}"
    if name == "hang":
        return f"  [yellow]hang[/yellow]: {escape(str(event.get('message')))}; the stacks: zlaunch status"
    if name == "request":
        by = f" by {escape(str(event['by']))}" if event.get("by") else ""
        return f"  {escape(str(event.get('request')))} requested{by}"
    if name in ("note", "engine"):
        return f"  {escape(str(event.get('text') or event.get('reason')))}"
    return None


def _numbers(metric: dict[str, Any]) -> str:
    parts = [f"loss {metric['loss']:.4f}"]
    if metric.get("tokens_per_second"):
        parts.append(f"{metric['tokens_per_second']:,.0f} tokens/s")
    if metric.get("peak_memory_bytes"):
        parts.append(f"{metric['peak_memory_bytes'] / 2**30:.1f} GiB")
    return "  ".join(parts)
