"""A run in the terminal: live while it works, its outcome at the end. Reads only the run directory."""

from __future__ import annotations

import os
import time
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from launcher import summary
from launcher.backends.base import Backend, RunState
from launcher.follow import visible
from launcher.runs import RunDir
from launcher.tail import JsonlTail
from launcher.takeback import stop

POLL_SECONDS = 0.1
PLAIN_SECONDS = 10.0
"""Between progress lines where the output is not a terminal."""

PHASES = {
    "model": "loading the model",
    "adapter": "adding the LoRA adapter",
    "data": "reading and tokenising the records",
    "evaluate_before": "answering the held-out records before training",
    "train": "training",
    "evaluate_after": "answering the held-out records after training",
    "save": "saving the adapter",
}


def follow(run: RunDir, backend: Backend, *, show: IO[str]) -> RunState:
    """Show the run until it ends; Ctrl-C asks for a checkpoint and stops it, a second one does not wait for that.

    The state is final, but for a run that a Ctrl-C could not end: the user has been told why.
    """
    console = Console(file=show)
    console.print(f"[bold]{escape(run.run_id)}[/bold]  {escape(str(run.path))}", highlight=False, soft_wrap=True)
    try:
        return _watch(run, backend, console)
    except KeyboardInterrupt:
        console.print("stopping: a checkpoint first (Ctrl-C again: at once) ...")
        return stop(run, backend)


def _watch(run: RunDir, backend: Backend, console: Console) -> RunState:
    if summary.is_program(run):  # which may draw bars of its own
        shown: _PlainView = _ProgramView(run, console)
    else:
        shown = _LiveView(run, console) if console.is_terminal else _PlainView(run, console)
    with shown:
        while True:
            state = backend.state(run)  # asked before reading, so that nothing written before the end is missed
            shown.update()
            if state.is_final:
                return state
            time.sleep(POLL_SECONDS)


class _PlainView:
    """One line an event, and one every ten seconds of training: for files and CI."""

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
    """The events, and what rank 0 prints, a line at a time as it is."""

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
                if file.seek(0, os.SEEK_END) < self.offset:  # the first node is another host than before
                    self.offset = 0
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data if last else data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.removesuffix(b"\n").split(b"\n") if whole else ():
            self.console.file.write(f"{visible(line)}\n")
        self.console.file.flush()


class _LiveView(_PlainView):
    """The same events above one progress bar."""

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
    """One line for an event that a person wants to see; None for the others."""
    name = event.get("event")
    if name == "phase":
        return f"  {PHASES.get(event.get('name', ''), event.get('name'))}"
    if name == "resumed":
        return f"  resumed from the checkpoint of step {event.get('step')}"
    if name == "length_changed":
        return f"  {event.get('steps')} steps in all now, not {event.get('planned')}; the learning rate follows"
    if name == "restart":
        return f"  [yellow]restart {event.get('count')}[/yellow]: {escape(str(event.get('reason')))}"
    if name == "request":
        by = f" by {escape(str(event['by']))}" if event.get("by") else ""
        return f"  asked to {escape(str(event.get('request')))}{by}"
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


def print_outcome(run: RunDir, state: RunState, *, show: IO[str]) -> None:
    """The loss curve, the held-out accuracy before and after, a few answers, where the adapter lies; or the failure."""
    console = Console(file=show)
    result = run.read_json(run.result_json) or {}
    if state is RunState.SUCCEEDED:
        _print_curve(run, console)
        _print_evaluation(result, console)
        _print_samples(result, console)
    colour = {RunState.SUCCEEDED: "green", RunState.CANCELLED: "yellow"}.get(state, "red")
    started, ended = summary.span(run)
    took = f" after {ended - started:.1f} s" if started and ended else ""
    console.print(f"[{colour} bold]{state.value}[/{colour} bold]{took}", highlight=False)
    if state is RunState.SUCCEEDED and (run.adapter / "adapter_config.json").exists():
        console.print(f"adapter: {escape(str(run.adapter))}", highlight=False, soft_wrap=True)
    if summary.is_program(run):
        console.print(f"output: zlaunch logs {escape(run.run_id)}", highlight=False, soft_wrap=True)
    if state is RunState.CANCELLED:
        console.print(f"go on with: zlaunch resume {escape(run.run_id)}", highlight=False, soft_wrap=True)
    if not state.is_final or state in (RunState.FAILED, RunState.LOST):
        print_failure(run, console)


