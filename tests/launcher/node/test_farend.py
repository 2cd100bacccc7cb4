"""What the far end does on a host, without a host: it runs here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.ssh import bundle
from launcher.node.farend import agents, host, network, runs, store
from launcher.node.farend.common import Refused
from launcher.node.farend.payload import HELLO, build_payload
from launcher.node.processes import boot_id, process_of, start_time_of
from launcher.rundir.directory import RunDir
from tests.beds.places import python_of

MARKS = {"op": "shared_dir_marks", "workdir": "/nowhere", "token": "t"}


def start_far_end(sent: bytes, python: str = sys.executable, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Start the far end as on a host and send it requests. It ends with its input."""
    words = [python, "-S", "-c", HELLO, "greeting"]
    return subprocess.run(words, input=sent, capture_output=True, env={**os.environ, **environ}, check=False)


@pytest.mark.parametrize("tag", [sys.implementation.cache_tag, "cpython-30"])
def test_the_far_end_starts_from_bytecode_or_from_text(tag: str) -> None:
    done = start_far_end(build_payload(tag) + json.dumps(MARKS).encode() + b"\n")
    major, minor = sys.version_info[:2]
    assert done.stdout.splitlines()[1].decode() == f"greeting {major} {minor} {sys.implementation.cache_tag}"
    assert json.loads(done.stdout.splitlines()[2])["ok"]


def test_every_shell_reads_the_first_code_as_one_quoted_word() -> None:
    assert not set("'\\\n!") & set(HELLO)


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.13"])
def test_the_far_end_starts_under_other_pythons(version: str) -> None:
    done = start_far_end(build_payload("another") + json.dumps(MARKS).encode() + b"\n", python_of(version))
    assert json.loads(done.stdout.splitlines()[2])["ok"], done.stderr


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
def test_a_python_that_is_too_old_says_which_it_is(version: str) -> None:
    done = start_far_end(b"", python_of(version))
    assert done.stdout.splitlines()[1].startswith(f"greeting {version.replace('.', ' ')} ".encode())


def test_a_program_gets_its_input_returns_its_output_and_runs_in_its_own_session(tmp_path: Path) -> None:
    status, output = agents.run(["sh", "-c", "wc -c; echo oops >&2; ps -o sid= $$; exit 3"], {}, b"x" * 200_000, 10)
    assert status is not None
    assert status >> 8 == 3
    assert output.split()[:2] == [b"200000", b"oops"]
    assert agents.run(["no-such-program"], {"PATH": "/bin"}, b"x", 10)[1].startswith(b"no-such-program: ")


def test_a_program_that_hangs_is_killed_with_all_that_it_started() -> None:
    started = time.monotonic()
    argv = ["sh", "-c", "echo begun; sleep 60 & sleep 60"]
    assert agents.run(argv, {"PATH": "/bin"}, b"x", 0.5) == (None, b"begun\n")
    assert agents.run(["sh", "-c", "exec >&- 2>&-; sleep 60"], {"PATH": "/bin"}, b"x", 0.5) == (None, b"")
    assert time.monotonic() - started < 5


