"""`zlaunch predict RUN FILE`: answers to the records of a file."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands.adapter_options import (
    base_option,
    checkpoint_args,
    checkpoint_option,
    device_option,
    find_run_with_adapter,
    max_new_tokens_option,
    on_all_gpus,
    records_argument,
    refuse_checkpoint_of_base,
    run_module,
    temperature_option,
)
from launcher.errors import UsageError
from train.config import HUBS


@click.command()
@click.argument("run")
@click.argument("file")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, a JSON object per record.")
@device_option
@click.option("--answers", type=click.IntRange(min=1), default=1, show_default=True, help="Answers to each record.")
@temperature_option
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from this share.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of sampled answers."
)
@click.option("--system", help="System message of records without one (default: data.system of the run).")
@max_new_tokens_option(256)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Records per batch.")
@base_option
@checkpoint_option
def predict(
    run: str, file: str, out: Path, device: str, base: bool, checkpoint: str | None, **answering: str | float | None
) -> int:
    """Answer every record of FILE, of any form and with labels or without, with RUN's adapter. Uses all local GPUs.

    Called again after an interruption, it answers what is left.
    """
    refuse_checkpoint_of_base(base, checkpoint)
    found = find_run_with_adapter(run)
    if not file.startswith(HUBS) and not Path(file).exists():
        raise UsageError(f"no such file: {file}", code="ZL-DATA-01")
    args = ["-m", "train.answers.predict", "--run-dir", str(found.path), "--device", device]
    args += [f"--data={records_argument(file)}", f"--out={out.absolute()}"]
    args += [f"--{name.replace('_', '-')}={value}" for name, value in answering.items() if value is not None]
    args += [*checkpoint_args(checkpoint), *(["--base"] if base else [])]
    return run_module(found, on_all_gpus(device, args))
