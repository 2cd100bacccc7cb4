"""The protocol of a backend, the states of a run, and a fake for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from launcher.errors import UsageError
from launcher.rundir.logs import LogLine
from launcher.rundir.state import RunState

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec
    from launcher.plan.types import RunPlan, Target
    from launcher.rundir.directory import RunDir


class Backend(Protocol):
    def target(self, job: JobSpec) -> Target:
        """Return the facts about the place where the job would run. Raises UsageError, TargetError."""

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Start the run described by the rendered run directory; return its identifiers promptly.

        Raises TargetError (HostsError) when the target refuses; then nothing of the run is left running.
        """

    def state(self, run: RunDir) -> RunState: ...

    def logs(self, run: RunDir, *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]: ...

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """End the run, with a last checkpoint if asked; idempotent; returns when nothing of it is left."""


@dataclass
class FakeBackend:
    """Records what it was asked; its target and state are whatever the test sets."""

    place: Target | None = None
    states: list[RunState] = field(default_factory=lambda: [RunState.SUCCEEDED])
    lines: list[LogLine] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def target(self, job: JobSpec) -> Target:
        if self.place is None:
            raise UsageError("the test sets no target")
        return self.place

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        self.submitted.append(run.run_id)
        return (f"fake:{len(self.submitted)}",)

    def state(self, run: RunDir) -> RunState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def logs(self, run: RunDir, *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        return iter([line for line in self.lines if rank is None or line.rank == rank])

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        self.cancelled.append(run.run_id)