def test_a_start_by_the_jobs_own_script_passes_the_secrets_and_removes_the_mark(tmp_path: Path) -> None:
    run, there = RunDir(tmp_path / "here"), tmp_path / "there"
    run.write({"node.sh": f'cd "{there}"; cat > received; mkdir nodes; echo "{{}}" > nodes/node-0.json\n'})
    packed = bundle.build(run)
    host.hello(str(tmp_path), "token", 0, [], False)
    assert list((tmp_path / ".marks").rglob("0"))
    runs.unpack(str(there), {}, packed)
    assert agents.start(str(there), 0, {}, True, 10, b"secrets") == {"record": {}}
    assert (there / "received").read_bytes() == b"secrets"
    assert not list((tmp_path / ".marks").iterdir())


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Start an agent whose program is the text given, by a far end of its own; returns the answer to `start`."""
    ends: list[subprocess.Popen[bytes]] = []

    def start(program: str, seconds: float = 10, python: str = sys.executable, **environ: str) -> dict[str, Any]:
        place = tmp_path / agents.AGENT
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(program)
        (tmp_path / "nodes").mkdir(exist_ok=True)
        end = subprocess.Popen(
            [python, "-S", "-c", HELLO, "greeting"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUTF8": "1", "SSH_CLIENT": "x"},
        )  # fmt: skip
        ends.append(end)
        assert end.stdin
        assert end.stdout
        secrets = b'{"TOKEN": "s"}'
        asked = {"run_dir": str(tmp_path), "node_rank": 0, "environ": environ, "own_script": False, "seconds": seconds}
        request = {"op": "start", "payload": len(secrets), **asked}
        end.stdin.write(
            build_payload(str(sys.implementation.cache_tag) if python == sys.executable else "another")
            + json.dumps(request).encode()
            + b"\n"
            + secrets
        )
        end.stdin.flush()
        end.stdout.readline()
        end.stdout.readline()
        answer: dict[str, Any] = json.loads(end.stdout.readline())
        return answer

    yield start
    for end in ends:
        end.communicate()


READY = "import os, sys, json\nready = int(sys.argv[sys.argv.index('--ready-fd') + 1])\n"


@pytest.mark.parametrize("version", [None, "3.8", "3.13"])
def test_an_agent_is_a_fork_in_a_session_of_its_own_with_the_environment_secrets_and_modules_of_the_run(
    forked: Callable[..., dict[str, Any]], tmp_path: Path, version: str | None
) -> None:
    (tmp_path / "code/node").mkdir(parents=True)
    (tmp_path / "code/node/files.py").write_text("HERE = 'of the run'\n")
    (tmp_path / "code/node/__init__.py").touch()
    program = (
        READY
        + """
