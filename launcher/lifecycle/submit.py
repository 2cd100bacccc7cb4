"""From a job to a running run, in the same steps for every backend:

    job_file.load_job -> prepare (plan, render, write the run directory) -> submit

A dry run stops before the last step. A real submit uses exactly the files that a dry run writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.backends import container_choice
from launcher.backends.base import Backend
from launcher.errors import RunNotFound, TargetError, UsageError
from launcher.job.load import dump_job
from launcher.job.spec import Job
from launcher.lifecycle.checks import RecordCounts, check_checkpoint_settings, check_inputs, check_records
from launcher.lifecycle.interrupted import StartInterrupted, cancel_start
from launcher.machine import facts, installation
from launcher.machine.storage import written
from launcher.plan.resolve import plan
from launcher.plan.types import RunPlan, Target
from launcher.render import snapshot, texts
from launcher.rundir import find, summary
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState


def with_batch_of_last_start(job: Job, run: RunDir) -> Job:
    """The job with the batch that `auto` chose at the last start of the run, which other ranks must not change."""
    train = run.read_json(job_to_resume(run).with_name(run.train_json.name)) or {}
    if isinstance(job.spec.train.global_batch_size, int) or "train" not in train:
        return job
    size = train["train"]["global_batch_size"]
    return dataclasses.replace(job, spec=job.spec.with_values({"train.global_batch_size": size}))


def prepare(
    job: Job,
    target: Target,
    *,
    run: RunDir | None = None,
    into: RunDir | None = None,
    records_checked: bool = False,
) -> tuple[RunDir, RunPlan]:
    """Check, plan and write the run directory. Raises UsageError or TargetError before anything is written.

    `run`: a run to resume, else a new one. `into`: another directory to write the files of `run` to.
    """
    if run is not None:
        job = with_batch_of_last_start(job, run)
    adapter = facts.adapter_config(job.spec.lora.adapter)
    model = facts.model_files(job.spec.model.path, job.spec.env)
    check_inputs(job.spec, target.backend)
    records = RecordCounts() if records_checked else check_records(job.spec, model.directory)
    container = container_choice.choose_container(job.spec, target.backend, target.device)
    here = run or find.new_run(job.spec.name)
    run_plan = plan(
        job.spec,
        target,
        run_id=here.run_id,
        model_config=model.config,
        adapter_config=adapter,
        container=container,
        records=records.train,
        held_out=records.held_out,
    )
    if run is not None:
        check_checkpoint_settings(run, run_plan)
    write_files(into or here, run_plan, job)
    return into or here, run_plan


def job_to_resume(run: RunDir) -> Path:
    """The job file of the last start, or of the one before if the training program refused the last one's settings."""
    earlier = run.before / run.job_yaml.name
    return earlier if earlier.exists() and summary.refused_settings(run) else run.job_yaml


def write_files(run: RunDir, run_plan: RunPlan, job: Job) -> None:
    """Write every file of the run directory that exists before the run starts. Keep those of the start before."""
    job_text, rendered = dump_job(job), texts.render(run_plan)
    is_new = not run.path.exists()
    try:
        if run.job_yaml.exists() and not summary.refused_settings(run):
            run.keep_rendered()
        run.write({run.job_yaml.name: job_text, **rendered})
        sources = installation.agent_sources()
        if run_plan.train is not None:
            sources["train"] = installation.train_package()
        with written(run.path):
            snapshot.snapshot_code(run.code, sources)
    except OSError:  # half a run directory would pass for one that can be started
        if is_new:
            shutil.rmtree(run.path, ignore_errors=True)
        else:
            run.put_rendered_back()
        raise


def submit(run: RunDir, run_plan: RunPlan, backend: Backend, secrets: Mapping[str, str], **record: Any) -> RunRecord:
    """Start a prepared run and write its record.

    Raises TargetError; then nothing of the run is running, and a resumed run is unchanged. A Ctrl-C, or a cancel by
    another command, cancels the start and raises StartInterrupted.
    """
    run.claim("start")
    with contextlib.suppress(OSError):  # a full disk; agents then compile what they import
        snapshot.compile_code(run.code / "node")
    before = write_record(run, run_plan, **record)
    try:
        ids = backend.submit(run, run_plan, dict(secrets))
        started = record_start(run, run_plan, ids)
        if started.state == "CANCELLED":
            raise KeyboardInterrupt
        return started
    except KeyboardInterrupt:
        raise _end_start(run, backend) from None
    except StartNotRecorded:
        raise
    except BaseException as error:
        if isinstance(error, TargetError) and _is_cancelled(run):  # the cancel killed what this command was starting
            raise _end_start(run, backend) from error
        record_failed_start(run, before, error)
        raise
    finally:
        run.release()


