"""Help that lists the options of a command by group."""

from __future__ import annotations

from typing import Any

import click

GROUPS = ("Job", "Training", "Local", "Host", "Slurm", "Container", "Start", "Output")
"""The groups in the order of the help; an option without a group is in the last one."""
WIDEST_NAME = 32
"""Columns for the names of options; longer names get a line of their own."""


class Option(click.Option):
    """An option with a group in the help."""

    def __init__(self, *args: Any, group: str = GROUPS[-1], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help has one section per group, with one left margin for all of them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[getattr(parameter, "group", GROUPS[-1])].append(record)
        rows = [row for section in sections.values() for row in section]
        width = max((len(name) for name, _ in rows if len(name) <= WIDEST_NAME), default=0)
        for group, records in sections.items():
            if records:
                with formatter.section(f"{group} options"):
                    formatter.write_dl([(name.ljust(width), text) for name, text in records], col_max=width)


class LaunchCommand(GroupedCommand):
    """A command whose line may end in `-- PROGRAM ARGS...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            args, program = args[:cut], args[cut + 1 :]
            if not program:
                ctx.fail("expected a program after `--`")
            ctx.meta["zlaunch.program"] = tuple(program)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- PROGRAM ARGS...]"]
