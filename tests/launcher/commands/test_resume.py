"""`zlaunch resume`: what it refuses before a start, and what a failed resume leaves behind."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launcher.backends import current_state
from launcher.backends.base import FakeBackend
from launcher.cli import cli
from launcher.errors import TargetError, UsageError
from launcher.lifecycle import checks, sweep
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from tests.beds.places import ROOT

LOCAL = ["local", "job.yaml", "--device", "cpu"]
MADE_WITH = {"seed": 3407, "global_batch_size": 64, "lora.r": 16, "lora.alpha": 32.0, "lora.rslora": False}
MADE_WITH |= {"lora.rank_pattern": {}, "lora.alpha_pattern": {}, "lora.layers_to_transform": []}


def zlaunch(*words: str) -> Result:
    return CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "job.yaml").write_text("name: a\nmodel: {path: x, source: random}\ndata: {train: train.jsonl}\n")
    return tmp_path


@pytest.fixture
def run(cwd: Path) -> RunDir:
    """A finished run with a checkpoint."""
    made = json.loads(zlaunch(*LOCAL, "--max-steps", "4", "--dry-run", "--json").stdout)
    run = RunDir(Path(made["directory"]))
    run.save_record(
        RunRecord(
            run_id=run.run_id, name="a", backend="local", created=1.0, submitted=2.0, ids=("7",), state="SUCCEEDED"
        )
    )
    place = run.checkpoints / "step-4"
    place.mkdir(parents=True)
    (place / "state.json").write_text(json.dumps({"schema": 1, "progress": {"step": 4}, **MADE_WITH}))
    (place / "COMPLETE").touch()
    return run


def content(run: RunDir) -> dict[str, bytes]:
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files if "before/" not in str(path)}


def steps(run: RunDir) -> Any:
    return run.read_json(run.path / "train.json")["train"]["max_steps"]


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """What takes every start on this machine."""
    backend = FakeBackend(states=[RunState.FAILED])
    monkeypatch.setattr("launcher.commands.resume.backend_of_run", lambda _: backend)
    return backend


# ----------------------------------------------------------------------------------------------- refused at the door


@pytest.mark.parametrize(("backend", "instead"), [("ssh", "ssh.slots"), ("slurm", "slurm.nodes")])
@pytest.mark.parametrize("flag", ["--gpus", "--procs"])
def test_options_for_local_ranks_are_refused_for_runs_on_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, instead: str, flag: str
) -> None:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    run = RunDir(tmp_path / "a-20260101-000000-aaaa")
    run.save_record(RunRecord(run_id=run.run_id, name="a", backend=backend, created=1.0, state="FAILED"))
    with pytest.raises(UsageError, match="runs on this machine") as caught:
        zlaunch("resume", "last", flag, "2")
    assert instead in str(caught.value.hint)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("lora.r=4", "lora.r is 4, but the checkpoint of step 4 was made with lora.r 16"),
        ("train.optimizer=lion", "made with train.optimizer adamw"),
        ("lora.alpha=8", "lora.alpha 32"),
        ("lora.rslora=true", "lora.rslora"),
        ("lora.rank_pattern={q_proj: 2}", "lora.rank_pattern"),
        ("lora.layers_to_transform=[1]", "lora.layers_to_transform"),
        ("train.seed=1", "seed 3407"),
        ("train.global_batch_size=32", "global_batch_size 64"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_settings_recorded_in_the_checkpoint_cannot_be_changed_and_nothing_is_written(
    run: RunDir, target: FakeBackend, setting: str, says: str, flags: tuple[str, ...]
) -> None:
    before = content(run)
    with pytest.raises(UsageError, match=says) as caught:
        zlaunch("resume", run.run_id, "--set", "train.max_steps=6", "--set", setting, *flags)
    assert "start a new run" in str(caught.value.hint)
    assert content(run) == before
    assert target.submitted == []


def test_a_checkpoint_of_an_older_version_restricts_only_what_it_records(run: RunDir, target: FakeBackend) -> None:
    (run.checkpoints / "step-4" / "state.json").write_text('{"progress": {"step": 4}, "seed": 3407}')
    zlaunch("resume", run.run_id, "--set", "train.max_steps=6", "--set", "lora.r=4", "--detach")
    assert target.submitted == [run.run_id]


def test_the_compared_settings_are_those_that_the_training_program_records() -> None:
    written = (ROOT / "train" / "training" / "steps.py").read_text()
    (of_the_adapter,) = re.findall(r"^_MEANING = (\(.*\))$", written, re.MULTILINE)
    facts = re.findall(r'"([\w.]+)": (?:config\.train\.|run\.planned_)', written) + [
        f"lora.{key}" for key in ast.literal_eval(of_the_adapter)
    ]
    assert set(checks.RECORDED) == set(facts)


@pytest.mark.parametrize("sweeps", [(), ("--sweep", "lora.r=8,16")])
def test_a_run_or_sweep_that_was_only_rendered_cannot_be_resumed(cwd: Path, sweeps: tuple[str, ...]) -> None:
    zlaunch(*LOCAL, *sweeps, "--dry-run")
    place = cwd / "runs" / "sweeps" if sweeps else cwd / "runs"
    (name,) = (path.name for path in place.iterdir())
    with pytest.raises(UsageError, match="--dry-run") as caught:
        zlaunch("resume", name)
    assert ("without --dry-run" if sweeps else f"zlaunch local {cwd}/runs/{name}/job.yaml") in str(caught.value.hint)


def test_a_sweep_none_of_whose_points_could_be_rendered_is_resumed(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [(RunDir(cwd / "runs" / f"a-{number}-20260101-000000-aaaa"), {}) for number in (1, 2)]
    points = sweep.new_sweep("a", "local", made)
    assert sweep.unfinished(points) == [0, 1]


# ----------------------------------------------------------------------------------------------------------- dry run


def test_only_elastic_runs_on_hosts_take_hosts_in_again(run: RunDir) -> None:
    with pytest.raises(UsageError, match="--rejoin is for elastic runs on SSH hosts"):
        zlaunch("resume", run.run_id, "--rejoin")
    assert run.record.state == "SUCCEEDED"


def test_a_dry_run_writes_what_the_resume_would_use_and_nothing_of_the_run(run: RunDir) -> None:
    before = content(run)
    words = ["resume", run.run_id, "--set", "train.max_steps=600", "--set", "name=other", "--dry-run"]
    for _ in range(2):
        output = zlaunch(*words)
        place = RunDir(run.path.parent / "resume-dry-run" / run.run_id)
        assert f"rendered {place.path}" in output.stdout
        assert content(run) == before
        assert steps(place) == 600
        assert place.read_json(place.plan_json)["run_id"] == run.run_id
        assert {"job.yaml", "node.sh", "code"} <= {path.name for path in place.path.iterdir()}
        assert not place.before.exists()
    rendered = json.loads(zlaunch(*words, "--json").stdout)
    assert (rendered["run"], rendered["directory"]) == (run.run_id, str(place.path))
    assert json.loads(zlaunch("list", "--json").stdout)["run"] == run.run_id


# ------------------------------------------------------------------------------------------------ starts that failed


@pytest.mark.parametrize("was", ["SUCCEEDED", "CANCELLED"])
def test_a_resume_that_its_target_refuses_leaves_the_run_as_it_was(
    run: RunDir, target: FakeBackend, monkeypatch: pytest.MonkeyPatch, was: str
) -> None:
    def refuse(*_: object) -> tuple[str, ...]:
        raise TargetError("no room")

    run.update_record(state=was)
    before = {name: text for name, text in content(run).items() if name != "events.jsonl"}
    monkeypatch.setattr(target, "submit", refuse)
    with pytest.raises(TargetError, match="no room"):
        zlaunch("resume", run.run_id, "--set", "train.max_steps=600", "--set", "train.zero_stage=0")
    assert {name: text for name, text in content(run).items() if name != "events.jsonl"} == before


def refused(
    run: RunDir, *, code: int = 2, cause: str = "bad_configuration", phases: tuple[str, ...] = ("model",)
) -> None:
    """Have the last start of a run end so."""
    failure = {"rank": 0, "exit_code": code, "cause": cause, "message": "made with another thing", "primary": True}
    process = {"pid": 7, "start_time": 5, "heartbeat": 1.0}
    node = {"node_rank": 0, "state": "FAILED", "failure": failure, "host": "h", "boot_id": "b", **process}
    run.write({"nodes/node-0.json": json.dumps(node)})
    run.event("agent_started")
    with run.events.open("a") as events:
        events.writelines(json.dumps({"event": "phase", "name": phase, "time": 1.0}) + "\n" for phase in phases)
    run.update_record(state="FAILED")


def test_refused_settings_are_dropped_at_the_next_resume(run: RunDir, target: FakeBackend) -> None:
    for longer in ("600", "700"):  # refused twice
        zlaunch("resume", run.run_id, "--set", f"train.max_steps={longer}", "--detach")
        assert steps(run) == int(longer)
        refused(run)
    output = zlaunch("resume", run.run_id, "--detach").stdout
    assert steps(run) == 4
    assert "made with another thing" in output


@pytest.mark.parametrize(
    "how",
    [
        {"code": 1, "cause": "out_of_memory"},
        {"phases": ("model", "data", "train")},
    ],
)
def test_settings_of_a_start_that_failed_otherwise_are_kept(
    run: RunDir, target: FakeBackend, how: dict[str, Any]
) -> None:
    zlaunch("resume", run.run_id, "--set", "train.max_steps=600", "--detach")
    refused(run, **how)
    zlaunch("resume", run.run_id, "--detach")
    assert steps(run) == 600


def test_a_refused_first_start_keeps_its_corrections(run: RunDir, target: FakeBackend) -> None:
    refused(run)
    for change in ("train.max_steps=5", "train.learning_rate=0.1"):
        zlaunch("resume", run.run_id, "--set", change, "--detach")
        refused(run)
    assert steps(run) == 5


def test_a_refused_first_start_has_failed_and_says_why(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> tuple[str, ...]:
        raise TargetError("no room", hint="make some")

    monkeypatch.setattr("launcher.backends.local.single_node.LocalBackend.submit", refuse)
    with pytest.raises(TargetError, match="no room"):
        zlaunch(*LOCAL)
    (path,) = (cwd / "runs").iterdir()
    assert current_state.current(RunDir(path)) is RunState.FAILED
    output = zlaunch("status", "last").stdout
    assert "the run was never started: no room\n  -> make some\n" in output
    assert f"-> zlaunch resume {path.name}\n" in output
    assert "exit code" not in output
    assert json.loads(zlaunch("status", "last", "--json").stdout)["failure"]["cause"] == "not_started"
