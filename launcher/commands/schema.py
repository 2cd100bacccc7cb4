"""`zlaunch schema`: the JSON Schema of a job file."""

from __future__ import annotations

import click

from launcher.job.reference import json_schema
from launcher.machine import installation


@click.command()
@click.option("--path", is_flag=True, help="Print the path of the schema's file in this installation.")
def schema(path: bool) -> None:
    """Print the JSON Schema of a job file, for editors and checks.

    An editor with a YAML language server reads it where the job file begins with `# yaml-language-server:
    $schema=FILE`, as `zlaunch init` writes it.
    """
    file = installation.path("templates") / json_schema.FILE
    click.echo(str(file) if path else file.read_text(encoding="utf-8"), nl=path)
