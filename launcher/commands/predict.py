"""`zlaunch predict RUN FILE`: answers to the records of a file."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands.adapter_options import (
    checkpoint_args,
    checkpoint_option,
    device_option,
    find_run_with_adapter,
    run_module,
)
from launcher.errors import UsageError
from launcher.machine import facts


@click.command()
@click.argument("run")
@click.argument("file")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, a JSON object per record.")
@device_option
@click.option("--answers", type=click.IntRange(min=1), default=1, show_default=True, help="Answers to each record.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 picks the most likely token.",
)
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
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Maximum number of tokens per answer.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Records per batch.")
@click.option("--base", is_flag=True, help="Use the base model without the adapter, for comparison.")
@checkpoint_option
def predict(
    run: str, file: str, out: Path, device: str, base: bool, checkpoint: str | None, **answering: str | float | None
) -> int:
    """Answer every record of FILE, of any form and with labels or without, with RUN's adapter. Uses all local GPUs.

    Called again after an interruption, it answers what is left.
    """
    if base and checkpoint:
        told = "--base is the model without an adapter, and --checkpoint names one: give one of them"
        raise UsageError(told, code="ZL-OPT-01")
    found = find_run_with_adapter(run)
    hub = file.startswith("hub:")
    if not hub and not Path(file).exists():
        raise UsageError(f"no such file: {file}", code="ZL-DATA-01")
    gpus = len(facts.local_gpus()) if device != "cpu" else 0
    args = ["-m", "train.answers.predict", "--run-dir", str(found.path), "--device", device]
    args += [f"--data={file if hub else Path(file).absolute()}", f"--out={out.absolute()}"]
    args += [f"--{name.replace('_', '-')}={value}" for name, value in answering.items() if value is not None]
    args += [*checkpoint_args(checkpoint), *(["--base"] if base else [])]
    if gpus > 1:
        args = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", *args]
    return run_module(found, args)
