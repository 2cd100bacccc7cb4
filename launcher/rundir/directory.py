"""RunDir: the files of a run; RunRecord: run.json.

Every write goes to a temporary name in the same directory, and is then renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import RunNotFound, StorageError
from launcher.machine.storage import written
from launcher.node import files, run_files
from launcher.node.agent.launch import DEFAULTS
from launcher.rundir import shapes
from launcher.rundir.claims import Busy, Claim
from launcher.rundir.jsonl import read_jsonl


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: what the launcher knows about a run. The node records hold the rest."""

    schema: int = 1
    run_id: str
    name: str
    backend: str
    ids: tuple[str, ...] = ()
    """Identifiers on the target: a pid, one per host, or a Slurm job id."""
    created: shapes.Seconds
    submitted: shapes.Seconds | None = None
    state: str = "PENDING"
    """The last state that a command saw. A final state is not queried again."""
    zlaunch: str = ""
    """The version that wrote the record."""
    log_start: int = 0
    """Size of rank 0's log before this start, in bytes."""
    extra: dict[str, Any] = {}
    """What the backend needs to find the run again: working directories, addresses, cluster."""

    @property
    def start(self) -> tuple[float | None, tuple[str, ...]]:
        """Identifies one start of the run; a resume is another start."""
        return self.submitted, self.ids


