"""The run directory: RunDir knows every file name of a run, RunRecord is run.json; listing and finding runs.

Every write goes to a temporary name in the same directory and is renamed into place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import RunNotFound, TargetError
from launcher.node import run_files


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: what the launcher knows of a run; the node records tell the rest."""

    schema: int = 1
    run_id: str
    name: str
    backend: str
    ids: tuple[str, ...] = ()
    """Identifiers on the target: a pid, one a host, or a Slurm job id."""
    created: float
    submitted: float | None = None
    state: str = "PENDING"
    """The last state that a command saw; final states are not asked for again."""
    zlaunch: str = ""
    """Version that wrote it."""
    log_start: int = 0
    """Bytes that rank 0's log had before this start."""
    extra: dict[str, Any] = {}
    """What the backend needs to find the run again (workdirs, addresses, cluster)."""

    @property
    def start(self) -> tuple[float | None, tuple[str, ...]]:
        """Which start of the run the record tells of: a resume is another."""
        return self.submitted, self.ids


class RunFile:
    """A file or folder of every run directory: on a RunDir, its path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return run.path / self.name


class RunDir:
    """Names and small reads and writes of one run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    job_yaml = RunFile(run_files.JOB)
    plan_json = RunFile(run_files.PLAN)
    train_json = RunFile(run_files.TRAIN)
    ds_config = RunFile(run_files.DS_CONFIG)
    hostfile = RunFile(run_files.HOSTFILE)
    node_sh = RunFile(run_files.NODE_SH)
    sbatch = RunFile(run_files.SBATCH)
    code = RunFile(run_files.CODE)
    before = RunFile(run_files.BEFORE)
    """What was rendered for the start before, of which a resume that comes to nothing makes use."""
    run_json = RunFile(run_files.RECORD)
    nodes_dir = RunFile(run_files.NODES)
    logs_dir = RunFile(run_files.LOGS)
    errors_dir = RunFile(run_files.ERRORS)
    control_dir = RunFile(run_files.CONTROL)
    events = RunFile(run_files.EVENTS)
    metrics = RunFile(run_files.METRICS)
    checkpoints = RunFile(run_files.CHECKPOINTS)
    adapter = RunFile(run_files.ADAPTER)
    result_json = RunFile(run_files.RESULT)
    evaluations = RunFile(run_files.EVALUATIONS)

    def node_record(self, node: int) -> Path:
        return self.path / run_files.node_record(node)

    def rank_log(self, node: int, rank: int) -> Path:
        return self.path / run_files.rank_log(node, rank)

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        complete = (path.parent.name for path in self.checkpoints.glob(f"step-*/{run_files.COMPLETE}"))
        return sorted(int(name.removeprefix("step-")) for name in complete)

    def write(self, files: Mapping[str, str]) -> None:
        """Write rendered files. Raises TargetError when the disk is full or the place not writable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)  # the control channel's token and the user's paths are nobody else's business
            for name, text in files.items():
                write_atomic(self.path / name, text)
        except OSError as error:
            raise TargetError(
                f"cannot write the run directory {self.path}: {error.strerror}",
                hint="set ZLAUNCH_RUNS to a directory on a disk with room",
            ) from error

    def keep_rendered(self) -> None:
        """Put what was rendered for the last start aside, before a resume writes its own."""
        shutil.rmtree(self.before, ignore_errors=True)
        self.before.mkdir()
        for name in run_files.RENDERED:
            if (self.path / name).is_file():  # copied: a launcher that dies here leaves a run that can be resumed
                shutil.copy2(self.path / name, self.before / name)
            elif (self.path / name).is_dir():
                (self.path / name).rename(self.before / name)

    def put_rendered_back(self) -> None:
        """Undo what a resume has written; nothing where nothing was put aside."""
        for name in run_files.RENDERED if self.before.is_dir() else ():
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)
            if (self.before / name).exists():
                (self.before / name).rename(self.path / name)
        shutil.rmtree(self.before, ignore_errors=True)

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """The object in a JSON file of this run; None if the file does not exist. Raises RunNotFound if the file is
        damaged, as `record` does."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise RunNotFound(f"{path} cannot be read: {error}") from error

    @property
    def record(self) -> RunRecord:
        try:
            return msgspec.json.decode(self.run_json.read_bytes(), type=RunRecord)
        except FileNotFoundError as error:
            backend = self.read_plan().get("backend")
            raise RunNotFound(
                f"{self.path} holds no run.json: it was rendered (--dry-run) but not submitted",
                hint=f"zlaunch {backend} {shlex.quote(str(self.job_yaml))} starts it" if backend else None,
            ) from error
        except (OSError, msgspec.MsgspecError) as error:
            raise RunNotFound(f"{self.run_json} cannot be read: {error}") from error

    def save_record(self, record: RunRecord, *, only_first: bool = False) -> bool:
        """Write run.json; `only_first`: unless there is one, which is then left as it is, and False returned."""
        with self._locked():
            if only_first and self.run_json.exists():
                return False
            self._write_record(record)
            return True

    def update_record(self, *, only_if: Callable[[RunRecord], bool] | None = None, **changes: Any) -> RunRecord:
        """Change fields of run.json; two commands that do so at once lose nothing of each other's.

        `only_if`: nothing is changed unless it says so of the record as it is now. The record as it is then.
        """
        with self._locked():
            record = self.record
            if only_if is None or only_if(record):
                record = msgspec.structs.replace(record, **changes)
                self._write_record(record)
        return record

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return _locked(self.path / run_files.RECORD_LOCK)

    def _write_record(self, record: RunRecord) -> None:
        write_atomic(self.run_json, msgspec.json.format(msgspec.json.encode(record)).decode() + "\n")

    def event(self, name: str, **fields: Any) -> None:
        """Append one line to events.jsonl (a single write, so that concurrent writers never mix)."""
        line = msgspec.json.encode({"time": time.time(), "event": name, **fields}) + b"\n"
        handle = os.open(self.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def read_plan(self) -> dict[str, Any]:
        """plan.json; empty for a run that was never rendered."""
        return self.read_json(self.plan_json) or {}

    def read_events(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.events))

    def read_metrics(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.metrics))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that may still be written: a torn last line is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        try:
            item = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(item, dict):  # a line torn by a crash may still be JSON: a number
            yield item


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that ends with this process. (filelock would do the same, and take longer to import than to wait.)"""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: as likely as ever to go well
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
