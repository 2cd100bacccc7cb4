"""Hosts that answer as a test wants, without a network."""

from __future__ import annotations

from typing import Any

from launcher.backends.ssh.watch import HostWatch, NodePlace
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet
from launcher.remote.session import HostError, Json, Session
from launcher.rundir.directory import RunDir


class FakeSession(Session):
    """A host that is always open. It gives one byte per `get`, `bytes_left` times, then its connection breaks."""

    is_open = True
    no_record: Json = {"record": None, "alive": False, "files": [], "more": False, "payload": b""}

    def __init__(self, name: str = "one") -> None:
        super().__init__(name, Options(), "python3")
        self.files: tuple[tuple[str, int], ...] = ()
        self.bytes_left = 99
        self.node = self.no_record
        self.called: list[str] = []

    def call(self, operation: str, payload: bytes = b"", *, timeout: float = 1, **arguments: Any) -> Json:
        self.called.append(operation)
        if operation == "get":
            self.bytes_left -= 1
            if self.bytes_left < 0:
                raise HostError("the connection broke")
            return {"payload": b"x"}
        answers = {"tree": {"files": [list(file) for file in self.files]}, "poll_node": self.node}
        return answers.get(operation, {})


def fake_watch(run: RunDir, host: FakeSession) -> HostWatch:
    """Watch a run of one node on a fake host."""
    fleet = Fleet([host.name], Options(), "python3")
    fleet.sessions[0] = host
    return HostWatch(run, fleet, [NodePlace(host.name, "/w/r", "/w", 0, {})])
