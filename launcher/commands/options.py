"""Options that every launching command takes, and the command class that keeps what stands after `--`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from launcher.errors import UsageError
from launcher.images import choose
from launcher.job.load import parse_set
from launcher.job.spec import Job, JobSpec
from launcher.lifecycle import submit

Function = TypeVar("Function", bound=Callable[..., Any])

JOB_FLAGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--name", "name", {"help": "Name of the run."}),
    ("--device", "device", {"type": click.Choice(["auto", "cuda", "cpu"]), "help": "Where the ranks compute."}),
    ("--model", "model.path", {"help": "Hub id or local directory of the model."}),
    (
        "--quantization",
        "model.quantization",
        {"type": click.Choice(["none", "nf4", "int8"]), "help": "Of the frozen weights; nf4 is QLoRA."},
    ),
    ("--train-data", "data.train", {"help": "File of training records."}),
    ("--eval-data", "data.eval", {"help": "File of held-out records."}),
    ("--max-length", "data.max_length", {"type": int, "help": "Tokens a record may have."}),
    ("--lora-r", "lora.r", {"type": int, "help": "Rank of the adapter."}),
    ("--epochs", "train.epochs", {"type": float, "help": "Passes over the records."}),
    ("--max-steps", "train.max_steps", {"type": int, "help": "Optimizer steps, instead of epochs."}),
    ("--learning-rate", "train.learning_rate", {"type": float, "help": "At its peak."}),
    ("--global-batch-size", "train.global_batch_size", {"type": int, "help": "Records an optimizer step sees."}),
    ("--micro-batch-size", "train.micro_batch_size", {"help": "Records a rank's forward pass sees, or auto."}),
    ("--zero-stage", "train.zero_stage", {"help": "0, 1, 2, 3 or auto."}),
    (
        "--engine",
        "train.engine",
        {"type": click.Choice(["auto", "fused", "unsloth", "peft"]), "help": "Whose layers train."},
    ),
    ("--seed", "train.seed", {"type": int, "help": "The same seed gives the same records in the same order."}),
    ("--max-restarts", "max_restarts", {"type": int, "help": "Restarts from the newest checkpoint after a failure."}),
    (
        "--container",
        "container.runtime",
        {
            "type": click.Choice(["auto", "docker", "podman", "apptainer", "enroot", "charliecloud", "pyxis", "none"]),
            "help": "Engine that runs the image.",
        },
    ),
    ("--image", "container.image", {"help": "Container image to run in."}),
)
"""(flag, key of the job, click's settings)."""


class Idle(NamedTuple):
    """Keys and sections that count for nothing in some jobs: refused where this command line gives them. In a job file,
    which serves several backends, they may stand."""

    keys: tuple[str, ...]
    when: Callable[[JobSpec], bool]
    why: str
    instead: str


IDLE = (
    Idle(
        ("model", "data", "lora", "train", "eval", "verify_adapter"),
        lambda job: bool(job.program),
        "the run is of a program of your own, which reads no key of a training",
        "leave it out, or give it to the program, behind `--`",
    ),
    Idle(
        ("train.epochs",),
        lambda job: job.train.max_steps is not None,
        "train.max_steps is given, and wins",
        "leave out one of the two; --set train.max_steps=null takes back what the job file says",
    ),
    Idle(
        ("container.image",),
        lambda job: job.container.runtime == "none",
        "container.runtime is none",
        "leave out one of the two; --container auto takes the engine that fits the image",
    ),
)


def refuse_idle(job: JobSpec, rules: Collection[Idle], flags: Mapping[str, Any], overrides: Collection[str]) -> None:
    """Raise UsageError for what this command line gives, with a flag or with --set, and would count for nothing."""
    said = {key: f"--set {key}" for key, _ in map(parse_set, overrides)}
    said |= {key: _flag_of(key) for key, value in flags.items() if value is not None}
    for rule in rules:
        idle = [word for key, word in said.items() if key in rule.keys or key.partition(".")[0] in rule.keys]
        if idle and rule.when(job):
            raise UsageError(f"{', '.join(idle)} would count for nothing: {rule.why}", hint=rule.instead)


def _flag_of(key: str) -> str:
    named = {key: flag for flag, key, _ in JOB_FLAGS}
    return named.get(key, "--" + key.rpartition(".")[2].replace("_", "-"))


def job_options(function: Function) -> Function:
    """[JOB], one flag for every key a person would want one for, and --set for all others."""
    return some_job_options(*(key for _, key, _ in JOB_FLAGS))(function)


def some_job_options(*keys: str) -> Callable[[Function], Function]:
    """job_options with the flags of these keys only: for commands that do less than a run."""

    def decorate(function: Function) -> Function:
        for flag, key, settings in reversed(JOB_FLAGS):
            if key in keys:
                function = click.option(flag, _parameter(key), default=None, **settings)(function)
        return _job_and_set(function)

    return decorate


def _job_and_set(function: Function) -> Function:
    function = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any key of the job.")(
        function
    )
    function = click.option("--smoke", is_flag=True, help="A dozen steps of a tiny random model; no network.")(function)
    return click.argument("job", required=False, type=click.Path(path_type=Path))(function)


def run_options(function: Function) -> Function:
    """How the command behaves once the run is planned."""
    for flag, text in (
        ("--dry-run", "Write the run directory and stop."),
        ("--detach", "Return at once; the run goes on."),
        ("--json", "One JSON object as the last line of standard output."),
    ):
        name = "as_json" if flag == "--json" else flag[2:].replace("-", "_")
        function = click.option(flag, name, is_flag=True, help=text)(function)
    return function


def _parameter(key: str) -> str:
    return "key__" + key.replace(".", "__")


def load_job(
    ctx: click.Context,
    job: Path | None,
    overrides: tuple[str, ...],
    smoke: bool,
    parameters: dict[str, Any],
    further: dict[str, Any] | None = None,
) -> Job:
    """The job of a launching command; `parameters` are the values of job_options' flags, `further` a backend's own."""
    flags = {key: parameters.get(_parameter(key)) for _, key, _ in JOB_FLAGS}
    flags.update(further or {})
    flags["program"] = program_of(ctx)
    if smoke and flags["program"]:
        raise UsageError(
            "--smoke trains a tiny model, and behind `--` stands a program of your own",
            hint="leave out one of the two",
        )
    loaded = submit.load_job(job, overrides=overrides, flags=flags, smoke=smoke)
    refuse_idle(loaded.spec, IDLE, flags, overrides)
    return loaded


def program_of(ctx: click.Context) -> tuple[str, ...] | None:
    """The words after `--`; None without any."""
    return ctx.meta.get("zlaunch.program") or None


def refuse_absent_script(job: JobSpec, backend: str) -> None:
    """A Python file behind `--` that is not on this machine, where the ranks have the same files. Raises UsageError."""
    script = job.program[0] if job.program else ""
    if script.endswith(".py") and not Path(script).is_file() and not choose.in_container(job, backend):
        raise UsageError(f"no such program: {script}", hint=f"behind `--` its place is told from here: {Path.cwd()}")


class LaunchCommand(click.Command):
    """A command whose line may end in `-- PROGRAM ARGS...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            args, program = args[:cut], args[cut + 1 :]
            if not program:
                ctx.fail("a program must follow `--`")
            ctx.meta["zlaunch.program"] = tuple(program)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- PROGRAM ARGS...]"]
