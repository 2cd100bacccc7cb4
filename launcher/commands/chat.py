"""`zlaunch chat RUN`: talk to an adapter."""

from __future__ import annotations

from typing import Any

import click

from launcher.commands.adapter_options import answer_args, answer_options, find_run_with_adapter, run_module


@click.command()
@click.argument("run")
@answer_options(max_new_tokens=512)
@click.option(
    "--json", "as_json", is_flag=True, help="Read conversations and write answers as JSON lines (docs/ui.md)."
)
def chat(run: str, as_json: bool, **answering: Any) -> int:
    """Talk to RUN's adapter. /reset clears the conversation, /exit ends it."""
    found = find_run_with_adapter(run)
    args = ["-m", "train.chat", "--run-dir", str(found.path), *answer_args(answering)]
    return run_module(found, [*args, "--json"] if as_json else args)
