"""Several agents of one run on loopback, with one shared run directory or one each."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.node import processes
from launcher.node.agent.launch import EOF_GRACE
from tests.beds.agent_bed import FOREVER, IGNORES_TERM, UNTIL_STOP, Run, bed, wait_for

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with bed(tmp_path) as maker:
        yield maker


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_with_unequal_slots_get_one_rank_table(make: Make, shared: bool) -> None:
    run = make("echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $GROUP_RANK", nodes=[1, 2, 1], shared=shared)
    assert run.start().wait() == [0, 0, 0]
    assert run.log(0, 0) == "0/4 0/1 0\n"
    assert run.log(1, 1) == "1/4 0/2 1\n"
    assert run.log(2, 1) == "2/4 1/2 1\n"
    assert run.log(3, 2) == "3/4 0/1 2\n"
    assert {run.record(node)["state"] for node in range(3)} == {"SUCCEEDED"}
    assert run.left() == []


def test_no_rank_starts_before_every_node_has_arrived(make: Make) -> None:
    run = make("exit 0", nodes=[1, 1]).start(only=[0])
    time.sleep(0.5)
    assert run.events("ranks_started", 0) == []
    run.start(only=[1])
    assert run.wait() == [0, 0]


def test_a_node_that_never_comes_is_named(make: Make) -> None:
    run = make("exit 0", nodes=[1, 1], start_timeout=0.5).start(only=[0])
    assert run.wait() == [1]
    assert "node 1 (host1) did not come within 0.5 s" in run.record()["failure"]["message"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_on_one_node_ends_all_nodes_and_all_record_it(make: Make, failing: int) -> None:
    program = f'[ "$NODE_RANK" = {failing} ] && sleep 0.2 && echo std::bad_alloc && exit 3; {IGNORES_TERM}'
    run = make(program, nodes=[1, 1], shared=False).start()
    assert run.wait(10) == [1, 1]
    for node in (0, 1):
        failure = run.record(node)["failure"]
        assert (failure["node_rank"], failure["cause"], failure["exit_code"]) == (failing, "out_of_memory", 3)
    assert run.left() == []


@pytest.mark.parametrize("asked", [0, 2])
def test_a_stop_requested_on_one_node_reaches_all(make: Make, asked: int) -> None:
    run = make(UNTIL_STOP, nodes=[1, 1, 1], shared=False).start().wait_started()
    run.signal(asked)
    assert run.wait() == [75, 75, 75]


def test_a_checkpoint_requested_on_any_node_is_written_once_on_node_0(make: Make) -> None:
    run = make(UNTIL_STOP, nodes=[1, 1], shared=False).start().wait_started()
    run.signal(1, signal.SIGUSR1)
    wait_for((run.dirs[0] / "control" / "checkpoint").exists)
    assert not (run.dirs[1] / "control" / "checkpoint").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_agent_ends_the_run_on_every_node(make: Make, victim: int) -> None:
    run = make(FOREVER, nodes=[2, 2], heartbeat_timeout=1.0).start().wait_started()
    started = time.monotonic()
    run.signal(victim, signal.SIGKILL)
    assert run.wait(15) == [1, 1]
    assert time.monotonic() - started < 10
    assert run.left() == []
    assert run.record(1 - victim)["failure"]["cause"] == "lost_host"
    assert run.record(victim)["failure"]["cause"] == "killed"


def test_a_silent_node_is_lost_and_ends_itself_when_it_wakes(make: Make) -> None:
    run = make(FOREVER, nodes=[1, 1], heartbeat_timeout=1.0).start().wait_started()
    run.signal(1, signal.SIGSTOP)
    assert run.agents[0].wait(10) == 1
    failure = run.record(0)["failure"]
    assert (failure["cause"], failure["host"]) == ("lost_host", "host1")
    assert "no sign of life for 1 s" in failure["message"]
    run.signal(1, signal.SIGCONT)
    assert run.agents[1].wait(10) == 1
    assert run.left() == []


def test_a_short_silence_changes_nothing(make: Make) -> None:
    run = make(UNTIL_STOP, nodes=[1, 1], heartbeat_timeout=3.0).start().wait_started()
    run.signal(1, signal.SIGSTOP)
    time.sleep(1.5)
    run.signal(1, signal.SIGCONT)
    time.sleep(1.0)
    assert [process.poll() for process in run.agents.values()] == [None, None]
    run.signal(0)
    assert run.wait() == [75, 75]
    assert run.record()["restarts"] == 0


def test_an_agent_that_heard_nothing_for_long_has_the_whole_timeout_to_connect_anew(make: Make) -> None:
    """It closed its connection itself, and its host is too busy to let it return at once."""
    run = make(UNTIL_STOP, nodes=[1, 1], heartbeat_timeout=12.0).start().wait_started()
    run.signal(0, signal.SIGSTOP)
    time.sleep(5.2)  # the other agent gives the connection up after 4 s of silence
    run.signal(1, signal.SIGSTOP)
    run.signal(0, signal.SIGCONT)
    time.sleep(EOF_GRACE + 0.7)
    run.signal(1, signal.SIGCONT)
    time.sleep(1.0)
    assert [process.poll() for process in run.agents.values()] == [None, None]
    run.signal(0)
    assert run.wait() == [75, 75]
    assert run.events("node_lost") == []


def test_all_nodes_restart_together(make: Make) -> None:
    program = (
        '[ "$NODE_RANK$ZLAUNCH_RESTART_COUNT" = 10 ] && exit 4; [ "$ZLAUNCH_RESTART_COUNT" = 1 ] && exit 0; ' + FOREVER
    )
    run = make(program, nodes=[1, 1], max_restarts=1, shared=False).start()
    assert run.wait() == [0, 0]
    assert [run.record(node)["restarts"] for node in (0, 1)] == [1, 1]
    assert len(run.events("restart", 0)) == 1


def elastic(make: Make, global_batch: int, **launch: Any) -> Run:
    program = '[ "$ZLAUNCH_RESTART_COUNT" = 1 ] && echo $RANK/$WORLD_SIZE && exit 0; ' + FOREVER
    run = make(program, nodes=[1, 1, 1], shared=False, max_restarts=1, heartbeat_timeout=1.0, **launch)
    train = {"global_batch_size": global_batch, "micro_batch_size": 2, "gradient_accumulation_steps": global_batch // 6}
    for path in run.dirs:
        run.write(path, "train.json", {"world_size": 3, "train": train, "run_id": "x"})
    run.start().wait_started().signal(1, signal.SIGKILL)
    return run


def test_an_elastic_run_continues_without_a_lost_node_at_the_same_global_batch(make: Make) -> None:
    run = elastic(make, 12, elastic=True)
    assert [run.agents[node].wait(15) for node in (0, 2)] == [0, 0]
    assert "0/2" in run.log(0, 0)
    assert "1/2" in run.log(1, 2)
    for node in (0, 2):
        config = json.loads((run.dirs[node] / "train.json").read_text())
        assert (config["world_size"], config["run_id"]) == (2, "x")
        train = config["train"]
        assert train["micro_batch_size"] * train["gradient_accumulation_steps"] * 2 == 12
    assert run.left() == []


def test_an_elastic_run_whose_batch_cannot_be_kept_ends_with_the_reason(make: Make) -> None:
    run = elastic(make, 9, elastic=True)
    assert [run.agents[node].wait(15) for node in (0, 2)] == [1, 1]
    assert "global_batch_size 9 does not divide by 2 ranks" in run.record()["failure"]["message"]


def test_a_node_that_cannot_take_part_in_a_restart_ends_the_run_with_the_reason(make: Make) -> None:
    run = make(FOREVER, nodes=[1, 1, 1], shared=False, max_restarts=1, heartbeat_timeout=1.0, elastic=True)
    for node, path in enumerate(run.dirs):
        train = {"global_batch_size": [12, 12, 9][node], "micro_batch_size": 2, "gradient_accumulation_steps": 2}
        run.write(path, "train.json", {"world_size": 3, "train": train})
    run.start().wait_started().signal(1, signal.SIGKILL)
    assert [run.agents[node].wait(15) for node in (0, 2)] == [1, 1]
    assert (run.record()["failure"]["node_rank"], run.record()["restarts"]) == (2, 1)
    assert "global_batch_size 9 does not divide by 2 ranks" in run.record()["failure"]["message"]


def test_a_node_that_an_elastic_run_gave_up_ends_itself_when_it_wakes(make: Make) -> None:
    run = make(FOREVER, nodes=[1, 1, 1], shared=False, max_restarts=1, heartbeat_timeout=1.0, elastic=True)
    run.start().wait_started()
    run.signal(1, signal.SIGSTOP)
    wait_for(lambda: len(run.events("ranks_started", 0)) == 2)
    run.signal(1, signal.SIGCONT)
    assert run.agents[1].wait(10) == 1
    assert (run.record(1)["failure"]["cause"], run.record(0)["state"]) == ("lost_host", "RUNNING")


def test_a_lost_node_is_not_waited_for_when_the_run_is_not_elastic(make: Make) -> None:
    run = elastic(make, 12)
    assert [run.agents[node].wait(15) for node in (0, 2)] == [1, 1]
    assert "`elastic` is off" in run.record()["failure"]["message"]


def test_a_peer_without_the_token_is_ignored(make: Make) -> None:
    run = make(UNTIL_STOP, nodes=[1, 1], shared=False)
    plan = json.loads((run.dirs[1] / "plan.json").read_text())
    plan["launch"].update(token="other", start_timeout=1.5)
    run.write(run.dirs[1], "plan.json", plan)
    run.start()
    with socket.create_connection(("127.0.0.1", wait_for(lambda: port_of(run)))) as stranger:
        stranger.sendall(b'{"say": "request", "request": "stop"}\n{"say": "hello", "node_rank": 1, "proof": "x"}\n')
        assert b"nonce" in stranger.recv(1000)
        assert stranger.recv(1000) == b""
    assert run.agents[1].wait(10) == 1
    assert run.events("ranks_started", 0) == []
    assert "was not reached" in run.record(1)["failure"]["message"]


@pytest.mark.parametrize(
    "words",
    [b"[" * 60000, b'{"node_rank": [1]}', b'{"node_rank": 1, "proof": "\\ud800"}'],
    ids=["deep", "list", "half"],
)
def test_malformed_messages_of_a_stranger_do_not_end_the_run(make: Make, words: bytes) -> None:
    run = make("exit 0", nodes=[1, 1], shared=False).start(only=[0])
    with socket.create_connection(("127.0.0.1", wait_for(lambda: port_of(run)))) as stranger:
        stranger.sendall(words + b"\n")
        while stranger.recv(1000):
            pass
    run.start(only=[1])
    assert run.wait() == [0, 0]


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("ending", ["exit 0", "exit 1"])
def test_a_scheduler_that_signals_ranks_and_agent_stops_the_run_whatever_the_ranks_do(
    make: Make, node: int, ending: str
) -> None:
    program = f'[ "$NODE_RANK" = {node} ] || {FOREVER}; trap "{ending}" TERM; echo up; while :; do sleep 0.02; done'
    run = make(program, nodes=[1, 1], shared=False, cooperative=False).start().wait_started()
    wait_for(lambda: run.log(node, node))
    rank = run.rank_pid(node, node)
    run.signal(node, signal.SIGSTOP)  # so that both have happened when it looks
    os.kill(rank, signal.SIGTERM)
    wait_for(lambda: not processes.is_alive(rank, processes.start_time_of(rank)))
    run.signal(node, signal.SIGTERM)
    run.signal(node, signal.SIGCONT)
    assert run.wait() == [130, 130]


def port_of(run: Run) -> int:
    with socket.socket() as sock:
        return int(run.launch["control_port"]) if sock.connect_ex(("127.0.0.1", run.launch["control_port"])) == 0 else 0


def test_a_taken_control_port_is_a_clear_failure(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = make("exit 0", nodes=[1, 1], control_port=taken.getsockname()[1]).start(only=[0])
        assert run.wait() == [1]
    assert run.record()["failure"]["cause"] == "port_taken"
    assert str(run.launch["control_port"]) in run.record()["failure"]["message"]


def test_addresses_in_the_environment_override_the_plan(make: Make) -> None:
    run = make("echo $MASTER_ADDR:$MASTER_PORT", master_addr="192.0.2.1")
    assert run.go(env={"ZLAUNCH_MASTER_ADDR": "127.0.0.2", "ZLAUNCH_MASTER_PORT": "4242"}) == 0
    assert run.log() == "127.0.0.2:4242\n"


def test_eight_agents_end_within_seconds_of_one_killed_rank(make: Make) -> None:
    run = make(FOREVER, nodes=[1] * 8).start().wait_started()
    started = time.monotonic()
    os.kill(run.rank_pid(5, 5), signal.SIGKILL)
    assert run.wait() == [1] * 8
    assert time.monotonic() - started < 5
    assert processes.find_run_processes(run.run_id) == []


class Cable:
    """Forwards TCP connections to a port; while cut, nothing passes and neither side notices."""

    def __init__(self, target: int) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self.target, self.is_cut, self.over, self.connections = target, False, False, 0
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        while not self.over:
            if self.is_cut:
                time.sleep(0.05)
                continue
            ready, _, _ = select.select([self.server, *peers], [], [], 0.05)
            for sock in ready:
                if sock is self.server:
                    left, right = self.server.accept()[0], socket.create_connection(("127.0.0.1", self.target))
                    peers[left], peers[right] = right, left
                    self.connections += 1
                elif sock in peers and (data := sock.recv(65536)):
                    peers[sock].sendall(data)
                elif sock in peers:
                    other = peers.pop(sock)
                    peers.pop(other)
                    sock.close(), other.close()
        for sock in [self.server, *peers]:
            sock.close()

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.thread.join()


def test_a_network_outage_shorter_than_the_timeout_changes_nothing(make: Make) -> None:
    run = make(UNTIL_STOP, nodes=[1, 1], shared=False, heartbeat_timeout=6.0)
    with Cable(run.launch["control_port"]) as cable:
        run.write(run.dirs[1], "plan.json", {"launch": {**run.launch, "control_port": cable.port}})
        run.start(only=[0])
        wait_for(lambda: port_of(run))
        run.start(only=[1]).wait_started()
        cable.is_cut = True
        time.sleep(3.5)  # longer than the silence after which the agent tries a new connection
        assert [process.poll() for process in run.agents.values()] == [None, None]
        cable.is_cut = False
        run.signal(0)
        assert run.wait() == [75, 75]
    assert cable.connections >= 2
    assert [len(run.events("ranks_started", node)) for node in (0, 1)] == [1, 1]


def test_a_failure_reported_during_a_network_outage_arrives_after_it(make: Make) -> None:
    run = make('[ "$NODE_RANK" = 0 ] && ' + FOREVER + "; while [ ! -e die ]; do sleep 0.05; done; exit 6",
               nodes=[1, 1], shared=False, heartbeat_timeout=6.0)  # fmt: skip
    with Cable(run.launch["control_port"]) as cable:
        run.write(run.dirs[1], "plan.json", {"launch": {**run.launch, "control_port": cable.port}})
        run.start(only=[0])
        wait_for(lambda: port_of(run))
        run.start(only=[1]).wait_started()
        cable.is_cut = True
        (run.dirs[1] / "die").touch()
        wait_for(lambda: run.events("rank_exit", 1))
        time.sleep(2.5)
        cable.is_cut = False
        assert run.wait() == [1, 1]
    assert run.record(0)["failure"]["exit_code"] == 6
