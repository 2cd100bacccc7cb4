"""Hosts are not trusted: what they may answer, and that a host which answers anything else is refused alone."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.ssh.copy_files import copy_results
from launcher.errors import HostsError
from launcher.node import census
from launcher.node.farend.__main__ import OPERATIONS, carry_out
from launcher.remote import host_answers
from launcher.remote.connect import Options
from launcher.remote.session import AnswerRefused, HostError, Session, _Reader
from launcher.rundir.foreign_archive import unpack_foreign
from launcher.rundir.foreign_files import is_of_cluster, is_of_node, is_result, stays_below
from tests.beds.fake_hosts import FakeSession, fake_watch
from tests.torture import hostile_answers
from tests.torture.hostile_answers import Bench, Channel, Connected, connect_to, framed, invoke


@pytest.fixture(autouse=True)
def connections_are_real_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign replaces how a session connects; other tests of this process must not meet that."""
    monkeypatch.setattr(Session, "_connect", Session._connect)


def test_every_operation_of_the_far_end_has_its_answer() -> None:
    assert host_answers.ANSWERS.keys() == OPERATIONS.keys()


def test_what_the_far_end_really_answers_has_the_form(tmp_path: Path) -> None:
    columns = dict(zip(census.COLUMNS, ("0", "GPU-1", "H100", "81559", "9.0", "550.1", "Disabled"), strict=True))
    assert sorted(census.gpu_of(columns)) == sorted(host_answers.Gpu.__struct_fields__)
    asked = {"op": "hello", "workdir": str(tmp_path), "token": "t", "index": 0, "packages": ["msgspec"], "gpus": True}
    questions: list[dict[str, Any]] = [
        asked,
        {"op": "probe_peers", "workdir": str(tmp_path), "token": "t", "targets": [], "seconds": 1},
        {"op": "find_inputs", "inputs": [], "workdir": str(tmp_path)},
        {"op": "image", "engine": [], "name": "/none", "environ": {}},
        {"op": "poll_node", "run_dir": str(tmp_path), "node_rank": 0, "offsets": {}, "tops": ["logs"]},
        {"op": "tree", "run_dir": str(tmp_path), "tops": ["adapter"]},
        {"op": "leftovers"},
        {"op": "unlisten"},
    ]
    for question in questions:
        answer = carry_out(dict(question), io.BytesIO())
        assert answer is not None
        payload = answer.pop("payload", b"")
        line = json.dumps({**answer, "payload": len(payload)}).encode()
        host_answers.decode(question["op"], line)


def test_a_thousand_hostile_answers_write_nothing_and_end_every_command_in_order() -> None:
    found = hostile_answers.main(1000, 16)
    assert found.found == ()
    assert "1,000 inputs" in found.summary


@pytest.mark.parametrize(
    "name",
    [
        "run.json", "job.yaml", "plan.json", "train.json", "node.sh", "code/x.py", ".start.lock", "before/run.json", "",
        "/etc/passwd", "../x", "adapter/../run.json", "adapter/..", "adapter//x", "adapter/\x1b[2J",
        "errors/slurm.json", "result.json\n",
        "nodes/../run.json", "logs/node-0/../../run.json", "nodes/node-１.json", "control/stop",
    ],
)  # fmt: skip
def test_no_name_from_elsewhere_leads_to_a_file_that_steers_the_launcher(name: str) -> None:
    assert not is_result(name)
    assert not is_of_cluster(name)
    assert not is_of_node(name, 0)


def test_a_node_may_write_its_own_logs_and_only_the_first_one_metrics() -> None:
    assert is_of_node("logs/node-1/rank-3.log", 1)
    assert not is_of_node("logs/node-1/rank-3.log", 0)
    assert not is_of_node("logs/node-10/rank-3.log", 1)
    assert [is_of_node("metrics.jsonl", node) for node in (0, 1)] == [True, False]
    assert stays_below("adapter/a/b", ("adapter",))
    assert not stays_below("adapter/a", ("result.json",))


