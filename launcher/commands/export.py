"""`zlaunch export RUN`: write a run's result for use elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands.adapter_options import find_run_with_adapter, run_module


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
def export(run: str, kind: str, out: Path | None) -> int:
    """Write RUN's result: the adapter, merged weights, or merged weights with an Ollama Modelfile."""
    found = find_run_with_adapter(run)
    directory = (out or found.path / f"export-{kind}").absolute()
    return run_module(
        found, ["-m", "train.export", "--run-dir", str(found.path), "--to", kind, "--out", str(directory)]
    )
