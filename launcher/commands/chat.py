"""`zlaunch chat RUN`: talk to an adapter."""

from __future__ import annotations

from typing import Any

import click

from launcher.commands.adapter_options import answer_args, answer_options, find_run_with_adapter, run_module


@click.command()
@click.argument("run")
@answer_options(max_new_tokens=512)
def chat(run: str, **answering: Any) -> int:
    """Talk to RUN's adapter. /reset clears the conversation, /exit ends it."""
    found = find_run_with_adapter(run)
    return run_module(found, ["-m", "train.chat", "--run-dir", str(found.path), *answer_args(answering)])
