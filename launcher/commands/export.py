"""`zlaunch export RUN`: write a run's result for use elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands.adapter_options import find_run_with_adapter, run_module
from launcher.errors import UsageError


@click.command()
@click.argument("run")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["adapter", "merged", "ollama"]),
    default="merged",
    show_default=True,
    help="Format to write.",
)
@click.option("--out", type=click.Path(path_type=Path), help="New directory to write to (default: RUN/export-KIND).")
@click.option(
    "--verify",
    is_flag=True,
    help="Load the export in a process of its own, and compare prompts and answers with the run's. Exports first if "
    "there is no export yet. Exit code 1 if they differ.",
)
@click.option("--server", metavar="URL", help="Compare a server with OpenAI's HTTP interface instead of a directory.")
@click.option("--server-model", metavar="NAME", help="Name of the model on the server (default: the only one).")
@click.option("--prompts", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts to compare.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Tokens of each answer."
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
def export(
    run: str,
    kind: str,
    out: Path | None,
    verify: bool,
    server: str | None,
    server_model: str | None,
    prompts: int,
    max_new_tokens: int,
    as_json: bool,
) -> int:
    """Write RUN's result: the adapter, merged weights, or merged weights with an Ollama Modelfile."""
    compares = verify or server is not None
    if verify and server is not None:
        raise UsageError("--verify compares a directory, and --server a server: give one of them")
    if as_json and not compares:
        raise UsageError("--json prints a comparison: add --verify or --server")
    found = find_run_with_adapter(run)
    args = ["-m", "train.export", "--run-dir", str(found.path)]
    if server is None:
        args += ["--to", kind, "--out", str((out or found.path / f"export-{kind}").absolute())]
    else:
        args += [f"--server={server}", *([f"--server-model={server_model}"] if server_model else [])]
    if compares:
        args += ["--prompts", str(prompts), "--max-new-tokens", str(max_new_tokens)]
        args += [flag for flag, given in (("--verify", verify), ("--json", as_json)) if given]
    return run_module(found, args)
