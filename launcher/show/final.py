"""What the terminal shows at the end of a run: result or failure, scores and sample answers."""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launcher.rundir import reading, summary
from launcher.rundir.curve import Curves
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState
from launcher.show.stack_table import print_stacks


def print_outcome(run: RunDir, state: RunState, *, output: IO[str]) -> None:
    """Print the loss curve, the scores before and after, sample answers and the adapter's path; or the failure."""
    console = Console(file=output)
    result = run.read_json(run.result_json) or {}
    if state is RunState.SUCCEEDED:
        _print_curve(run, console)
        _print_evaluation(result, console)
        _print_samples(result, console)
    color = {RunState.SUCCEEDED: "green", RunState.CANCELLED: "yellow"}.get(state, "red")
    started, ended = summary.span(run)
    took = f" after {ended - started:.1f} s" if started and ended else ""
    console.print(f"[{color} bold]{state.value}[/{color} bold]{took}", highlight=False)
    if state is RunState.SUCCEEDED and (run.adapter / "adapter_config.json").exists():
        console.print(f"adapter: {escape(str(run.adapter))}", highlight=False, soft_wrap=True)
    if summary.is_program(run):
        console.print(f"output: zlaunch logs {escape(run.run_id)}", highlight=False, soft_wrap=True)
    if state is RunState.CANCELLED:
        console.print(f"to continue: zlaunch resume {escape(run.run_id)}", highlight=False, soft_wrap=True)
    if not state.is_final or state in (RunState.FAILED, RunState.LOST):
        print_failure(run, console)


def print_failure(run: RunDir, console: Console) -> None:
    """Print which rank failed first, how, its last lines and what to do; or why the run could not be started."""
    failure = summary.failure(run)
    if failure is None:
        console.print(f"no rank reported a failure; see {escape(str(run.logs_dir))}", highlight=False, soft_wrap=True)
        return
    if failure.get("cause") not in summary.NEVER_RAN:
        console.print(escape(_who_and_how(failure)), highlight=False)
    if failure.get("message"):
        console.print(f"  {escape(str(failure['message']))}", highlight=False, soft_wrap=True)
    print_stacks(failure.get("stacks") or (), console)
    for advice in failure.get("advice") or ():
        console.print(f"  -> {escape(str(advice))}", highlight=False, soft_wrap=True)
    if failure.get("cause") not in ("bad_configuration", "data"):  # their message is complete
        for line in (failure.get("log_tail") or [])[-12:]:
            console.print(f"  | {escape(str(line))}", highlight=False, soft_wrap=True)
    if run.logs_dir.exists():
        console.print(f"logs: {escape(str(run.logs_dir))}", highlight=False, soft_wrap=True)


def _who_and_how(failure: dict[str, Any]) -> str:
    """`rank 1 on gpu-7: exit code 1, cause: bug`, or what is known of it."""
    who = next((f"{name} {failure[key]}" for key, name in _WHO if failure.get(key) is not None), "the job")
    on = f" on {failure['host']}" if failure.get("host") else ""
    how = next((f"{name} {failure[key]}, " for key, name in _HOW if failure.get(key) is not None), "")
    return f"{who}{on}: {how}cause: {failure.get('cause')}"


_WHO = (("rank", "rank"), ("node_rank", "node"))
_HOW = (("signal", "signal"), ("exit_code", "exit code"))


def _print_curve(run: RunDir, console: Console) -> None:
    points = [(point.step, point.loss) for block in Curves(run.metrics).read().loss.blocks for point in block.points]
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
    scores = reading.scores_of(result.get("eval") or {})
    if not scores:
        return
    table = Table(title="held-out records", title_justify="left")
    for column in ("task", "records", "metric", "before", "after"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for score in scores:
        digits = 4 if score.metric == "loss" else 3
        before = "-" if score.before is None else f"{score.before:.{digits}f}"
        task, records = score.task or "all", str(score.records or "")
        table.add_row(task, records, score.metric, before, f"{score.after:.{digits}f}")
    console.print(table)


def print_scores(scores: dict[str, Any]) -> None:
    """Print scores.json of `zlaunch eval` as a table: each task, then all records."""
    table = Table(title=f"{scores.get('data')}", title_justify="left")
    for column in ("task", "records", "metric", "value"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    groups = {**(scores.get("tasks") or {}), "all": scores}
    for task, numbers in groups.items():
        for metric, value in numbers.items():
            if isinstance(value, float):
                table.add_row(task, str(numbers.get("records", "")), metric, f"{value:.4f}")
    Console().print(table)


def _print_samples(result: dict[str, Any], console: Console) -> None:
    samples = result.get("samples") or []
    if not samples:
        return
    table = Table(title="sample answers", title_justify="left", show_lines=True)
    for column in ("prompt", "expected", "before", "after"):
        table.add_column(column)
    for sample in samples:
        table.add_row(*(escape(str(sample.get(key) or "-")) for key in ("prompt", "expected", "before", "after")))
    console.print(table)
