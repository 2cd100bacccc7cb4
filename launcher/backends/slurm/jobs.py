"""The Slurm backend: one batch job per run, one task per node; each task is the node's agent."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from launcher.backends.base import Copy
from launcher.backends.slurm.allocation import slurm_target
from launcher.backends.slurm.cancellation import Cancellation
from launcher.backends.slurm.job_files import (
    asked_clusters,
    begin_submission,
    clusters_of,
    element,
    is_job_of,
    job_id,
    last_event,
    secrets_file,
    slurm_section,
)
from launcher.backends.slurm.job_state import failure_record, merge_states, own_state, waiting_reason
from launcher.backends.slurm.query import MAX_AGE, JobWatch, Snapshot, explain_sbatch, job_of_sbatch, live_jobs
from launcher.backends.slurm.sbatch_variables import overruled, script_options
from launcher.backends.slurm.shell import ClusterShell, LocalShell, Shell, name_of
from launcher.backends.slurm.site import ASK_SECONDS, NOT_ASKED, Site, ask, parse_array_limit
from launcher.backends.slurm.states import JobInfo
from launcher.backends.slurm.submit_checks import asked_of, check_partitions, check_paths, waits_for_nodes
from launcher.backends.slurm.synced_files import CHECKPOINTS, RESULTS
from launcher.errors import TargetError, ZlaunchError
from launcher.job.inputs import Sums
from launcher.job.spec import JobSpec
from launcher.machine import process
from launcher.node import run_files
from launcher.rundir.claims import Busy
from launcher.rundir.directory import RunDir
from launcher.rundir.find import list_runs
from launcher.rundir.logs import CHUNK, LogBlock, follow_logs, start_of_tail, visible
from launcher.rundir.state import RunState, derive_state, first_failure

if TYPE_CHECKING:
    from launcher.plan.types import RunPlan, Target


class SlurmBackend:
    """Implements Backend, Arrays, Pulls and Removes of launcher.backends.base."""

    def __init__(self, shell: Shell | None = None, *, announce: bool = False) -> None:
        self._shell = shell
        self._watches: dict[str, JobWatch] = {}
        self._clusters: dict[str, Shell] = {}
        self._sites: dict[str, Site] = {}
        """What Slurm said of its nodes, by the name of the shell that was asked."""
        self._sums: Sums = {}
        """Hashes of input files: the points of a sweep mostly read the same ones."""
        self._fetched: dict[str, float] = {}
        """{run id: time of Slurm's answer when its files were last fetched}."""
        self._answers: dict[str, tuple[float, list[tuple[str, str]]]] = {}
        """{name of a shell: (monotonic time, its unfinished jobs)}, for runs whose job has no known id."""
        self._settled: set[str] = set()
        """Runs whose results have been copied here."""
        self.announce = announce
        """Write into a run's events why it waits, for a user who follows it."""
        self._announced: str | None = None

    # Submit

    def target(self, job: JobSpec) -> Target:
        """Ask Slurm for what the job leaves open. Where it does not answer, that stays unknown."""
        try:
            site = self._site(self.shell_for(job)) if job.device != "cpu" else NOT_ASKED
        except TargetError as error:
            site = Site({}, (), str(error).splitlines()[-1].strip())
        return slurm_target(job, self._sums, site)

    def _site(self, shell: Shell) -> Site:
        if shell.name not in self._sites:
            self._sites[shell.name] = ask(shell)
        return self._sites[shell.name]

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Queue the run; return its job id, or nothing if Slurm took the job without telling its id.

        Raises TargetError when Slurm refuses or does not answer.
        """
        job = self._submit(run.path / run_files.SBATCH, [(run, plan)], secrets)
        return (job,) if job else ()

    def most_elements(self, plan: RunPlan) -> int | None:
        """Return how many elements an array job may have (MaxArraySize); None: Slurm does not say."""
        assert plan.slurm is not None
        asked = plan.slurm["asked"]
        clusters = asked_clusters(asked["cluster"], inherits=asked["login"] is None)
        shell = self._on(self._shell or shell_of(plan.slurm), clusters)
        with contextlib.suppress(TargetError):
            return parse_array_limit(shell.run(["scontrol", "show", "config"], timeout=ASK_SECONDS).stdout)
        return None

    def submit_array(
        self,
        script: Path,
        points: Sequence[tuple[int, RunDir, RunPlan]],
        secrets: Mapping[str, str],
        *,
        after: str = "",
    ) -> tuple[str, ...]:
        """Queue one array job with the points at their indices; return the id of each point's job, in order.

        `after`: the id of an element of an array job that must end first. Returns nothing if Slurm took the job without
        telling its id. Raises TargetError when Slurm refuses.
        """
        asked = slurm_section(points[0][1])["asked"]
        limit = f"%{asked['array_limit']}" if asked["array_limit"] else ""
        options = [f"--array={ranges([index for index, _, _ in points])}{limit}"]
        if after:
            first = f"afterany:{after.partition('_')[0]}"
            options.append("--dependency=" + ",".join(filter(None, [asked["sbatch"].get("dependency"), first])))
        job = self._submit(script, [(run, plan) for _, run, plan in points], secrets, options)
        return tuple(element(job, index) for index, _, _ in points) if job else ()

    def _submit(
        self,
        script: Path,
        points: Sequence[tuple[RunDir, RunPlan]],
        secrets: Mapping[str, str],
        options: Sequence[str] = (),
    ) -> str:
        """Check, send and queue one batch script for its runs."""
        runs, plans = [run for run, _ in points], [plan for _, plan in points]
        shell = self._shell_of(runs[0])
        check_partitions(self._site(shell), plans[0])
        check_paths(shell, plans)
        process.run(["bash", "-n", script])
        for run in runs:
            begin_submission(run)
            if slurm_section(run).get("secrets"):
                shell.write_secrets(secrets_file(run), secrets)
        shell.send([script.parent, *(run.path for run in runs if run.path != script.parent)])
        for run in runs:
            shell.link_inputs(run, slurm_section(run).get("inputs", {}))
            # The cluster's copy may be that of an earlier start.
            shell.remove(run.control_dir / run_files.CANCELLED)
        try:
            job = self._sbatch(shell, script, options, points, hide=tuple(secrets))
        except BaseException:
            for run in runs:
                shell.remove(secrets_file(run))
            raise
        self._watch(shell).expire()
        if not job:  # a wrapper hid it: Slurm knows the job by its name
            with contextlib.suppress(TargetError):
                job = next((re.sub(r"_\d+", "", found) for found in self._live_jobs(runs[:1]).values()), "")
        return job

    def _sbatch(
        self,
        shell: Shell,
        script: Path,
        options: Sequence[str],
        points: Sequence[tuple[RunDir, RunPlan]],
        *,
        hide: tuple[str, ...],
    ) -> str:
        """Test and queue a batch script; return the job id. Raises TargetError with Slurm's refusal.

        Variables of the shell cannot change what the script says.
        """
        hide = (*hide, *overruled(script_options(script.read_text(encoding="utf-8"))))
        words, cwd = [*options, script.name], shell.path_there(script.parent)
        test = shell.run(["sbatch", "--test-only", *words], cwd=cwd, hide=hide)
        waiting = ""
        if test.code != 0:
            plan = points[0][1]
            waiting = waits_for_nodes(shell, self._site(shell), asked_of(plan), plan.launch.device, test)
            if not waiting:
                raise explain_sbatch(test)
        result = shell.run(["sbatch", "--parsable", *words], cwd=cwd, hide=hide)
        if result.code != 0:
            raise explain_sbatch(result)
        if waiting:
            for run, _ in points:
                run.event("note", text=waiting)
        return job_of_sbatch(result.stdout)

    # State

    def is_alive(self, run: RunDir) -> bool:
        """Whether Slurm has an unfinished job of the run, by its id or by the run's name."""
        return bool(self.alive_among([run]))

    def alive_among(self, runs: Sequence[RunDir], *, max_age: float = 0.0) -> set[str]:
        """Return the ids of the runs that have an unfinished job. One question to each cluster serves all.

        `max_age`: seconds for which an answer counts.
        """
        found = self._live_jobs(runs, max_age)
        for run in runs:
            if run.run_id in found and not run.record.ids:
                run.update_record(ids=(found[run.run_id],))
        return set(found)

    def _live_jobs(self, runs: Sequence[RunDir], max_age: float = 0.0) -> dict[str, str]:
        """{run id: its newest unfinished job, as sbatch prints it}. Raises TargetError."""
        found: dict[str, str] = {}
        fresh = time.monotonic() - max_age
        for run in runs:
            for cluster in clusters_of(run) or ("",):
                shell = self._on(self._base_of(run), [cluster] if cluster else [])
                if shell.name not in self._answers or self._answers[shell.name][0] < fresh:
                    self._answers[shell.name] = time.monotonic(), live_jobs(shell)
                own = [job for job, name in self._answers[shell.name][1] if is_job_of(run, job, name)]
                if own:
                    found[run.run_id] = f"{own[-1]};{cluster}" if cluster else own[-1]
        return found

    def _job_of(self, run: RunDir) -> str:
        """The run's job id. If the launcher died before it could record one, Slurm knows the job by a name."""
        if not job_id(run):
            with contextlib.suppress(TargetError):  # then it is asked again, and the run's own files say what is known
                self.alive_among([run], max_age=MAX_AGE)
        return job_id(run)

    def state(self, run: RunDir) -> RunState:
        """Return the state of the run. Fetches its files from a login host when Slurm's answer is new."""
        own, since = own_state(run)
        if own.is_final:
            return self._settle(run, own, None)
        job = self._job_of(run)
        shell = self._shell_of(run)
        snapshot = self._watch(shell).snapshot(job, lambda: unfinished_jobs(run.path.parent, shell.name))
        if self._fetched.get(run.run_id, 0.0) < snapshot.time:
            self._fetched[run.run_id] = snapshot.time
            shell.fetch(run)
            own, since = own_state(run)
        state = own if own.is_final else merge_states(own, since, snapshot, by_records=derive_state(run))
        if self.announce and state is RunState.PENDING:
            self._announce_waiting(run, snapshot)
        return self._settle(run, state, snapshot.job) if state.is_final else state

    def _announce_waiting(self, run: RunDir, snapshot: Snapshot) -> None:
        text = waiting_reason(snapshot)
        if text and text != self._announced:
            self._announced = text
            if last_event(run, "note", "slurm_submit").get("text") != text:  # another command may have noted it
                run.event("note", text=text)

    def _settle(self, run: RunDir, state: RunState, job: JobInfo | None) -> RunState:
        """Copy the results of a run that is over, remove its secrets, and record a failure that no agent recorded."""
        section = slurm_section(run)
        # A job that Slurm ended had no time to remove its secrets.
        elsewhere = section.get("asked", {}).get("login") or section.get("secrets")
        to_settle = elsewhere and run.run_id not in self._settled
        recorded = (run.path / run_files.SLURM_ERROR).exists() or first_failure(run) is not None
        to_record = state is RunState.FAILED and not recorded
        if not (to_settle or to_record):
            return state
        held = run.is_claimed
        try:
            run.claim("status", exclusive=False)
        except Busy:  # what is settled now would be taken from the new start
            return state
        try:
            if to_settle:
                shell = self._shell_of(run)
                shell.fetch(run, RESULTS)
                if section.get("secrets"):
                    shell.remove(secrets_file(run))
                self._settled.add(run.run_id)
            if to_record and first_failure(run) is None:  # the files that were just copied may have it
                text = json.dumps(failure_record(run, job), ensure_ascii=False, indent=2)
                run.write({run_files.SLURM_ERROR: text + "\n"})
        finally:
            if not held:
                run.release()
        return state

    # Logs and results

    def logs(
        self, run: RunDir, *, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogBlock]:
        """Yield the lines of ranks and agents; before there are any, those of the batch script."""
        self.state(run)  # fetches the logs of a run on a login host
        script_log = run.path / run_files.SLURM_LOG
        if rank is None and not any(run.logs_dir.glob("node-*/*.log")) and script_log.exists():
            with script_log.open("rb") as file:
                file.seek(0 if tail is None else start_of_tail(script_log, tail))
                while lines := b"".join(file.readlines(CHUNK)):
                    yield LogBlock(0, None, visible(lines.removesuffix(b"\n") + b"\n"))
        yield from follow_logs(run, rank=rank, follow=follow, tail=tail, ended=lambda: self.state(run).is_final)

    def pull(self, run: RunDir, *, checkpoints: bool = False) -> list[str] | None:
        """Copy logs, metrics, result and adapter from the login host; return their names. None: they are here."""
        names = [*RESULTS, *([CHECKPOINTS] if checkpoints else [])]
        return self._shell_of(run).fetch(run, names)

    def remove(self, run: RunDir, *, dry_run: bool) -> list[Copy]:
        """Remove the run's files from the login host. Raises TargetError."""
        shell = self._base_of(run)
        freed = shell.remove_run(run.run_id, dry_run=dry_run)
        return [] if freed is None else [Copy(shell.name.removeprefix("login:"), shell.path_there(run.path), freed)]

    # Cancel

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """Cancel a waiting job at once, a running one after a last checkpoint if asked. Raises TargetError."""
        if failed := self.cancel_all([run], checkpoint=checkpoint):
            raise failed[run.run_id]

    def cancel_all(self, runs: Sequence[RunDir], *, checkpoint: bool = True) -> dict[str, TargetError]:
        """Cancel runs, those of one cluster in the time that one takes; return {run id: error}."""
        if not runs:
            return {}
        self._answers.clear()
        for run in runs:
            self._job_of(run)
        groups: dict[str, list[RunDir]] = {}
        for run in runs:
            groups.setdefault(self._shell_of(run).name, []).append(run)
        failed: dict[str, TargetError] = {}
        for group in groups.values():
            shell = self._shell_of(group[0])
            failed |= Cancellation(shell, self._watch(shell), group).execute(checkpoint=checkpoint)
        return failed

    # Shells

    def shell_for(self, job: JobSpec) -> Shell:
        """Return the shell that a run of the job would use."""
        ssh = {"ssh_config": job.ssh.ssh_config, "accept_new_host_keys": job.ssh.accept_new_host_keys}
        base = self._shell or shell_of({"asked": msgspec.to_builtins(job.slurm), "ssh": ssh})
        return self._on(base, asked_clusters(job.slurm.cluster, inherits=job.slurm.login is None))

    def _shell_of(self, run: RunDir) -> Shell:
        """The shell whose Slurm has the run's job, or will have it."""
        return self._on(self._base_of(run), clusters_of(run))

    def _base_of(self, run: RunDir) -> Shell:
        return self._shell if self._shell is not None else shell_of(slurm_section(run))

    def _on(self, shell: Shell, clusters: Sequence[str]) -> Shell:
        if not clusters:
            return shell
        return self._clusters.setdefault(f"{shell.name} {clusters}", ClusterShell(shell, clusters))

    def _watch(self, shell: Shell) -> JobWatch:
        return self._watches.setdefault(shell.name, JobWatch(shell))


def ranges(indices: Sequence[int]) -> str:
    """`0-3,7` of 0, 1, 2, 3, 7. Pure."""
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in found)


