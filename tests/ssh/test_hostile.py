"""Hosts behind a real sshd that lie: a run that is watched goes on, and nothing is written that they name."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(300)]

REFUSED = ("names", "flood")
HOSTILE = Path(__file__).with_name("hostile_python.py")
PYTHON = "/usr/local/bin/zlaunch-test-python"
LONG = bool(os.environ.get("ZLAUNCH_TORTURE"))
MEMORY = 300
"""MiB that the launcher may take."""


@contextlib.contextmanager
def lying(zl: Zl, modes: tuple[str, ...]) -> Iterator[None]:
    """Give every host a Python: the first an honest one, the others one per mode."""
    for node, (host, mode) in enumerate(zip(zl.lab.hosts, ("", *modes), strict=False)):
        lie = f"{zl.lab.python} /tmp/hostile.py {mode} {node} " if mode else ""
        zl.lab.run(host, ["sh", "-c", 'printf "%s" "$1" > /tmp/hostile.py', "sh", HOSTILE.read_text()])
        script = 'printf "#!/bin/sh\\nexec %s \\"\\$@\\"\\n" "$2" > "$1"; chmod 755 "$1"'
        zl.lab.run(host, ["sh", "-c", script, "sh", PYTHON, f"{lie}{zl.lab.python}"])
    try:
        yield
    finally:
        for host in zl.lab.hosts:
            zl.lab.run(host, ["rm", "-f", PYTHON, "/tmp/hostile.py"])


def peak(pid: int) -> int:
    """MiB that a process has taken at most; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return max([int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")], default=0)


@pytest.mark.parametrize(
    "modes",
    [
        ("names", "flood", "lies"),
        pytest.param(("more", "endless", "mute"), marks=pytest.mark.skipif(not LONG, reason="waits: make torture")),
    ],
    ids=" ".join,
)
def test_hosts_that_lie_end_their_own_conversations_only(zl: Zl, modes: tuple[str, ...]) -> None:
    output, memory = zl.home / "output", 0
    program = "for i in $(seq 6); do echo line $i of $RANK; sleep 1; done"
    words = zl.ssh_words("--set", "heartbeat_timeout=8", program=program)
    words[words.index("--python") + 1] = PYTHON
    with lying(zl, modes), output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *words], cwd=zl.home, env=zl.environ,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
        zl.started.append(process)  # type: ignore[arg-type]
        begin = time.monotonic()
        while process.poll() is None:
            memory = max(memory, peak(process.pid))
            assert time.monotonic() - begin < 200, output.read_bytes()[-2000:]
            time.sleep(0.1)
        status = zl.status()
        zl("cancel", zl.run_id, code=None)
    text = output.read_text(errors="replace")
    assert status["state"] in ("SUCCEEDED", "FAILED")
    for node, mode in enumerate(modes, 2):
        assert mode not in REFUSED or f"an answer of node{node} was refused" in text
    assert "Traceback" not in text
    assert "line 6 of 0" in text  # the honest host was followed to its end
    assert "\x1b]52" not in text
    assert memory < MEMORY
    assert not zl.ranks("node1", zl.run_id)
    run = zl.runs / zl.run_id
    assert json.loads((run / "run.json").read_text())["backend"] == "ssh"
    for path in zl.home.rglob("*"):
        if path.is_file() and path != output and not path.is_relative_to(run / "logs"):
            assert b"zlaunch cancel;" not in path.read_bytes(), path
    assert not (zl.home / "out").exists()
    assert not os.path.lexists("/tmp/zlaunch-out")


@pytest.mark.skipif(not LONG, reason="waits: make torture")
def test_a_copy_that_a_host_never_lets_end_hinders_no_cancel(zl: Zl) -> None:
    words = zl.ssh_words("--detach", "--set", "heartbeat_timeout=8", program="sleep 300", hosts=["node1", "node2"])
    words[words.index("--python") + 1] = PYTHON
    with lying(zl, ("endless",)):
        zl(*words)
        copies = [zl.start(*command, zl.run_id) for command in (["pull"], ["logs"])]
        zl.wait(lambda: (zl.runs / zl.run_id / "logs/node-1/rank-1.log").exists())
        began = time.monotonic()
        assert zl.status()["state"] == "RUNNING"
        text = zl("cancel", "--now", zl.run_id, code=0)
        assert time.monotonic() - began < 120
        assert None in [process.poll() for process in copies]
        for process in copies:
            process.kill()
            process.communicate()
        assert f"{zl.run_id}: CANCELLED" in text
        assert not zl.ranks("node1", zl.run_id)
        assert not zl.ranks("node2", zl.run_id)
