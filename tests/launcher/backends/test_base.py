"""The protocols of a backend: who implements which, and what commands do with those that few implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.backends import BACKENDS, backend_of
from launcher.backends.base import Arrays, FakeBackend, Pulls
from launcher.cli import cli
from launcher.errors import TargetError, UsageError, ZlaunchError
from launcher.lifecycle import sweep
from launcher.plan.types import RunPlan
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState


@dataclass
class FakeArrays(FakeBackend):
    """A fake that also takes sweeps as arrays; `stuck` names the runs that it cannot cancel."""

    stuck: dict[str, ZlaunchError] = field(default_factory=dict)

    def submit_array(
        self,
        script: Path,
        points: Sequence[tuple[int, RunDir, RunPlan]],
        secrets: Mapping[str, str],
        *,
        after: str = "",
    ) -> tuple[str, ...]:
        self.submitted += [run.run_id for _, run, _ in points]
        return tuple(f"fake:{index}" for index, _, _ in points)

    def most_elements(self, plan: RunPlan) -> int | None:
        return None

    def alive_among(self, runs: Sequence[RunDir]) -> set[str]:
        return set()

    def cancel_all(self, runs: Sequence[RunDir], *, checkpoint: bool = True) -> Mapping[str, ZlaunchError]:
        self.cancelled += [run.run_id for run in runs if run.run_id not in self.stuck]
        return {run.run_id: self.stuck[run.run_id] for run in runs if run.run_id in self.stuck}


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no backend 'k8s'; known: local, ssh, slurm"):
        backend_of("k8s")


def test_only_slurm_takes_arrays_and_only_runs_elsewhere_are_pulled() -> None:
    backends = {name: backend_of(name) for name in BACKENDS}
    assert [name for name, backend in backends.items() if isinstance(backend, Arrays)] == ["slurm"]
    assert [name for name, backend in backends.items() if isinstance(backend, Pulls)] == ["ssh", "slurm"]
    assert isinstance(FakeArrays(), Arrays)
    assert not isinstance(FakeBackend(), Arrays | Pulls)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path))
    return tmp_path


def sweep_of(root: Path, count: int) -> sweep.Sweep:
    runs = []
    for index in range(count):
        run = RunDir(root / f"zh-{index}-20260101-000000-aaaa")
        run.write({"plan.json": '{"train": {"train": {}}}'})
        run.save_record(RunRecord(run_id=run.run_id, name="zh", backend="slurm", created=1.0, state="LOST"))
        runs.append((run, {"lora.r": index}))
    points = sweep.new_sweep("zh", "slurm", runs)
    sweep.save(points)
    return points


def answer_with(monkeypatch: pytest.MonkeyPatch, backend: FakeBackend) -> None:
    monkeypatch.setattr("launcher.lifecycle.cancel.backend_of", lambda name: backend)
    for module in ("launcher.lifecycle.cancel", "launcher.backends.current_state"):
        monkeypatch.setattr(f"{module}.backend_of_run", lambda run: backend)


def cancel(points: sweep.Sweep) -> None:
    CliRunner().invoke(cli, ["cancel", points.sweep_id], standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize("kind", [FakeBackend, FakeArrays])
def test_a_sweep_is_cancelled_together_where_the_backend_can_and_else_run_by_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[FakeBackend]
) -> None:
    points, backend = sweep_of(root, 3), kind(states=[RunState.LOST])
    answer_with(monkeypatch, backend)
    cancel(points)
    assert backend.cancelled == [point.run for point in points.points]


def test_a_run_that_an_array_cannot_cancel_is_named_and_the_others_are_cancelled(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = sweep_of(root, 2)
    first, second = (point.run for point in points.points)
    backend = FakeArrays(states=[RunState.LOST], stuck={first: TargetError("job 1 is still RUNNING")})
    answer_with(monkeypatch, backend)
    with pytest.raises(TargetError, match=r"1 of 2 points .*\n.* job 1 is still RUNNING"):
        cancel(points)
    assert backend.cancelled == [second]
    assert sweep.run_of(points.points[1]).record.state == "CANCELLED"
