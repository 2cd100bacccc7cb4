"""A Slurm cluster: one batch job a run, one task a node, each task the node's agent.

Three witnesses tell a run's state: its own events (the batch script writes what it decides), its agents' records, and
Slurm. The newest word wins; where Slurm does not know the job any more, the run's own files decide.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from launcher.backends.slurm import partitions as slurm_partitions
from launcher.backends.slurm import query
from launcher.backends.slurm.allocation import slurm_target
from launcher.backends.slurm.home_files import CHECKPOINTS, RESULTS
from launcher.backends.slurm.partitions import parse_gpus, parse_partitions
from launcher.backends.slurm.query import Snapshot, Watch
from launcher.backends.slurm.shell import LocalShell, Shell
from launcher.backends.slurm.states import JobInfo
from launcher.errors import DataError, TargetError
from launcher.job.inputs import Sums
from launcher.job.paths import source_paths
from launcher.job.spec import JobSpec, SlurmSpec
from launcher.machine import process
from launcher.node import run_files
from launcher.plan import batch_job
from launcher.rundir.directory import RunDir
from launcher.rundir.find import list_runs
from launcher.rundir.logs import LogLine, follow_logs, visible
from launcher.rundir.state import RunState, derive_state, first_failure

if TYPE_CHECKING:
    from launcher.plan.types import RunPlan, Target

SUBMITTING = 60.0
"""Seconds in which a job that Slurm does not list yet counts as waiting."""
END_POLL = 1.0
"""Seconds between two looks at the files of a run that is being cancelled."""
SETTLE = 1.0
"""Seconds that Slurm gets to clear a job away whose script has ended, before it is asked."""
KILL_WAIT = 60.0
"""Seconds for Slurm to end a job (its own KillWait is 30 by default), and for the shared query to tell of it."""

WHY: dict[str, tuple[str, str]] = {
    "TIMEOUT": (
        "the time limit ended the job before it could save a checkpoint",
        "raise slurm.signal_before or slurm.time, or lower train.checkpoint_every",
    ),
    "OUT_OF_MEMORY": ("the job used more memory than it asked for", "raise slurm.mem"),
    "NODE_FAIL": ("a node failed and Slurm did not queue the job again", "go on with `zlaunch resume`"),
    "PREEMPTED": ("the job was preempted and not queued again", "go on with `zlaunch resume`"),
    "BOOT_FAIL": ("a node did not boot", "go on with `zlaunch resume`, or leave the node out with slurm.exclude"),
    "DEADLINE": ("the job passed its deadline", "see slurm.sbatch: deadline"),
    "CANCELLED": ("the job was cancelled in Slurm", "go on with `zlaunch resume`"),
}
"""Slurm's state -> (what happened, what to do), for jobs whose agents could not say it."""


