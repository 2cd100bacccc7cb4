"""Watch a run on its hosts: one session per node, what each node last showed, and the state that follows.

A HostWatch holds all of this. It keeps nothing that run.json and the hosts do not have: any command can build
another one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import filelock
import msgspec

from launcher.backends.ssh.mirror import Mirror
from launcher.errors import RunNotFound, TargetError
from launcher.machine.storage import storage_error
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet
from launcher.remote.openssh import warn_once
from launcher.remote.session import AnswerRefused, Json, Session
from launcher.rundir.state import STATE_OF_NODE, RunState

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir

POLL_TIMEOUT = 10.0
"""Seconds for one poll of a node. A host that is silent for longer counts as out of reach for now."""
RETRY_SECONDS = 5.0
"""Seconds between two attempts to connect to a host again."""
SLOWEST = 1 << 16
"""Bytes per second of a host that still counts as sending, after POLL_TIMEOUT. One that always has more would otherwise
hold up the poll of all others."""
MOST_AT_ONCE = 4 << 30
"""Bytes that one poll of a node copies at most."""
AT_THE_END = 30.0
"""Seconds that copying the logs of one host may hold up the end of a run. `zlaunch pull` copies the rest."""
LOCK_SECONDS = 30.0
"""Seconds to wait for another command that copies files of the run, where they must be copied."""
GLANCE_SECONDS = 1.0
"""Seconds to wait for it elsewhere."""
NEVER = float("-inf")


class CopyBusy(TargetError):
    """Another command copies files of the run."""

    code = "ZL-RUN-04"


@dataclass(frozen=True)
class NodePlace:
    """Where a node's part of the run is; stored in run.json."""

    host: str
    run_dir: str
    workdir: str
    leader: int
    """Rank of the first node that sees the same working directory."""
    environ: dict[str, str]


@dataclass
class NodeView:
    """What the last poll of a node showed, and when the launcher last tried to connect."""

    record: Json | None = None
    reached: bool = False
    alive: bool = False
    """The agent's process lives."""
    error: str = ""
    """Why the node was not reached."""
    gone: bool = False
    """The node had a record and has none now: its disk was wiped, or the run directory was removed."""
    tried: float = NEVER

    @property
    def state(self) -> RunState | None:
        """State of the node; None: unknown."""
        if self.gone:
            return RunState.LOST
        if self.record is None:
            return RunState.PENDING if self.reached else None
        state = STATE_OF_NODE[self.record["state"]]
        if state is not RunState.RUNNING:
            return state
        if not self.reached:
            return None
        return RunState.RUNNING if self.alive else RunState.LOST


def run_state(views: Sequence[NodeView]) -> RunState | None:
    """Return the state of the run that its nodes' views add up to; None: unknown. Pure.

    The agent of node 0 is the hub, so its last record counts for the run. The run lasts while any agent lives. A host
    out of reach says nothing: its agent stops by itself when it loses the hub.
    """
    states = [view.state for view in views]
    if RunState.RUNNING in states:
        return RunState.RUNNING
    known = [state for state in states if state is not None]
    if not known:
        return None
    if states[0] is not None:
        return states[0]
    final = [state for state in known if state.is_final]
    return max(final, key=list(RunState).index) if final else RunState.RUNNING


