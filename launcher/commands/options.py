"""Options of the commands that work on a job, as tables: flag, key of the job, help."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from launcher.commands.help_groups import Option
from launcher.commands.ignored import IGNORED, refuse_ignored
from launcher.errors import UsageError
from launcher.images import choose
from launcher.job.spec import Job, JobSpec
from launcher.lifecycle import submit

Function = TypeVar("Function", bound=Callable[..., Any])


class Flag(NamedTuple):
    """An option that sets a key of the job."""

    names: str
    """Its spellings, separated by spaces."""
    key: str
    help: str
    group: str = "Job"
    type: Any = None
    metavar: str | None = None

    def option(self) -> Callable[[Function], Function]:
        return click.option(
            *self.names.split(), self.parameter, cls=Option, group=self.group, default=None, type=self.type,
            metavar=self.metavar, help=self.help,
        )  # fmt: skip

    @property
    def parameter(self) -> str:
        """The name of its value among the parameters of a command."""
        return "key__" + self.key.replace(".", "__")


ENGINES = click.Choice(["auto", "fused", "unsloth", "peft"])
RUNTIMES = click.Choice(["auto", "docker", "podman", "apptainer", "enroot", "charliecloud", "pyxis", "none"])

JOB_FLAGS = (
    Flag("--name", "name", "Name of the run."),
    Flag("--device", "device", "Device of the ranks.", type=click.Choice(["auto", "cuda", "cpu"])),
    Flag("--model", "model.path", "Hub id or local directory of the model."),
    Flag("--train-data", "data.train", "File of training records."),
    Flag("--eval-data", "data.eval", "File of held-out records."),
    Flag("--seed", "train.seed", "Random seed: the same seed gives the same records in the same order.", type=int),
    Flag("--max-restarts", "max_restarts", "Restarts from the newest checkpoint after a failure.", type=int),
    Flag("--quantization", "model.quantization", "Quantization of the frozen weights; nf4 is QLoRA.", "Training",
         click.Choice(["none", "nf4", "int8"])),
    Flag("--max-length", "data.max_length", "Maximum number of tokens per record.", "Training", int),
    Flag("--lora-r", "lora.r", "Rank of the adapter.", "Training", int),
    Flag("--epochs", "train.epochs", "Passes over the records.", "Training", float),
    Flag("--max-steps", "train.max_steps", "Optimizer steps, instead of epochs.", "Training", int),
    Flag("--learning-rate", "train.learning_rate", "Peak learning rate.", "Training", float),
    Flag("--global-batch-size", "train.global_batch_size", "Records per optimizer step.", "Training", int),
    Flag("--micro-batch-size", "train.micro_batch_size", "Records per forward pass of a rank, or auto.", "Training"),
    Flag("--zero-stage", "train.zero_stage", "DeepSpeed ZeRO stage: 0, 1, 2, 3 or auto.", "Training"),
    Flag("--engine", "train.engine", "Implementation of the model's layers.", "Training", ENGINES),
    Flag("--container", "container.runtime", "Container engine.", "Container", RUNTIMES),
    Flag("--image", "container.image", "Container image to run in.", "Container"),
)  # fmt: skip


def add_flags(flags: Collection[Flag]) -> Callable[[Function], Function]:
    """Decorate a command with these flags."""

    def decorate(function: Function) -> Function:
        for flag in reversed(list(flags)):
            function = flag.option()(function)
        return function

    return decorate


def take_flags(flags: Collection[Flag], parameters: dict[str, Any]) -> dict[str, Any]:
    """Take the values of these flags out of a command's parameters: {key of the job: value or None}."""
    return {flag.key: parameters.pop(flag.parameter, None) for flag in flags}


def job_options(function: Function) -> Function:
    """Add [JOB], all of JOB_FLAGS, and --set for every other key."""
    return some_job_options(*(flag.key for flag in JOB_FLAGS))(function)


def some_job_options(*keys: str) -> Callable[[Function], Function]:
    """Like job_options with the flags of these keys only, for commands that use no other key."""

    def decorate(function: Function) -> Function:
        function = click.option(
            "--set", "overrides", cls=Option, group="Job", multiple=True, metavar="KEY=VALUE",
            help="Set any key of the job. May be repeated.",
        )(add_flags([flag for flag in JOB_FLAGS if flag.key in keys])(function))  # fmt: skip
        function = click.option(
            "--smoke", is_flag=True, cls=Option, group="Job",
            help="Run a dozen steps of a tiny random model instead; needs no network.",
        )(function)  # fmt: skip
        return click.argument("job", required=False, type=click.Path(path_type=Path))(function)

    return decorate


def sweep_option(how: str) -> Callable[[Function], Function]:
    return click.option(
        "--sweep", "sweeps", cls=Option, group="Start", multiple=True, metavar="KEY=A,B,C",
        help=f"Start one run per combination of values, {how}. May be repeated.",
    )  # fmt: skip


def run_options(function: Function) -> Function:
    """Add what decides how the run starts and what is printed."""
    for flag, group, text in (
        ("--dry-run", "Start", "Write the run directory and stop."),
        ("--detach", "Start", "Return as soon as the run has started."),
        ("--json", "Output", "Print one JSON object as the last line of standard output."),
    ):
        name = "as_json" if flag == "--json" else flag[2:].replace("-", "_")
        function = click.option(flag, name, cls=Option, group=group, is_flag=True, help=text)(function)
    return function


def load_job(
    ctx: click.Context,
    job: Path | None,
    overrides: tuple[str, ...],
    smoke: bool,
    parameters: dict[str, Any],
    flags: dict[str, Any] | None = None,
) -> Job:
    """The job of a command: `parameters` holds the values of JOB_FLAGS, `flags` those of the backend's own flags."""
    values = {flag.key: parameters.get(flag.parameter) for flag in JOB_FLAGS} | (flags or {})
    program = ctx.meta.get("zlaunch.program")
    if smoke and program:
        raise UsageError("--smoke trains a tiny model, but a program is given after `--`", hint="leave out one of them")
    loaded = submit.load_job(job, overrides=overrides, flags={**values, "program": program}, smoke=smoke)
    refuse_ignored(loaded.spec, IGNORED, values, overrides)
    return loaded


def check_script(job: JobSpec, backend: str) -> None:
    """Raise UsageError if the program is a Python file that is missing, unless the ranks see other files than we do."""
    script = job.program[0] if job.program else ""
    if script.endswith(".py") and not Path(script).is_file() and not choose.in_container(job, backend):
        raise UsageError(f"no such program: {script}", hint=f"paths after `--` are relative to {Path.cwd()}")