def test_a_hostile_host_is_named_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    try:
        run = bench.run()
        files = [["../../out", 0, 1]]

        def evil(op: str, answer: dict[str, Any], payload: bytes) -> tuple[bytes, bytes]:
            return framed({**answer, "files": files}, b"x"), b""

        def good(op: str, answer: dict[str, Any], payload: bytes) -> tuple[bytes, bytes]:
            return framed(answer, payload), b""

        connect_to(lambda node: evil if node == 0 else good, "RUNNING")
        assert invoke(["status", run.run_id]) == "accepted"
        assert [run.node_record(node).exists() for node in (0, 1)] == [False, True]
        bench.check(run)
    finally:
        bench.close()


def session_on(answer: bytes, endless: bytes = b"") -> Session:
    session = Session("h0", Options(), "python3")
    channel = Channel(0, "RUNNING", lambda *_: (answer, endless))
    session._connection, session._channel, channel.sent = Connected(channel), channel, 1
    session._reader = _Reader(channel)
    return session


@pytest.mark.parametrize(
    ("answer", "endless"),
    [
        (b'{"ok": true, "payload": 0, "sent": 1}\n', b""),
        (b'{"ok": true, "payload": 0, "sent": true, "more": 1}\n', b""),
        (b'{"ok": true, "payload": 9, "sent": true}\n', b"x"),
        (b"[" * 100_000 + b"\n", b""),
        (b'{"ok": true, "payload": NaN}\n', b""),
        (b"", b" " * 65536),
    ],
)
def test_an_answer_of_another_form_is_refused_with_the_name_of_the_host(answer: bytes, endless: bytes) -> None:
    session = session_on(answer, endless)
    with pytest.raises(AnswerRefused, match="h0 answered `send_signal`"):
        session.call("send_signal", number=2)
    assert not session.is_open


def test_a_byte_now_and_then_does_not_keep_a_question_open() -> None:
    session = session_on(b"")

    def recv(most: int) -> bytes:
        time.sleep(0.05)
        return b" "

    session._channel.recv = recv
    started = time.monotonic()
    with pytest.raises(HostError, match=r"no answer within 0\.5 s"):
        session.call("send_signal", number=2, timeout=0.5)
    assert time.monotonic() - started < 5


def test_bytes_that_would_leave_a_hole_are_refused(tmp_path: Path) -> None:
    host = FakeSession()
    run = Bench().run()
    watch = fake_watch(run, host)
    host.node = {**host.no_record, "files": [["logs/node-0/rank-0.log", 1 << 40, 1]], "payload": b"x"}
    watch.poll(logs=True)
    assert "and 0 are here" in watch.views[0].error
    assert not run.logs_dir.exists()


def test_results_that_would_fill_the_disk_are_not_copied() -> None:
    host = FakeSession()
    watch = fake_watch(Bench().run(), host)
    host.files = (("adapter/a", 1 << 60),)
    with pytest.raises(HostsError, match=r"1152921504606846976 bytes, and \d+ are free"):
        copy_results(watch)


def archive(*members: tuple[str, bytes, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


GOOD = ("metrics.jsonl", tarfile.REGTYPE, b"{}\n")


@pytest.mark.parametrize(
    "bad",
    [
        ("adapter/a", tarfile.SYMTYPE, b""), ("adapter/a", tarfile.LNKTYPE, b""), ("adapter/a", tarfile.CHRTYPE, b""),
        ("adapter/a", tarfile.FIFOTYPE, b""), ("../x", tarfile.REGTYPE, b"x"), ("/tmp/x", tarfile.REGTYPE, b"x"),
        ("adapter/../../x", tarfile.REGTYPE, b"x"),
    ],
)  # fmt: skip
def test_an_archive_with_links_devices_or_climbing_names_is_refused_as_a_whole(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(tarfile.ReadError):
        unpack_foreign(archive(GOOD, bad), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_results_are_left_out_of_an_archive(tmp_path: Path) -> None:
    members = [(name, tarfile.REGTYPE, b"{}") for name in ("run.json", "code/x.py", "errors/slurm.json", "job.yaml")]
    assert unpack_foreign(archive(GOOD, *members), tmp_path) == ["metrics.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
