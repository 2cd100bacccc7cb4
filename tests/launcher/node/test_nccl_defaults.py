"""Variables for NCCL that the agent sets where nobody else has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.node.agent.launch import Names, base_environment
from launcher.plan.agent_plan import SOCKETS, defaults_of
from tests.beds.plans import make, target

TWO = (("a", 1), ("b", 1))


def environment(home: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> dict[str, str]:
    monkeypatch.setenv("HOME", str(home))
    launch: dict[str, Any] = {"env": env, "cooperative": False, "defaults": SOCKETS}
    return base_environment(launch, Names(home, 0), 1, {})


def test_several_hosts_with_gpus_get_them_and_the_plan_says_so() -> None:
    assert defaults_of(target(hosts=TWO, device="cuda")) == SOCKETS
    assert defaults_of(target(hosts=TWO)) == {}
    assert defaults_of(target(device="cuda")) == {}
    told = {one.setting for one in make(hosts=TWO, device="cuda").reasons}
    assert {f"env.{name}" for name in SOCKETS} <= told
    own = {one.setting for one in make("env.NCCL_SOCKET_NTHREADS=2", hosts=TWO, device="cuda").reasons}
    assert "env.NCCL_SOCKET_NTHREADS" not in own


def test_the_job_the_host_and_its_file_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SOCKETS:
        monkeypatch.delenv(name, raising=False)
    assert SOCKETS.items() <= environment(tmp_path, monkeypatch).items()
    assert environment(tmp_path, monkeypatch, NCCL_SOCKET_NTHREADS="1")["NCCL_SOCKET_NTHREADS"] == "1"
    monkeypatch.setenv("NCCL_NSOCKS_PERTHREAD", "8")
    assert environment(tmp_path, monkeypatch)["NCCL_NSOCKS_PERTHREAD"] == "8"
    (tmp_path / ".nccl.conf").write_text("# site\nNCCL_SOCKET_NTHREADS = 2\n")
    assert "NCCL_SOCKET_NTHREADS" not in environment(tmp_path, monkeypatch)
