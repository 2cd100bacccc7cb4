"""What `import zlaunch` offers: jobs, plans and runs from Python, by the same path as the commands."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.backends import backend_of, backend_of_run, current_state, target_of
from launcher.errors import RunFailed
from launcher.job.load import dump_job, read_job
from launcher.job.spec import Job as LoadedJob
from launcher.job.spec import JobSpec
from launcher.lifecycle import cancel as cancelling
from launcher.lifecycle import checks, forecast, submit
from launcher.lifecycle.interrupted import StartInterrupted
from launcher.rundir import find, reading, summary
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState

Place = Literal["local", "ssh", "slurm"]

POLL_SECONDS = {"local": 0.2, "ssh": 1.0, "slurm": 5.0}
"""Between two questions of `Run.wait`."""


class Job:
    """What to train: a job file, values by section, or both. The values win.

        Job("job.yaml")
        Job("job.yaml", train={"epochs": 3})
        Job(model={"path": "Qwen/Qwen3-8B"}, data={"train": "data/train.jsonl"}, name="first")

    Sections and keys are those of docs/job.md. Relative paths of a file are relative to it, those of values to the
    working directory. Raises SpecError with every mistake.
    """

    def __init__(self, file: str | os.PathLike[str] | None = None, **values: Any) -> None:
        path = None if file is None else Path(file)
        self._loaded = read_job(path, flags=_plain(values), given_by="zlaunch.Job()")

    @property
    def spec(self) -> JobSpec:
        """Every key with its value, as the job has it: `job.spec.train.epochs`."""
        return self._loaded.spec

    def yaml(self) -> str:
        """The text of a job file that says the same."""
        return dump_job(self._loaded)

    def __repr__(self) -> str:
        return f"<Job {self.spec.name!r} of {self._loaded.origin}>"


@dataclass(frozen=True)
class Setting:
    """A setting of a plan, and why it is so."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """Memory, speed and settings of a job on given GPUs, as `zlaunch plan` shows them. Sizes are in bytes per GPU."""

    fits: bool
    gpu: str
    gpu_assumed: bool
    """The GPU was not named, and this machine has none."""
    world_size: int
    """GPUs of all nodes."""
    peak_bytes: int
    """At the peak of a step; of the smallest settings if the job does not fit."""
    room_bytes: int
    parts: Mapping[str, int]
    """What the peak consists of."""
    settings: Mapping[str, Setting]
    """Empty if the job does not fit."""
    tokens_per_second: int | None
    """On all GPUs together."""
    steps: int | None
    """None where the records cannot be counted here."""
    hours: float | None
    error: str | None
    """Why the job does not fit."""
    changes: tuple[str, ...]
    """What would make it fit."""


class Run:
    """A run, here or on other machines. It does not depend on this process: it goes on when Python ends."""

    def __init__(self, directory: RunDir) -> None:
        self._run = directory

    @property
    def id(self) -> str:
        return self._run.run_id

    @property
    def path(self) -> Path:
        """The run directory; of a run on other machines, the copy here."""
        return self._run.path

    @property
    def state(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED or LOST now. Raises TargetError if its place is silent."""
        return current_state.current(self._run).value

    def picture(self) -> Picture:
        """All that is known of the run now, as `zlaunch status` shows it: progress, curve, nodes, scores, verdict."""
        return reading.read(self._run, current_state.current(self._run))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far, one per step: step, loss, learning_rate, grad_norm, tokens and so on."""
        current_state.current(self._run)  # copies what is new from other machines
        return self._run.read_metrics()

    def logs(self, *, rank: int | None = None, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """Lines of the logs so far, of one rank if given; with `follow`, also those to come."""
        backend = backend_of_run(self._run)
        for block in backend.logs(self._run, rank=rank, follow=follow, tail=tail):
            yield from block.lines

    def wait(self, timeout: float | None = None) -> str:
        """Wait until the run is over, at most `timeout` seconds; return its state.

        Raises TimeoutError, and TargetError if its place is silent; the run goes on then, as after a Ctrl-C.
        """
        from launcher.show.page import write

        end = None if timeout is None else time.monotonic() + timeout
        pause = POLL_SECONDS.get(self._run.record.backend, 1.0)
        while not (state := current_state.current(self._run)).is_final:
            left = pause if end is None else end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{self.id} is {state.value} after {timeout:g} s; it goes on")
            time.sleep(min(pause, left))
        write.write_if_new(self._run, state)
        return state.value

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end and return result.json: losses, scores, speed; empty for a program of your own.

        Raises RunFailed with the cause unless the run succeeded, and what `wait` raises.
        """
        if (state := self.wait(timeout)) != RunState.SUCCEEDED.value:
            found = summary.failure(self._run) or {}
            advice = "; ".join(found.get("advice", ())) or f"zlaunch status {self.id}"
            raise RunFailed(f"{self.id} is {state}: {found.get('message', 'it did not succeed')}", hint=advice)
        return self._run.read_json(self._run.result_json) or {}

    def cancel(self, *, checkpoint: bool = True) -> str:
        """Stop the run, after a last checkpoint unless told otherwise; return its state when nothing of it is left.

        Raises TargetError if some of its processes may still run.
        """
        state = cancelling.cancel_run(self._run, checkpoint=checkpoint).state
        return state or self.state

    def resume(self, **values: Any) -> Run:
        """Continue from the newest complete checkpoint; return at the start. `values` change the job, as in `Job`.

        Raises UsageError for a run that goes on, or that has succeeded and whose job is unchanged.
        """
        self._run.claim("resume")
        try:
            submit.refuse_if_not_resumable(self._run, current_state.observed(self._run), bool(values))
            file = submit.job_to_resume(self._run)
            job = read_job(file, flags=_plain(values), given_by="Run.resume()")
            _start(job, self._run.record.backend, self._run)
        finally:
            self._run.release()
        return self

    def __repr__(self) -> str:
        return f"<Run {self.id}: {self._run.record.state}>"


