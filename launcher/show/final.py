"""What the terminal shows at the end of a run: result or failure, scores and sample answers."""

from __future__ import annotations

from typing import IO, Any

from rich.markup import escape
from rich.table import Table

from launcher.machine.language.error_codes import of_cause
from launcher.machine.language.spoken import said, shown
from launcher.rundir import reading, summary
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState
from launcher.show.frame import TONE_STYLE, curve_lines, duration, score_rows
from launcher.show.stack_table import print_stacks
from launcher.show.terminal import Console


def print_outcome(run: RunDir, state: RunState, *, output: IO[str]) -> None:
    """Print the loss curve, the scores before and after, sample answers, the verdict and what comes next; or the
    failure."""
    console = Console(file=output)
    picture = reading.read(run, state)
    if state is RunState.SUCCEEDED and not picture.is_program:
        _print_curve(picture, console)
        _print_evaluation(picture, console)
        _print_samples(run.read_json(run.result_json) or {}, console)
    color = {RunState.SUCCEEDED: "green", RunState.CANCELLED: "yellow"}.get(state, "red")
    if picture.verdict is not None and picture.verdict.tone != "good" and state is RunState.SUCCEEDED:
        color = "default"  # that a program ended is no praise for the model
    took = said(" after {time}", time=duration(picture.seconds)) if picture.seconds else ""
    console.print(f"[{color} bold]{said(state.value)}[/{color} bold]{took}", highlight=False)
    print_verdict(picture, console)
    if state is RunState.SUCCEEDED and picture.adapter:
        best = picture.best if picture.best and picture.adapter_step == picture.best.step else None
        of = said(" (step {step}, the best by {metric})", step=best.step, metric=said(best.metric)) if best else ""
        console.print(f"{said('adapter')}: {escape(picture.adapter)}{of}", highlight=False, soft_wrap=True)
    if picture.is_program:
        console.print(f"{said('output')}: zlaunch logs {escape(run.run_id)}", highlight=False, soft_wrap=True)
    elif state is RunState.SUCCEEDED:
        for step in picture.next_steps:
            console.print(f"{said('next')}: {escape(step)}", highlight=False, soft_wrap=True)
    if state is RunState.CANCELLED:
        console.print(f"{said('to continue')}: zlaunch resume {escape(run.run_id)}", highlight=False, soft_wrap=True)
    if not state.is_final or state in (RunState.FAILED, RunState.LOST):
        print_failure(run, console)


def print_verdict(picture: Picture, console: Console) -> None:
    """Print what the training came to, and why; nothing if there is no verdict."""
    if picture.verdict is not None:
        style = TONE_STYLE[picture.verdict.tone]
        console.print(f"[{style}]{escape(shown(picture.verdict.line))}[/{style}]", highlight=False)
        console.print(f"  {escape(shown(picture.verdict.reason))}", highlight=False)


def print_failure(run: RunDir, console: Console) -> None:
    """Print which rank failed first, how, its last lines and what to do; or why the run could not be started."""
    failure = summary.failure(run)
    if failure is None:
        console.print(f"no rank reported a failure; see {escape(str(run.logs_dir))}", highlight=False, soft_wrap=True)
        return
    if failure.get("cause") not in summary.NEVER_RAN:
        console.print(escape(_who_and_how(failure)), highlight=False)
    if failure.get("message"):
        console.print(f"  {escape(shown(str(failure['message'])))}", highlight=False, soft_wrap=True)
    print_stacks(failure.get("stacks") or (), console)
    for advice in failure.get("advice") or ():
        console.print(f"  -> {escape(shown(str(advice)))}", highlight=False, soft_wrap=True)
    if failure.get("cause") not in ("bad_configuration", "data"):  # their message is complete
        for line in (failure.get("log_tail") or [])[-12:]:
            console.print(f"  | {escape(str(line))}", highlight=False, soft_wrap=True)
    if run.logs_dir.exists():
        console.print(f"{said('logs')}: {escape(str(run.logs_dir))}", highlight=False, soft_wrap=True)


def _who_and_how(failure: dict[str, Any]) -> str:
    """`rank 1 on gpu-7: exit code 1, cause: bug`, or what is known of it."""
    who = next((f"{name} {failure[key]}" for key, name in _WHO if failure.get(key) is not None), "the job")
    on = f" on {failure['host']}" if failure.get("host") else ""
    how = next((f"{name} {failure[key]}, " for key, name in _HOW if failure.get(key) is not None), "")
    cause = str(failure.get("cause"))
    code = str(failure.get("code") or of_cause(cause))
    return f"{who}{on}: {how}cause: {cause}{f' [{code}]' if code else ''}"


_WHO = (("rank", "rank"), ("node_rank", "node"))
_HOW = (("signal", "signal"), ("exit_code", "exit code"))


def _print_curve(picture: Picture, console: Console) -> None:
    if len(picture.curve) < 2:
        return
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    for line in curve_lines(picture, width=min(console.width, 80), encoding=encoding):
        console.print(line, highlight=False)


def _print_evaluation(picture: Picture, console: Console) -> None:
    if not picture.scores:
        return
    table = Table(title=said("held-out records"), title_justify="left")
    for column in ("task", "records", "metric", "before", "after"):
        table.add_column(said(column), justify="left" if column in ("task", "metric") else "right", overflow="fold")
    for row in score_rows(picture.scores, escape):
        table.add_row(*row)
    console.print(table)


def print_scores(scores: dict[str, Any]) -> None:
    """Print scores.json of `zlaunch eval` as a table: each task, then all records."""
    table = Table(title=f"{scores.get('data')}", title_justify="left")
    for column in ("task", "records", "metric", "value"):
        table.add_column(said(column), justify="left" if column in ("task", "metric") else "right")
    groups = {**(scores.get("tasks") or {}), "all": scores}
    for task, numbers in groups.items():
        for metric, value in numbers.items():
            if isinstance(value, float):
                table.add_row(task, str(numbers.get("records", "")), said(metric), f"{value:.4f}")
    Console().print(table)


def _print_samples(result: dict[str, Any], console: Console) -> None:
    samples = result.get("samples") or []
    if not samples:
        return
    table = Table(title=said("sample answers"), title_justify="left", show_lines=True)
    for column in ("prompt", "expected", "before", "after"):
        table.add_column(said(column), overflow="fold")
    for sample in samples:
        table.add_row(*(escape(str(sample.get(key) or "-")) for key in ("prompt", "expected", "before", "after")))
    console.print(table)