class RunFile:
    """A file or folder of every run directory: on a RunDir, its path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return run.path / self.name


class RunDir:
    """The paths of a run directory, with small reads and writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self._claims: list[Claim] = []

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
    """The files rendered for the start before. A refused resume restores them."""
    run_json = RunFile(run_files.RECORD)
    nodes_dir = RunFile(run_files.NODES)
    logs_dir = RunFile(run_files.LOGS)
    control_dir = RunFile(run_files.CONTROL)
    events = RunFile(run_files.EVENTS)
    metrics = RunFile(run_files.METRICS)
    checkpoints = RunFile(run_files.CHECKPOINTS)
    adapter = RunFile(run_files.ADAPTER)
    result_json = RunFile(run_files.RESULT)
    predictions = RunFile(run_files.PREDICTIONS)
    evaluations = RunFile(run_files.EVALUATIONS)
    report = RunFile(run_files.REPORT)

    def node_record(self, node: int) -> Path:
        return self.path / run_files.node_record(node)

    def rank_log(self, node: int, rank: int) -> Path:
        return self.path / run_files.rank_log(node, rank)

    def rank_log_end(self, node: int, rank: int, lines: int) -> list[str]:
        """The last lines of a rank's log, without empty ones."""
        return files.last_lines(files.tail(self.rank_log(node, rank)), lines)

    def check_exists(self) -> None:
        """Raise StorageError if the directory is gone. What follows a run calls this, or it would wait for ever."""
        if not self.path.is_dir():
            raise StorageError(
                f"{self.path} is gone: the run directory was removed or its disk is no longer mounted",
                hint="the agents of a removed run end it; zlaunch reap ends processes that one left on this machine",
            )

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        complete = (path.parent.name for path in self.checkpoints.glob(f"step-*/{run_files.COMPLETE}"))
        numbers = (name.removeprefix("step-") for name in complete)
        return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())

    def write(self, texts: Mapping[str, str]) -> None:
        """Write rendered files. Raises StorageError if the disk is full or the directory not writable."""
        try:
            with written():
                make_private(self.path)  # plan.json holds the token of the control channel
                for name, text in texts.items():
                    write_atomic(self.path / name, text)
        except StorageError as error:
            error.hint = f"{error.hint}, or set ZLAUNCH_RUNS to a writable directory with free space"
            raise

    def keep_rendered(self) -> None:
        """Move the files rendered for the last start to `before`, so that a resume can write its own."""
        with written():
            self._keep_rendered()

    def _keep_rendered(self) -> None:
        shutil.rmtree(self.before, ignore_errors=True)
        self.before.mkdir()
        for name in run_files.RENDERED:
            if (self.path / name).is_file():  # a copy, so that a launcher killed here leaves a run that can be resumed
                shutil.copy2(self.path / name, self.before / name)
            elif (self.path / name).is_dir():
                (self.path / name).rename(self.before / name)

    def put_rendered_back(self) -> None:
        """Undo keep_rendered, if it was called."""
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
            return shapes.decode(path, _SHAPES.get(path.name, dict[str, Any]))
        except FileNotFoundError:
            return None

    @property
    def record(self) -> RunRecord:
        """run.json. Raises RunNotFound if there is none, or a damaged one."""
        try:
            return _RECORD.decode(shapes.read_small(f"{self.path}/{run_files.RECORD}"))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._explained_record()

    def _explained_record(self) -> RunRecord:
        """The same for a record that the short way did not read: it takes longer and knows what is wrong."""
        try:
            return msgspec.convert(shapes.decode(self.run_json, RunRecord), RunRecord)
        except FileNotFoundError as error:
            backend = self.read_plan().get("backend")
            raise RunNotFound(
                f"{self.path} has no run.json: it was rendered (--dry-run) but not submitted",
                hint=f"start it: zlaunch {backend} {shlex.quote(str(self.job_yaml))}" if backend else None,
                code="ZL-RUN-03",
            ) from error
        except RunNotFound as error:
            raise RunNotFound(
                str(error),
                hint=error.hint
                or f"logs, checkpoints and adapter in {self.path} are as they were; {self.job_yaml} has its settings",
                code="ZL-RUN-02",
            ) from error

    def save_record(self, record: RunRecord, *, only_first: bool = False) -> bool:
        """Write run.json. With `only_first`, keep an existing one and return False."""
        with written():
            make_private(self.path)
        with self._locked():
            if only_first and self.run_json.exists():
                return False
            self._write_record(record)
            return True

    def update_record(self, *, only_if: Callable[[RunRecord], bool] | None = None, **changes: Any) -> RunRecord:
        """Change fields of run.json, and return the record. Two commands at once lose no change of each other.

        `only_if`: change nothing unless this holds for the current record.
        """
        with self._locked():
            record = self.record
            if only_if is None or only_if(record):
                record = msgspec.structs.replace(record, **changes)
                self._write_record(record)
        return record

    def claim(self, doing: str, *, exclusive: bool = True) -> None:
        """Take the right to start this run, or to end or read it, until `release`. Raises Busy, and RunNotFound if
        another command has just removed the run.

        A point of a sweep is part of what a command on the whole sweep works on.
        """
        if self._claims:
            return
        sweep = self.record.extra.get("sweep") if self.run_json.exists() else None
        folder = self.path.parent / "sweeps" / str(sweep)
        if sweep and folder.is_dir():
            self._claims.append(Claim(folder, doing, exclusive=False))
        try:
            self._claims.append(Claim(self.path, doing, exclusive=exclusive))
        except Busy:
            self.release()
            raise
        if exclusive and not self.path.is_dir():
            self.release()
            raise RunNotFound(f"{self.run_id} was removed meanwhile")

    @property
    def is_claimed(self) -> bool:
        """Whether this command has the right that `claim` gives."""
        return bool(self._claims)

    def claim_pull(self) -> None:
        """Be the only command that copies results here, and keep others from starting the run. Raises Busy."""
        self.claim("pull", exclusive=False)
        try:
            self._claims.append(Claim(self.path, "pull", lock="pull"))
        except Busy:
            self.release()
            raise

    def release(self) -> None:
        """End `claim`, if there was one."""
        while self._claims:
            self._claims.pop().release()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return _locked(self.path / run_files.RECORD_LOCK)

    def _write_record(self, record: RunRecord) -> None:
        write_atomic(self.run_json, msgspec.json.format(msgspec.json.encode(record)).decode() + "\n")

    def event(self, name: str, **fields: Any) -> None:
        """Append one line to events.jsonl, in a single write, so that lines of several writers never mix."""
        line = msgspec.json.encode({"time": time.time(), "event": name, **fields}).decode()
        with written():
            files.append_line(self.events, line)

    def read_plan(self) -> dict[str, Any]:
        """plan.json; empty for a run that was never rendered."""
        return self.read_json(self.plan_json) or {}

    def plan_trouble(self, content: dict[str, Any] | None) -> str:
        """Why it is not known what a run trains; empty: its plan has a training's settings, or null for a program.

        `content`: of plan.json, None if the file does not exist.
        """
        if content is None:
            return "it is missing" if self.run_json.exists() and self.record.submitted is not None else ""
        training = content.get("train", {})
        return "" if training is None or "train" in training else "this is no plan of a run"

    def stop_seconds(self) -> tuple[float, float]:
        """(stop_deadline, kill_after) of the plan. A damaged plan gives the defaults, so that a cancel works."""
        launch = dict(DEFAULTS)
        with contextlib.suppress(RunNotFound):
            launch |= self.read_plan().get("launch", {})
        return float(launch["stop_deadline"]), float(launch["kill_after"])

    def read_events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.events, shapes.Event)

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.metrics, shapes.Metric)


_RECORD = msgspec.json.Decoder(RunRecord)
_SHAPES: dict[str, Any] = {
    run_files.PLAN: shapes.Plan,
    run_files.TRAIN: shapes.Training,
    run_files.RESULT: shapes.Result,
}


def make_private(path: Path) -> None:
    """Make a directory that only its owner can enter, under any umask. Raises OSError.

    Folders above it that are missing can be written by their owner only: who may rename a directory may replace it.
    """
    above = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(above):
        parent.mkdir(mode=0o755, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)  # it may be there from a version or a copy with another mode


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that ends with this process. filelock does the same, but its import takes longer than the wait."""
    with written():  # the folder is not made: a run directory that was removed stays removed
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str) -> None:
    """Write `text`, and the folders above it. A reader sees the old file or the complete new one."""
    data = text.encode()
    with written():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, data)