def plan(
    job: Job, *, gpu: str | None = None, gpu_memory: str | None = None, nodes: int = 1, gpus_per_node: int | None = None
) -> Plan:
    """Predict memory, speed and settings of a job, as `zlaunch plan` does; needs no GPU.

    `gpu`: h100, a100-80, 4090 and so on; the default is this machine's, or an assumed H100. `gpu_memory`: "24GiB", for
    a GPU that has no name here. Raises UsageError for a job that cannot be planned.
    """
    there, assumed = forecast.situation_of(gpu, gpu_memory, nodes, gpus_per_node or job.spec.local.gpus or 1)
    row = forecast.report(forecast.forecast(job.spec, there, assumed=assumed))
    work = row.get("work") or {}
    return Plan(
        fits=row["fits"],
        gpu=row["gpu"],
        gpu_assumed=row["gpu_assumed"],
        world_size=row["world_size"],
        peak_bytes=row["predicted_peak_bytes"],
        room_bytes=row["room_bytes"],
        parts=row["parts"],
        settings={key: Setting(**item) for key, item in row.get("settings", {}).items()},
        tokens_per_second=row.get("tokens_per_second"),
        steps=work.get("steps"),
        hours=work.get("hours"),
        error=row.get("error"),
        changes=tuple(change["change"] for change in row.get("changes", ())),
    )


def run(job: Job, on: Place = "local") -> Run:
    """Start a job on this machine, on its hosts or on its Slurm cluster; return as soon as it has started.

    What the plan has to say comes as a warning. Raises UsageError, and TargetError where the place refuses; then
    nothing is left running.
    """
    return Run(_start(job._loaded, on))


def runs() -> list[Run]:
    """The runs of ./runs, or of the directory that ZLAUNCH_RUNS names, oldest first; without dry runs."""
    return [Run(found) for found in find.list_runs(find.runs_root()) if not find.is_dry_run(found)]


def find_run(text: str) -> Run:
    """The run of that name, id, prefix of an id, or path; "last" is the one started last. Raises RunNotFound."""
    return Run(find.find_run(text, find.runs_root()))


def _start(job: LoadedJob, place: str, resumed: RunDir | None = None) -> RunDir:
    """Check, plan, write and submit, like the command of that name with --detach."""
    backend = backend_of(place)
    if resumed is None:
        checks.check_program(job.spec, place)
    checks.check_inputs(job.spec, place)
    target = target_of(place, job.spec)
    if place == "local":
        checks.check_python(job.spec)
    secrets = checks.read_secrets(job)
    directory, planned = submit.prepare(job, target, run=resumed)
    for note in planned.notes:
        warnings.warn(note, stacklevel=3)
    record = {"extra": resumed.record.extra} if resumed is not None else {}
    try:
        submit.submit(directory, planned, backend, secrets, **record)
    except StartInterrupted as start:
        if start.elsewhere:
            raise RunFailed(
                f"{directory.run_id} was cancelled during its start by another command", code="ZL-RUN-06"
            ) from start
        raise
    return directory


def _plain(value: Any) -> Any:
    """Mappings, sequences and paths as a job file has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