class HostWatch:
    """All that the launcher knows about a run on hosts while it watches."""

    def __init__(self, run: RunDir, fleet: Fleet, places: list[NodePlace], *, with_output: bool = False) -> None:
        self.run, self.fleet, self.places = run, fleet, places
        self.mirror = Mirror(run, [place.leader for place in places])
        self.views = [NodeView() for _ in places]
        self.with_output = with_output
        """Also copy rank 0's output with each poll for the state, for a user who follows their own program."""
        self.polled = NEVER

    @property
    def interval(self) -> float:
        """Seconds between two polls. A host answers a few questions per second without noticing, but not fifty."""
        return 0.3 if len(self.places) <= 8 else 1.0 if len(self.places) <= 64 else 2.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.polled >= self.interval

    def poll(
        self,
        *,
        logs: bool = False,
        rank: int | None = None,
        nodes: Sequence[int] | None = None,
        seconds: float = POLL_TIMEOUT,
        must_copy: bool = False,
        copy: bool = True,
    ) -> None:
        """Bring the copy and the views up to date. A host out of reach keeps its last record. Raises TargetError.

        `seconds`: what copying from one host may take; what it has more is left for the next poll.
        `must_copy`: raise CopyBusy if another command copies meanwhile. Otherwise it is left to that command, and only
        the views are brought up to date: a host can make a copy last as long as it likes. `copy`: False leaves copying
        to later polls.
        """
        self.run.check_exists()
        try:
            with self._right_to_copy(must_copy) if copy else contextlib.nullcontext(False) as copies:
                _, failures = self.fleet.for_each_host(
                    lambda node, session: self._poll(
                        node, session, self.mirror.tops(node, logs, rank) if copies else (), seconds
                    ),
                    nodes,
                )
        except OSError as error:  # of this machine: a host's own errors come as answers
            told = storage_error(error, f"cannot write the copy of {self.run.run_id} here:")
            hint = told.hint if told and told.hint else "look at the directory of the run here"
            raise TargetError(
                str(told or error),
                hint=f"{hint}. The run itself continues: zlaunch status {self.run.run_id}",
                code="ZL-FILE-03",
            ) from None
        for node, failure in failures.items():
            if isinstance(failure, AnswerRefused):
                warn_once(f"an answer of {self.places[node].host} was refused: {failure}")
            self.views[node].reached, self.views[node].error = False, str(failure)
        self.polled = time.monotonic()

    @contextlib.contextmanager
    def _right_to_copy(self, must_copy: bool) -> Iterator[bool]:
        """Hold the right to copy files of the run; yield False if another command has it."""
        lock = self.mirror.lock(LOCK_SECONDS if must_copy else GLANCE_SECONDS)
        try:
            lock.acquire()
        except filelock.Timeout:
            if must_copy:
                raise CopyBusy(
                    f"another command is still copying files of {self.run.run_id}", hint="try again when it is done"
                ) from None
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _poll(self, node: int, session: Session, tops: Sequence[str], seconds: float) -> None:
        """`tops`: what to copy; empty: nothing, whatever the host sends."""
        self.connect(node, session)
        began, came, more = time.monotonic(), 0, True
        while more:
            answer = session.call(
                "poll_node", run_dir=self.places[node].run_dir, node_rank=node, tops=tops,
                offsets=self.mirror.offsets(node, tops), timeout=POLL_TIMEOUT,
            )  # fmt: skip
            self.mirror.apply(node, answer if tops else {**answer, "files": []})
            came += len(answer["payload"])
            more = bool(tops) and answer["more"] and answer["payload"] != b""
            if more and time.monotonic() - began > seconds:
                if seconds >= AT_THE_END:
                    pull = f"zlaunch pull {self.run.run_id}"
                    warn_once(
                        f"not all logs of {self.places[node].host} came within {seconds:g} s: {pull} copies the rest"
                    )
                break
            if more and (time.monotonic() - began > POLL_TIMEOUT + came / SLOWEST or came > MOST_AT_ONCE):
                raise AnswerRefused(f"it always has more to send: {came} bytes in {time.monotonic() - began:.0f} s")
        gone = answer["record"] is None and self.run.node_record(node).exists()
        self.views[node] = NodeView(
            answer["record"], reached=True, alive=answer["alive"], gone=gone, tried=self.views[node].tried
        )

    def connect(self, node: int, session: Session) -> None:
        """Open the session if it is closed, at most once in RETRY_SECONDS. Raises TargetError."""
        if session.is_open:
            return
        view = self.views[node]
        if time.monotonic() - view.tried < RETRY_SECONDS:
            raise TargetError(view.error or "out of reach", code="ZL-SSH-01")
        try:
            session.open()
        finally:
            view.tried = time.monotonic()

    def call(
        self, operation: str, nodes: Sequence[int] | None = None, **arguments: Any
    ) -> tuple[dict[int, Json], dict[int, TargetError]]:
        """Call one operation on the nodes' far ends, each for its own node: ({node: answer}, {node: error})."""

        def call_one(node: int, session: Session) -> Json:
            self.connect(node, session)
            return session.call(operation, run_dir=self.places[node].run_dir, node_rank=node, **arguments)

        return self.fleet.for_each_host(call_one, nodes)

    def wait_until_gone(self, nodes: Sequence[int], seconds: float) -> list[int]:
        """Wait until no agent of these nodes lives; return those that may still live after `seconds`."""
        left, end = list(nodes), time.monotonic() + seconds
        while left and time.monotonic() < end:
            time.sleep(min(0.2, self.interval))
            self.poll(nodes=left, copy=False)
            left = [node for node in left if self.views[node].alive or not self.views[node].reached]
        return left

    def close(self) -> None:
        self.fleet.close()


# The places of a run in run.json: a later command finds the run by them.


def recorded_places(run: RunDir) -> list[NodePlace]:
    """Return the places of the run's last start; empty: it was never sent to its hosts. Raises RunNotFound."""
    places: list[NodePlace] = _recorded(run, "places", list[NodePlace], [])
    return places


def record_places(watch: HostWatch) -> None:
    """Write into run.json all that a later command needs to find the run again."""
    session = watch.fleet.sessions[0]
    places = [asdict(place) for place in watch.places]
    watch.run.update_record(
        extra={"places": places, "options": asdict(session.options), "python": session.python},
    )


def watch_recorded(run: RunDir) -> HostWatch:
    """Return a watch on the run's hosts by its record. Its sessions open with the first question."""
    places = recorded_places(run)
    options = replace(_recorded(run, "options", Options), accept_new_host_keys=False)
    return HostWatch(run, Fleet([place.host for place in places], options, _recorded(run, "python", str)), places)


def _recorded(run: RunDir, key: str, kind: Any, default: Any = None) -> Any:
    """Return what run.json says under `extra`. Raises RunNotFound if it is missing or of another type."""
    try:
        return msgspec.convert(run.record.extra.get(key, default), kind)
    except msgspec.ValidationError as error:
        raise RunNotFound(f"{run.run_json} is damaged: extra.{key}: {error}", code="ZL-RUN-02") from None
