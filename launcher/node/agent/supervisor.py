"""The agent of one node: its loop, its commands from the coordinator, and the requests that it passes on."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from contextlib import suppress

from ..files import remove, write_atomic
from ..processes import die_with_parent, reap_children
from .causes import cause_of_text, failure_of
from .launch import StartError, beat_of, world_size_of
from .ranks import GpuError, Ranks
from .resize import BatchError, resize_run
from .signals import REQUEST_OF_SIGNAL, SAME_SIGNAL, SIGNALS, Signals

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Tuple

    from ..files import Json
    from .coordinator import Coordinator
    from .hub import Hub
    from .launch import Names
    from .link import Link
    from .recorder import Recorder


class Agent:
    """The loop of one node."""

    def __init__(self, launch: Json, names: Names, node_rank: int, secrets: Dict[str, str], recorder: Recorder) -> None:
        self.launch, self.names, self.node_rank, self.recorder = launch, names, node_rank, recorder
        self.selector = selectors.DefaultSelector()
        """What the loop waits for. A file's data is the function to call when the file is ready."""
        self.signals = Signals()
        self.selector.register(self.signals.reader, selectors.EVENT_READ, lambda: None)
        self.ranks = Ranks(launch, names, node_rank, secrets, recorder.event)
        self.coordinator: Optional[Coordinator] = None
        self.hub: Optional[Hub] = None
        self.link: Optional[Link] = None
        self.running = False
        self.was_quiet = False
        self.stack_taker: Optional[Tuple[int, int]] = None
        """Pid of the process that takes stacks, and the file with its result."""
        self.told_failures = 0
        self.stop_seen_at: Optional[float] = None
        self.forwarded = 0
        self.reads_signals = bool(launch.get("inside") or (launch["backend"] == "slurm" and node_rank == 0))
        self.verdict: Optional[Tuple[str, Optional[Json]]] = None
        self.commands: List[Json] = []

    # set-up

    def join(self) -> None:
        """Join the run as hub, as member, or alone. Raises StartError."""
        if self.node_rank != 0:
            from .link import Link

            self.link = Link(self.launch, self.node_rank, self.selector, self.commands.append)
            return
        from .coordinator import Coordinator

        self.coordinator = Coordinator(self.launch, self._send, self.recorder.event, self.names.root)
        self.coordinator.begin(time.monotonic())
        if len(self.launch["nodes"]) > 1:
            from .hub import Hub

            try:
                self.hub = Hub(self.launch, self.selector, self.coordinator)
            except OSError as error:
                where = "%s:%s" % (self.launch["master_addr"], self.launch["control_port"])
                raise StartError("cannot open the control port %s: %s" % (where, error)) from error
        self.coordinator.arrived(0)

    def _send(self, node_rank: int, command: Json) -> None:
        if node_rank == self.node_rank:
            self.commands.append(command)  # the loop carries it out: no decision runs inside another
        elif self.hub is not None:
            self.hub.send(node_rank, command)

    # the loop

    def run(self) -> Tuple[str, Optional[Json]]:
        """Return (final state, failure) of the run as this node knows it. None of the node's processes is left."""
        self.join()
        self._watch_gpus()
        while True:
            now = time.monotonic()
            self._tick(now)
            if self.verdict is not None and not self.running and self._may_leave():
                break
            for key, _ in self.selector.select(self._pause(time.monotonic())):
                key.data()
            self._take_signals()
        if self.link is not None:
            self.link.close()
        if self.hub is not None:
            self.hub.close()
        return self.verdict

    def _watch_gpus(self) -> None:
        if self.launch["device"] != "cuda":
            return
        from ..gpu_load import GpuLoad, Nvml

        visible = self.launch["env"].get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
        procs = max((int(node["procs"]) for node in self.launch["nodes"]), default=0)
        self.recorder.gpu_load = GpuLoad(lambda: Nvml(visible, procs))

    def _take_signals(self) -> None:
        """Collect ranks that ended, but act on signals first: a scheduler's signal to us explains the ranks' ends.

        Signals are read after the ranks were collected, so none that came before an end is missed. That read may take a
        later SIGCHLD with it, hence another round.
        """
        numbers: List[int] = [signal.SIGCHLD]
        while signal.SIGCHLD in numbers:
            ended = reap_children()
            numbers = self.signals.read()
            for number in numbers:
                self._signal(number)
            self._inside_signals()
            self._obey_all()
            for pid, status in ended:
                self.ranks.ended(pid, status)
                if self.stack_taker is not None and pid == self.stack_taker[0]:
                    self._report_stacks()

    def _tick(self, now: float) -> None:
        for part in (self.coordinator, self.hub, self.link, self.recorder):
            if part is not None:
                part.tick(now)
        if self.link is not None and self.verdict is None and self.link.hub_is_lost(now):
            self._hub_lost()
        self._obey_all()
        if self.running:
            self._watch(now)
            self._obey_all()

    def _pause(self, now: float) -> float:
        """Return the seconds to the next deadline; signals and messages wake the loop earlier."""
        dues = [self.recorder.beat_at]
        if self.ranks.deadline is not None and self.running:
            dues.append(self.ranks.deadline)
        if self.running and self.ranks.pulses.of_rank:
            dues.append(now + self.ranks.pulses.interval)
        if self.hub is not None or self.link is not None:
            dues.append(now + min(1.0, beat_of(self.launch) / 2))
        if self.link is not None and self.link.connection is None:
            dues.append(self.link.next_try)
        if self.coordinator is not None and self.coordinator.in_doubt:
            dues.append(now + 0.2)  # the coordinator's clock for the verdict
        if self.commands:
            return 0.0
        if self.reads_signals:
            dues.append(now + 0.3)
        return max(0.0, min(dues) - now)

    def _watch(self, now: float) -> None:
        if self.recorder.vanished and not self.ranks.terminated:
            message = "the run directory %s is gone on %s" % (self.names.root, os.uname().nodename)
            self.ranks.failures.append(failure_of("vanished", message, node_rank=self.node_rank))
        for failure in self.ranks.failures[self.told_failures :]:
            self.told_failures += 1
            told = {name: failure[name] for name in ("rank", "cause", "message")}
            self.recorder.event("failure", attempt=self.ranks.attempt, **told)
            self._report({"say": "failing", "attempt": self.ranks.attempt, "failure": failure})
            self.ranks.terminate()
        self.ranks.tick(now)
        is_quiet = self.ranks.is_quiet(now)
        if is_quiet != self.was_quiet:
            self.was_quiet = is_quiet
            self._report({"say": "quiet", "attempt": self.ranks.attempt, "quiet": is_quiet})
        if self.ranks.living or not self.ranks.gone():
            return
        self.running = False
        self.recorder.save(ranks=self.ranks.rows)
        self._report({"say": "ended", "attempt": self.ranks.attempt, "outcome": self.ranks.outcome()})

    def _report(self, message: Json) -> None:
        if self.link is not None:
            self.link.report(message)
        elif self.coordinator is not None:
            self.coordinator.report(self.node_rank, message)

    def _take_stacks(self) -> None:
        """Start the process that takes the stacks of the ranks that run."""
        from .. import stacks

        running = {row["rank"] for row in self.ranks.living}
        pulses = {rank: pulse for rank, pulse in self.ranks.pulses.of_rank.items() if rank in running}
        files = {rank: self.names.rank_stack(rank) for rank in pulses}
        result, parent = os.memfd_create("zlaunch-stacks"), os.getpid()
        pid = os.fork()
        if pid:
            self.stack_taker = pid, result
            return
        try:
            signal.set_wakeup_fd(-1)  # the pipe is the agent's
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(signal.SIGKILL, parent)
            stacks.main(pulses, files, str(self.launch["argv"][0]), time.monotonic(), result)
        except Exception as error:
            self.recorder.log("cannot take stacks: %r" % error)
        finally:
            os._exit(0)

    def _report_stacks(self) -> None:
        from .. import stacks

        assert self.stack_taker is not None
        result, self.stack_taker = self.stack_taker[1], None
        rows = stacks.read_rows(result) or []
        os.close(result)
        for row in self.ranks.rows:
            if row not in self.ranks.living:
                rows.append(stacks.row_of_ended(row["rank"], row["exit_code"], row["signal"]))
        self._report({"say": "stacks", "attempt": self.ranks.attempt, "rows": rows})

    # commands

    def _obey_all(self) -> None:
        while self.commands:
            self._obey(self.commands.pop(0))

    def _obey(self, command: Json) -> None:
        kind = command.get("do")
        if kind == "start" and self.verdict is None and command["attempt"] > self.ranks.attempt:
            self._start(command["table"], command["attempt"])
        elif kind in ("stop", "force"):
            self._stop(force=kind == "force")
        elif kind == "checkpoint":
            self._write_request(self.names.checkpoint)
        elif kind == "stacks" and command["attempt"] == self.ranks.attempt and self.running and not self.stack_taker:
            self._take_stacks()
        elif kind == "end" and command["attempt"] == self.ranks.attempt and self.running:
            self.ranks.terminate()
        elif kind == "finish" and self.verdict is None:
            self.verdict = (command["state"], command["failure"])
            if self.running:
                self.ranks.terminate()

    def _start(self, table: List[Json], attempt: int) -> None:
        for request in (self.names.stop, self.names.checkpoint):
            remove(request)
        if self.link is not None:
            self.link.new_attempt()
        self.told_failures = 0
        self.was_quiet = False
        self.running = True
        self.ranks.begin(attempt)
        try:
            if world_size_of(table) != world_size_of(self.launch["nodes"]):
                resize_run(self.names.root, world_size_of(table), write=True)
            self.ranks.start(table, self._own_address())
        except GpuError as error:
            message = "the GPUs of %s: %s" % (os.uname().nodename, error)
            self.ranks.failures.append(failure_of("gpu", message, node_rank=self.node_rank))
        except (OSError, BatchError) as error:
            message = "cannot start %s on %s: %s" % (self.launch["argv"][:1], os.uname().nodename, error)
            found = cause_of_text(message)
            cause = "bad_configuration" if found == "bug" else found
            self.ranks.failures.append(failure_of(cause, message, node_rank=self.node_rank))
        self.recorder.save(ranks=self.ranks.rows, restarts=attempt)

    def _own_address(self) -> str:
        """Return this node's address at which it met the first node, or the others; empty: it is alone."""
        met = self.link.connection if self.link is not None else None
        if self.hub is not None:
            met = next(iter(self.hub.by_node.values()), None)
        try:
            return str(met.sock.getsockname()[0]) if met is not None else ""
        except OSError:
            return ""

    def _stop(self, force: bool) -> None:
        self._write_request(self.names.stop)
        if self.running:
            self.ranks.ask_to_stop()
            if force:
                self.ranks.terminate()

    def _write_request(self, path: str) -> None:
        try:
            write_atomic(path, json.dumps({"time": time.time(), "node": self.node_rank}))
        except OSError as error:
            self.recorder.log("cannot write %s: %s" % (path, error))

    # signals

    def _signal(self, number: int) -> None:
        request = REQUEST_OF_SIGNAL.get(number)
        if request is None:
            return
        now = time.monotonic()
        if request == "stop":
            if self.stop_seen_at is not None:
                if now - self.stop_seen_at < SAME_SIGNAL or number == signal.SIGUSR2:
                    return
                request = "force"
            else:
                self.stop_seen_at = now
        self.recorder.event("request", request=request, by=signal.Signals(number).name)
        if self.coordinator is not None:
            self.coordinator.request(request)
            return
        assert self.link is not None
        if request != "checkpoint":
            self._stop(force=request == "force")  # at once: the hub may be unreachable
            if not self.link.met:
                self.verdict = ("CANCELLED", None)
        self.link.report({"say": "request", "request": request})

    def _inside_signals(self) -> None:
        """Read signals from a file, where the agent outside a container or Slurm's batch script appends numbers.

        Slurm's own signal to a task reaches the ranks too, and most signals would end them.
        """
        if not self.reads_signals:
            return
        with suppress(OSError, ValueError), open(self.names.signals) as file:
            numbers = [int(word) for word in file.read().split()]
            for number in numbers[self.forwarded :]:
                self._signal(number)
            self.forwarded = len(numbers)

    # the end

    def _hub_lost(self) -> None:
        assert self.link is not None
        host = next(str(node["host"]) for node in self.launch["nodes"] if node["node_rank"] == 0)
        met = "went away" if self.link.met else "was not reached within %g s" % self.launch["start_timeout"]
        message = "the agent of node 0 (%s:%s) %s" % (host, self.launch["control_port"], met)
        self.recorder.log(message)
        self.verdict = ("FAILED", failure_of("lost_host", message, node_rank=0, host=host))
        if self.running:
            self.ranks.terminate()

    def _may_leave(self) -> bool:
        """Whether the agent may end: the hub stays until every agent has read the verdict or is lost."""
        if self.hub is None or self.coordinator is None:
            return True
        if self.hub.all_left():
            return True
        now = time.monotonic()
        for rank, member in self.coordinator.active.items():
            if not member.present or (member.due is not None and now >= member.due):
                self.hub.left.add(rank)
        return False
