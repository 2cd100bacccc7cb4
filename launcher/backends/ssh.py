"""Ranks on a list of hosts: one agent on each, detached there; found again through run.json from any terminal.

The run directory here is a copy (launcher/mirror.py). Nothing on the hosts depends on this process: it may be killed,
and another one goes on asking.
"""

from __future__ import annotations

import atexit
import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from launcher import bundle, follow, moved
from launcher.backends.base import LogLine, RunState
from launcher.connect import Options
from launcher.errors import HostsError, TargetError
from launcher.fleet import Fleet, Json, Session
from launcher.mirror import Mirror
from launcher.takeback import heed_cancel

if TYPE_CHECKING:
    from launcher.hosts import Survey
    from launcher.plan import RunPlan
    from launcher.runs import RunDir

SENDING_SECONDS = 60.0
"""In which a launcher is believed to be at work on a run whose hosts stand nowhere yet; writing them down takes one."""
START_SECONDS = 60.0
"""For node.sh to bring up the agent."""
LOOK_SECONDS = 10.0
"""For one look at a node; a host that is silent for longer counts as out of reach for now."""
RETRY_SECONDS = 5.0
"""Between two attempts to reach a host again."""
FORCE_PAUSE = 0.7
"""Between two signals, so that the agent takes the second as `at once` and not as an echo of the first."""
KILL_SECONDS = 10.0
HOME_FILES = ("result.json", "metrics.jsonl", "predictions.jsonl", "adapter", "errors")
"""What a finished run brings home from node 0."""


@dataclass(frozen=True)
class Place:
    """Where a node's part of the run lies; kept in run.json."""

    host: str
    run_dir: str
    workdir: str
    leader: int
    environ: dict[str, str]


@dataclass
class Seen:
    """What the last look at a node showed."""

    record: Json | None = None
    reached: bool = False
    alive: bool = False
    why: str = ""
    gone: bool = False
    """It has no record any more: its disk was emptied, or somebody removed the run directory."""


class Following:
    """An open conversation with all hosts of one run."""

    def __init__(self, run: RunDir, fleet: Fleet, places: list[Place]) -> None:
        self.run, self.fleet, self.places = run, fleet, places
        self.mirror = Mirror(run, [place.leader for place in places])
        self.seen = [Seen() for _ in places]
        self.tried = [-RETRY_SECONDS] * len(places)
        self.shows_output = False
        """Each look brings what rank 0 printed, too: somebody follows a program of his own."""
        self.looked = -1e9
        self.pause = 0.3 if len(places) <= 8 else 1.0 if len(places) <= 64 else 2.0
        """Seconds between two looks: a host answers a few questions a second without noticing, not fifty."""

    def look(self, *, logs: bool = False, rank: int | None = None, among: list[int] | None = None) -> None:
        """Bring the copy up to date; hosts out of reach keep what was seen of them."""
        try:
            with self.mirror.lock():
                _, failures = self.fleet.each(lambda node, session: self._look(node, session, logs, rank), among)
        except filelock.Timeout:
            raise TargetError(
                f"another command still copies files of {self.run.run_id}", hint="try again when it is done"
            ) from None
        except OSError as trouble:  # a host's own come as answers
            where = f" ({trouble.filename})" if trouble.filename else ""
            raise TargetError(
                f"cannot write the copy of {self.run.run_id} here: {trouble.strerror or trouble}{where}",
                hint=f"free some space; the run itself goes on: zlaunch status {self.run.run_id}",
            ) from None
        for node, error in failures.items():
            self.seen[node].reached, self.seen[node].why = False, str(error)
        self.looked = time.monotonic()

    def _look(self, node: int, session: Session, logs: bool, rank: int | None) -> None:
        self.connect(node, session)
        place, tops = self.places[node], self.mirror.tops(node, logs, rank)
        more = True
        while more:
            answer = session.call(
                "poll_node", run_dir=place.run_dir, node_rank=node, tops=tops,
                offsets=self.mirror.offsets(node, tops), timeout=LOOK_SECONDS,
            )  # fmt: skip
            self.mirror.apply(node, answer)
            more = answer["more"]
        gone = answer["record"] is None and (self.run.nodes_dir / f"node-{node}.json").exists()
        self.seen[node] = Seen(answer["record"], reached=True, alive=answer["alive"], gone=gone)

    def connect(self, node: int, session: Session) -> None:
        """Open the session if it is closed, but not again and again. Raises TargetError."""
        if session.is_open:
            return
        if time.monotonic() - self.tried[node] < RETRY_SECONDS:
            raise TargetError(self.seen[node].why or "out of reach")
        try:
            session.open()
        finally:
            self.tried[node] = time.monotonic()

    def ask(
        self, operation: str, among: list[int] | None = None, **arguments: Any
    ) -> tuple[dict[int, Json], dict[int, TargetError]]:
        """The same question to the far ends, each about its own node."""

        def one(node: int, session: Session) -> Json:
            self.connect(node, session)
            return session.call(operation, run_dir=self.places[node].run_dir, node_rank=node, **arguments)

        return self.fleet.each(one, among)


