"""`zlaunch export RUN`: write a run's result for use elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from launcher.commands.adapter_options import (
    average_option,
    checkpoint_args,
    checkpoint_option,
    find_run_with_adapter,
    run_module,
)
from launcher.commands.eval import measure
from launcher.errors import UsageError
from launcher.job.load import read_job
from launcher.rundir.directory import RunDir


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
@checkpoint_option
@average_option
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
    checkpoint: str | None,
    average: str | None,
) -> int:
    """Write RUN's result: the adapter, merged weights, or merged weights with an Ollama Modelfile.

    With --average, the mean is measured on data.eval first, beside the run's own adapter.
    """
    compares = verify or server is not None
    if verify and server is not None:
        raise UsageError("--verify compares a directory, and --server a server: give one of them", code="ZL-OPT-01")
    if as_json and not compares:
        raise UsageError("--json prints a comparison: add --verify or --server", code="ZL-OPT-01")
    found = find_run_with_adapter(run)
    chosen = checkpoint_args(checkpoint, average)
    args = ["-m", "train.export", "--run-dir", str(found.path), *chosen]
    if average and server is None and (status := _score(found, chosen, quiet=as_json)):
        return status
    if server is None:
        args += ["--to", kind, "--out", str((out or found.path / _directory(kind, chosen)).absolute())]
    else:
        args += [f"--server={server}", *([f"--server-model={server_model}"] if server_model else [])]
    if compares:
        args += ["--prompts", str(prompts), "--max-new-tokens", str(max_new_tokens)]
        args += [flag for flag, given in (("--verify", verify), ("--json", as_json)) if given]
    return run_module(found, args, ours_only=not as_json)


def _directory(kind: str, chosen: Sequence[str]) -> str:
    return "-".join([f"export-{kind}", *(name.partition("=")[2].replace(":", "-") for name in chosen)])


def _score(run: RunDir, chosen: Sequence[str], *, quiet: bool) -> int:
    """Measure an average and the run's own adapter on data.eval, if the job has one; returns the exit status."""
    if not read_job(run.job_yaml).spec.data.eval:
        click.echo("there is no data.eval, so the average has no score", err=True)
        return 0
    from launcher.show import final  # imports Rich

    for named in (chosen, ()):
        status, scores, _ = measure(run, None, "auto", named)
        if status:
            return status
        if not quiet:
            click.echo("the average:" if named else "the run's own adapter:")
            final.print_scores(scores)
    return 0
