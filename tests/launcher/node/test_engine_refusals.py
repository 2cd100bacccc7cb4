"""What engines say when they may not do what an argument asks, and what is started instead."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from launcher.node.engine_refusals import start_instead

MEMLOCK, STACK = "--ulimit=memlock=-1", "--ulimit=stack=67108864"
RUNC = (
    "docker: Error response from daemon: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: error setting rlimits for ready process: "
    "error setting rlimit type %d: operation not permitted: unknown."
)
CRUN = "Error: crun: setrlimit `RLIMIT_%s`: Operation not permitted: OCI permission denied"


def container(engine: str = "podman", *more: str) -> dict:
    argv = [engine, "run", "--rm", "--init", "--ipc=host", MEMLOCK, STACK, *more, "image"]
    return {"engine": engine, "argv": argv, "limits": {"memlock": [MEMLOCK], "stack": [STACK]}}


@pytest.mark.parametrize("output", [RUNC % 8, CRUN % "MEMLOCK"])
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_only_the_limit_that_was_refused_is_left(engine, output):
    changed, text = start_instead(container(engine), f"2026-11-28 agent_started\n{output}\n")
    assert changed["argv"] == [word for word in container(engine)["argv"] if word != MEMLOCK]
    assert changed["limits"] == {"stack": [STACK]}
    assert text == (
        f"{engine} may not raise the limit `memlock` on this host, and leaves it as it is; "
        "InfiniBand needs locked memory"
    )
    assert start_instead(changed, CRUN % "STACK")[0]["argv"] == [engine, "run", "--rm", "--init", "--ipc=host", "image"]


@pytest.mark.parametrize("output", [RUNC % 7, CRUN % "NOFILE"])
def test_a_limit_that_the_engine_raises_by_itself_becomes_the_agents_own(output):
    changed, text = start_instead(container(), output)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert changed["argv"][:3] == ["podman", "run", f"--ulimit=nofile={soft}:{hard}"]
    assert f"{soft}:{hard}" in text
    assert start_instead(changed, output) is None  # refused again: nothing is left to change


def test_no_more_processes_are_allowed_than_the_system_can_have():
    """podman lowers its own limit of processes to that number, and its runtime may not raise it again."""
    changed, _ = start_instead(container(), CRUN % "NPROC")
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    soft, hard = (int(word) for word in changed["argv"][2].removeprefix("--ulimit=nproc=").split(":"))
    assert 0 < soft <= hard <= most
    own = resource.getrlimit(resource.RLIMIT_NPROC)
    assert [soft, hard] == [min(limit, most) if limit >= 0 else most for limit in own]


def test_a_limit_of_the_jobs_own_stays_and_the_run_fails():
    asked = {**container("docker", "--ulimit=memlock=5"), "limits": {}}
    assert start_instead(asked, RUNC % 8) is None


@pytest.mark.parametrize(
    ("engine", "output", "argument", "instead"),
    [
        (
            "podman",
            "Error: container-init binary not found on the host: stat /usr/libexec/podman/catatonit: no such file",
            "--init",
            [],
        ),
        ("docker", 'exec: "docker-init": executable file not found in $PATH: unknown.', "--init", []),
        (
            "podman",
            "Error: statfs /dev/mqueue: no such file or directory",
            "--ipc=host",
            ["--volume=/dev/shm:/dev/shm"],
        ),
    ],
)
def test_an_argument_that_the_engine_cannot_carry_out_is_replaced_once(engine, output, argument, instead):
    changed, text = start_instead(container(engine), output)
    before = container(engine)["argv"]
    at = before.index(argument)
    assert changed["argv"] == [*before[:at], *instead, *before[at + 1 :]]
    assert text.startswith(f"{engine} ")
    assert start_instead(changed, output) is None


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Unable to find image 'zl:1' locally",
        "permission denied while trying to connect to the Docker daemon socket",
        "exec: python3: executable file not found in $PATH",
        "error setting rlimit type 99: operation not permitted",
        "error setting rlimit type 8: invalid argument",
        "open /dev/shm/x: operation not permitted",
    ],
)
def test_any_other_refusal_is_the_end_of_the_run(output):
    assert start_instead(container(), output) is None
