"""Decide on node 0 when an attempt starts, when it is over, and whether there is another one."""

from __future__ import annotations

from ..hangs import COLLECT_SECONDS, describe, group_stacks, row_of
from .causes import CAUSE, ended_politely, failure_of, first_cause
from .launch import REQUEST_GRACE, eof_grace, table_without, world_size_of
from .resize import BatchError, resize_run

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional

    from ..files import File, Json


class Member:
    """What the hub knows of one node."""

    def __init__(self, node: Json) -> None:
        self.node = node
        self.present = False
        self.lost = False
        self.outcome: Optional[str] = None
        self.due: Optional[float] = None
        """When the node counts as lost, unless it reports before."""
        self.why = ""
        self.quiet = False
        """Whether none of its ranks has made progress in time."""
        self.rows: Optional[List[Json]] = None
        """What the stacks of its ranks show, once it was asked for them."""


class Coordinator:
    """Decides for the whole run, without a clock or sockets of its own. `send(node_rank, command)` sends commands.

    Commands: {"do": "start", "attempt", "table"} · {"do": "stop"} · {"do": "force"} · {"do": "end"} (terminate the
    ranks) · {"do": "stacks", "attempt"} (take those of all ranks) · {"do": "finish", "state", "failure"}.
    Reports come in through the methods below. Phases: waiting, running, ending (someone failed), finished.
    """

    def __init__(self, launch: Json, send: Callable[[int, Json], None], emit: Callable[..., None], root: File) -> None:
        self.launch, self.send, self.emit, self.root = launch, send, emit, root
        self.members = {int(node["node_rank"]): Member(node) for node in launch["nodes"]}
        self.phase = "waiting"
        self.attempt = 0
        self.stopping = False
        self.failures: List[Json] = []
        self.start_by: Optional[float] = None
        self.decide_by: Optional[float] = None
        """The verdict waits until then: ranks died of a stop signal, and the request for it may still come."""
        self.stacks_by: Optional[float] = None
        """The run hangs, and the stacks of all nodes are expected until then."""
        self.verdict: Optional[Json] = None

    def begin(self, now: float) -> None:
        self.start_by = now + self.launch["start_timeout"]

    @property
    def active(self) -> Dict[int, Member]:
        return {rank: member for rank, member in self.members.items() if not member.lost}

    @property
    def in_doubt(self) -> bool:
        """Whether every node has reported and the verdict waits for a request that may still come."""
        return self.phase in ("running", "ending") and None not in [member.outcome for member in self.active.values()]

    def _broadcast(self, command: Json) -> None:
        for rank in self.active:
            self.send(rank, command)

    # reports

    def arrived(self, node_rank: int) -> None:
        self.members[node_rank].present = True
        if self.phase == "waiting" and all(member.present for member in self.members.values()):
            self._start()

    def returned(self, node_rank: int) -> None:
        """Tell a node that (re)connected what it may have missed; nodes ignore what they have done already."""
        if self.phase in ("running", "ending"):
            self.send(node_rank, {"do": "start", "attempt": self.attempt, "table": self._table()})
        if self.phase == "ending":
            self.send(node_rank, {"do": "end", "attempt": self.attempt})
        if self.phase == "finished" and self.verdict is not None:
            self.send(node_rank, self.verdict)
        elif self.stopping:
            self.send(node_rank, {"do": "stop"})

    def heard(self, node_rank: int, now: float) -> None:
        if node_rank != 0:
            self.members[node_rank].due = now + self.launch["heartbeat_timeout"]
            self.members[node_rank].why = "no sign of life for %g s" % self.launch["heartbeat_timeout"]

    def disconnected(self, node_rank: int, now: float) -> None:
        member = self.members[node_rank]
        grace = now + eof_grace(self.launch)
        member.due = min(member.due or grace, grace)
        member.why = "its agent was killed, or the host was restarted"

    def report(self, node_rank: int, message: Json) -> None:
        """Handle a report of a node's agent (wire.REPORTS). Those about the connection alone are the hub's."""
        kind = message["say"]
        if kind == "request":
            self.request(message["request"])
        elif kind == "failing":
            self.failing(node_rank, message["attempt"], message["failure"])
        elif kind == "ended":
            self.reported(node_rank, message["attempt"], message["outcome"])
        elif kind == "quiet":
            self.quiet(node_rank, message["attempt"], message["quiet"])
        elif kind == "stacks":
            self.stacks(node_rank, message["attempt"], message["rows"])

    def failing(self, node_rank: int, attempt: int, failure: Json) -> None:
        if attempt != self.attempt or self.phase not in ("running", "ending"):
            return
        self.failures.append(failure)
        self._end_attempt()

    def reported(self, node_rank: int, attempt: int, outcome: str) -> None:
        if attempt != self.attempt or self.phase not in ("running", "ending"):
            return
        self.members[node_rank].outcome = outcome
        self._decide()

    def quiet(self, node_rank: int, attempt: int, quiet: bool) -> None:
        """A node's ranks have made no progress in time, or make progress again."""
        if attempt == self.attempt:
            self.members[node_rank].quiet = quiet

    def stacks(self, node_rank: int, attempt: int, rows: List[Json]) -> None:
        """The stacks of a node's ranks (hangs.row_of)."""
        if attempt == self.attempt:
            self.members[node_rank].rows = [row for row in map(row_of, rows) if row is not None]

    def request(self, what: str) -> None:
        """Handle a request of any node: stop, force (a second stop) or checkpoint."""
        if what == "checkpoint":
            self.send(0, {"do": "checkpoint"})  # one file is enough: the ranks agree in a collective
            return
        self.stopping = True
        if self.phase == "waiting":
            self._finish("CANCELLED", None)
        else:
            self._broadcast({"do": what})

    def tick(self, now: float) -> None:
        if self.phase == "waiting" and self.start_by is not None and now >= self.start_by:
            absent = [member.node for member in self.members.values() if not member.present]
            hosts = ", ".join("node %s (%s)" % (node["node_rank"], node["host"]) for node in absent)
            message = "%s did not come within %g s" % (hosts, self.launch["start_timeout"])
            self._finish("FAILED", failure_of("lost_host", message, host=str(absent[0]["host"]) if absent else None))
        for rank, member in self.active.items():
            if member.due is not None and now >= member.due and self.phase != "finished":
                self._lose(rank, member)
        if self.phase == "running":
            self._look_for_hang(now)
        if self.in_doubt:
            self.decide_by = now + REQUEST_GRACE if self.decide_by is None else self.decide_by
            self._decide(late=now >= self.decide_by)

    def _look_for_hang(self, now: float) -> None:
        """End the attempt when every node that still trains is quiet, with the stacks of all ranks."""
        training = [member for member in self.active.values() if member.outcome is None]
        if self.stopping or not training or not all(member.quiet for member in training):
            self.stacks_by = None  # some rank makes progress again
        elif self.stacks_by is None:
            self.stacks_by = now + COLLECT_SECONDS
            for member in training:
                member.rows = None
                self.send(int(member.node["node_rank"]), {"do": "stacks", "attempt": self.attempt})
        elif now >= self.stacks_by or all(member.rows is not None for member in training):
            self._hangs(training)

    def _hangs(self, training: List[Member]) -> None:
        rows = [row for member in training for row in (self._unknown(member) if member.rows is None else member.rows)]
        groups = group_stacks(rows)
        odd = next((group for group in groups if group["odd"]), None)
        message, rank = describe(groups), odd["ranks"][0] if odd else None
        node = next(
            (row["node_rank"] for row in reversed(self._table()) if rank is not None and rank >= row["first_rank"]),
            None,
        )
        failure = failure_of("hang", message, rank=rank, node_rank=node, host=odd["hosts"][0] if odd else None)
        self.emit("hang", attempt=self.attempt, message=message, stacks=groups)
        self.failures.append({**failure, "stacks": groups})
        self._end_attempt()

    def _unknown(self, member: Member) -> List[Json]:
        """Rows for the ranks of a node that sent no stacks."""
        node = next(row for row in self._table() if row["node_rank"] == member.node["node_rank"])
        ranks = range(node["first_rank"], node["first_rank"] + int(node["procs"]))
        row = {"host": str(node["host"]), "state": "its agent sent no stacks", "doing": "", "quiet": 0.0, "frames": []}
        return [{"rank": rank, **row} for rank in ranks]

    # decisions

    def _start(self) -> None:
        self.phase = "running"
        self.failures, self.decide_by, self.stacks_by = [], None, None
        for member in self.members.values():
            member.outcome, member.quiet = None, False
        self._broadcast({"do": "start", "attempt": self.attempt, "table": self._table()})

    def _table(self) -> List[Json]:
        return table_without(self.launch["nodes"], set(self.members) - set(self.active))

    def _lose(self, rank: int, member: Member) -> None:
        member.lost = True
        host = str(member.node["host"])
        message = "node %d (%s) is lost: %s" % (rank, host, member.why)
        self.emit("node_lost", lost=rank, host=host, reason=member.why)
        failure = failure_of("lost_host", message, node_rank=rank, host=host)
        if self.phase == "waiting":
            self._finish("FAILED", failure)
            return
        self.failures.append(failure)
        self._end_attempt()
        self._decide()

    def _end_attempt(self) -> None:
        if self.phase == "running":
            self.phase = "ending"
            self._broadcast({"do": "end", "attempt": self.attempt})

    def _decide(self, late: bool = False) -> None:
        outcomes = [member.outcome for member in self.active.values()]
        if self.phase == "finished" or None in outcomes:
            return
        failure = first_cause(self.failures)
        as_if_asked = self._as_if_asked(failure)
        if as_if_asked and not self.stopping and not late:
            return
        if failure is None or (as_if_asked and self.stopping):
            state = state_of_outcomes(outcomes)
            self._finish("CANCELLED" if state == "SUCCEEDED" and as_if_asked and self.stopping else state, None)
            return
        refusal = self._no_restart(failure)
        if refusal is None:
            self._restart(failure)
        else:
            if refusal:
                failure = {**failure, "message": "%s; %s" % (failure["message"], refusal)}
            self._finish("FAILED", failure)

    def _as_if_asked(self, failure: Optional[Json]) -> bool:
        """Whether a signal may have ended the ranks. Slurm signals ranks and agent in any order, and a user's program
        may then exit with 0. Our training program ignores these signals (Ranks.shielded)."""
        if failure is None:
            return bool(self.launch["backend"] == "slurm" and not self.launch["cooperative"])
        return ended_politely(failure["exit_code"], failure["signal"])

    def _no_restart(self, failure: Json) -> Optional[str]:
        """Return why there is no restart; None: there is one; empty: the job asks for none."""
        if self.launch["max_restarts"] < 1 or self.stopping:
            return ""
        if not CAUSE.get(failure["cause"], CAUSE["bug"]).retryable:
            return "not restarted: %s would fail again" % failure["cause"]
        if self.attempt >= self.launch["max_restarts"]:
            return "all %d restarts are used" % self.launch["max_restarts"]
        if len(self.active) == len(self.members):
            return None
        if not self.launch["elastic"]:
            return "not restarted: a node is gone for good and `elastic` is off"
        try:
            resize_run(self.root, world_size_of(self._table()), write=False)
        except BatchError as error:
            return "not restarted on the nodes that are left: %s" % error
        return None

    def _restart(self, failure: Json) -> None:
        self.attempt += 1
        self.emit("restart", count=self.attempt, reason=failure["message"], cause=failure["cause"])
        self._start()

    def _finish(self, state: str, failure: Optional[Json]) -> None:
        self.phase = "finished"
        self.verdict = {"do": "finish", "state": state, "failure": failure}
        self._broadcast(self.verdict)


def state_of_outcomes(outcomes: List[Optional[str]]) -> str:
    """Return the state of a run that ended without a failure of its own.

    One saved checkpoint makes it STOPPED; else one node that was not done makes it CANCELLED. `failed` means here that
    a scheduler's signal ended ranks before the agent got its own.
    """
    if "stopped" in outcomes:
        return "STOPPED"
    return "SUCCEEDED" if all(outcome == "ok" for outcome in outcomes) else "CANCELLED"
