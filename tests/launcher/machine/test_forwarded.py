"""Which variables of this shell and of DeepSpeed's environment files go to other machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.machine.forwarded import forwarded
from tests.beds.plans import make


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(home, working directory)"""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home, here


def test_variables_about_the_network_come_from_the_shell_and_both_files(folders: tuple[Path, Path]) -> None:
    home, here = folders
    shell = {"NCCL_DEBUG": "INFO", "UCX_TLS": "tcp", "GLOO_SOCKET_IFNAME": "ib0", "PATH": "/bin", "MY_NCCL_X": "1"}
    assert set(forwarded(shell)) == {"NCCL_DEBUG", "UCX_TLS", "GLOO_SOCKET_IFNAME"}
    (home / ".deepspeed_env").write_text("NCCL_DEBUG=WARN\nA=1\n")
    (here / ".deepspeed_env").write_text(
        "\ufeff# for the cluster\n\nexport NCCL_IB_HCA='mlx5_0,mlx5_1'\r\nA = x=y\nEMPTY=\n", encoding="utf-8"
    )
    found = forwarded(shell)
    assert {name: value for name, (value, _) in found.items() if name not in shell} == {
        "NCCL_IB_HCA": "mlx5_0,mlx5_1", "A": "x=y", "EMPTY": "",
    }  # fmt: skip
    assert found["NCCL_DEBUG"] == ("WARN", str(home / ".deepspeed_env"))
    assert set(forwarded(shell, shell=False)) == {"NCCL_DEBUG", "NCCL_IB_HCA", "A", "EMPTY"}
    (here / "other").write_text("B=2\n")
    assert set(forwarded({"DS_ENV_FILE": "other"})) == {"B"}


@pytest.mark.parametrize(
    "line", ["NCCL_DEBUG", "1A=2", "=3", "a b=4", "HF_TOKEN=hf_x", "WANDB_API_KEY=1", "AWS_SECRET_ACCESS_KEY=1"]
)
def test_a_line_that_cannot_travel_is_refused_with_its_place(folders: tuple[Path, Path], line: str) -> None:
    (folders[1] / ".deepspeed_env").write_text(f"A=1\n{line}\n")
    with pytest.raises(UsageError, match=r"\.deepspeed_env: line 2: "):
        forwarded({})


def test_the_plan_lists_them_and_the_job_wins() -> None:
    plan = make(
        "env.NCCL_DEBUG=WARN",
        forwarded={"NCCL_DEBUG": ("INFO", "this shell"), "NCCL_SOCKET_IFNAME": ("eth0", "this shell")},
    )
    assert plan.launch.env == {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "eth0"}
    listed = [
        (reason.setting, reason.value, reason.reason) for reason in plan.reasons if reason.setting.startswith("env.")
    ]
    assert listed == [("env.NCCL_SOCKET_IFNAME", "eth0", "from this shell")]
