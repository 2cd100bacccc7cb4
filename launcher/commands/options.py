"""Options of the commands that work on a job, as tables: flag, key of the job, help."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from launcher.commands.help_groups import Option
from launcher.commands.ignored import IGNORED, refuse_ignored
from launcher.errors import UsageError
from launcher.job.spec import Job
from launcher.lifecycle import job_file, sweep_in_turn
from launcher.lifecycle.sweep import Load

DEMO = (
    "no job file here: this is zlaunch's demo, a small model and 500 Chinese records "
    "(a job of your own: `zlaunch init`, or --model and --train-data)"
)

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
ENGINE_HELP = (
    "Container engine. apptainer, enroot and pyxis are rendered after their documentation, not run by our tests."
)
RUNTIMES = click.Choice(["auto", "docker", "podman", "apptainer", "enroot", "charliecloud", "pyxis", "none"])

JOB_FLAGS = (
    Flag("--name", "name", "Name of the run."),
    Flag("--device", "device", "Device of the ranks.", type=click.Choice(["auto", "cuda", "cpu"])),
    Flag("--model", "model.path", "Hub id or local directory of the model."),
    Flag("--train-data", "data.train", "File of training records."),
    Flag("--eval-data", "data.eval", "File of held-out records."),
    Flag("--seed", "train.seed", "Random seed: the same seed gives the same records in the same order.", type=int),
    Flag("--network", "network", "Rate between hosts for the plan: 25Gb (bits), 3.1GB (bytes).", metavar="RATE"),
    Flag("--max-restarts", "max_restarts", "Restarts from the newest checkpoint after a failure.", type=int),
    Flag("--quantization", "model.quantization",
         "Quantization of the frozen weights; nf4 is QLoRA, fp8 is faster (Hopper).", "Training",
         click.Choice(["none", "nf4", "int8", "fp8"])),
    Flag("--max-length", "data.max_length", "Maximum number of tokens per record.", "Training", int),
    Flag("--lora-r", "lora.r", "Rank of the adapter.", "Training", int),
    Flag("--epochs", "train.epochs", "Passes over the records.", "Training", float),
    Flag("--max-steps", "train.max_steps", "Optimizer steps, instead of epochs.", "Training", int),
    Flag("--learning-rate", "train.learning_rate", "Peak learning rate.", "Training", float),
    Flag("--global-batch-size", "train.global_batch_size", "Records per optimizer step, or auto.", "Training",
         lambda text: int(text) if text.isdigit() else text, "N"),
    Flag("--micro-batch-size", "train.micro_batch_size", "Records per forward pass of a rank, or auto.", "Training"),
    Flag("--zero-stage", "train.zero_stage", "DeepSpeed ZeRO stage: 0, 1, 2, 3 or auto.", "Training"),
    Flag("--engine", "train.engine", "Implementation of the model's layers.", "Training", ENGINES),
    Flag("--container", "container.runtime", ENGINE_HELP, "Container", RUNTIMES),
    Flag("--image", "container.image", "Container image to run in.", "Container"),
)  # fmt: skip


def add_flags(flags: Collection[Flag]) -> Callable[[Function], Function]:
    """Decorate a command with these flags."""
    return compose([flag.option() for flag in flags])


def take_flags(flags: Collection[Flag], ctx: click.Context) -> dict[str, Any]:
    """The values of these flags on the command line: {key of the job: value or None}."""
    return {flag.key: ctx.params.get(flag.parameter) for flag in flags}


def compose(options: Sequence[Callable[[Function], Function]]) -> Callable[[Function], Function]:
    """Several options as one decorator, listed in the help in this order."""
    return lambda function: functools.reduce(lambda done, option: option(done), reversed(options), function)


def switch(name: str, group: str, text: str) -> Callable[[Function], Function]:
    """A flag without a value."""
    parameter = "as_json" if name == "--json" else name[2:].replace("-", "_")
    return click.option(name, parameter, cls=Option, group=group, is_flag=True, help=text)


def texts(name: str, parameter: str, metavar: str, group: str, text: str) -> Callable[[Function], Function]:
    """An option that may be repeated."""
    text += " May be repeated."
    return click.option(name, parameter, cls=Option, group=group, multiple=True, metavar=metavar, help=text)


def some_job_options(*keys: str) -> Callable[[Function], Function]:
    """[JOB], --smoke, --set and the flags of these keys, for commands that use no other key."""
    return compose([
        click.argument("job", required=False, type=click.Path(path_type=Path)),
        switch("--smoke", "Job", "Run a dozen steps of a tiny random model instead; needs no network."),
        texts("--set", "overrides", "KEY=VALUE", "Job", "Set any key of the job."),
        add_flags([flag for flag in JOB_FLAGS if flag.key in keys]),
    ])  # fmt: skip


job_options = some_job_options(*(flag.key for flag in JOB_FLAGS))
run_options = compose([
    switch("--detach", "Start", "Return as soon as the run has started."),
    switch("--dry-run", "Start", "Write the run directory and stop."),
    switch("--json", "Output", "Print one JSON object as the last line of standard output."),
])  # fmt: skip
"""How the run starts and what is printed."""


def sweep_option(how: str) -> Callable[[Function], Function]:
    return texts("--sweep", "sweeps", "KEY=A,B,C", "Start", f"Start one run per combination of values, {how}.")


def load_job(ctx: click.Context, flags: dict[str, Any] | None = None) -> Job:
    """The job of a command line; `flags` are the values of the backend's own flags, by key of the job."""
    values = take_flags(JOB_FLAGS, ctx) | (flags or {})
    overrides, smoke, program = ctx.params["overrides"], ctx.params["smoke"], ctx.meta.get("zlaunch.program")
    if smoke and program:
        raise UsageError(
            "--smoke trains a tiny model, but a program is given after `--`",
            hint="leave out one of them",
            code="ZL-OPT-01",
        )
    flags = {**values, "program": program}
    loaded = job_file.load_job(ctx.params["job"], overrides=overrides, flags=flags, smoke=smoke)
    refuse_ignored(loaded.spec, IGNORED, values, overrides)
    if loaded.origin == str(job_file.demo_job()) and ctx.params["job"] is None:
        if not ctx.meta.get("zlaunch.demo_told"):  # once for all points of a sweep
            click.echo(DEMO, err=True)
        ctx.meta["zlaunch.demo_told"] = True
    return loaded


def launch_options(ctx: click.Context) -> dict[str, Any]:
    """The values of --smoke and `run_options` on the command line, as arguments of attach.launch."""
    return {name: ctx.params[name] for name in ("smoke", "dry_run", "detach", "as_json")}


def start_run_or_sweep(ctx: click.Context, load: Load, start: Callable[..., int], *, backend: str) -> int:
    """Start the job of a command line, or with --sweep its points one after another. Returns the exit code."""
    if not ctx.params["sweeps"]:
        return start(load({}))
    sweep_in_turn.refuse_detach(ctx.params["detach"])
    return sweep_in_turn.run_sweep(ctx.params["sweeps"], load, ctx.params["overrides"], start, backend=backend)