class SlurmBackend:
    """Implements Backend, Arrays and Pulls of launcher.backends.base."""

    def __init__(self, shell: Shell | None = None, *, announce: bool = False) -> None:
        self._shell = shell
        self._watches: dict[str, Watch] = {}
        self._sums: Sums = {}
        """Hashes of input files: the points of a sweep mostly read the same ones."""
        self._said: str | None = None
        self._fetched: dict[str, float] = {}
        self._home: set[str] = set()
        """Runs whose results have been brought home."""
        self.announce = announce
        """Write why a job waits into its events, for whoever follows it."""

    # submit

    def target(self, job: JobSpec) -> Target:
        return slurm_target(job, self._sums)

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Queue the run; its job id. Raises TargetError when Slurm refuses or does not answer."""
        assert plan.slurm is not None
        shell = self._shell_of(plan.slurm)
        check_limits(shell, plan)
        check_paths(shell, [plan])
        return (self._submit_script(shell, run.path, run_files.SBATCH, [run], secrets),)

    def submit_array(
        self,
        script: Path,
        points: Sequence[tuple[RunDir, RunPlan]],
        secrets: Mapping[str, str],
        *,
        indices: Sequence[int] | None = None,
    ) -> str:
        """Queue the points of a sweep as one array job; return its id. Raises TargetError when Slurm refuses."""
        plans = [plan for _, plan in points]
        assert plans[0].slurm is not None
        shell = self._shell_of(plans[0].slurm)
        check_limits(shell, plans[0])
        check_paths(shell, plans)
        array = None
        if indices is not None:
            limit = plans[0].slurm["asked"]["array_limit"]
            array = ",".join(map(str, indices)) + (f"%{limit}" if limit else "")
        return self._submit_script(shell, script.parent, script.name, [run for run, _ in points], secrets, array)

    def _submit_script(
        self,
        shell: Shell,
        directory: Path,
        script: str,
        of: list[RunDir],
        secrets: Mapping[str, str],
        array: str | None = None,
    ) -> str:
        """sbatch `script` of `directory`, for one run or for the runs of an array; the job id."""
        process.run(["bash", "-n", directory / script])
        for run in of:
            forget_start(run)
            if secrets:
                shell.write_secret(secrets_file(run), secrets)
        shell.send([directory, *(run.path for run in of if run.path != directory)])
        for run in of:
            shell.give(run, stored(run).get("inputs", {}))
            # The copy on the cluster may be that of an earlier start.
            shell.remove(run.control_dir / run_files.CANCELLED)
        place = shell.place(directory)
        further = [f"--array={array}"] if array else []
        try:
            for argv in (["sbatch", "--test-only"], ["sbatch", "--parsable"]):
                result = shell.run([*argv, *further, script], cwd=place, hide=tuple(secrets))
                if result.code != 0:
                    raise query.explain_sbatch(result)
        except BaseException:
            for run in of:
                shell.remove(secrets_file(run))
            raise
        job = result.stdout.strip().splitlines()[-1].partition(";")[0]
        self._watch(shell).forget()
        return job

    # state

    def state(self, run: RunDir) -> RunState:
        shell = self._shell_of(stored(run))
        own, since = own_state(run)
        if own.is_final:
            return self._over(run, own, None)
        snapshot = self._watch(shell).look(job_id(run), lambda: unfinished(run.path.parent, shell.name))
        if self._fetched.get(run.run_id, 0.0) < snapshot.time:
            self._fetched[run.run_id] = snapshot.time
            shell.fetch(run)
            own, since = own_state(run)
        state = own if own.is_final else merge(own, since, snapshot, heartbeat=derive_state(run))
        if self.announce and state is RunState.PENDING:
            self._announce(run, snapshot)
        return self._over(run, state, snapshot.job) if state.is_final else state

    def _announce(self, run: RunDir, snapshot: Snapshot) -> None:
        text = waiting(snapshot)
        if text and text != self._said:
            self._said = text
            run.event("note", text=text)

    def _over(self, run: RunDir, state: RunState, job: JobInfo | None) -> RunState:
        """The end of a run: its results come home, its secrets go, and a failure that no agent could write down is
        written down."""
        shell = self._shell_of(stored(run))
        if run.run_id not in self._home:
            shell.fetch(run, RESULTS)
            if stored(run).get("secrets"):  # a job that Slurm ended had no time to remove them
                shell.remove(secrets_file(run))
            self._home.add(run.run_id)
        told = run.path / run_files.SLURM_ERROR
        if state is RunState.FAILED and not told.exists() and first_failure(run) is None:
            run.write({run_files.SLURM_ERROR: json.dumps(account(run, job), ensure_ascii=False, indent=2) + "\n"})
        return state

    # logs

    def logs(self, run: RunDir, *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """The ranks' and agents' lines; before there are any, those of the batch script."""
        self.state(run)  # brings the logs of a run on a login host
        if rank is None and not any(run.logs_dir.glob("node-*/*.log")) and (run.path / run_files.SLURM_LOG).exists():
            for line in (run.path / run_files.SLURM_LOG).read_bytes().splitlines():
                yield LogLine(0, None, visible(line))
        yield from follow_logs(run, rank=rank, follow=follow, ended=lambda: self.state(run).is_final)

    # cancel

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """End the job: a waiting one at once, a running one with a last checkpoint first if asked."""
        if failed := self.cancel_all([run], checkpoint=checkpoint):
            raise failed[run.run_id]

    def cancel_all(self, of: Sequence[RunDir], *, checkpoint: bool = True) -> dict[str, TargetError]:
        """End the jobs of runs that go through one Slurm, in the time that one takes; {run id: why one is not over}.

        How far they are, the runs' own files tell; Slurm is asked only through the query that all watchers share.
        """
        if not of:
            return {}
        shell = self._shell_of(stored(of[0]))
        for run in of:  # so that nothing queues it again
            shell.touch(run.control_dir / run_files.CANCELLED, json.dumps({"time": time.time()}))
        # One without a job was interrupted while it was queued: if it is, its script finds that file and ends.
        queued = [run for run in of if job_id(run)]
        own = {run: self._own(shell, run) for run in queued}
        running, waiting = ([run for run in queued if own[run] is s] for s in (RunState.RUNNING, RunState.PENDING))
        if running and waiting:  # or the end of one would be the beginning of the next
            self._scancel(shell, waiting)
        if running:
            self._stop(shell, running, checkpoint)
        self._watch(shell).forget()
        if left := [run for run in queued if not self._own(shell, run).is_final or self._still(shell, run, queued)]:
            self._scancel(shell, left)
        process.wait_until(lambda: not any(self._still(shell, run, queued) for run in queued), KILL_WAIT, END_POLL)
        failed = {run.run_id: self._still(shell, run, queued) for run in queued}
        for run in queued:
            if failed[run.run_id] is None:
                shell.remove(secrets_file(run))
                if not self._own(shell, run).is_final:
                    note(shell, run, "slurm_end", job=job_id(run), reason="cancelled")
                shell.fetch(run, RESULTS)
        self._watch(shell).forget()
        return {run: error for run, error in failed.items() if error is not None}

    def _still(self, shell: Shell, run: RunDir, among: Sequence[RunDir]) -> TargetError | None:
        """What to say of a run whose job is not over; one question to Slurm serves all of them."""
        job = job_id(run)
        snapshot = self._watch(shell).look(job, lambda: map(job_id, among))
        if is_over(run, snapshot):
            return None
        native = snapshot.job.native if snapshot.job else "there"
        return TargetError(f"job {job} is still {native}", hint=f"look at `squeue -j {job}`")

    def _stop(self, shell: Shell, running: Sequence[RunDir], checkpoint: bool) -> None:
        """Ask the agents of runs to end them, and wait as long as that takes at most."""
        for numbers in ["12"] if checkpoint else ["15", "15 15"]:  # the agents take a second one as "at once"
            for run in running:
                self._signal(shell, run, numbers)
            time.sleep(0.0 if checkpoint else 0.8)
        plans = [(run.read_json(run.plan_json) or {}).get("launch", {}) for run in running]
        orderly = max(plan.get("stop_deadline", 25.0) + plan.get("kill_after", 5.0) + 10.0 for plan in plans)
        process.wait_until(lambda: all(self._own(shell, run).is_final for run in running), orderly, END_POLL)
        time.sleep(SETTLE)

    def _scancel(self, shell: Shell, of: Sequence[RunDir]) -> None:
        """Have Slurm end the jobs of runs. Raises TargetError when Slurm does not answer."""
        jobs = [job_id(run) for run in of]
        result = shell.run(["scancel", *jobs])
        watch = self._watch(shell)
        watch.forget()
        if result.code != 0 and watch.look(jobs[0], lambda: jobs).error is not None:
            said = " ".join(result.last_lines)
            raise TargetError(f"scancel {' '.join(jobs)}: {said}", hint="is the Slurm controller up?")

    def _own(self, shell: Shell, run: RunDir) -> RunState:
        """The state by the run's own files as they are now."""
        shell.fetch(run, (run_files.NODES, run_files.EVENTS))
        return own_state(run)[0]

    def _signal(self, shell: Shell, run: RunDir, numbers: str) -> None:
        """Signal the first node's agent through its file (Slurm's own signals reach every process of the ranks too)."""
        shell.touch(run.path / run_files.signals(0), numbers + "\n")

    # pull

    def pull(self, run: RunDir, *, checkpoints: bool = False) -> list[str] | None:
        """Bring logs, metrics, result and adapter from the login host; the files that came. None: they are here."""
        return self._shell_of(stored(run)).fetch(run, [*RESULTS, *([CHECKPOINTS] if checkpoints else [])])

    # whom to ask

    def _shell_of(self, slurm: dict[str, Any]) -> Shell:
        return self._shell if self._shell is not None else shell_of(slurm)

    def _watch(self, shell: Shell) -> Watch:
        return self._watches.setdefault(shell.name, Watch(shell))


