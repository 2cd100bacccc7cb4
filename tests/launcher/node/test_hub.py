"""The control channel against whoever reaches its port: strangers, and agents that say what agents never say."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.machine.facts import free_ports
from launcher.node import proofs
from launcher.node.agent import hub as hub_module
from launcher.node.agent.coordinator import Coordinator
from launcher.node.agent.hub import Hub, is_literal, listen
from launcher.node.agent.link import Link

NODES = [{"node_rank": rank, "host": f"node{rank}", "procs": 1, "first_rank": rank} for rank in range(3)]


def launch_of(**changes: Any) -> dict[str, Any]:
    port = free_ports(1)[0]
    base = {
        "run_id": "r", "token": "secret", "nodes": NODES, "master_addr": "127.0.0.1", "control_port": port,
        "master_port": port, "heartbeat_timeout": 5.0, "start_timeout": 60.0, "elastic": False, "max_restarts": 0,
    }  # fmt: skip
    return {**base, **changes}


class Bed:
    """A hub with its loop, and what it tells the coordinator to send."""

    def __init__(self, place: Path, **changes: Any) -> None:
        self.launch = launch_of(**changes)
        self.selector = selectors.DefaultSelector()
        self.events: list[str] = []
        self.coordinator = Coordinator(self.launch, lambda *_: None, lambda name, **_: self.events.append(name), place)
        self.coordinator.begin(time.monotonic())
        self.hub = Hub(self.launch, self.selector, self.coordinator)

    def turn(self, seconds: float = 0.05) -> None:
        """Run the loop for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for key, _ in self.selector.select(0.01):
                key.data()
            self.hub.tick(time.monotonic())

    def stranger(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.launch["control_port"]))
        sock.settimeout(2)
        self.turn()
        return sock

    def agent(self, rank: int) -> socket.socket:
        """A connection that has proved that it knows the token."""
        sock = self.stranger()
        nonce = json.loads(sock.recv(4096).splitlines()[0])["nonce"]
        proof = proofs.proof(self.launch["token"], "agent", nonce)
        say(sock, {"say": "hello", "node_rank": rank, "run_id": "r", "proof": proof, "nonce": "n"})
        self.turn()
        assert rank in self.hub.by_node
        return sock


def say(sock: socket.socket, message: Any) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")


