"""Start the companions of a node's agent, and end them after it.

They are children of the warden, not of the agent: they outlive it for the last flush and the last notice, and the
agent, which ends everything below it with each attempt, never meets them.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from .. import run_files
from ..agent.launch import base_environment
from ..agent.recorder import Recorder
from ..processes import kill_descendants, reap_children, spawn, split_status

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Optional

    from ..agent.launch import Names
    from ..files import Json

LAST_SECONDS = 45.0
"""For what is left to do after the run; each companion has a shorter limit of its own (notifier.py, train/trackers)."""
REPORTED = 3
"""Exit status of a tracker that has reported its failure itself."""
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Schedulers and terminals signal every process of a run. Companions end when their pipe does."""


def start(launch: Json, names: Names, node_rank: int, secrets: Dict[str, str]) -> Optional[Companions]:
    """Start what the run asks for on this node; None: nothing. Takes the addresses of notices out of `secrets`."""
    notify = launch["notify"]
    kept = {name: secrets.pop(name) for name in addresses(notify) if name in secrets}
    trackers = launch["trackers"] if node_rank == 0 and (launch["inside"] or not launch["container"]) else ()
    # Node 1 reports only that the host of node 0 is lost.
    notifies = notify and node_rank in (0, 1) and not launch["inside"]
    if not trackers and not notifies:
        return None
    found = Companions(launch, names, node_rank)
    if notifies:
        found.start_notifier({**secrets, **kept})
    for tracker in trackers:
        found.start_tracker(tracker, secrets)
    return found


def addresses(notify: Optional[Json]) -> List[str]:
    """Return the variables that hold the address of notices and its signing key."""
    return [notify[key] for key in ("url", "sign") if notify[key]] if notify else []


def ignore_signals() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


class Companions:
    """The companions of one agent. Their standard input ends when warden and agent are gone, or with `finish`."""

    def __init__(self, launch: Json, names: Names, node_rank: int) -> None:
        self.launch, self.names, self.node_rank = launch, names, node_rank
        self.recorder = Recorder(names, launch, node_rank)
        self.titles: Dict[int, str] = {}
        """{pid of one that runs: what it is}"""
        self.reader, self.writer = os.pipe()

    @property
    def pids(self) -> List[int]:
        return list(self.titles)

    def start_notifier(self, secrets: Dict[str, str]) -> None:
        pid = os.fork()
        if pid:
            self.titles[pid] = "notices"
            return
        try:
            os.setsid()
            ignore_signals()
            os.dup2(self.reader, 0)
            for name in os.listdir("/proc/self/fd"):  # the claim on the run, the pipe to a launcher, and the writer
                if int(name) > 2:
                    with suppress(OSError):
                        os.close(int(name))
            from .notifier import Notifier

            Notifier(self.launch, self.names, self.node_rank, secrets).follow()
            os._exit(0)
        except BaseException:
            import traceback

            self.recorder.log(traceback.format_exc())
        finally:
            os._exit(1)

    def start_tracker(self, tracker: str, secrets: Dict[str, str]) -> None:
        """Start the process of a tracker in the training environment. A failure is an event, not an error."""
        argv = [
            str(self.launch["argv"][0]),
            "-m",
            "train.trackers",
            tracker,
            "--run-dir",
            self.names.root,
            "--record",
            self.names.record,
        ]
        environ = base_environment(self.launch, self.names, 1, secrets)
        log = os.path.join(self.names.logs, os.path.basename(run_files.tracker_log(tracker)))
        try:
            with open(log, "ab") as output:
                pid = spawn(argv, self.names.root, environ, self.reader, output.fileno(), ignore_signals)
        except OSError as error:
            self._warn(tracker, "cannot start %s: %s" % (argv[0], error.strerror))
        else:
            self.titles[pid] = tracker

    def _warn(self, title: str, reason: str) -> None:
        self.recorder.event("warning", text="%s: %s; the run goes on without it" % (title, reason))

    def ended(self, pid: int, status: int) -> None:
        """Report a companion that ended by itself, before or after the run, unless it has said why."""
        title = self.titles.pop(pid, None)
        code, signum = split_status(status)
        if title is None or code in (0, REPORTED):
            return
        how = "was ended by signal %d" % signum if signum else "ended with code %s" % code
        self._warn(title, "its process %s (%s has its output)" % (how, self.names.logs))

    def finish(self) -> None:
        """Let the companions do what is left after the run, then end what is left of them."""
        os.close(self.writer)
        os.close(self.reader)
        due = time.monotonic() + LAST_SECONDS
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        try:
            while self.titles and time.monotonic() < due:
                for pid, status in reap_children():
                    self.ended(pid, status)
                if self.titles:
                    signal.sigtimedwait([signal.SIGCHLD], 1.0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for title in self.titles.values():
            self._warn(title, "it did not end within %g s after the run" % LAST_SECONDS)
        kill_descendants()
