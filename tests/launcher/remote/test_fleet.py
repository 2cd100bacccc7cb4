"""Many hosts at once: what Ctrl-C does, and files that cannot be sent."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from launcher.errors import HostsError, TargetError
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet
from launcher.remote.session import HostError, Session, shell_path


@pytest.mark.parametrize("finish", [False, True])
def test_ctrl_c_hangs_up_or_waits_and_cuts_no_conversation_in_the_middle(finish: bool) -> None:
    fleet = Fleet(["one"], Options(), "python3")
    closed = threading.Event()
    threads: list[threading.Thread | None] = []
    fleet.sessions[0].close = closed.set  # type: ignore[method-assign]

    def answer(_: int, session: Session) -> str:
        threads.append(threading.current_thread())
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        closed.wait(0.5 if finish else 20)
        threads.append(None)
        return "answer"

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fleet.for_each_host(answer, finish_on_interrupt=finish)
    assert time.monotonic() - started < 10
    assert closed.is_set() is not finish
    assert threads[0] is not threading.main_thread()
    assert threads[-1] is None


def test_answers_come_in_node_order_and_a_failure_keeps_the_other_results() -> None:
    fleet = Fleet(["a", "b", "c"], Options(), "python3")

    def answer(rank: int, session: Session) -> int:
        time.sleep(0.1 * (2 - rank))
        if rank == 1:
            raise HostError("no answer within 1 s")
        return rank

    values, failures = fleet.for_each_host(answer)
    assert list(values.items()) == [(0, 0), (2, 2)]
    assert {rank: str(error) for rank, error in failures.items()} == {1: "no answer within 1 s"}
    with pytest.raises(HostsError) as caught:
        fleet.on_all_hosts("cannot ask", answer)
    assert caught.value.results == {"a": "ok", "b": "no answer within 1 s", "c": "ok"}


def test_an_input_that_cannot_be_read_here_is_no_broken_connection(tmp_path: Path) -> None:
    session = Session("node1", Options(), "python3")
    with pytest.raises(TargetError, match=r"cannot read .*gone\.jsonl here: No such file"):
        session.send_file({"size": 3}, tmp_path / "gone.jsonl", "/w")


def test_an_interpreter_below_the_home_is_found_by_the_hosts_own_shell() -> None:
    assert shell_path("~/my env/bin/python") == "\"$HOME\"/'my env/bin/python'"
    assert shell_path("/opt/a b/python") == "'/opt/a b/python'"


def test_hosts_that_cannot_be_reached_are_dropped_and_named_unless_none_can_be() -> None:
    fleet = Fleet(["a", "b", "c"], Options(), "python3")

    def refuse() -> None:
        raise HostError("connection refused")

    for session in fleet.sessions:
        session.open = refuse if session.name == "b" else (lambda: None)  # type: ignore[method-assign]
    assert {host: str(error) for host, error in fleet.open_living().items()} == {"b": "connection refused"}
    assert [session.name for session in fleet.sessions] == ["a", "c"]
    assert fleet.open_living() == {}
    for session in fleet.sessions:
        session.open = refuse  # type: ignore[method-assign]
    with pytest.raises(HostsError, match="no host can be reached") as failed:
        fleet.open_living()
    assert sorted(failed.value.results) == ["a", "c"]
