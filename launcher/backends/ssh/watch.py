"""Follow a run on its hosts: one open conversation, the state of each node, and the verdict."""

from __future__ import annotations

import atexit
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from launcher.backends.ssh.mirror import Mirror
from launcher.errors import TargetError
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet, Json, Session
from launcher.rundir.state import STATE_OF_NODE, RunState

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir


LOOK_SECONDS = 10.0
"""For one look at a node; a host that is silent for longer counts as out of reach for now."""


RETRY_SECONDS = 5.0
"""Between two attempts to reach a host again."""


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
        gone = answer["record"] is None and self.run.node_record(node).exists()
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


OPEN: dict[Path, Following] = {}
"""Conversations of this process, so that one command that asks twice connects once."""


@atexit.register
def _hang_up() -> None:
    for conversation in OPEN.values():
        conversation.fleet.close()


def verdict(seen: list[Seen]) -> RunState | None:
    """State of the run from the last look at its nodes; None: nothing is known.

    Node 0's agent is the hub, so its last word is the run's; the run lasts while any agent lives. A host out of reach
    says nothing: its agent ends by itself when it loses the hub.
    """
    states = [state_of(item) for item in seen]
    if RunState.RUNNING in states:
        return RunState.RUNNING
    known = [state for state in states if state is not None]
    if not known:
        return None
    if states[0] is not None:
        return states[0]
    final = [state for state in known if state.is_final]
    return max(final, key=list(RunState).index) if final else RunState.RUNNING


def state_of(item: Seen) -> RunState | None:
    if item.gone:
        return RunState.LOST
    if item.record is None:
        return RunState.PENDING if item.reached else None
    state = STATE_OF_NODE[item.record["state"]]
    if state is not RunState.RUNNING:
        return state
    if not item.reached:
        return None
    return RunState.RUNNING if item.alive else RunState.LOST


def conversation_of(run: RunDir) -> Following:
    """The open conversation about a run, or a new one (its hosts are connected to when they are asked).

    Another command may have resumed the run on other hosts since; then the old ones are asked no more.
    """
    extra = run.record.extra
    if "places" not in extra:
        raise TargetError(f"{run.run_id} was never sent to its hosts")
    places = [Place(**place) for place in extra["places"]]
    if run.path not in OPEN or OPEN[run.path].places != places:
        if run.path in OPEN:
            OPEN.pop(run.path).fleet.close()
        options = Options(**{**extra["options"], "accept_new_host_keys": False})
        fleet = Fleet([place.host for place in places], options, extra["python"])
        OPEN[run.path] = Following(run, fleet, places)
    return OPEN[run.path]


def wait_gone(conversation: Following, running: list[int], seconds: float) -> list[int]:
    """Wait until no agent of these nodes lives; those that still do (or cannot be asked) after `seconds`."""
    end = time.monotonic() + seconds
    while running and time.monotonic() < end:
        time.sleep(min(0.2, conversation.pause))
        conversation.look(among=running)
        running = [node for node in running if conversation.seen[node].alive or not conversation.seen[node].reached]
    return running
