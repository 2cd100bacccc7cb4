"""Ask Slurm about this user's jobs: one question for all runs, shared by all watchers on this machine.

Watchers read a cache file. Whoever finds it older than ten seconds asks Slurm, under a lock, for all jobs at once.
squeue shows running and waiting jobs, and those that ended within Slurm's MinJobAge; sacct shows the others. Clusters
without accounting are common, so a refusal of sacct counts for an hour. Where neither knows a job, the run's own files
decide (job_state.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import msgspec

from launcher.backends.slurm.shell import Shell
from launcher.backends.slurm.states import (
    SACCT_FIELDS,
    SQUEUE_FIELDS,
    JobInfo,
    parse_json,
    parse_sacct,
    parse_squeue,
    run_state,
)
from launcher.errors import TargetError
from launcher.machine.process import Result
from launcher.rundir import directory

MAX_AGE = 10.0
"""Seconds between two questions, however many watchers there are."""
SACCT_RETRY = 3600.0
"""Seconds after which accounting that refused is asked again."""
JSON_SINCE = (23, 11)
"""Older versions of squeue print every job of the cluster with --json, whatever the other options."""
LOCK_SECONDS = 60.0
"""Seconds to wait for another watcher that asks Slurm."""
CHUNK = 500
"""Job ids on one command line."""


class _Cache(msgspec.Struct, kw_only=True):
    time: float = 0.0
    error: str | None = None
    jobs: dict[str, JobInfo] = {}
    asked: list[str] = []
    """Ids of the jobs that watchers wait for."""
    sacct_refused: float = 0.0
    json: bool | None = None


@dataclass(frozen=True)
class Snapshot:
    time: float
    """Unix seconds of the question to Slurm."""
    job: JobInfo | None
    searched: bool
    """The question included this job. A `job` of None then means that Slurm does not know it."""
    error: str | None
    """Why Slurm did not answer; `job` is then from its last answer."""


class JobWatch:
    """Answers about jobs from the cache, and asks Slurm when the cache is too old."""

    def __init__(self, shell: Shell, *, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        folder = folder or cache_folder()
        digest = hashlib.sha256(shell.name.encode()).hexdigest()[:16]
        self.shell, self.clock = shell, clock
        self.file = folder / f"slurm-{digest}.json"
        self.lock = filelock.FileLock(folder / f"slurm-{digest}.lock")
        self._own: _Cache | None = None
        """The cache, where its file cannot be written: other watchers then ask for themselves."""

    def snapshot(self, job_id: str, others: Callable[[], Iterable[str]] = tuple) -> Snapshot:
        """Return what Slurm reported of a job at most ten seconds ago; `others`: ids of further unfinished runs."""
        cache = self._read()
        if not self._is_fresh(cache):
            with self._locked():
                cache = self._read()  # another watcher may have queried Slurm meanwhile
                if not self._is_fresh(cache):
                    cache = self._ask(cache, {job_id, *others()})
                    self._write(cache)
        return Snapshot(cache.time, cache.jobs.get(job_id), job_id in cache.asked, cache.error)

    def expire(self) -> None:
        """Have the next snapshot ask Slurm, because a job was just submitted or cancelled."""
        with self._locked():
            cache = self._read()
            cache.time = 0.0
            self._write(cache)

    def _is_fresh(self, cache: _Cache) -> bool:
        return 0 <= self.clock() - cache.time < MAX_AGE

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the cache, where it can be held: a full or read-only home must not hide Slurm's answers."""
        try:
            self.lock.acquire(timeout=LOCK_SECONDS)
        except (OSError, NotImplementedError, filelock.Timeout):
            yield
            return
        try:
            yield
        finally:
            self.lock.release()

    def _read(self) -> _Cache:
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=_Cache) if self._own is None else self._own
        except (OSError, msgspec.MsgspecError):
            return _Cache()

    def _write(self, cache: _Cache) -> None:
        try:
            directory.write_atomic(self.file, msgspec.json.encode(cache).decode())
            self._own = None
        except OSError:
            self._own = cache

    def _ask(self, old: _Cache, job_ids: set[str]) -> _Cache:
        over = {job_id: info for job_id, info in old.jobs.items() if info.state.is_final}
        unfinished = {job_id for job_id in old.asked if job_id not in over}
        asked = sorted(job_ids | unfinished)
        new = _Cache(time=self.clock(), asked=asked, sacct_refused=old.sacct_refused, json=old.json)
        try:
            if new.json is None:
                new.json = self._has_json()
            live = self._squeue(new)
            new.jobs = {**{job_id: info for job_id, info in over.items() if job_id in job_ids}, **live}
            missing = [job_id for job_id in new.asked if job_id not in new.jobs]
            if missing and self.clock() - new.sacct_refused > SACCT_RETRY:
                new.jobs.update(self._sacct(missing, new))
        except TargetError as error:
            new.error, new.jobs = str(error), old.jobs
        return new

    def _has_json(self) -> bool:
        version = re.search(r"(\d+)\.(\d+)", self.shell.run(["squeue", "--version"]).stdout)
        return version is not None and (int(version[1]), int(version[2])) >= JSON_SINCE

    def _squeue(self, cache: _Cache) -> dict[str, JobInfo]:
        jobs = self._own_squeue(cache)
        here = {job_id: info for job_id, info in jobs.items() if info.native != REVOKED}
        if set(cache.asked) & (set(jobs) - set(here)):
            text = "\n".join(_of_federation(self.shell, [*_SQUEUE, f"--format={SQUEUE_FIELDS}"]))
            return {**parse_squeue(text), **here}
        return here

    def _own_squeue(self, cache: _Cache) -> dict[str, JobInfo]:
        if cache.json:
            try:
                return parse_json(_checked(self.shell.run(["squeue", "--me", "--states=all", "--json"])).stdout)
            except ValueError:  # built without JSON, or a wrapper prints more; every version prints text
                cache.json = False
        return parse_squeue(_checked(self.shell.run([*_SQUEUE, f"--format={SQUEUE_FIELDS}"])).stdout)

    def _sacct(self, job_ids: list[str], cache: _Cache) -> dict[str, JobInfo]:
        """Return what accounting knows of these jobs. If it refuses, return nothing and do not ask for an hour."""
        found: dict[str, JobInfo] = {}
        alone = [job_id for job_id in job_ids if not is_federated(job_id)]
        federated = [job_id for job_id in job_ids if is_federated(job_id)]
        chunks = [(ids[start : start + CHUNK], words) for ids, words in ((alone, []), (federated, ["--federation"]))
                  for start in range(0, len(ids), CHUNK)]  # fmt: skip
        for ids, words in chunks:
            form = _SACCT_FORM[bool(cache.json)]
            result = self.shell.run(["sacct", "--allocations", *words, "--jobs", ",".join(ids), *form])
            if result.code != 0:
                cache.sacct_refused = self.clock()
                break
            try:
                found.update(parse_json(result.stdout) if cache.json else parse_sacct(result.stdout))
            except ValueError as error:
                raise TargetError(f"sacct: {error}", code="ZL-SLURM-02") from error
        return found


