"""The local backend: one agent on this machine, detached from the terminal, found again through the run directory."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launcher.backends.local.devices import local_target
from launcher.errors import TargetError
from launcher.machine import process
from launcher.node import processes, run_files
from launcher.node.agent.signals import SAME_SIGNAL
from launcher.rundir.logs import LogBlock, follow_logs
from launcher.rundir.state import (
    Record,
    RunState,
    derive_state,
    is_agent_alive,
    is_local,
    is_start_broken_off,
    node_records,
    raise_if_cancelled,
)

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec
    from launcher.plan.types import RunPlan, Target
    from launcher.rundir.directory import RunDir

START_TIMEOUT = 60.0
"""Seconds for node.sh to bring up the agent; the user's setup lines run in it."""
KILL_TIMEOUT = 10.0
"""Seconds for the warden to clean up after a killed agent."""


class LocalBackend:
    """Implements Backend of launcher.backends.base."""

    def target(self, job: JobSpec) -> Target:
        return local_target(job)

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Start the agent in its own session; return its pid. Raises TargetError if the agent does not start."""
        try:
            process.run(
                ["bash", run.node_sh, "0", "--secrets-stdin", "--detach"],
                stdin=json.dumps(secrets).encode(),
                timeout=START_TIMEOUT,
            )
        except process.CommandError as error:
            lines = process.last_log_lines(run.path / run_files.node_logs(0) / run_files.AGENT_LOG)
            log = "".join(f"\n  agent.log: {line}" for line in lines)
            raise TargetError(
                f"the run did not start on this machine: {error}{log}", hint=error.hint, code="ZL-RUN-10"
            ) from error
        raise_if_cancelled(run)
        record = node_records(run).get(0)
        if record is None:  # the disk is full: nobody would ever see how the run goes
            kill_leftovers(run.run_id)
            raise TargetError(
                f"the agent could not write its record into {run.path}", hint="free some space first", code="ZL-FILE-03"
            )
        return (str(record["pid"]),)

    def state(self, run: RunDir) -> RunState:
        state = derive_state(run)
        if state is RunState.PENDING and is_start_broken_off(run) and not process.working_in(run.path):
            return _again(run)
        return state

    def is_alive(self, run: RunDir) -> bool:
        if derive_state(run) is RunState.RUNNING or processes.find_run_processes(run.run_id):
            return True
        return any(processes.is_stopped(item["pid"], item["start_time"]) for item in _supervisors(run))

    def logs(
        self, run: RunDir, *, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogBlock]:
        return follow_logs(run, rank=rank, follow=follow, tail=tail, ended=lambda: self.state(run).is_final)

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """Stop the run and prove it. Raises TargetError if a process of it survives SIGKILL."""
        record = node_records(run).get(0)
        if run.run_json.exists() and run.record.state == RunState.PENDING and not (record and is_agent_alive(record)):
            with contextlib.suppress(OSError):  # a launcher that is still starting the run checks this
                run.update_record(state=RunState.CANCELLED.value)
            record = node_records(run).get(0)
        if record is not None and is_local(record):
            for supervisor in _supervisors(run):  # stopped ones (SIGSTOP) heed no other signal
                processes.wake(supervisor["pid"])
            _stop_agent(run, record, checkpoint)
        left = kill_leftovers(run.run_id)
        if left:
            pids = ", ".join(map(str, left))
            raise TargetError(
                f"cannot kill processes of {run.run_id}: {pids}", hint="look at them with ps", code="ZL-RUN-06"
            )


def _again(run: RunDir) -> RunState:
    """The state of a run whose start was broken off. Its agent may have come and gone since its record was read."""
    state = derive_state(run)
    return RunState.LOST if state is RunState.PENDING else state


def _supervisors(run: RunDir) -> list[dict[str, int]]:
    """Return pid and start time of the run's agent and its warden, if they live on this machine."""
    record = node_records(run).get(0)
    if record is None or not is_local(record):
        return []
    both = (record, record.get("warden") or record)
    return [item for item in both if processes.is_alive(item["pid"], item["start_time"])]


def _stop_agent(run: RunDir, record: Record, checkpoint: bool) -> None:
    """Ask the agent to stop; kill it if it takes too long, and leave the rest to the warden."""
    stop_deadline, kill_after = run.stop_seconds()
    process.terminate_tree(
        record["pid"],
        record["start_time"],
        record["boot_id"],
        # The agent takes a second signal as "at once", unless it comes so soon that it may be an echo of the first.
        interrupt_timeout=stop_deadline + kill_after + 2.0 if checkpoint else SAME_SIGNAL + 0.1,
        terminate_timeout=kill_after + 3.0,
    )
    warden = record.get("warden")
    if warden and not process.wait_gone(warden["pid"], warden["start_time"], KILL_TIMEOUT):
        process.signal_process(warden["pid"], warden["start_time"], record["boot_id"], signal.SIGKILL)


def kill_leftovers(run_id: str) -> list[int]:
    """Kill processes on this machine with the run's id in their environment; return the pids that survive."""

    def kill_once() -> list[int]:
        found = processes.find_run_processes(run_id)
        for pid, start_time in found:
            process.signal_process(pid, start_time, processes.boot_id(), signal.SIGKILL)
        return [pid for pid, _ in found]

    if process.wait_until(lambda: not kill_once(), KILL_TIMEOUT):
        return []  # what another command starts from now on is not what survived
    return [pid for pid, _ in processes.find_run_processes(run_id)]
