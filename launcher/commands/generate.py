"""`zlaunch generate RUN "prompt"`: answer with the adapter of a run."""

from __future__ import annotations

import click

from launcher.commands.adapter import find, in_training_environment


@click.command()
@click.argument("run")
@click.argument("prompt")
@click.option("--max-new-tokens", type=int, default=256, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest answer.")
@click.option("--base", is_flag=True, help="Without the adapter, for comparison.")
def generate(run: str, prompt: str, max_new_tokens: int, temperature: float, base: bool) -> int:
    """Answer PROMPT with RUN's adapter, printing tokens as they come."""
    found = find(run)
    words = ["-m", "train.generate", "--run-dir", str(found.path), "--prompt", prompt]
    words += ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature)]
    return in_training_environment(found, [*words, *(["--base"] if base else [])])