def _end_start(run: RunDir, backend: Backend) -> StartInterrupted:
    """End what has started of a run already, and record that."""
    elsewhere = _is_cancelled(run)
    cancelled = cancel_start(run, backend)
    run.update_record(state="CANCELLED" if cancelled else "RUNNING")
    return StartInterrupted(cancelled, elsewhere=elsewhere)


def _is_cancelled(run: RunDir) -> bool:
    """Whether another command has recorded that it cancelled the run."""
    with contextlib.suppress(RunNotFound):  # its record is damaged or gone
        return run.record.state == "CANCELLED"
    return False


class StartNotRecorded(TargetError):
    """The target has accepted the run, and only its record could not be written."""

    code = "ZL-FILE-03"


def refuse_half_removed(run: RunDir) -> None:
    """Raise UsageError for a run whose removal was interrupted: its checkpoints on other machines may be gone."""
    if find.REMOVAL in run.record.extra:
        raise UsageError(
            f"{run.run_id} is half removed", hint=f"zlaunch rm {run.run_id} removes the rest", code="ZL-RUN-03"
        )


def refuse_if_not_resumable(run: RunDir, state: RunState, changed: bool) -> None:
    """Raise UsageError for a run that is running or half removed, or that has succeeded and whose job is unchanged."""
    refuse_half_removed(run)
    if not state.is_final:
        raise UsageError(
            f"{run.run_id} is {state.value}", hint=f"cancel it first: zlaunch cancel {run.run_id}", code="ZL-RUN-03"
        )
    if state is RunState.SUCCEEDED and not changed:
        hint = f"to train longer: zlaunch resume {run.run_id} --set train.epochs=N"
        raise UsageError(f"{run.run_id} has succeeded", hint=hint, code="ZL-RUN-03")


def record_start(run: RunDir, run_plan: RunPlan, ids: tuple[str, ...]) -> RunRecord:
    """Record that the target accepted the run, and its identifiers there."""
    try:
        run.update_record(ids=ids, submitted=time.time())
        # Another command may have cancelled the run during its start. Then this start ends what it has started.
        record = run.update_record(only_if=lambda now: now.state != "CANCELLED", state="PENDING")
    except OSError as error:
        raise StartNotRecorded(
            f"{run.run_id} was started ({' '.join(ids)}), but {run.run_json} cannot be written: {error.strerror}",
            hint=f"free some space, then: zlaunch status {run.run_id}",
        ) from error
    with contextlib.suppress(OSError):
        run.event("submitted", backend=run_plan.backend, ids=list(ids))
    return record


def write_record(run: RunDir, run_plan: RunPlan, **record: Any) -> RunRecord | None:
    """Write the record of a start that is about to begin. Returns the record of the start before, if any."""
    before = run.record if run.run_json.exists() else None
    log = run.rank_log(0, 0)
    run.save_record(
        RunRecord(
            run_id=run.run_id,
            name=run_plan.name,
            backend=run_plan.backend,
            created=before.created if before else time.time(),
            zlaunch=__version__,
            log_start=log.stat().st_size if log.exists() else 0,
            **record,
        )
    )
    return before


def record_failed_start(run: RunDir, before: RunRecord | None, error: BaseException) -> None:
    """Record a refused start: a new run has failed, and a resumed run goes back to what it was.

    On a full disk nothing can be recorded; the error itself is what the user must see.
    """
    with contextlib.suppress(OSError):
        run.event("not_started", error=str(error) or type(error).__name__, hint=getattr(error, "hint", None))
        if before is None:
            run.update_record(state="FAILED")
        else:
            run.put_rendered_back()
            run.save_record(before)
