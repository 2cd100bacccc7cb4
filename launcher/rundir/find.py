"""Run ids, and finding runs: by id, by a part of the id, or `last`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import RunNotFound
from launcher.rundir.directory import RunDir

_RUN_ID = re.compile(r"(?P<name>.+)-(?P<stamp>\d{8}-\d{6})-[0-9a-f]{4}")


SAY_MORE = "say more of its name, or all of it; `last` is the run that was started last"


def runs_root(environ: Mapping[str, str] | None = None) -> Path:
    return Path((environ or os.environ).get("ZLAUNCH_RUNS") or "runs").expanduser().absolute()


def new_run_id(name: str) -> str:
    """`<name>-<yyyymmdd>-<hhmmss>-<4 hex>`, the name reduced to letters, digits, `.`, `_` and `-`."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
    return f"{plain}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def list_runs(root: Path) -> list[RunDir]:
    """The runs under `root`, oldest first."""
    try:
        names = [entry.name for entry in os.scandir(root) if entry.is_dir() and _RUN_ID.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    return [RunDir(root / name) for name in sorted(names, key=_age)]


def _age(run_id: str) -> tuple[str, str]:
    match = _RUN_ID.fullmatch(run_id)
    assert match is not None  # list_runs has filtered
    return match["stamp"], run_id


def _started_last(run: RunDir) -> tuple[bool, bool, float, str, int]:
    """Started before rendered only (a point cancelled before its turn has a record and no plan), then by the last start
    (a resume is one), then by age."""
    started = 0.0
    with contextlib.suppress(RunNotFound):  # rendered only, or damaged
        started = run.record.submitted or run.record.created
    return run.run_json.exists(), run.plan_json.exists(), started, _age(run.run_id)[0], run.path.stat().st_mtime_ns


def find_run(text: str, root: Path) -> RunDir:
    """The run meant by `text`: a path, a run id, an unambiguous prefix, or `last`, the one that was started last, a
    resume being a start (of runs that were only rendered the newest; of a sweep no point that was cancelled before its
    turn). Raises RunNotFound."""
    if (os.sep in text or text.startswith(".")) and RunDir(Path(text)).plan_json.exists():
        return RunDir(Path(text).absolute())
    runs = list_runs(root)
    if text == "last" and runs:
        return max(runs, key=_started_last)
    matches = [run for run in runs if run.run_id == text] or [run for run in runs if run.run_id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if not runs:
        raise RunNotFound(f"no runs in {root}", hint="run `zlaunch local`, or set ZLAUNCH_RUNS to where your runs are")
    if not matches:
        recent = ", ".join(run.run_id for run in runs[-3:])
        raise RunNotFound(f"no run {text!r} in {root}", hint=f"the newest runs: {recent}")
    raise RunNotFound(
        f"{text!r} is the beginning of {len(matches)} runs: {', '.join(r.run_id for r in matches[:5])}", hint=SAY_MORE
    )