def print_failure(run: RunDir, console: Console) -> None:
    """The first rank that failed: where, how, its last lines, and what to do; or why the run could not be started."""
    failure = summary.failure(run)
    if failure is None:
        console.print(f"no rank reported a failure; see {escape(str(run.logs_dir))}", highlight=False, soft_wrap=True)
        return
    if failure.get("cause") not in summary.NEVER_RAN:
        console.print(escape(_who_and_how(failure)), highlight=False)
    if failure.get("message"):
        console.print(f"  {escape(str(failure['message']))}", highlight=False, soft_wrap=True)
    for advice in failure.get("advice") or ():
        console.print(f"  -> {escape(str(advice))}", highlight=False, soft_wrap=True)
    if failure.get("cause") not in ("bad_configuration", "data"):  # their message says it all
        for line in (failure.get("log_tail") or [])[-12:]:
            console.print(f"  | {escape(str(line))}", highlight=False, soft_wrap=True)
    if run.logs_dir.exists():
        console.print(f"logs: {escape(str(run.logs_dir))}", highlight=False, soft_wrap=True)


def _who_and_how(failure: dict[str, Any]) -> str:
    """`rank 1 on gpu-7: exit code 1, cause: bug`, of it what is known."""
    who = next((f"{name} {failure[key]}" for key, name in _WHO if failure.get(key) is not None), "the job")
    on = f" on {failure['host']}" if failure.get("host") else ""
    how = next((f"{name} {failure[key]}, " for key, name in _HOW if failure.get(key) is not None), "")
    return f"{who}{on}: {how}cause: {failure.get('cause')}"


_WHO = (("rank", "rank"), ("node_rank", "node"))
_HOW = (("signal", "signal"), ("exit_code", "exit code"))


def _print_curve(run: RunDir, console: Console) -> None:
    points = [(metric["step"], metric["loss"]) for metric in run.read_metrics() if metric.get("loss") is not None]
    if len(points) < 2:
        return
    import plotext

    plotext.clear_figure()
    plotext.plot([step for step, _ in points], [loss for _, loss in points], marker="braille")
    plotext.title("training loss")
    plotext.xlabel("step")
    plotext.plot_size(min(console.width, 80), 14)
    plotext.theme("clear")
    console.file.write(plotext.uncolorize(plotext.build()) + "\n")


def _print_evaluation(result: dict[str, Any], console: Console) -> None:
    rows = evaluation_rows(result.get("eval") or {})
    if not rows:
        return
    table = Table(title="held-out records", title_justify="left")
    for column in ("task", "records", "metric", "before", "after"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_scores(scores: dict[str, Any]) -> None:
    """A later evaluation (scores.json) as a table: every task, and the whole."""
    table = Table(title=f"{scores.get('data')}", title_justify="left")
    for column in ("task", "records", "metric", "value"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    groups = {**(scores.get("tasks") or {}), "all": scores}
    for task, numbers in groups.items():
        for metric, value in numbers.items():
            if isinstance(value, float):
                table.add_row(task, str(numbers.get("records", "")), metric, f"{value:.4f}")
    Console().print(table)


def evaluation_rows(evaluation: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(task, records, metric, before, after) of result.json's `eval`, `-` where a side is missing."""
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    rows = []
    tasks_after, tasks_before = after.get("tasks") or {}, before.get("tasks") or {}
    for task, numbers in tasks_after.items():
        for metric, value in numbers.items():
            if metric == "records" or not isinstance(value, (int, float)):
                continue
            old = (tasks_before.get(task) or {}).get(metric)
            shown = f"{old:.3f}" if isinstance(old, (int, float)) else "-"
            rows.append((task, str(numbers.get("records", "")), metric, shown, f"{value:.3f}"))
    for metric, value in after.items():
        if metric not in ("loss", "records", "tasks") and isinstance(value, (int, float)):
            old = before.get(metric)
            shown = f"{old:.3f}" if isinstance(old, (int, float)) else "-"
            rows.append(("all", str(after.get("records", "")), metric, shown, f"{value:.3f}"))
    if isinstance(after.get("loss"), (int, float)):
        old = before.get("loss")
        shown = f"{old:.4f}" if isinstance(old, (int, float)) else "-"
        rows.append(("all", str(after.get("records", "")), "loss", shown, f"{after['loss']:.4f}"))
    return rows


def _print_samples(result: dict[str, Any], console: Console) -> None:
    samples = result.get("samples") or []
    if not samples:
        return
    table = Table(title="some answers", title_justify="left", show_lines=True)
    for column in ("prompt", "expected", "before", "after"):
        table.add_column(column)
    for sample in samples:
        table.add_row(*(escape(str(sample.get(key) or "-")) for key in ("prompt", "expected", "before", "after")))
    console.print(table)
