"""Ranks on a list of hosts: one agent on each, detached there; found again through run.json from any terminal.

The run directory here is a copy (mirror.py). Nothing on the hosts depends on this process: it may be killed,
and another one goes on asking.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.backends.ssh import bundle
from launcher.backends.ssh import survey as surveys
from launcher.backends.ssh.checkpoints import bring_checkpoint, fetch
from launcher.backends.ssh.ending import end_now, end_strays, orderly_seconds
from launcher.backends.ssh.survey import Survey
from launcher.backends.ssh.watch import OPEN, Following, Place, Seen, conversation_of, state_of, verdict, wait_gone
from launcher.errors import HostsError, TargetError
from launcher.job.inputs import Input, inputs, links_of
from launcher.node import run_files
from launcher.remote.fleet import Session
from launcher.rundir.logs import LogFollower, LogLine
from launcher.rundir.state import RunState, raise_if_cancelled

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec
    from launcher.plan.types import RunPlan, Target
    from launcher.rundir.directory import RunDir

SENDING_SECONDS = 60.0
"""In which a launcher is believed to be at work on a run whose hosts stand nowhere yet; writing them down takes one."""
START_SECONDS = 60.0
"""For node.sh to bring up the agent."""


HOME_FILES = (run_files.RESULT, run_files.METRICS, run_files.PREDICTIONS, run_files.ADAPTER, run_files.ERRORS)
"""What a finished run brings home from node 0."""


class SshBackend:
    """Implements Backend and Pulls of launcher.backends.base."""

    def __init__(self) -> None:
        self.survey: Survey | None = None
        """The hosts of the newest target, with connections open: `submit` starts the run there."""
        self.inputs: tuple[Input, ...] = ()

    # ------------------------------------------------------------------------------------------------- start

    def target(self, job: JobSpec) -> Target:
        """Survey the hosts of the job. Raises UsageError, DataError, and HostsError with a line per host."""
        self.inputs, paths = inputs(job)
        self.survey = surveys.survey(job)
        return surveys.target(job, self.survey, paths)

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Send the run to its hosts and start its agents. Raises HostsError; then nothing of it is left running."""
        survey = self.survey
        if survey is None:
            raise TargetError("the hosts were not surveyed", hint="start the run with `zlaunch ssh`")
        places = places_of(run, survey)
        conversation = Following(run, survey.fleet, places)
        conversation.shows_output = plan.train is None
        former = [(place["host"], place["run_dir"]) for place in run.record.extra.get("places", ())]
        if former:
            step = bring_checkpoint(run, survey.fleet, [place.run_dir for place in places], former)
            if step is not None:
                run.event("checkpoint_moved", step=step, to=places[0].host)
        _forget_moved(run, conversation)
        _remember(run, survey, places)
        OPEN[run.path] = conversation
        leaders = sorted(set(survey.leaders))
        packed = bundle.build(run)
        survey.fleet.all(
            "the run cannot be sent", lambda node, session: self._send(session, places[node], packed), leaders
        )
        payload = json.dumps(secrets).encode()
        raise_if_cancelled(run)
        started, failures = survey.fleet.each(
            lambda node, session: session.call(
                "start", payload, run_dir=places[node].run_dir, node_rank=node, environ=places[node].environ,
                seconds=START_SECONDS, timeout=START_SECONDS + 5,
            )["record"],
            to_the_end=True,
        )  # fmt: skip
        if failures:
            self._take_back(conversation, sorted(started), failures)
        raise_if_cancelled(run)
        for node, record in started.items():
            conversation.seen[node] = Seen(record, reached=True, alive=True)
        return tuple(f"{places[node].host}:{started[node]['pid']}" for node in sorted(started))

    def _send(self, session: Session, place: Place, packed: bytes) -> None:
        """Data that the host has not, then the bundle."""
        links: dict[str, str] = {}
        if self.inputs:
            items = [file.item for file in self.inputs]
            found = session.call("find_inputs", inputs=items, workdir=place.workdir, timeout=600)["found"]
            for file in self.inputs:
                if file.sha256 not in found:
                    found[file.sha256] = session.send_file(file.item, file.path, place.workdir)["path"]
            links = links_of(self.inputs, found)
        session.call("unpack", packed, run_dir=place.run_dir, links=links)

    def _take_back(self, conversation: Following, started: list[int], failures: Mapping[int, TargetError]) -> None:
        """A host refused: stop what runs elsewhere, then say what every host said. Raises HostsError."""
        # Where the conversation broke the agent may have come up, or be about to: without a plan it does not.
        unclear = [node for node in failures if not conversation.fleet.sessions[node].is_open]
        conversation.ask("put", unclear, name=run_files.PLAN, offset=0, last=True)
        left = end_now(conversation, sorted([*started, *unclear]))
        names = [place.host for place in conversation.places]
        results = {names[node]: str(error) for node, error in failures.items()}
        results.update({names[node]: f"{failures[node]}; it may run there" for node in unclear if node in left})
        results.update({names[node]: left.get(node, "started, and stopped again") for node in started})
        ordered = {name: results[name] for name in names if name in results}
        raise HostsError(f"the run did not start on {len(failures)} of {len(names)} hosts", ordered)

    # ----------------------------------------------------------------------------------------------- afterwards

    def state(self, run: RunDir) -> RunState:
        """State of the run. Raises HostsError if no host at all can be asked and nothing is known of the run."""
        if "places" not in run.record.extra:
            return never_sent(run)
        conversation = conversation_of(run)
        if time.monotonic() - conversation.looked >= conversation.pause:
            conversation.look(logs=conversation.shows_output, rank=0)
        state = verdict(conversation.seen)
        if state is None:
            if conversation.run.record.state == "RUNNING" and any(item.record for item in conversation.seen):
                return RunState.RUNNING
            results = {place.host: item.why for place, item in zip(conversation.places, conversation.seen, strict=True)}
            raise HostsError(f"no host of {run.run_id} can be reached", results, hint="the run itself may well go on")
        if state.is_final:
            lost = [node for node, item in enumerate(conversation.seen) if state_of(item) is RunState.LOST]
            end_strays(conversation, lost)  # agent and warden killed at once: nobody else is left to do it
            bring_home(conversation)
        return state

    def logs(self, run: RunDir, *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        return follow_logs(run, self, rank, follow)

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """End the run on all hosts. Raises HostsError naming hosts that could not be reached: they may run on."""
        if "places" not in run.record.extra:
            return  # interrupted, or its launcher died, before anything was sent
        conversation = conversation_of(run)
        conversation.look()
        if all(item.reached and item.record is None for item in conversation.seen):
            run.update_record(state=RunState.CANCELLED.value)  # if its launcher is still sending, it heeds this
            conversation.look()
        running = [node for node, item in enumerate(conversation.seen) if item.alive]
        if checkpoint and running:
            hub = [0] if 0 in running else running
            conversation.ask("send_signal", hub, number=int(signal.SIGINT))
            running = wait_gone(conversation, running, orderly_seconds(run))
        left = end_now(conversation, running)
        conversation.look(logs=True)
        _, strays_failed = end_strays(conversation)
        silent = {**{node: str(error) for node, error in strays_failed.items()}, **left}
        if silent:
            results = {place.host: silent.get(node, "ended") for node, place in enumerate(conversation.places)}
            hint = f"an agent that lost the others ends by itself; later: zlaunch cancel {run.run_id}"
            raise HostsError(f"{run.run_id} could not be ended everywhere", results, hint=hint)

    def pull(self, run: RunDir, *, checkpoints: bool = False) -> list[str]:
        """Bring logs, metrics, result and adapter home; the names of the files fetched.

        Raises TargetError when the first host, which has the results, cannot be reached.
        """
        conversation = conversation_of(run)
        fetched = bring_home(conversation, checkpoints=checkpoints)
        if fetched is None:
            host, why = conversation.places[0].host, conversation.seen[0].why
            raise TargetError(f"{host}, which has the results of {run.run_id}, cannot be reached: {why}")
        return fetched


def bring_home(conversation: Following, *, checkpoints: bool = False) -> list[str] | None:
    """Bring all logs, and what node 0 made; the names of its files. None: node 0 is out of reach."""
    conversation.look(logs=True)
    tops = [*HOME_FILES, *([run_files.CHECKPOINTS] if checkpoints else [])]
    run, session, place = conversation.run, conversation.fleet.sessions[0], conversation.places[0]
    if not session.is_open:
        return None
    fetched = []
    files = session.call("tree", run_dir=place.run_dir, tops=tops)["files"]
    # The file that makes a checkpoint count comes last, so that one cut in the middle does not.
    for name, size in sorted(files, key=lambda file: file[0].endswith(f"/{run_files.COMPLETE}")):
        _fetch(session, place.run_dir, name, size, run.path / name)
        if name != run_files.METRICS:
            fetched.append(name)
    return fetched


def places_of(run: RunDir, survey: Survey) -> list[Place]:
    return [
        Place(
            host=name,
            run_dir=f"{survey.workdir(node)}/runs/{run.run_id}",
            workdir=survey.workdir(node),
            leader=survey.leaders[node],
            environ=survey.environment(node),
        )
        for node, name in enumerate(survey.names)
    ]


def never_sent(run: RunDir) -> RunState:
    """State of a run whose hosts stand nowhere: being started, or, after a while, left by a launcher that died."""
    age = time.time() - run.run_json.stat().st_mtime  # a start writes the record; so does who finds it lost
    lost = run.record.state == RunState.LOST or age >= SENDING_SECONDS
    return RunState.LOST if lost else RunState.PENDING


def _remember(run: RunDir, survey: Survey, places: list[Place]) -> None:
    """All that a later command needs to find the run again."""
    session = survey.fleet.sessions[0]
    run.update_record(
        extra={
            "places": [asdict(place) for place in places],
            "options": asdict(session.options),
            "python": session.python,
        }
    )


def _forget_moved(run: RunDir, conversation: Following) -> None:
    before = [Place(**place) for place in run.record.extra.get("places", ())]
    for node, place in enumerate(conversation.places):
        if node < len(before) and (before[node].host, before[node].run_dir) != (place.host, place.run_dir):
            conversation.mirror.forget(node)
    for node in range(len(conversation.places), len(before)):
        conversation.mirror.forget(node)
    for record in run.nodes_dir.glob("node-*.json"):
        record.unlink()  # of an earlier submission


def _fetch(session: Session, run_dir: str, name: str, size: int, target: Path) -> None:
    """Copy one file; a file of the same size that is a checkpoint's is complete already."""
    if "checkpoints/" in name and target.exists() and target.stat().st_size == size:
        return
    fetch(session, run_dir, name, size, target)


def follow_logs(run: RunDir, backend: SshBackend, rank: int | None, to_the_end: bool) -> Iterator[LogLine]:
    """Log lines so far; with `to_the_end` also those to come until the run is over."""
    conversation = conversation_of(run)
    follower = LogFollower(run, rank=rank)
    launch = (run.read_json(run.plan_json) or {}).get("launch", {})
    among = [
        node["node_rank"]
        for node in launch.get("nodes", ())
        if rank is None or node["first_rank"] <= rank < node["first_rank"] + node["procs"]
    ]
    while True:
        conversation.look(logs=True, rank=rank, among=among)
        over = not to_the_end or backend.state(run).is_final
        if over:
            conversation.look(logs=True, rank=rank, among=among)
        yield from follower.poll(last=over)
        if over:
            return
        time.sleep(conversation.pause)
