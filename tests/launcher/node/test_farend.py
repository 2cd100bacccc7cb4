"""What the far end does on a host, without a host: it runs here."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import bundle, farend, fleet
from launcher.runs import RunDir


@pytest.mark.parametrize("version", ["ours", "another"])
def test_it_starts_from_its_code_or_from_its_text(version: str) -> None:
    from importlib.util import MAGIC_NUMBER

    magic = MAGIC_NUMBER.hex() if version == "ours" else "00000000"
    request = json.dumps({"op": "marks", "workdir": "/nowhere", "token": "t"}).encode() + b"\n"
    opening = fleet._opening("hello", magic)
    if version == "another":
        opening = opening.removesuffix(fleet._CODE) + b"\0" * len(fleet._CODE)
    told = opening + request
    done = subprocess.run([sys.executable, "-S", "-c", fleet._BOOT], input=told, capture_output=True, check=True)
    assert done.stdout.splitlines()[1] == b"hello"
    assert json.loads(done.stdout.splitlines()[2])["ok"]


def test_a_program_is_fed_and_heard_and_has_a_session_of_its_own(tmp_path: Path) -> None:
    status, output = farend.run(["sh", "-c", "wc -c; echo oops >&2; ps -o sid= $$; exit 3"], {}, b"x" * 200_000, 10)
    assert status is not None
    assert status >> 8 == 3
    assert output.split()[:2] == [b"200000", b"oops"]
    assert farend.run(["no-such-program"], {"PATH": "/bin"}, b"x", 10)[1].startswith(b"no-such-program: ")


def test_a_program_that_hangs_is_killed_with_all_that_it_started() -> None:
    started = time.monotonic()
    argv = ["sh", "-c", "echo begun; sleep 60 & sleep 60"]
    assert farend.run(argv, {"PATH": "/bin"}, b"x", 0.5) == (None, b"begun\n")
    assert farend.run(["sh", "-c", "exec >&- 2>&-; sleep 60"], {"PATH": "/bin"}, b"x", 0.5) == (None, b"")
    assert time.monotonic() - started < 5


def test_a_start_feeds_the_secrets_to_what_was_unpacked_and_takes_the_hosts_mark_away(tmp_path: Path) -> None:
    run, there = RunDir(tmp_path / "here"), tmp_path / "there"
    run.write({"node.sh": f'cd "{there}"; cat > told; mkdir nodes; echo "{{}}" > nodes/node-0.json\n'})
    packed = bundle.build(run)
    farend.hello(str(tmp_path), "token", 0, [], False)
    assert list((tmp_path / ".marks").rglob("0"))
    farend.unpack(str(there), packed.digest, {}, packed.data)
    assert farend.start(str(there), 0, {}, 10, b"secrets") == {"record": {}}
    assert (there / "told").read_bytes() == b"secrets"
    assert not list((tmp_path / ".marks").iterdir())


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(farend.Refused, match="damaged"):
        farend.unpack(str(tmp_path), hashlib.blake2b(b"whole").hexdigest(), {}, b"torn")


def test_only_the_host_that_listens_is_reached() -> None:
    opened = farend.listen("nonce", [])
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        port = opened["ports"][0]
        targets = [
            ["127.0.0.1", port, "nonce"], ["127.0.0.1", port, "another's"], ["127.0.0.1", 1, "nonce"],
            ["127.0.0.1", silent.getsockname()[1], "nonce"], ["no such name", port, "nonce"],
        ]  # fmt: skip
        started = time.monotonic()
        assert farend.reach(targets, 1.0) == {"reached": [True, False, False, False, False]}
        assert time.monotonic() - started < 5
    finally:
        farend.unlisten()
        silent.close()


def test_what_an_environment_prints_does_not_stand_between_the_answers(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('welcome')")
    hello = {"op": "hello", "workdir": str(tmp_path), "token": "t", "index": 0, "packages": ["torch"], "gpus": False}
    told = fleet._opening("greeting") + json.dumps(hello).encode() + b"\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", fleet._BOOT], input=told, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert b"welcome" in done.stderr
    assert json.loads(done.stdout.splitlines()[2])["ok"]


def test_a_request_that_is_cut_in_its_payload_is_not_carried_out(tmp_path: Path) -> None:
    put = {"op": "put", "run_dir": str(tmp_path), "name": "weights", "offset": 0, "last": True, "payload": 10}
    told = fleet._opening("greeting") + json.dumps(put).encode() + b"\nhalf"
    subprocess.run([sys.executable, "-S", "-c", fleet._BOOT], input=told, capture_output=True, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_store_that_lost_its_end_is_sent_again(tmp_path: Path) -> None:
    item = {"path": "/nowhere/a", "name": "a", "size": 4, "sha256": "0" * 64}
    stored = Path(farend.store_path(str(tmp_path), item))
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"1234")
    assert farend.have([item], str(tmp_path)) == {"found": {"0" * 64: str(stored)}}
    stored.write_bytes(b"")
    assert farend.have([item], str(tmp_path)) == {"found": {}}


def test_files_of_a_run_whose_agent_lives_are_left_alone(tmp_path: Path) -> None:
    run, there = RunDir(tmp_path / "here"), tmp_path / "there"
    run.write({"node.sh": "true"})
    packed = bundle.build(run)
    boot_id = farend.read("/proc/sys/kernel/random/boot_id").strip()
    record = {"pid": os.getpid(), "start_time": farend.start_time(os.getpid()), "boot_id": boot_id, "ended": None}
    (there / "nodes").mkdir(parents=True)
    (there / "nodes/node-3.json").write_text(json.dumps(record))
    with pytest.raises(farend.Refused, match=f"is running here already, pid {os.getpid()}"):
        farend.unpack(str(there), packed.digest, {}, packed.data)
    (there / "nodes/node-3.json").write_text(json.dumps({**record, "ended": 1.0}))
    farend.unpack(str(there), packed.digest, {}, packed.data)
    assert not (there / "nodes").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="a namespace of its own needs root")
def test_processes_of_a_container_with_its_own_agent_are_not_taken_for_strays(tmp_path: Path) -> None:
    environ = {**os.environ, "ZLAUNCH_RUN_ID": "in-20260101-000000-abcd", "ZLAUNCH_RUN_DIR": "/only/in/the/container"}
    inside = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "100"], env=environ)
    try:
        end = time.monotonic() + 10
        while len(found := farend.scan("in-20260101-000000-abcd", False)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(found) == 2
        dead = farend.scan("in-20260101-000000-abcd", True)
        assert [item["pid"] for item in dead] == [inside.pid]  # unshare itself is outside
    finally:
        inside.kill()
        inside.wait()
