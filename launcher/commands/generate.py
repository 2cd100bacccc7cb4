"""`zlaunch generate RUN "prompt"`: answer with the adapter of a run."""

from __future__ import annotations

import os

import click

from launcher import process, runs
from launcher.errors import UsageError


@click.command()
@click.argument("run")
@click.argument("prompt")
@click.option("--max-new-tokens", type=int, default=256, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest answer.")
@click.option("--base", is_flag=True, help="Without the adapter, for comparison.")
def generate(run: str, prompt: str, max_new_tokens: int, temperature: float, base: bool) -> int:
    """Answer PROMPT with RUN's adapter, printing tokens as they come."""
    found = runs.find_run(run, runs.runs_root())
    if not (found.adapter / "adapter_config.json").exists() and not list(found.checkpoints.glob("step-*/COMPLETE")):
        raise UsageError(f"{found.run_id} has no adapter yet", hint=f"zlaunch status {found.run_id}")
    launch = found.read_json(found.plan_json)["launch"]
    argv = [launch["python"], "-m", "train.generate", "--run-dir", str(found.path), "--prompt", prompt]
    argv += ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature), *(["--base"] if base else [])]
    path = os.pathsep.join(filter(None, [str(found.code), os.environ.get("PYTHONPATH")]))
    return process.passthrough(argv, env={**os.environ, "PYTHONPATH": path})