def shell_of(slurm: dict[str, Any]) -> Shell:
    """Where the commands of a run's Slurm are run."""
    asked, ssh = slurm.get("asked", {}), slurm.get("ssh", {})
    return _shell_for(
        asked.get("login"), asked.get("workdir"), ssh.get("ssh_config"), bool(ssh.get("accept_new_host_keys"))
    )


@functools.lru_cache(maxsize=8)
def _shell_for(login: str | None, workdir: str | None, ssh_config: str | None, accept_new_host_keys: bool) -> Shell:
    """One connection for all runs that share a login host."""
    if login is None:
        return LocalShell()
    from launcher.backends.slurm.login_shell import LoginShell
    from launcher.remote import connect  # Fabric: a third of a second that only this needs

    return LoginShell(login, workdir, connect.Options(ssh_config, accept_new_host_keys))


def check_limits(shell: Shell, plan: RunPlan) -> None:
    """Refuse what the cluster's partitions can never run. Raises TargetError; says nothing where Slurm says nothing."""
    partitions = shell.run(["scontrol", "show", "partition", "--oneliner"])
    if partitions.code != 0:
        raise TargetError(
            f"Slurm does not answer: {' '.join(partitions.last_lines)}",
            hint="nothing was queued; the run directory is kept: `zlaunch resume RUN` submits it later",
        )
    gres = shell.run(["sinfo", "--noheader", "--format=%R|%G"])
    found = parse_partitions(partitions.stdout, parse_gpus(gres.stdout) if gres.code == 0 else None)
    gpus = plan.launch.nodes[0].procs if plan.launch.device == "cuda" else 0
    assert plan.slurm is not None
    slurm_partitions.check_limits(msgspec.convert(plan.slurm["asked"], SlurmSpec), gpus, found)


