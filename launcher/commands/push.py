"""`zlaunch push RUN --to hf:OWNER/NAME`: send an adapter to a hub."""

from __future__ import annotations

import click

from launcher.commands.adapter_options import checkpoint_args, checkpoint_option, find_run_with_adapter, run_module
from launcher.errors import UsageError


@click.command()
@click.argument("run")
@click.option("--to", "target", metavar="hf:OWNER/NAME", required=True, help="Repository, made if it is not there.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--base-model", metavar="OWNER/NAME", help="Name of the base model on the hub, if the run has it from a directory."
)
@checkpoint_option
def push(run: str, target: str, private: bool, base_model: str | None, checkpoint: str | None) -> int:
    """Send RUN's adapter with its model card to the Hugging Face Hub.

    HF_TOKEN, or a login of `hf auth login`, must be allowed to write there. HF_ENDPOINT names another hub.
    """
    place, _, name = target.partition(":")
    if place != "hf" or not name:
        raise UsageError(f"--to: expected hf:OWNER/NAME, got {target}", code="ZL-OPT-01")
    found = find_run_with_adapter(run)
    args = ["-m", "train.exports.push", "--run-dir", str(found.path), f"--to={name}"]
    args += [*(["--private"] if private else []), *([f"--base-model={base_model}"] if base_model else [])]
    return run_module(found, [*args, *checkpoint_args(checkpoint)])
