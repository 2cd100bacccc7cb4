"""The end of a run in the terminal: result, failure, scores and sample answers."""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launcher.rundir import summary
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState


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
