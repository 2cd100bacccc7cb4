"""Options that every launching command takes, and the command class that keeps what stands after `--`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from launcher import submit
from launcher.spec import Job

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


def job_options(function: Function) -> Function:
    """[JOB], one flag for every key a person would want one for, and --set for all others."""
    for flag, key, settings in reversed(JOB_FLAGS):
        function = click.option(flag, _parameter(key), default=None, **settings)(function)
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
    flags = {key: parameters[_parameter(key)] for _, key, _ in JOB_FLAGS}
    flags.update(further or {})
    flags["program"] = program_of(ctx)
    return submit.load_job(job, overrides=overrides, flags=flags, smoke=smoke)


def program_of(ctx: click.Context) -> tuple[str, ...] | None:
    """The words after `--`; None without any."""
    return ctx.meta.get("zlaunch.program") or None


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