def check_paths(shell: Shell, plans: Iterable[RunPlan]) -> None:
    """Refuse paths that neither travel nor lie on the cluster behind a login host. Raises DataError."""
    wanted = {path: key for plan in plans for path, key in far_paths(plan).items()}
    if not wanted:
        return
    result = shell.run(["bash", "-c", 'for f; do [ -e "$f" ] || printf "%s\\n" "$f"; done', "-", *wanted])
    if absent := result.stdout.splitlines():
        key, path = wanted.get(absent[0], "the job"), absent[0]
        raise DataError(
            f"{key}: {path} is neither here nor on the login host",
            hint="data that lies here is sent along; a model is not: copy it to the cluster, or name a hub id",
        )


def far_paths(plan: RunPlan) -> dict[str, str]:
    """{absolute path that a run behind a login host reads on the cluster: the key that names it}."""
    if plan.train is None or plan.slurm is None or plan.slurm["asked"]["login"] is None:
        return {}
    train = plan.train
    named = [("data.train", path) for path in source_paths(train.data.train)]
    named += [("data.eval", path) for path in source_paths(train.data.eval)]
    named += [("model.path", train.model.path), ("lora.adapter", train.lora.adapter or "")]
    return {path: key for key, path in named if path.startswith("/")}


# -------------------------------------------------------------------------------------------------- the run's files


def stored(run: RunDir) -> dict[str, Any]:
    """The `slurm` section of plan.json."""
    section = (run.read_json(run.plan_json) or {}).get("slurm")
    return section if isinstance(section, dict) else {}


def job_id(run: RunDir) -> str:
    ids = run.record.ids
    return ids[0] if ids else ""


def secrets_file(run: RunDir) -> Path:
    """Beside the run directories, so that a copied or archived run never holds it."""
    return run.path.parent / ".secrets" / f"{run.run_id}.json"


def forget_start(run: RunDir) -> None:
    """Mark a new submission: what an earlier job of this run left is history from here on."""
    (run.control_dir / run_files.CANCELLED).unlink(missing_ok=True)
    (run.path / run_files.SLURM_ERROR).unlink(missing_ok=True)
    if any(run.nodes_dir.glob("node-*.json")):
        earlier = run.nodes_dir / f"before-{time.time_ns()}"
        earlier.mkdir()
        for record in run.nodes_dir.glob("node-*.json"):
            record.rename(earlier / record.name)
    run.event("slurm_submit")