sys.path[0] = "code"
from node.files import HERE
facts = {
    "stdin": sys.stdin.buffer.read().decode(), "argv": sys.argv[1:6], "cwd": os.getcwd(), "files": HERE,
    "leader": os.getsid(0) == os.getpid(), "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    "command": open("/proc/self/cmdline").read().rstrip("\\0").split("\\0"),
    "environ": {name: os.environ.get(name) for name in ("MINE", "SSH_CLIENT", "PYTHONUTF8", "HOME")}, "ready": ready,
}
open("nodes/node-0.json", "w").write(json.dumps(facts))
os.write(ready, b"ok")
"""
    )
    record = forked(program, python=python_of(version) if version else sys.executable, MINE="yes")["record"]
    assert record["stdin"] == '{"TOKEN": "s"}'
    assert record["argv"] == ["--run-dir", ".", "--node-rank", "0", "--secrets-stdin"]
    assert (record["cwd"], record["files"], record["leader"]) == (str(tmp_path), "of the run", True)
    assert record["descriptors"] == [0, 1, 2, 3, record["ready"]]  # 3: the listing itself
    assert record["command"][1:8] == ["-X", "utf8", "-S", agents.AGENT, "--run-dir", ".", "--node-rank"]
    wanted = {"MINE": "yes", "SSH_CLIENT": None, "PYTHONUTF8": None, "HOME": os.environ.get("HOME")}
    assert record["environ"] == wanted


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def broken(", "SyntaxError"),
        ("import sys; sys.stderr.write('the disk is full\\n'); sys.exit(3)", "the disk is full"),
        ("import os; os._exit(0)", "wait status"),
        ("import os; os.kill(os.getpid(), 9)", "wait status 9"),
        (READY + "os.write(ready, b'agent: node 0 is running here already')", "node 0 is running here already"),
        (READY + "os.write(ready, b'ok')", "did not start"),  # without a record
        ("import sys; sys.exit('no such thing')", "did not start"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_an_agent_that_does_not_come_up_is_refused_with_its_words(
    forked: Callable[..., dict[str, Any]], program: str, error: str
) -> None:
    answer = forked(program)
    assert not answer["ok"]
    assert error in answer["error"]


def test_an_agent_that_hangs_is_ended_with_what_it_started(
    forked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    program = "import os, time\nos.fork()\nopen(f'pid-{os.getpid()}', 'w').close()\ntime.sleep(60)"
    assert "did not start the agent within 0.7 s" in forked(program, seconds=0.7)["error"]
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    for _ in range(50):
        left = [pid for pid in pids if (found := process_of(pid)) and found.state not in "ZX"]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def test_threads_of_an_environments_sitecustomize_do_not_reach_the_agent(tmp_path: Path) -> None:
    started = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(started + "import sys; sys.path.append('/of/sitecustomize')\n")
    code = "from launcher.node.farend.host import import_folders; import sys, threading; print(import_folders()[-1], "
    code += "threading.active_count(), '/of/sitecustomize' in sys.path)"
    root = str(Path(agents.__file__).parents[3])
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["/of/sitecustomize", "1", "False"]


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="damaged"):
        runs.unpack(str(tmp_path), {}, b"torn")


def test_only_the_host_that_listens_is_reached() -> None:
    opened = network.listen("nonce", [])
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        port = opened["ports"][0]
        targets = [
            ["127.0.0.1", port, "nonce"], ["127.0.0.1", port, "another's"], ["127.0.0.1", 1, "nonce"],
            ["127.0.0.1", silent.getsockname()[1], "nonce"], ["no such name", port, "nonce"],
        ]  # fmt: skip
        started = time.monotonic()
        assert network.reach(targets, 1.0) == {"reached": [True, False, False, False, False]}
        assert time.monotonic() - started < 5
    finally:
        network.unlisten()
        silent.close()


def test_output_of_an_environment_does_not_mix_with_the_answers(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('welcome')")
    hello = {"op": "hello", "workdir": str(tmp_path), "token": "t", "index": 0, "packages": ["torch"], "gpus": False}
    done = start_far_end(build_payload("another") + json.dumps(hello).encode() + b"\n", PYTHONPATH=str(tmp_path))
    assert b"welcome" in done.stderr
    assert json.loads(done.stdout.splitlines()[2])["ok"]


def test_a_request_with_half_a_payload_is_not_carried_out(tmp_path: Path) -> None:
    put = {"op": "put", "run_dir": str(tmp_path), "name": "weights", "offset": 0, "last": True, "payload": 10}
    start_far_end(build_payload("another") + json.dumps(put).encode() + b"\nhalf")
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_of_the_store_is_sent_again(tmp_path: Path) -> None:
    item = {"path": "/nowhere/a", "name": "a", "size": 4, "sha256": "0" * 64}
    stored = Path(store.store_path(str(tmp_path), item))
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"1234")
    assert store.find_inputs([item], str(tmp_path)) == {"found": {"0" * 64: str(stored)}}
    stored.write_bytes(b"")
    assert store.find_inputs([item], str(tmp_path)) == {"found": {}}


def test_the_files_of_a_run_with_a_living_agent_are_not_replaced(tmp_path: Path) -> None:
    run, there = RunDir(tmp_path / "here"), tmp_path / "there"
    run.write({"node.sh": "true"})
    packed = bundle.build(run)
    record = {"pid": os.getpid(), "start_time": start_time_of(os.getpid()), "boot_id": boot_id(), "ended": None}
    (there / "nodes").mkdir(parents=True)
    (there / "nodes/node-3.json").write_text(json.dumps(record))
    with pytest.raises(Refused, match=f"is running here already, pid {os.getpid()}"):
        runs.unpack(str(there), {}, packed)
    (there / "nodes/node-3.json").write_text(json.dumps({**record, "ended": 1.0}))
    runs.unpack(str(there), {}, packed)
    assert not (there / "nodes").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="a namespace of its own needs root")
def test_processes_of_a_container_with_its_own_agent_are_not_leftovers(tmp_path: Path) -> None:
    environ = {**os.environ, "ZLAUNCH_RUN_ID": "in-20260101-000000-abcd", "ZLAUNCH_RUN_DIR": "/only/in/the/container"}
    inside = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "100"], env=environ)
    try:
        end = time.monotonic() + 10
        while len(found := list(runs.scan("in-20260101-000000-abcd", False))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(found) == 2
        dead = runs.scan("in-20260101-000000-abcd", True)
        assert [item["pid"] for item in dead] == [inside.pid]  # unshare itself is outside
    finally:
        inside.kill()
        inside.wait()
