"""A finished run whose interpreter only records how it was called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli
from launcher.rundir.directory import RunDir, RunRecord

PYTHON = r"""#!/bin/sh
printf '%s\n' "$PYTHONPATH" "$@" > "$0.called"
while [ $# -gt 1 ]; do
    if [ "$1" = --out ]; then
        mkdir -p "$2"
        tasks='{"qa": {"records": 2, "exact_match": 0.5}}'
        echo '{"records": 2, "loss": 1.5, "accuracy": 0.5, "data": "d", "tasks": '"$tasks}" > "$2/scores.json"
    fi
    shift
done
"""


@dataclass(frozen=True)
class AdapterRun:
    """A run with an adapter, and the interpreter of its plan."""

    run: RunDir
    python: Path

    def called(self) -> list[str]:
        """PYTHONPATH and the arguments of the last call."""
        return Path(f"{self.python}.called").read_text().splitlines()

    def zlaunch(self, *words: str) -> str:
        done = CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
        assert done.return_value in (0, None), done.output
        return done.output


@pytest.fixture
def adapter_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterRun:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = RunDir(tmp_path / "runs" / "demo-20261124-120000-abcd")
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_config.json").write_text("{}")
    python = tmp_path / "their python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    run.plan_json.write_text(json.dumps({"launch": {"python": str(python)}}))
    run.save_record(RunRecord(run_id=run.run_id, name="demo", backend="local", created=1.0, state="SUCCEEDED"))
    return AdapterRun(run, python)