REVOKED = "REVOKED"
"""Slurm's state of a job of a federation, on the cluster that queued it, when another cluster has started it."""
_SQUEUE = ("squeue", "--me", "--array", "--noheader", "--states=all")
_SACCT_FORM = {False: ["--noheader", "--parsable2", f"--format={SACCT_FIELDS}"], True: ["--json"]}


def _checked(result: Result) -> Result:
    if result.code != 0:
        lines = result.last_lines or [f"exit status {result.code}"]
        raise TargetError(f"{result.argv[0]}: {lines[-1]}", code="ZL-SLURM-02")
    return result


def cache_folder() -> Path:
    """Return a directory of this user for caches; below the temporary directory if the home is not writable."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zlaunch"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return home
    except OSError:
        other = Path(tempfile.gettempdir()) / f"zlaunch-{os.getuid()}"
        other.mkdir(mode=0o700, exist_ok=True)
        if other.lstat().st_uid != os.getuid() or other.is_symlink():  # anyone can make a directory of that name
            raise TargetError(
                f"{other} is not yours", hint="set XDG_CACHE_HOME to a directory of your own", code="ZL-FILE-02"
            ) from None
        return other


def is_federated(job_id: str) -> bool:
    """Whether this is the id of a federation's job: its bits above the 26th say which cluster queued it."""
    number = re.match(r"[0-9]{1,18}", job_id)
    return number is not None and int(number[0]) >= 1 << 26