def shell_of(section: dict[str, Any]) -> Shell:
    """Return the shell for a run's Slurm, by the `slurm` section of its plan."""
    slurm, ssh = section.get("asked", {}), section.get("ssh", {})
    return _cached_shell(
        slurm.get("login"), slurm.get("workdir"), ssh.get("ssh_config"), bool(ssh.get("accept_new_host_keys"))
    )


@functools.lru_cache(maxsize=8)
def _cached_shell(login: str | None, workdir: str | None, ssh_config: str | None, accept_new_host_keys: bool) -> Shell:
    """All runs that share a login host share its connection."""
    if login is None:
        return LocalShell()
    from launcher.backends.slurm.login_shell import LoginShell
    from launcher.remote import connect  # paramiko is slow to import, and only this needs it

    return LoginShell(login, workdir, connect.Options(ssh_config, accept_new_host_keys))


def unfinished_jobs(root: Path, shell_name: str) -> Iterable[str]:
    """Yield job ids of the runs under `root` that go through the same Slurm and are not known to be over."""
    for run in list_runs(root):
        try:
            record = run.record
            is_final = RunState(record.state).is_final
        except (ZlaunchError, ValueError):  # rendered only, half written, or damaged
            continue
        if record.backend != "slurm" or not record.ids or is_final:
            continue
        if shell_name == name_of(slurm_section(run).get("asked", {}).get("login"), clusters_of(run)):
            yield job_id(run)
