"""What a backend is: one protocol that all implement, two that some do, and a fake for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from launcher.errors import UsageError, ZlaunchError
from launcher.rundir.logs import LogBlock
from launcher.rundir.state import RunState

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec
    from launcher.plan.types import RunPlan, Target
    from launcher.rundir.directory import RunDir


class Backend(Protocol):
    """Starts runs in one kind of place, and finds them again from their run directories."""

    def target(self, job: JobSpec) -> Target:
        """Return the facts about the place where the job would run. Raises UsageError, TargetError."""

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        """Start the run described by the rendered run directory; return its identifiers promptly.

        Raises TargetError (HostsError) when the target refuses. Then nothing of the run is left running.
        """

    def state(self, run: RunDir) -> RunState:
        """Return the state of the run now. Raises TargetError when its target does not answer."""

    def is_alive(self, run: RunDir) -> bool:
        """Whether something of the run lives (a queued job, an agent, a process), whatever its files say.

        Raises TargetError when its target does not answer.
        """

    def logs(
        self, run: RunDir, *, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogBlock]:
        """Yield log lines, of one rank if given; with `follow`, until the run ends."""

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        """Stop the run, after a last checkpoint if asked. Idempotent; returns when no process of it is left."""


@runtime_checkable
class Arrays(Protocol):
    """A backend that starts and cancels many runs together: the points of a sweep as one array job."""

    def most_elements(self, plan: RunPlan) -> int | None:
        """Return how many runs one array job may have where the plan runs; None: not known."""

    def submit_array(
        self,
        script: Path,
        points: Sequence[tuple[int, RunDir, RunPlan]],
        secrets: Mapping[str, str],
        *,
        after: str = "",
    ) -> tuple[str, ...]:
        """Queue the runs with one batch script, each at its index; return their ids there, in order.

        `after`: the id of a run of another array job that must end first. Returns nothing if the target took the job
        without telling its id. Raises TargetError when the target refuses.
        """

    def alive_among(self, runs: Sequence[RunDir]) -> set[str]:
        """Return the ids of the runs of which something lives. Raises TargetError."""

    def cancel_all(self, runs: Sequence[RunDir], *, checkpoint: bool = True) -> Mapping[str, ZlaunchError]:
        """Cancel the runs in the time that one takes; return {run id: error} of those that may still run."""


@runtime_checkable
class Pulls(Protocol):
    """A backend whose runs write their files elsewhere, and which copies them into the run directory here."""

    def pull(self, run: RunDir, *, checkpoints: bool = False) -> list[str] | None:
        """Copy logs, metrics, result and adapter here; return the names of the files copied.

        None: the run writes its files here. Raises TargetError when the place that has them does not answer.
        """


@runtime_checkable
class Shrinks(Protocol):
    """A backend whose elastic runs go on with the hosts that are left, and take the others in again."""

    def target_of_living(self, job: JobSpec) -> Target:
        """Return the facts about those hosts of the job that answer. Raises as `target` does if none answers."""


class Copy(NamedTuple):
    """What a run has on another machine."""

    host: str
    path: str
    bytes: int
    """What its removal frees there."""


@runtime_checkable
class Removes(Protocol):
    """A backend whose runs have files on other machines, and which removes them there."""

    def remove(self, run: RunDir, *, dry_run: bool) -> list[Copy]:
        """Remove the run's files elsewhere, or with `dry_run` only name them; what is gone already frees nothing.

        Raises TargetError if a machine does not answer, has something of the run alive, or cannot remove its files.
        """


@dataclass
class FakeBackend:
    """Records its calls; the test sets its target and states."""

    place: Target | None = None
    states: list[RunState] = field(default_factory=lambda: [RunState.SUCCEEDED])
    lines: list[LogBlock] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def target(self, job: JobSpec) -> Target:
        if self.place is None:
            raise UsageError("the test sets no target", code="ZL-OPT-03")
        return self.place

    def submit(self, run: RunDir, plan: RunPlan, secrets: dict[str, str]) -> tuple[str, ...]:
        self.submitted.append(run.run_id)
        return (f"fake:{len(self.submitted)}",)

    def state(self, run: RunDir) -> RunState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def is_alive(self, run: RunDir) -> bool:
        return not self.states[0].is_final

    def logs(
        self, run: RunDir, *, rank: int | None = None, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogBlock]:
        return iter([line for line in self.lines if rank is None or line.rank == rank])

    def cancel(self, run: RunDir, *, checkpoint: bool = True) -> None:
        self.cancelled.append(run.run_id)
