"""What the commands that use an adapter share: find the run, start a module of train/, and the options of answering."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from launcher.backends.ssh.requirements import NEEDED
from launcher.commands.options import Function, compose
from launcher.commands.run_argument import find_run
from launcher.errors import RunNotFound, UsageError
from launcher.job.load import read_job
from launcher.machine import facts, output, process, trainer
from launcher.machine.language import spoken
from launcher.rundir.directory import RunDir
from train.config import HUBS

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to compute on.",
)


def checkpoint_option(function: Function) -> Function:
    """Add `--checkpoint`."""
    return click.option(
        "--checkpoint",
        metavar="step-N|best|last",
        callback=_checkpoint,
        help="Use the adapter of this checkpoint (default: the run's own adapter, or the newest checkpoint).",
    )(function)


def average_option(function: Function) -> Function:
    """Add `--average`."""
    return click.option(
        "--average",
        metavar="last:N",
        callback=_average,
        help="Use the mean of the adapters of the last N checkpoints.",
    )(function)


def _checkpoint(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or re.fullmatch(r"best|last|step-\d{1,18}", value):
        return value
    if re.fullmatch(r"\d{1,18}", value):
        return f"step-{value}"
    raise click.BadParameter(f"expected step-N, best or last, got {value!r}")


def _average(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or re.fullmatch(r"last:[1-9]\d{0,5}", value):
        return value
    raise click.BadParameter(f"expected last:N, as in last:5, got {value!r}")


def checkpoint_args(checkpoint: str | None, average: str | None = None) -> list[str]:
    """The values of both as arguments of the training program. Raises UsageError for both at once."""
    if checkpoint and average:
        raise UsageError("--checkpoint names one checkpoint, and --average several: give one of them", code="ZL-OPT-01")
    wanted = f"average:{average}" if average else checkpoint
    return [f"--checkpoint={wanted}"] if wanted else []


def find_run_with_adapter(text: str) -> RunDir:
    """The run meant by `text`, finished or with a checkpoint. Raises RunNotFound and UsageError."""
    run = RunDir(find_run(text).path.absolute())
    if not (run.adapter / "adapter_config.json").exists() and not run.checkpoint_steps():
        raise UsageError(f"{run.run_id} has no adapter yet", hint=f"zlaunch status {run.run_id}", code="ZL-RUN-07")
    return run


def run_module(run: RunDir, args: Sequence[str], *, ours_only: bool = False) -> int:
    """Run `python ARGS` on this terminal with the run's interpreter, in its directory; returns the exit status.

    Our own interpreter gets our own train package, which also reads runs of older versions. Any other interpreter gets
    the snapshot of train/ in the run's code/. `ours_only`: all that it prints are texts of ours, and no answer.
    """
    plan = run.read_plan()
    python = plan.get("launch", {}).get("python")
    if python is None:
        raise RunNotFound(f"{run.plan_json} names no interpreter", code="ZL-RUN-02")
    if plan.get("backend") == "ssh":  # the plan has what a host reported, and no host says what is started here
        named = read_job(run.job_yaml).spec.ssh.python
        python = named if named.startswith("/") else facts.this_python()
    ours = python == facts.this_python()
    if ours:
        facts.check_python(python, NEEDED)
    environ = trainer.environment(None if ours else run.code, output.child_encoding())
    with spoken.heard() as stderr, spoken.heard(ours_only, output=True) as stdout:
        return process.passthrough([python, *args], env=environ, cwd=run.path, stdout=stdout, stderr=stderr)


def on_all_gpus(device: str, args: Sequence[str]) -> list[str]:
    """Arguments of Python that run a module of the training program on every GPU of this machine, one rank each."""
    gpus = len(facts.local_gpus()) if device != "cpu" else 0
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return [*(ranks if gpus > 1 else []), *args]


def records_argument(data: str) -> str:
    """A file of records as the training program finds it, which runs elsewhere; a name on a hub as it is."""
    return data if data.startswith(HUBS) else str(Path(data).absolute())


temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 picks the most likely token.",
)
base_option = click.option("--base", is_flag=True, help="Use the base model without the adapter, for comparison.")


def max_new_tokens_option(default: int) -> Callable[[Function], Function]:
    """Add `--max-new-tokens`."""
    return click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Maximum number of tokens per answer.",
    )


def refuse_checkpoint_of_base(base: bool, checkpoint: str | None) -> None:
    """Raise UsageError for --base with --checkpoint."""
    if base and checkpoint:
        raise UsageError(
            "--base is the model without an adapter, and --checkpoint names one: give one of them", code="ZL-OPT-01"
        )


def answer_options(*, max_new_tokens: int) -> Callable[[Function], Function]:
    """Add the options for generating answers."""
    options = [
        device_option,
        checkpoint_option,
        click.option("--system", help="System message (default: data.system of the run)."),
        max_new_tokens_option(max_new_tokens),
        temperature_option,
        base_option,
    ]
    return compose(options)


def answer_args(values: dict[str, Any]) -> list[str]:
    """The values of answer_options as arguments of the training program.

    Each is one argument `--name=value`, because a text may begin with a dash.
    """
    refuse_checkpoint_of_base(values["base"], values.get("checkpoint"))
    options = {key.replace("_", "-"): value for key, value in values.items() if value is not None}
    flags = ["--base"] if options.pop("base") else []
    return [*(f"--{name}={value}" for name, value in options.items()), *flags]
