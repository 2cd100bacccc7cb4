"""Run ids, and finding runs by id, by a prefix of the id, or by `last`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path

from launcher.errors import RunNotFound
from launcher.rundir.directory import RunDir

AMBIGUOUS_HINT = "give more of the name; `last` is the run that was started last"
_RUN_ID = re.compile(r"(?P<name>.+)-(?P<stamp>\d{8}-\d{6})-[0-9a-f]{4}")


def runs_root() -> Path:
    return Path(os.environ.get("ZLAUNCH_RUNS") or "runs").expanduser().absolute()


def new_run_id(name: str) -> str:
    """`<name>-<yyyymmdd>-<hhmmss>-<4 hex>`; the name keeps only letters, digits, `.`, `_` and `-`."""
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
    """Sort key: started runs after those that were only rendered, then by their last start, then by age.

    A point that was cancelled before it started has a record but no plan.
    """
    started = 0.0
    with contextlib.suppress(RunNotFound):  # only rendered, or damaged
        started = run.record.submitted or run.record.created
    return run.run_json.exists(), run.plan_json.exists(), started, _age(run.run_id)[0], run.path.stat().st_mtime_ns


def find_run(text: str, root: Path) -> RunDir:
    """The run meant by `text`: a path, a run id, an unambiguous prefix, or `last`. Raises RunNotFound.

    `last` is the run that was started or resumed last, or else the newest that was rendered.
    """
    if (os.sep in text or text.startswith(".")) and RunDir(Path(text)).plan_json.exists():
        return RunDir(Path(text).absolute())
    runs = list_runs(root)
    if text == "last" and runs:
        return max(runs, key=_started_last)
    matches = [run for run in runs if run.run_id == text] or [run for run in runs if run.run_id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if not runs:
        raise RunNotFound(
            f"no runs in {root}",
            hint="start one with `zlaunch local`, or set ZLAUNCH_RUNS to the directory of your runs",
        )
    if not matches:
        recent = ", ".join(run.run_id for run in runs[-3:])
        raise RunNotFound(f"no run {text!r} in {root}", hint=f"the newest runs: {recent}")
    raise RunNotFound(
        f"{text!r} is a prefix of {len(matches)} runs: {', '.join(run.run_id for run in matches[:5])}",
        hint=AMBIGUOUS_HINT,
    )
