"""A dry run over SSH that asks no host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import cli


def dry_run(place: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, dict]:  # type: ignore[type-arg]
    monkeypatch.chdir(place)
    monkeypatch.setenv("ZLAUNCH_RUNS", str(place / "runs"))
    found = CliRunner().invoke(cli, ["ssh", "--dry-run", *words, "--", "true"])
    plans = sorted((place / "runs").glob("*/plan.json")) if (place / "runs").is_dir() else []
    error = "" if found.exception is None else str(found.exception)
    return found.exit_code, found.output + error, json.loads(plans[-1].read_text()) if plans else {}


def test_a_hostfile_alone_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"node{number:04d}.invalid slots=8" for number in range(4096)]
    (tmp_path / "hosts").write_text("\n".join(lines))
    words = ("--hostfile", "hosts", "--exclude", "node0000.invalid@node0002.invalid:0,1")
    code, output, plan = dry_run(tmp_path, monkeypatch, *words)
    assert code == 0, output
    launch = plan["launch"]
    assert [node["procs"] for node in launch["nodes"]] == [8, 6, *[8] * 4093]
    assert launch["master_addr"] == "node0001.invalid"
    assert "no host was asked" in output
    assert "--master-addr" in output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--hosts", "a,b"), "nothing says how many GPUs a has"),
        (("--hostfile", "nowhere"), "no such hostfile"),
        (("--hosts", "a,a", "--slots", "1"), "a"),
    ],
)
def test_what_only_hosts_know_is_not_made_up(
    words: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output, plan = dry_run(tmp_path, monkeypatch, *words)
    assert code
    assert reason in output
    assert not plan


def test_cpu_hosts_have_one_rank_each_and_an_address_of_the_user_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--hosts", "a,b", "--device", "cpu", "--master-addr", "10.0.0.1")
    code, output, plan = dry_run(tmp_path, monkeypatch, *words)
    assert code == 0, output
    assert (plan["launch"]["master_addr"], len(plan["launch"]["nodes"])) == ("10.0.0.1", 2)
    assert "--master-addr" not in output