def is_closed(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    yield made
    made.hub.close()


def test_a_byte_now_and_then_keeps_no_connection(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PROOF_SECONDS", 0.4)
    slow = bed.stranger()
    with pytest.raises(OSError):  # noqa: PT012 - the end comes at any of them
        for _ in range(20):
            slow.sendall(b" ")
            bed.turn(0.1)
    assert bed.hub.connections == []


def test_a_connection_without_proof_may_send_little(bed: Bed) -> None:
    loud = bed.stranger()
    loud.sendall(b"x" * 70_000)
    bed.turn(0.2)
    assert is_closed(loud)
    assert bed.hub.connections == []


def test_many_strangers_are_bounded_and_an_agent_still_comes_in(bed: Bed) -> None:
    strangers = [bed.stranger() for _ in range(10)]
    strangers += [socket.create_connection(("127.0.0.1", bed.launch["control_port"])) for _ in range(200)]
    bed.turn(0.3)
    assert len(bed.hub.connections) <= bed.hub.most_unproven == 64 + 3
    agent = bed.agent(1)
    assert bed.hub.by_node[1].trusted
    for sock in [*strangers, agent]:
        sock.close()


def test_without_descriptors_it_waits_instead_of_spinning(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PAUSE", 0.3)
    real, calls = bed.hub.server, 0

    class Full:
        def accept(self) -> Any:
            nonlocal calls
            calls += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    bed.hub.server = Full()  # type: ignore[assignment]
    bed.selector.modify(real, selectors.EVENT_READ, bed.hub._accept)
    waiting = socket.create_connection(("127.0.0.1", bed.launch["control_port"]))
    bed.turn(0.2)
    assert calls == 1
    bed.hub.server = real
    bed.turn(0.4)
    assert len(bed.hub.connections) == 1
    waiting.close()


def test_a_hub_at_the_limit_of_descriptors_keeps_enough_for_its_record(tmp_path: Path) -> None:
    """In a process of its own, with a soft limit that strangers alone could use up."""
    code = f"""
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (80, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pathlib import Path
from tests.launcher.node.test_hub import Bed
bed = Bed(Path({str(tmp_path)!r}))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
import subprocess
flood = subprocess.Popen([sys.executable, "-c", '''
import socket, time
kept = [socket.create_connection(("127.0.0.1", %d)) for _ in range(150)]
time.sleep(3)
''' % bed.launch["control_port"]])
bed.turn(2)
Path({str(tmp_path / "record")!r}).write_text("written")
print(len(bed.hub.connections))
flood.kill()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    limit, connections = map(int, done.stdout.split())
    assert limit >= connections + 128
    assert (tmp_path / "record").read_text() == "written"


ODD = [
    {"say": "ended", "attempt": "1", "outcome": "ok"},
    {"say": "ended", "attempt": 0},
    {"say": "failing", "attempt": 0, "failure": "none"},
    {"say": "failing", "attempt": 0, "failure": {"cause": 5}},
    {"say": "failing", "attempt": 0, "failure": {"cause": "x", "rank": -1}},
    {"say": "quiet", "attempt": 0, "quiet": 1},
    {"say": "stacks", "attempt": 0, "rows": {"a": 1}},
    {"say": "request", "request": "rm -rf"},
    {"say": "request", "request": ["stop"]},
    {"say": ["hello"]},
    {"say": "shutdown"},
    {"say": "beat", "number": "1"},
    {"say": "beat", "number": True},
    {"say": "beat", "number": -5},
    {"say": "beat", "number": 1e300},
    {"do": "stop"},
    {},
]


@pytest.mark.parametrize("message", ODD, ids=str)
def test_an_agent_that_says_what_agents_never_say_is_cut_off(bed: Bed, message: dict[str, Any]) -> None:
    agent = bed.agent(1)
    say(agent, message)
    bed.turn()
    assert 1 not in bed.hub.by_node
    assert is_closed(agent)
    assert not bed.coordinator.stopping
    bed.agent(1)  # the real one may come again


def test_what_agents_say_fits(bed: Bed) -> None:
    agent = bed.agent(1)
    failure = {"cause": "nccl", "rank": 1, "node_rank": 1, "host": "h", "message": "m", "exit_code": -9, "signal": 9,
               "advice": ["a"], "log_tail": ["b"]}  # fmt: skip
    for number, message in enumerate(
        (
            {"say": "beat"},
            {"say": "failing", "attempt": 0, "failure": failure},
            {"say": "ended", "attempt": 0, "outcome": "failed"},
            {"say": "quiet", "attempt": 0, "quiet": True},
            {"say": "stacks", "attempt": 0, "rows": []},
            {"say": "request", "request": "checkpoint"},
        ),
        start=1,
    ):
        say(agent, {**message, "number": number})
    bed.turn()
    assert 1 in bed.hub.by_node
    assert bed.hub.numbers[1] == 6


COMMANDS = [
    {"do": "start", "attempt": 1},
    {"do": "start", "attempt": 1, "table": [{"node_rank": 0}]},
    {"do": "start", "attempt": None, "table": NODES},
    {"do": "finish", "state": "/bin/sh", "failure": None},
    {"do": "finish", "state": "FAILED", "failure": []},
    {"do": "exec"},
    {"do": {}},
]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_member_obeys_nothing_that_is_no_command(command: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        launch = launch_of(control_port=server.getsockname()[1])
        selector, obeyed = selectors.DefaultSelector(), []
        link = Link(launch, 1, selector, obeyed.append)
        link.tick(time.monotonic())
        hub, _ = server.accept()
        hub.settimeout(2)

        def turn() -> None:
            for _ in range(20):
                for key, _ in selector.select(0.01):
                    key.data()

        say(hub, {"nonce": "n"})
        turn()
        hello = json.loads(hub.recv(65536).splitlines()[-1])
        say(hub, {"proof": proofs.proof("secret", "hub", hello["nonce"])})
        say(hub, {"do": "stop"})
        turn()
        assert obeyed == [{"do": "stop"}]
        say(hub, command)
        turn()
        link.tick(time.monotonic())
        assert obeyed == [{"do": "stop"}]
        assert is_closed(hub)
        link.close()


@pytest.mark.parametrize(
    ("address", "hosts", "bound"),
    [
        ("127.0.0.1", ["a", "a"], "127.0.0.1"),
        ("127.0.0.2", ["a", "b"], "127.0.0.2"),
        ("192.0.2.1", ["a", "b"], "0.0.0.0"),  # not an address of this host
        ("localhost", ["a", "b"], "0.0.0.0"),
        ("localhost", ["a", "a"], "127.0.0.1"),
    ],
)
def test_it_listens_only_where_the_other_nodes_come(address: str, hosts: list[str], bound: str) -> None:
    nodes = [{**NODES[rank], "host": host} for rank, host in enumerate(hosts)]
    with listen(launch_of(master_addr=address, nodes=nodes)) as server:
        assert server.getsockname()[0] == bound


def test_literal_addresses() -> None:
    assert all(map(is_literal, ("10.0.0.1", "::1", "fe80::1%eth0")))
    assert not any(map(is_literal, ("node1", "10.0.0", "1.2.3.4.5", "")))


def test_another_user_cannot_hold_the_name_of_an_agent(tmp_path: Path) -> None:
    from launcher.node.agent.startup import claim

    class Names:
        root = str(tmp_path)
        record = str(tmp_path / "record.json")

    launch = launch_of(backend="local")
    place = tmp_path.stat()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guess:
        guess.bind(f"\0zlaunch/r/0/{place.st_dev}.{place.st_ino}")
        first = claim(launch, Names, 0, inside=False)  # type: ignore[arg-type]
        with pytest.raises(Exception, match="running here already"):
            claim(launch, Names, 0, inside=False)  # type: ignore[arg-type]
        claim({**launch, "token": "other"}, Names, 0, inside=False).close()  # type: ignore[arg-type]
        first.close()