_OPEN: dict[Path, Following] = {}
"""Conversations of this process, so that one command that asks twice connects once."""


@atexit.register
def _hang_up() -> None:
    for conversation in _OPEN.values():
        conversation.fleet.close()


def verdict(seen: list[Seen]) -> RunState | None:
    """State of the run from the last look at its nodes; None: nothing is known.

    Node 0's agent is the hub, so its last word is the run's; the run lasts while any agent lives. A host out of reach
    says nothing: its agent ends by itself when it loses the hub.
    """
    states = [_state(item) for item in seen]
    if RunState.RUNNING in states:
        return RunState.RUNNING
    known = [state for state in states if state is not None]
    if not known:
        return None
    if states[0] is not None:
        return states[0]
    final = [state for state in known if state.is_final]
    return max(final, key=list(RunState).index) if final else RunState.RUNNING


def _state(item: Seen) -> RunState | None:
    if item.gone:
        return RunState.LOST
    if item.record is None:
        return RunState.PENDING if item.reached else None
    state = follow.STATE_OF_NODE[item.record["state"]]
    if state is not RunState.RUNNING:
        return state
    if not item.reached:
        return None
    return RunState.RUNNING if item.alive else RunState.LOST


class SshBackend:
    """Implements launcher.backends.base.Backend. `survey`: what was just learned of the hosts, for a submission."""

    def __init__(self, survey: Survey | None = None, inputs: tuple[bundle.Input, ...] = ()) -> None:
        self.survey, self.inputs = survey, inputs

    # ------------------------------------------------------------------------------------------------- start

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
            step = moved.bring_checkpoint(run, survey.fleet, [place.run_dir for place in places], former)
            if step is not None:
                run.event("checkpoint_moved", step=step, to=places[0].host)
        _forget_moved(run, conversation)
        _remember(run, survey, places)
        _OPEN[run.path] = conversation
        leaders = sorted(set(survey.leaders))
        packed = bundle.build(run)
        survey.fleet.all(
            "the run cannot be sent", lambda node, session: self._send(session, places[node], packed), leaders
        )
        payload = json.dumps(secrets).encode()
        heed_cancel(run)
        started, failures = survey.fleet.each(
            lambda node, session: session.call(
                "start", payload, run_dir=places[node].run_dir, node_rank=node, environ=places[node].environ,
                seconds=START_SECONDS, timeout=START_SECONDS + 5,
            )["record"],
            to_the_end=True,
        )  # fmt: skip
        if failures:
            self._take_back(conversation, sorted(started), failures)
        heed_cancel(run)
        for node, record in started.items():
            conversation.seen[node] = Seen(record, reached=True, alive=True)
        return tuple(f"{places[node].host}:{started[node]['pid']}" for node in sorted(started))

    def _send(self, session: Session, place: Place, packed: bundle.Bundle) -> None:
        """Data that the host has not, then the bundle."""
        links: dict[str, str] = {}
        if self.inputs:
            items = [file.item for file in self.inputs]
            found = session.call("find_inputs", inputs=items, workdir=place.workdir, timeout=600)["found"]
            for file in self.inputs:
                if file.sha256 not in found:
                    found[file.sha256] = session.send_file(file.item, file.path, place.workdir)["path"]
            links = bundle.links_of(self.inputs, found)
        session.call("unpack", packed.data, run_dir=place.run_dir, digest=packed.digest, links=links)

    def _take_back(self, conversation: Following, started: list[int], failures: Mapping[int, TargetError]) -> None:
        """A host refused: stop what runs elsewhere, then say what every host said. Raises HostsError."""
        # Where the conversation broke the agent may have come up, or be about to: without a plan it does not.
        unclear = [node for node in failures if not conversation.fleet.sessions[node].is_open]
        conversation.ask("put", unclear, name="plan.json", offset=0, last=True)
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
            lost = [node for node, item in enumerate(conversation.seen) if _state(item) is RunState.LOST]
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
            running = wait_gone(conversation, running, _orderly_seconds(run))
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
    tops = [*HOME_FILES, *(["checkpoints"] if checkpoints else [])]
    run, session, place = conversation.run, conversation.fleet.sessions[0], conversation.places[0]
    if not session.is_open:
        return None
    fetched = []
    files = session.call("tree", run_dir=place.run_dir, tops=tops)["files"]
    # The file that makes a checkpoint count comes last, so that one cut in the middle does not.
    for name, size in sorted(files, key=lambda file: file[0].endswith(f"/{moved.COMPLETE}")):
        _fetch(session, place.run_dir, name, size, run.path / name)
        if name != "metrics.jsonl":
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


