"""`zlaunch generate RUN PROMPT`: one answer of an adapter."""

from __future__ import annotations

from typing import Any

import click

from launcher.commands.adapter_options import answer_args, answer_options, find_run_with_adapter, run_module


@click.command()
@click.argument("run")
@click.argument("prompt")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the prompt's token ids and the answer.")
@answer_options(max_new_tokens=256)
def generate(run: str, prompt: str, as_json: bool, **answering: Any) -> int:
    """Answer PROMPT with RUN's adapter. Prints each token as soon as it is generated."""
    found = find_run_with_adapter(run)
    args = [
        "-m",
        "train.generate",
        "--run-dir",
        str(found.path),
        f"--prompt={prompt}",
        *(["--json"] if as_json else []),
    ]
    return run_module(found, [*args, *answer_args(answering)])
