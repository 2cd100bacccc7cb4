"""`zlaunch generate RUN PROMPT`: one answer of an adapter."""

from __future__ import annotations

from typing import Any

import click

from launcher.commands.adapter_options import answer_args, answer_options, find_run_with_adapter, run_module


@click.command()
@click.argument("run")
@click.argument("prompt")
@answer_options(max_new_tokens=256)
def generate(run: str, prompt: str, **answering: Any) -> int:
    """Answer PROMPT with RUN's adapter. Prints each token as soon as it is generated."""
    found = find_run_with_adapter(run)
    args = ["-m", "train.generate", "--run-dir", str(found.path), f"--prompt={prompt}"]
    return run_module(found, [*args, *answer_args(answering)])
