"""`zlaunch eval RUN`: measure an adapter on records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from launcher.commands.adapter_options import (
    average_option,
    checkpoint_args,
    checkpoint_option,
    device_option,
    find_run_with_adapter,
    on_all_gpus,
    records_argument,
    run_module,
)
from launcher.errors import UsageError
from launcher.rundir.directory import RunDir
from train.config import HUBS


@click.command("eval")
@click.argument("run")
@click.option("--data", metavar="FILE|hub:NAME|ms:NAME", help="Records to measure on (default: data.eval of the job).")
@device_option
@click.option("--max-records", type=click.IntRange(min=1), help="Maximum number of records.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object.")
@checkpoint_option
@average_option
def evaluate(
    run: str,
    data: str | None,
    device: str,
    max_records: int | None,
    as_json: bool,
    checkpoint: str | None,
    average: str | None,
) -> int:
    """Measure RUN's adapter on records: the loss, and the metrics of each task. Uses all local GPUs."""
    found = find_run_with_adapter(run)
    if data and not data.startswith(HUBS) and not Path(data).is_file():
        raise UsageError(f"--data: no such file: {data}", code="ZL-DATA-01")
    chosen = checkpoint_args(checkpoint, average)
    status, scores, directory = measure(found, data, device, chosen, max_records)
    if status:
        return status
    if as_json:
        click.echo(json.dumps(scores, ensure_ascii=False))
        return 0
    show(scores)
    click.echo(f"predictions: {directory / 'predictions.jsonl'}")
    return 0


def show(scores: dict[str, Any]) -> None:
    from launcher.show import final  # imports Rich

    final.print_scores(scores)


def measure(
    found: RunDir, data: str | None, device: str, chosen: Sequence[str], max_records: int | None = None
) -> tuple[int, dict[str, Any], Path]:
    """Measure an adapter on records, on all local GPUs: (exit status, scores, where they are).

    `chosen`: which adapter, by `checkpoint_args`.
    """
    directory = found.evaluations / directory_name(data, chosen)
    args = ["-m", "train.evaluate", "--run-dir", str(found.path), "--device", device, "--out", str(directory)]
    args += ["--data", records_argument(data)] if data else []
    args += ["--max-records", str(max_records)] if max_records else []
    status = run_module(found, on_all_gpus(device, [*args, *chosen]))
    return status, ({} if status else found.read_json(directory / "scores.json") or {}), directory


def directory_name(data: str | None, chosen: Sequence[str] = ()) -> str:
    """The directory for scores on these records; those of another adapter than the run's own have its name, too."""
    which = [name.partition("=")[2].replace(":", "-") for name in chosen]
    return "-".join([_name_of(data), *which])


def _name_of(data: str | None) -> str:
    """The same of the records alone.

    Two files of one name in different places get different directories, and neither gets that of the job's data.eval.
    """
    if data is None:
        return "eval"
    if data.startswith(HUBS):
        return data.replace(":", "-").replace("/", "--")
    return f"{Path(data).stem}-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]}"
