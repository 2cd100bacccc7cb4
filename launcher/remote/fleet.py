"""Talk to many hosts at once. Every host's result is kept: one that fails never hides what the others answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from launcher.errors import HostsError, TargetError
from launcher.remote.connect import Options
from launcher.remote.session import Session

Value = TypeVar("Value")

MOST_THREADS = 128


class Fleet:
    """The hosts of a run, in node order."""

    def __init__(self, hosts: Sequence[str], options: Options, python: str) -> None:
        self.sessions = [Session(name, options, python) for name in hosts]

    def __len__(self) -> int:
        return len(self.sessions)

    def for_each_host(
        self,
        function: Callable[[int, Session], Value],
        ranks: Iterable[int] | None = None,
        *,
        finish_on_interrupt: bool = False,
    ) -> tuple[dict[int, Value], dict[int, TargetError]]:
        """Call `function(node rank, session)` for hosts in parallel: ({rank: value}, {rank: error}).

        Ctrl-C closes all sessions. With `finish_on_interrupt` it takes effect when all hosts have answered. It never
        cuts a conversation in the middle: even a single one runs in a thread, and the signal comes to the main thread.
        """
        chosen = list(range(len(self)) if ranks is None else ranks)
        values: dict[int, Value] = {}
        failures: dict[int, TargetError] = {}

        def call(rank: int) -> None:
            try:
                values[rank] = function(rank, self.sessions[rank])
            except TargetError as error:
                failures[rank] = error

        if chosen:
            with ThreadPoolExecutor(max_workers=min(len(chosen), MOST_THREADS)) as pool:
                try:
                    list(pool.map(call, chosen))
                except KeyboardInterrupt:
                    for rank in () if finish_on_interrupt else chosen:
                        self.sessions[rank].close()
                    raise
        return {rank: values[rank] for rank in chosen if rank in values}, failures

    def on_all_hosts(
        self, what: str, function: Callable[[int, Session], Value], ranks: Iterable[int] | None = None
    ) -> dict[int, Value]:
        """Return the values of all hosts asked. Raises HostsError with every host's result if one fails."""
        values, failures = self.for_each_host(function, ranks)
        if failures:
            results = {self.sessions[rank].name: str(failures.get(rank, "ok")) for rank in sorted({*values, *failures})}
            raise HostsError(f"{what}: {len(failures)} of {len(results)} hosts failed", results)
        return values

    def open(self) -> None:
        """Connect to every host. Raises HostsError."""
        self.on_all_hosts("cannot connect", lambda _, session: session.open())

    def open_living(self) -> dict[str, TargetError]:
        """Connect to every host, and drop those that cannot be reached; return {host: error} of them.

        Raises HostsError if no host can be reached.
        """
        opened, failures = self.for_each_host(lambda _, session: session.open())
        if not opened:
            results = {self.sessions[rank].name: str(error) for rank, error in failures.items()}
            raise HostsError("cannot connect: no host can be reached", results)
        left_out = {self.sessions[rank].name: error for rank, error in failures.items()}
        self.sessions = [self.sessions[rank] for rank in opened]
        return left_out

    def close(self) -> None:
        for session in self.sessions:  # no threads: this also runs while the interpreter shuts down
            session.close()
