"""Run ids, and finding runs by path, id, name, a prefix of the id, or `last`."""

from __future__ import annotations

import os
import re
import secrets
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from launcher.errors import RunNotFound
from launcher.node import run_files
from launcher.rundir.directory import RunDir

AMBIGUOUS_HINT = "give more of the name; `last` is the run that was started last"
_RUN_ID = re.compile(r"(?P<name>[^.].*)-(?P<stamp>[0-9]{8}-[0-9]{6})-[0-9a-f]{4}")
REMOVAL = "removing"
"""In `extra` of run.json: when the removal of the run began. A sweep has a file of this name."""
RENDERED = "rendered"
"""The event of a dry run. Without it, a directory may be of a run that another command is about to start."""
MOST_CHARACTERS = 60
MOST_BYTES = 180
"""Of the name in a run id, in UTF-8. A file system takes 255 for a file's name, and some names are longer than the id:
temporary ones, and those of secrets."""


def runs_root() -> Path:
    return Path(os.environ.get("ZLAUNCH_RUNS") or "runs").expanduser().absolute()


def new_run_id(name: str) -> str:
    """`<name>-<yyyymmdd>-<hhmmss>-<4 hex>`, with `safe_name(name)`."""
    return f"{safe_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_run(name: str) -> RunDir:
    """Return the directory of a new run of that name. It does not exist yet."""
    return RunDir(runs_root() / new_run_id(name))


def safe_name(name: str) -> str:
    """The name with only letters and digits of any script, `.`, `_` and `-`, so that files and jobs can have it.

    Composed (NFC), because the same name typed on another machine may be other bytes.
    """
    kept = "".join(_kept(char) for char in unicodedata.normalize("NFC", name))
    try:
        os.fsencode(kept)
    except UnicodeEncodeError:  # in this locale no file can have the name
        kept = "".join(char if char.isascii() else "\0" for char in kept)
    plain = re.sub("\0+", "-", kept).strip("-.")[:MOST_CHARACTERS]
    return plain.encode()[:MOST_BYTES].decode("utf-8", "ignore").rstrip("-.") or "run"


def _kept(char: str) -> str:
    kind = unicodedata.category(char)
    if char in "._-" or kind[0] in "LNM":  # letters, numbers, and the marks that belong to letters
        return char
    return "" if kind == "Cf" else "\0"  # what has no width also leaves no gap


def list_runs(root: Path) -> list[RunDir]:
    """The runs under `root`, oldest first, dry runs too."""
    try:
        names = [entry.name for entry in os.scandir(root) if entry.is_dir() and _RUN_ID.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    return [RunDir(root / name) for name in sorted(names, key=_age)]


def is_dry_run(run: RunDir) -> bool:
    """Whether the run was rendered and never started."""
    return not os.path.lexists(f"{run.path}/{run_files.RECORD}")


def _age(run_id: str) -> tuple[str, str]:
    match = _RUN_ID.fullmatch(run_id)
    assert match is not None  # list_runs has filtered
    return match["stamp"], run_id


def _started_last(run: RunDir) -> tuple[bool, float, str, int]:
    """Sort key: runs whose target has accepted them by their last start, after those that never started."""
    started = None
    try:
        record = run.record
        started = record.submitted
        # A launcher that was killed could not record the start, and one that is starting the run has not yet.
        if started is None and (record.state not in ("FAILED", "CANCELLED") or any(run.nodes_dir.glob("node-*.json"))):
            started = run.run_json.stat().st_mtime
    except (RunNotFound, OSError):  # damaged
        pass
    return started is not None, started or 0.0, _age(run.run_id)[0], run.path.stat().st_mtime_ns


def matching(text: str, run_ids: Iterable[str]) -> list[str]:
    """The ids that are `text`, or else whose name it is, or else that begin with it. An empty text matches none."""
    wanted = "".join(char for char in unicodedata.normalize("NFC", text) if unicodedata.category(char) != "Cf")
    ids = list(run_ids) if wanted else []
    found = [run_id for run_id in ids if run_id == wanted]
    found = found or [run_id for run_id in ids if (match := _RUN_ID.fullmatch(run_id)) and match["name"] == wanted]
    found = found or [run_id for run_id in ids if run_id.startswith(wanted)]
    if not found and (name := safe_name(wanted)) != "run":  # as it is written in the job
        found = [run_id for run_id in ids if (match := _RUN_ID.fullmatch(run_id)) and match["name"] == name]
    return found


def path_of(text: str) -> Path | None:
    """The absolute path that a RUN names; None: it is no path."""
    is_path = os.sep in text or text in (os.curdir, os.pardir)
    return Path(os.path.abspath(Path(text).expanduser())) if is_path else None  # noqa: PTH100 - `..` has no run's name


def find_run(text: str, root: Path) -> RunDir:
    """The run meant by `text`: a path, a run id, a name or an unambiguous prefix, or `last`. Raises RunNotFound.

    `last` is the run that was started or resumed last; if none was started, the newest whose start was refused. A dry
    run has only its path and its whole id.
    """
    path = path_of(text)
    if path is not None:
        return _run_at(path)
    runs = {run.run_id: run for run in list_runs(root)}
    begun = [run for run in runs.values() if not is_dry_run(run)]
    if text == "last" and begun:
        return max(begun, key=_started_last)
    matches = [text] if text in runs else matching(text, [run.run_id for run in begun])
    if len(matches) == 1:
        return runs[matches[0]]
    if matches:
        raise RunNotFound(
            f"{text!r} is the name or a prefix of {len(matches)} runs: {', '.join(matches[:5])}", hint=AMBIGUOUS_HINT
        )
    if RunDir(Path(text)).plan_json.exists() and text:  # `cd runs; zlaunch status NAME`
        return _run_at(Path(text).absolute())
    if not runs:
        raise RunNotFound(
            f"no runs in {root}",
            hint="start one with `zlaunch local`, or set ZLAUNCH_RUNS to the directory of your runs",
        )
    if not begun:
        raise RunNotFound(f"no run in {root} was started", hint="dry runs have no short name: zlaunch list --all")
    dry = matching(text, [run_id for run_id, run in runs.items() if is_dry_run(run)])
    recent = ", ".join(run.run_id for run in begun[-3:])
    hint = f"a dry run is meant by its whole id: {', '.join(dry[:3])}" if dry else f"the newest runs: {recent}"
    raise RunNotFound(f"no run {text!r} in {root}", hint=hint)


def _run_at(path: Path) -> RunDir:
    run = RunDir(path)
    if not (run.plan_json.exists() or run.run_json.exists()):
        raise RunNotFound(f"no run in {path}: it has no {run.plan_json.name}")
    return run
