"""`zlaunch eval RUN`: measure an adapter on records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click

from launcher.commands.adapter_options import device_option, find_run_with_adapter, run_module
from launcher.errors import UsageError
from launcher.machine import facts


@click.command("eval")
@click.argument("run")
@click.option("--data", metavar="FILE|hub:NAME", help="Records to measure on (default: data.eval of the job).")
@device_option
@click.option("--max-records", type=click.IntRange(min=1), help="Maximum number of records.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object.")
def evaluate(run: str, data: str | None, device: str, max_records: int | None, as_json: bool) -> int:
    """Measure RUN's adapter on records: the loss, and the metrics of each task. Uses all local GPUs."""
    found = find_run_with_adapter(run)
    gpus = len(facts.local_gpus()) if device != "cpu" else 0
    hub = bool(data and data.startswith("hub:"))
    if data and not hub and not Path(data).is_file():
        raise UsageError(f"--data: no such file: {data}")
    directory = found.evaluations / directory_name(data)
    args = ["-m", "train.evaluate", "--run-dir", str(found.path), "--device", device, "--out", str(directory)]
    args += ["--data", data if hub else str(Path(data).absolute())] if data else []
    args += ["--max-records", str(max_records)] if max_records else []
    if gpus > 1:
        args = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", *args]
    status = run_module(found, args)
    if status:
        return status
    scores = found.read_json(directory / "scores.json") or {}
    if as_json:
        click.echo(json.dumps(scores, ensure_ascii=False))
        return 0
    from launcher.show import final  # imports Rich

    final.print_scores(scores)
    click.echo(f"predictions: {directory / 'predictions.jsonl'}")
    return 0


def directory_name(data: str | None) -> str:
    """The directory for scores on these records.

    Two files of one name in different places get different directories, and neither gets that of the job's data.eval.
    """
    if data is None:
        return "eval"
    if data.startswith("hub:"):
        return data.replace(":", "-").replace("/", "--")
    return f"{Path(data).stem}-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]}"
