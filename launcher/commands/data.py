"""`zlaunch data check JOB` and `show JOB`: the records of a job, before anything is submitted."""

from __future__ import annotations

import json
from typing import Any

import click

from launcher.commands import options
from launcher.commands.help_groups import GroupedCommand, Option
from launcher.lifecycle import records_report
from launcher.machine.language.spoken import padded, said, shown


@click.group()
def data() -> None:
    """Check the records of a job."""


@data.command(cls=GroupedCommand)
@options.some_job_options(
    "device",
    "model.path",
    "data.train",
    "data.eval",
    "data.max_length",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.seed",
)
@click.option(
    "--all", "everything", cls=Option, group="Job", is_flag=True,
    help="Tokenize every record, and keep the tokens for a run here.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(ctx: click.Context, /, everything: bool, as_json: bool, **_: Any) -> int:
    """Read all records of JOB: duplicates, conflicts, empty and over-long records, lengths, loss and padding.

    The exit code is 2 if a run would stop at these records.
    """
    code, found = inspect(ctx, *(["--all"] if everything else []))
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else text(found))
    return code


@data.command(cls=GroupedCommand)
@options.some_job_options("device", "model.path", "data.train", "data.max_length")
@click.option("--first", type=click.IntRange(1), cls=Option, group="Job", help="Number of records (default: 3).")
@click.option("--record", metavar="FILE:LINE", cls=Option, group="Job", help="Show this record only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, /, first: int | None, record: str | None, as_json: bool, **_: Any) -> int:
    """Show records of JOB as they are trained: the rendered text, and in green the tokens that carry loss."""
    code, found = inspect(ctx, f"--show={record or first or 3}")
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return code
    from launcher.commands import data_show
    from launcher.show.terminal import Console

    Console().print(data_show.text(found), soft_wrap=True, highlight=False)
    return code


def inspect(ctx: click.Context, *arguments: str) -> tuple[int, dict[str, Any]]:
    """(exit code, report) of train.datacheck for the job of this command."""
    return records_report.inspect(options.load_job(ctx).spec, *arguments, shown=True)


def text(found: dict[str, Any]) -> str:
    """The report as text."""
    lines: list[str] = []
    for name in ("train", "eval"):
        if found[name]:
            lines += [*part_lines(name, found[name]), ""]
    if found["eval_in_train"]:
        lines += [f"{found['eval_in_train']} eval records are also in data.train: scores on them mean little", ""]
    if found["held_out"]:
        held = found["held_out"]
        also = (
            f"; {held['asked_in_training']:,} share their question with a trained one"
            if held["asked_in_training"]
            else ""
        )
        lines += [f"data.eval: {held['records']:,} of the records of data.train are held out{also}", ""]
    if found["packing"]:
        lines += [*packing_lines(found["packing"]), ""]
    lines += [shown(f"error: {error}") for error in found["errors"]] or [said("no problem that would stop a run")]
    return "\n".join(lines)


def part_lines(name: str, part: dict[str, Any]) -> list[str]:
    over, tokens = part["over_long"], part["tokens"]
    about = "" if over["exact"] else "about "
    lines = [said("data.{name}: {count} records", name=name, count=f"{part['records']:,}")]
    if len(part["sources"]) > 1:
        lines += [
            f"  {one['records']:>12,}  x {one['weight']:g}  {one['path']}{_taken(one)}" for one in part["sources"]
        ]
    rows = [
        ("unreadable", f"{part['unreadable']:,}" + (f" ({part['empty']:,} empty)" if part["empty"] else "")),
        ("duplicates", f"{part['duplicates']:,}"),
        ("conflicts", f"{part['conflicts']:,}  {said('(same input, different output)')}"),
        (
            "over-long",
            said(
                "{cut} cut, {dropped} dropped at {most} tokens",
                cut=f"{about}{over['cut']:,}",
                dropped=f"{about}{over['dropped']:,}",
                most=f"{over['max_length']:,}",
            ),
        ),
    ]
    if part["sequences"] != part["records"]:
        rows.append(("sequences", f"{about}{part['sequences']:,}"))
    if part["turns"]:
        each, times = part["turns"]["sequences_per_record"], part["turns"]["times_the_tokens"]
        rows.append(
            ("turns", f"one sequence per answer, {each:g} per record: {times:g} times the tokens of joined ones")
        )
    if part["loss_share"] is not None:
        spread = ", ".join(f"{said(key)} {tokens[key]:,}" for key in ("mean", "median", "p90", "p99", "max"))
        rows.append(
            ("tokens", said("{total}; per sequence: {spread}", total=f"{about}{tokens['total']:,}", spread=spread))
        )
        rows.append(("with loss", said("{share} of the tokens", share=f"{part['loss_share']:.1%}")))
    if part["sampled"] is not None:
        rows.append(
            ("measured on", said("{count} records, chosen by hash (--all: all records)", count=f"{part['sampled']:,}"))
        )
    lines += [f"  {padded(said(label), 12)} {value}" for label, value in rows]
    lines += [f"  {shown(problem)}" for problem in (*part["problems"][:5], *part["warnings"][:5], *part["notes"])]
    return [*lines, *histogram(tokens.get("histogram") or [])]


def _taken(source: dict[str, Any]) -> str:
    """What an epoch takes of a source, where that is another number than its records; of a sample it is not known."""
    taken = source.get("per_epoch")
    return f"  ({taken:,} per epoch)" if taken is not None and taken != source["records"] else ""


def packing_lines(packing: dict[str, Any]) -> list[str]:
    shares = "  ".join(f"{mode} {waste:.1%}" for mode, waste in packing["waste"].items())
    batch = said(
        "({micro} of {all} records per pass; planned: {planned})",
        micro=packing["micro_batch_size"],
        all=packing["global_batch_size"],
        planned=packing["planned"],
    )
    return [f"{padded(said('padding'), 12)} {shares}  {batch}"]


def histogram(bars: list[list[float]]) -> list[str]:
    """A bar chart of the token lengths in plain characters."""
    if len(bars) < 2:
        return []
    import plotext

    plotext.clear_figure()
    width = bars[1][0] - bars[0][0]
    plotext.bar([f"{edge + width:.0f}" for edge, _ in bars], [count for _, count in bars], width=0.9)
    plotext.title(said("tokens per sequence, up to"))
    plotext.plot_size(78, 12)
    plotext.theme("clear")
    return [line.rstrip() for line in plotext.uncolorize(plotext.build()).splitlines()]