def conversation_of(run: RunDir) -> Following:
    """The open conversation about a run, or a new one (its hosts are connected to when they are asked).

    Another command may have resumed the run on other hosts since; then the old ones are asked no more.
    """
    extra = run.record.extra
    if "places" not in extra:
        raise TargetError(f"{run.run_id} was never sent to its hosts")
    places = [Place(**place) for place in extra["places"]]
    if run.path not in _OPEN or _OPEN[run.path].places != places:
        if run.path in _OPEN:
            _OPEN.pop(run.path).fleet.close()
        options = Options(**{**extra["options"], "accept_new_host_keys": False})
        fleet = Fleet([place.host for place in places], options, extra["python"])
        _OPEN[run.path] = Following(run, fleet, places)
    return _OPEN[run.path]


def wait_gone(conversation: Following, running: list[int], seconds: float) -> list[int]:
    """Wait until no agent of these nodes lives; those that still do (or cannot be asked) after `seconds`."""
    end = time.monotonic() + seconds
    while running and time.monotonic() < end:
        time.sleep(min(0.2, conversation.pause))
        conversation.look(among=running)
        running = [node for node in running if conversation.seen[node].alive or not conversation.seen[node].reached]
    return running


def end_now(conversation: Following, running: list[int]) -> dict[int, str]:
    """End these nodes' agents without asking for a checkpoint; {node: what could not be ended, and why}."""
    if not running:
        return {}
    launch = (conversation.run.read_json(conversation.run.plan_json) or {}).get("launch", {})
    for pause in (FORCE_PAUSE, 0.0):
        conversation.ask("send_signal", running, number=int(signal.SIGTERM))
        time.sleep(pause)
    running = wait_gone(conversation, running, float(launch.get("kill_after", 5.0)) + KILL_SECONDS)
    if running:
        # First the agent, whose warden then ends what is left of the node, then the warden if it still lives.
        for _ in range(2):
            conversation.ask("send_signal", running, number=int(signal.SIGKILL))
            running = wait_gone(conversation, running, KILL_SECONDS / 2)
    return {node: conversation.seen[node].why or "its agent cannot be ended" for node in running}


def end_strays(
    conversation: Following, among: list[int] | None = None
) -> tuple[dict[int, Json], dict[int, TargetError]]:
    """End what carries the run's id and has no agent any more."""
    run_id = conversation.run.run_id

    def one(node: int, session: Session) -> Json:
        conversation.connect(node, session)
        return session.call("leftovers", run_id=run_id, kill=True, dead_only=True)

    return conversation.fleet.each(one, among)


def _orderly_seconds(run: RunDir) -> float:
    launch = (run.read_json(run.plan_json) or {}).get("launch", {})
    return float(launch.get("stop_deadline", 25.0)) + float(launch.get("kill_after", 5.0)) + 5.0


def _fetch(session: Session, run_dir: str, name: str, size: int, target: Path) -> None:
    """Copy one file; a file of the same size that is a checkpoint's is complete already."""
    if "checkpoints/" in name and target.exists() and target.stat().st_size == size:
        return
    moved.fetch(session, run_dir, name, size, target)


def follow_logs(run: RunDir, backend: SshBackend, rank: int | None, to_the_end: bool) -> Iterator[LogLine]:
    """Log lines so far; with `to_the_end` also those to come until the run is over."""
    conversation = conversation_of(run)
    follower = follow.LogFollower(run, rank=rank)
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