def _of_federation(shell: Shell, argv: Sequence[str]) -> list[str]:
    """Return what squeue prints of the jobs of all clusters of the federation, without the traces of revoked ones.

    Raises TargetError.
    """
    shown = _checked(shell.run(["scontrol", "show", "federation"])).stdout
    clusters = re.findall(r"^(?:Self|Sibling):\s*([\w.-]+):", shown, re.MULTILINE)
    words = [*argv, f"--clusters={','.join(clusters)}"] if clusters else argv
    return [line for line in _checked(shell.run(words)).stdout.splitlines() if f"|{REVOKED}|" not in line]


def job_of_sbatch(output: str) -> str:
    """The job among the lines that `sbatch --parsable` and a site's wrapper print, as `123` or `123;cluster`. Pure.

    Empty: there is none.
    """
    found = [line.strip() for line in output.splitlines() if re.fullmatch(r"\d+(;[\w.-]+)?", line.strip())]
    return found[-1] if found else ""


def live_jobs(shell: Shell) -> list[tuple[str, str]]:
    """(id, name) of this user's unfinished jobs, oldest first; elements of arrays one by one. Raises TargetError."""
    argv = [*_SQUEUE, "--format=%i|%T|%j"]
    lines = _checked(shell.run(argv)).stdout.splitlines()
    if any(f"|{REVOKED}|" in line for line in lines):
        lines = _of_federation(shell, argv)
    rows = [line.strip().split("|", 2) for line in lines]
    known = [row for row in rows if len(row) == 3 and re.fullmatch(r"[0-9]{1,18}(_.{1,4096})?", row[0])]
    found = [(row[0], row[2]) for row in known if not run_state(row[1]).is_final]
    return sorted(found, key=lambda job: [int(part) for part in re.findall(r"[0-9]{1,18}", job[0])])


def explain_sbatch(result: Result) -> TargetError:
    """Return an error with sbatch's message and what to do."""
    text = "\n".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in result.last_lines)
    hint = next((advice for pattern, advice in _REFUSALS if re.search(pattern, text, re.IGNORECASE)), None)
    return TargetError(
        f"sbatch refused the job:\n  {text or f'exit status {result.code}'}", hint=hint, code="ZL-SLURM-01"
    )


_REFUSALS: tuple[tuple[str, str], ...] = (
    (r"unable to contact slurm controller|connection refused|timed out|no controllers|establish a configuration source",
     "the Slurm controller does not answer; the run directory is kept: `zlaunch resume RUN` submits it later"),
    (r"invalid partition|partition.*not", "`sinfo` lists the partitions; use --partition NAME"),
    (r"invalid account", "`sacctmgr show associations user=$USER` lists your accounts; use --account NAME"),
    (r"invalid qos", "`sacctmgr show associations user=$USER format=qos` lists them; use --qos NAME"),
    (r"time limit", "`sinfo -o '%P %l'` shows the partitions' limits; use --time"),
    (r"node configuration is not available", "`sinfo -N -o '%N %P %c %m %G'` shows what the nodes have"),
    (r"more processors|node count", "ask for fewer nodes with --nodes"),
    (r"invalid feature", "`sinfo -o '%N %f'` shows the nodes' features; use --constraint"),
    (r"reservation", "`scontrol show reservation` lists them"),
    (r"policy|QOSMax|AssocMax|AssocGrp|submit limit", "your account's limits: `sacctmgr show associations user=$USER`"),
    (r"invalid node name|nodelist", "`sinfo -N` lists the nodes"),
    (r"gres|gpu", "`sinfo -o '%P %G'` shows the GPUs of each partition"),
    (r"unrecognized option|invalid directive|invalid option", "check slurm.sbatch against this cluster's `man sbatch`"),
)  # fmt: skip
"""(pattern in sbatch's message, advice); the first match counts."""
