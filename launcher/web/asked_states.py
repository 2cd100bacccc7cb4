"""The states of many runs, each asked for in a thread of its own: a host that does not answer holds up no other row."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from launcher.errors import ZlaunchError
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

StateOf = Callable[[RunDir], RunState]
AT_ONCE = 8
"""Runs that are asked for at the same time. Each may be a connection to another machine."""
FIRST_SECONDS = 1.0
"""How long a list waits for states that nobody knows yet."""
AGAIN_SECONDS = 0.3
"""How long it waits for new ones, before it shows those of the last time."""


class Asked:
    """Asks `state_of` for the states of runs in the background."""

    def __init__(self, state_of: StateOf) -> None:
        self.state_of = state_of
        self._known: dict[str, RunState | ZlaunchError] = {}
        self._waiting: set[str] = set()
        """Runs that were asked for and have not answered yet."""
        self._queue: queue.SimpleQueue[RunDir] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def states(self, runs: Sequence[RunDir]) -> dict[str, RunState | ZlaunchError]:
        """{run id: state, or why there is none} of the runs that have answered by now, some of them earlier."""
        with self._changed:
            for run in runs:
                if run.run_id not in self._waiting:
                    self._waiting.add(run.run_id)
                    self._queue.put(run)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < min(AT_ONCE, len(self._waiting)):
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()
            is_first = any(run.run_id not in self._known for run in runs)
            self._changed.wait_for(
                lambda: not any(run.run_id in self._waiting for run in runs),
                FIRST_SECONDS if is_first else AGAIN_SECONDS,
            )
            return {run.run_id: self._known[run.run_id] for run in runs if run.run_id in self._known}

    def _work(self) -> None:
        while True:
            run = self._queue.get()
            try:
                self._known[run.run_id] = self.state_of(run)
            except ZlaunchError as error:
                self._known[run.run_id] = error
            finally:
                with self._changed:
                    self._waiting.discard(run.run_id)
                    self._changed.notify_all()
