"""The result of a run, read from its directory."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.rundir import summary
from launcher.rundir.directory import RunDir, RunRecord


def span(root: Path, *names: str) -> tuple[float | None, float | None]:
    """Of a run with these events, a second apart."""
    run = RunDir(root / "a-20260101-000000-aaaa")
    lines = [json.dumps({"time": float(at), "event": name}) for at, name in enumerate(names, 1)]
    run.write({"events.jsonl": "\n".join(lines) + "\n"})
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend="local", created=1.0))
    return summary.span(run)


def test_an_evaluation_after_the_end_does_not_lengthen_a_run(tmp_path: Path) -> None:
    assert span(tmp_path, "agent_started", "submitted", "phase", "end", "data") == (1.0, 4.0)


def test_a_resumed_run_lasts_until_its_last_event(tmp_path: Path) -> None:
    again = ("slurm_start", "agent_started", "phase", "end", "slurm_requeue", "slurm_start", "agent_started", "phase")
    assert span(tmp_path, *again) == (1.0, 8.0)
