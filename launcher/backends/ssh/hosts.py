"""The SSH backend: one detached agent per host, found again through run.json from any terminal.

The run directory here is a copy (mirror.py). Nothing on the hosts depends on this process: if it is killed, another
one goes on watching.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.backends.base import Copy
from launcher.backends.ssh import start, stop, survey
from launcher.backends.ssh.checkpoints import copy_newest_checkpoint
from launcher.backends.ssh.copy_files import copy_results
from launcher.backends.ssh.survey import Survey
from launcher.backends.ssh.watch import (
    AT_THE_END,
    POLL_TIMEOUT,
    CopyBusy,
    HostWatch,
    record_places,
    recorded_places,
    run_state,
    watch_recorded,
)
from launcher.errors import HostsError, TargetError
from launcher.job.inputs import Input, inputs
from launcher.remote.openssh import warn_once
from launcher.rundir.logs import LogBlock, LogFollower
from launcher.rundir.state import RunState, is_start_broken_off, raise_if_cancelled

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec
    from launcher.plan.types import RunPlan, Target
    from launcher.rundir.directory import RunDir

SENDING_SECONDS = 60.0
"""A run without recorded hosts counts as being sent for so long; its launcher records them within a second or so.

Agents that no launcher waits for any more come up within this time, or never."""


class SshBackend:
    """Implements Backend, Pulls and Removes of launcher.backends.base."""

    def __init__(self) -> None:
        self._survey: Survey | None = None
        """The hosts of the newest target, with open connections; `submit` starts the run there."""
        self._inputs: tuple[Input, ...] = ()
        self._watches: dict[Path, HostWatch] = {}
        """By run directory, so that a command that asks twice connects once."""
        atexit.register(self.close)

    def target(self, job: JobSpec) -> Target:
        """Survey the hosts of the job. Raises UsageError, DataError, and HostsError with a line per host."""
        self._inputs, paths = inputs(job)
        self._survey = survey.survey(job)
        return survey.target(job, self._survey, paths)

    def target_of_living(self, job: JobSpec) -> Target:
        self._inputs, paths = inputs(job)
        self._survey = survey.survey(job, living=True)
        return survey.target(job, self._survey, paths)

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Send the run to its hosts and start its agents. Raises HostsError; then no agent is left running."""
        if self._survey is None:
            raise TargetError("the hosts were not surveyed", hint="start the run with `zlaunch ssh`", code="ZL-RUN-10")
        places = start.places_of(run, self._survey)
        watch = HostWatch(run, self._survey.fleet, places, with_output=plan.train is None)
        if former := recorded_places(run):
            stop.end_agents_elsewhere(watch, former)
            step = copy_newest_checkpoint(watch, former)
            if step is not None:
                run.event("checkpoint_moved", step=step, to=places[0].host)
        start.forget_moved_nodes(watch, former)
        record_places(watch)
        self._watches[run.path] = watch
        start.send_files(watch, self._inputs)
        raise_if_cancelled(run)
        records = start.start_agents(watch, secrets, plan.node_template is not None)
        raise_if_cancelled(run)
        return tuple(f"{places[node].host}:{record['pid']}" for node, record in sorted(records.items()))

    def state(self, run: RunDir) -> RunState:
        """Return the state of the run. Raises HostsError if no host answers and nothing else is known."""
        if not recorded_places(run):
            return _unsent_state(run)
        watch = self.watch(run)
        if watch.is_due:
            watch.poll(logs=watch.with_output, rank=0)
        state = run_state(watch.views)
        if state is None:
            if run.record.state == RunState.RUNNING and any(view.record for view in watch.views):
                return RunState.RUNNING
            results = {place.host: view.error for place, view in zip(watch.places, watch.views, strict=True)}
            raise HostsError(f"no host of {run.run_id} can be reached", results, hint="the run itself may continue")
        if state is RunState.PENDING and is_start_broken_off(run):
            return _unsent_state(run)
        if state.is_final:
            # If agent and warden were killed together, nothing else cleans up.
            stop.kill_leftovers(watch, [node for node, view in enumerate(watch.views) if view.state is RunState.LOST])
            try:
                copy_results(watch, seconds=AT_THE_END)
            except CopyBusy as error:
                warn_once(f"{error}: zlaunch pull {run.run_id} copies the rest")
        return state

    def is_alive(self, run: RunDir) -> bool:
        """Whether an agent of the run lives on a host that answers."""
        if not recorded_places(run):
            return False
        watch = self.watch(run)
        watch.poll(copy=False)
        return any(view.alive for view in watch.views)

    def logs(
        self, run: RunDir, *, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogBlock]:
        """Yield log lines so far; with `follow`, also those to come until the run ends."""
        watch, follower = self.watch(run), LogFollower(run, rank=rank, tail=tail)
        nodes = _nodes_of_rank(run, rank)
        while True:
            seconds = POLL_TIMEOUT if follow else float("inf")
            watch.poll(logs=True, rank=rank, nodes=nodes, seconds=seconds, must_copy=True)
            last = not follow or self.state(run).is_final
            if last:
                watch.poll(logs=True, rank=rank, nodes=nodes, seconds=float("inf"), must_copy=True)
            yield from follower.poll(last=last)
            if last:
                return
            time.sleep(watch.interval)

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """Stop the run on all hosts. Raises HostsError naming hosts out of reach, where the run may continue."""
        if not recorded_places(run):
            return  # its launcher was interrupted, or died, before it sent anything
        watch = self.watch(run)
        watch.poll(copy=False)
        if all(view.reached and view.record is None for view in watch.views):
            run.update_record(state=RunState.CANCELLED.value)  # a launcher that is still sending the run checks this
            watch.poll(copy=False)
        running = [node for node, view in enumerate(watch.views) if view.alive]
        if checkpoint and running:
            running = stop.stop_with_checkpoint(watch, running)
        left = stop.stop_now(watch, running)
        failures = {node: str(error) for node, error in stop.kill_leftovers(watch).items()} | left
        watch.poll(logs=True)
        if failures:
            results = {place.host: failures.get(node, "stopped") for node, place in enumerate(watch.places)}
            hint = f"an agent that loses the others stops by itself; later: zlaunch cancel {run.run_id}"
            raise HostsError(f"could not stop {run.run_id} on every host", results, hint=hint)

    def pull(self, run: RunDir, *, checkpoints: bool = False) -> list[str]:
        """Copy logs, metrics, result and adapter here; return the names of the files copied.

        Raises TargetError when the first host, which has the results, is out of reach.
        """
        watch = self.watch(run)
        copied = copy_results(watch, checkpoints=checkpoints, shown=True)
        if copied is None:
            host, why = watch.places[0].host, watch.views[0].error
            raise TargetError(f"cannot reach {host}, which has the results of {run.run_id}: {why}", code="ZL-SSH-01")
        return copied

    def remove(self, run: RunDir, *, dry_run: bool) -> list[Copy]:
        """Remove the run's files from its hosts. Raises HostsError naming hosts out of reach."""
        return stop.remove_files(self.watch(run), dry_run=dry_run) if recorded_places(run) else []

    def watch(self, run: RunDir) -> HostWatch:
        """Return the watch on a run, or a new one. Raises TargetError for a run that was never sent.

        Another command may have resumed the run on other hosts. Then stop watching the old ones.
        """
        places = recorded_places(run)
        if not places:
            raise TargetError(f"{run.run_id} was never sent to its hosts", code="ZL-RUN-10")
        known = self._watches.get(run.path)
        if known is not None and known.places == places:
            return known
        if known is not None:
            known.close()
        self._watches[run.path] = watch_recorded(run)
        return self._watches[run.path]

    def close(self) -> None:
        """Hang up on all hosts."""
        for watch in self._watches.values():
            watch.close()


def _unsent_state(run: RunDir) -> RunState:
    """State of a run without hosts or agents: being started, or, after a while, left behind by a launcher that died."""
    age = time.time() - run.run_json.stat().st_mtime  # a start writes the record; so does a command that finds it LOST
    lost = run.record.state == RunState.LOST or age >= SENDING_SECONDS
    return RunState.LOST if lost else RunState.PENDING


def _nodes_of_rank(run: RunDir, rank: int | None) -> list[int]:
    """The node that the rank runs on; all nodes for None."""
    nodes = (run.read_json(run.plan_json) or {}).get("launch", {}).get("nodes", ())
    return [
        node["node_rank"]
        for node in nodes
        if rank is None or node["first_rank"] <= rank < node["first_rank"] + node["procs"]
    ]