def note(shell: Shell, run: RunDir, name: str, **fields: Any) -> None:
    """An event where the run's own are, in one write: the copy of a run on a login host is overwritten from there."""
    line = json.dumps({"time": time.time(), "event": name, **fields})
    shell.run(["bash", "-c", 'printf "%s\\n" "$1" >> events.jsonl', "-", line], cwd=shell.place(run.path))


def is_over(run: RunDir, snapshot: Snapshot) -> bool:
    """Whether the job is gone: by Slurm's word, or by the run's own where Slurm does not answer."""
    if snapshot.error is not None:
        return own_state(run)[0].is_final
    return snapshot.job.state.is_final if snapshot.job is not None else snapshot.searched


def last_event(run: RunDir, *names: str) -> dict[str, Any]:
    """The newest event of one of those names; empty if there is none."""
    return next((event for event in reversed(run.read_events()) if event.get("event") in names), {})


def own_state(run: RunDir) -> tuple[RunState, float]:
    """(state, unix seconds of the word it rests on) by the batch script's last event and the agents' records."""
    last = last_event(run, "slurm_submit", "slurm_start", "slurm_requeue", "slurm_end")
    since = float(last.get("time", 0.0))
    kind = last.get("event")
    verdict = derive_state(run)
    if kind == "slurm_end":
        if verdict in (RunState.SUCCEEDED, RunState.CANCELLED, RunState.FAILED):
            return verdict, since
        return (RunState.CANCELLED if last.get("reason") == "cancelled" else RunState.FAILED), since
    if kind == "slurm_start":
        return (RunState.SUCCEEDED if verdict is RunState.SUCCEEDED else RunState.RUNNING), since
    return RunState.PENDING, since  # slurm_submit, slurm_requeue


def merge(own: RunState, since: float, snapshot: Snapshot, *, heartbeat: RunState) -> RunState:
    """The state of a run that its own files do not know to be over. `heartbeat`: state by the agents' records."""
    if snapshot.job is not None and snapshot.time > since and snapshot.error is None:
        return snapshot.job.state
    if snapshot.job is not None or snapshot.error is not None or not snapshot.searched:
        return own
    if snapshot.time - since < SUBMITTING:
        return own
    # Slurm has forgotten the job, and its script has not said how it ended.
    return RunState.RUNNING if heartbeat is RunState.RUNNING else RunState.LOST


def waiting(snapshot: Snapshot) -> str | None:
    """One line on why a job waits; None when that is not known."""
    if snapshot.error is not None:
        return f"Slurm does not answer: {snapshot.error}"
    job = snapshot.job
    if job is None or job.state is not RunState.PENDING:
        return None
    expected = time.strftime(", expected to start at %H:%M on %Y-%m-%d", time.localtime(job.start)) if job.start else ""
    return f"waiting in the queue{f': {job.reason}' if job.reason else ''}{expected}"


def unfinished(root: Path, shell_name: str) -> Iterable[str]:
    """Job ids of the runs under `root` that go through the same Slurm and are not known to be over."""
    for run in list_runs(root):
        try:
            record = run.record
        except Exception:  # rendered only, or half written: not ours to report here
            continue
        if record.backend == "slurm" and record.ids and not RunState(record.state).is_final:
            login = stored(run).get("asked", {}).get("login")
            if shell_name == f"login:{login}" if login else shell_name.startswith("local:"):
                yield record.ids[0]


def account(run: RunDir, job: JobInfo | None) -> dict[str, Any]:
    """Why the run failed, where no agent could say it: Slurm's state, the script's last word, the log's end."""
    last = last_event(run, "slurm_end", "slurm_requeue")
    message, advice = WHY.get(job.native if job else "", ("", ""))
    log = process.last_log_lines(run.path / batch_job.LOG, 20)
    return {
        "rank": None,
        "host": job.nodes if job else None,
        "exit_code": job.exit_code if job else None,
        "signal": None,
        "cause": job.native.lower() if job else "slurm",
        "message": message or last.get("reason") or (f"Slurm says {job.native} {job.reason}".strip() if job else ""),
        "advice": [advice] if advice else [],
        "log_tail": log,
    }
