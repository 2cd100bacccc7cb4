"""From a request to a running run, the same steps for every backend:

    load_job -> plan -> render -> prepare (run directory) -> submit

A dry run stops before the last step; a real submit uses exactly the files it wrote.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher import __version__, assets, facts, image, process, render, runs, spec, summary, trainer
from launcher.backends.base import Backend
from launcher.errors import DataError, SpecError, TargetError, UsageError
from launcher.plan import RunPlan, Target, plan
from launcher.process import CommandError
from launcher.runs import RunDir, RunRecord
from launcher.spec import Job, JobSpec, source_paths
from launcher.takeback import StartInterrupted, take_back

RECORDED = ("seed", "global_batch_size", "lora.r", "lora.alpha", "lora.rslora", "lora.init")
"""What a checkpoint records of the settings it was made with, and no later start may change (train/checkpoint.py)."""


def load_job(
    file: Path | None, *, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None, smoke: bool = False
) -> Job:
    """The job to run: `file`, else job.yaml of the working directory, else the one that ships; then flags.

    A smoke run keeps a named job's target settings and replaces what is trained. Raises SpecError.
    """
    overlay = assets.path("templates") / "smoke.yaml" if smoke else None
    if file is None and not smoke and not (flags or {}).get("program"):
        here = Path("job.yaml")
        file = here if here.exists() else assets.path("templates") / "demo" / "job.yaml"
    return spec.load(file, overrides, flags, overlay=overlay)


def prepare(
    job: Job,
    target: Target,
    *,
    root: Path | None = None,
    run: RunDir | None = None,
    into: RunDir | None = None,
    records_checked: bool = False,
) -> tuple[RunDir, RunPlan]:
    """Plan, render and write the run directory (a new one, or `run` again for a resume; or, of `run`, only `into`).

    What is refused here is refused before anything is written.
    """
    check_inputs(job.spec, target)
    if target.backend != "local" and not records_checked:
        check_records(job.spec)
    run = run or RunDir((root or runs.runs_root()) / runs.new_run_id(job.spec.name))
    settled = image.settled(job.spec, target.backend, target.device)
    config = facts.model_config(job.spec.model.path, job.spec.env)
    run_plan = plan(settled, target, run_id=run.run_id, model_config=config)
    refuse_other_adapter(run, run_plan)
    if into is None and run.job_yaml.exists() and not summary.refused_settings(run):
        run.keep_rendered()
    write(into or run, run_plan, job)
    return into or run, run_plan


def refuse_other_adapter(run: RunDir, run_plan: RunPlan) -> None:
    """Settings that the newest checkpoint, where it lies here, was not made with. Raises UsageError.

    The training program refuses them too, but by then the run has been written anew.
    """
    steps = run.checkpoint_steps()
    if not steps or run_plan.train is None:
        return
    made = run.read_json(run.checkpoints / f"step-{steps[-1]}" / "state.json") or {}
    now = {"seed": run_plan.train.train.seed, "global_batch_size": run_plan.train.train.global_batch_size}
    now.update({f"lora.{key}": value for key, value in msgspec.structs.asdict(run_plan.train.lora).items()})
    for name in RECORDED:
        if made.get(name, now[name]) != now[name]:
            raise UsageError(
                f"the checkpoint of step {steps[-1]} was made with {name} {made[name]}, "
                f"and this start asks for {now[name]}",
                hint="resume with the settings of the run, or start a new run with these",
            )


def job_to_resume(run: RunDir) -> Path:
    """The job of the last start; of the one before, if the training program refused what the last had changed."""
    earlier: Path = run.before / "job.yaml"
    return earlier if earlier.exists() and summary.refused_settings(run) else run.job_yaml


def write(run: RunDir, run_plan: RunPlan, job: Job) -> None:
    """Write every file of the run directory that exists before the run starts."""
    run.write({"job.yaml": job_text(job), **render.render(run_plan)})
    sources = assets.agent_sources()
    if run_plan.train is not None:
        sources["train"] = assets.train_package()
    runs.snapshot_code(run, sources)
    runs.compile_code(run.code / "node")


def job_text(job: Job) -> str:
    """The job as asked for, flags merged in; read again, it is the same job."""
    text = yaml.safe_dump(job.tree, allow_unicode=True, sort_keys=False)
    return f"# {job.origin}, with the flags of the command line\n{text}"


def submit(run: RunDir, run_plan: RunPlan, backend: Backend, secrets: Mapping[str, str], **record: Any) -> RunRecord:
    """Start a prepared run and write its record. Raises TargetError; then nothing of the run is left running, and a
    resume has changed nothing of it.

    A Ctrl-C takes the start back and goes on as StartInterrupted.
    """
    before = write_record(run, run_plan, **record)
    try:
        ids = backend.submit(run, run_plan, dict(secrets))
    except KeyboardInterrupt:  # it may have started all the same
        ended = take_back(run, backend)
        run.update_record(state="CANCELLED" if ended else "RUNNING")
        raise StartInterrupted(ended) from None
    except BaseException as error:
        not_started(run, before, error)
        raise
    run.event("submitted", backend=run_plan.backend, ids=list(ids))
    return run.update_record(ids=ids, submitted=time.time(), state="PENDING")


def write_record(run: RunDir, run_plan: RunPlan, **record: Any) -> RunRecord | None:
    """Write the record of a start that is about to begin; that of the start before, if there was one."""
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


def not_started(run: RunDir, before: RunRecord | None, error: BaseException) -> None:
    """Write down that a start was refused: a first one has failed, a resume leaves the run as it was."""
    run.event("not_started", error=str(error) or type(error).__name__, hint=getattr(error, "hint", None))
    if before is None:
        run.update_record(state="FAILED")
    else:
        run.put_rendered_back()
        run.save_record(before)


def read_secrets(names: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The secrets' values from the environment. Raises UsageError naming those that are not set."""
    environ = os.environ if environ is None else environ
    missing = [name for name in names if name not in environ]
    if missing:
        raise UsageError(
            f"secrets not set in the environment: {', '.join(missing)}",
            hint=f"export {missing[0]}=..., or take it out of `secrets:`",
        )
    return {name: environ[name] for name in names}


def check_inputs(job: JobSpec, target: Target) -> None:
    """What can be known to fail before anything starts: absent data, an absent model or adapter of this machine."""
    if job.program:
        return
    if not job.model.path and job.model.source != "random":
        raise SpecError("model.path is not set", hint="a hub id such as Qwen/Qwen3-8B, or a local directory")
    if not job.data.train:
        raise SpecError("data.train is not set", hint="a JSONL file of instruction / input / output records")
    elsewhere = target.backend == "slurm" and job.slurm.login is not None
    for key, sources in (("data.train", job.data.train), ("data.eval", job.data.eval or ())):
        for path in source_paths(sources):
            if "://" in path or path.startswith("hub:"):
                continue
            if elsewhere and not Path(path).exists():
                continue  # the cluster's own; the Slurm backend asks there
            _check_file(key, Path(path))
    for key, path, holds in (
        ("model.path", job.model.path, "config.json and the weights"),
        ("lora.adapter", job.lora.adapter or "", "adapter_config.json and its weights"),
    ):
        if path.startswith(("/", "~", ".")) and target.backend == "local" and not Path(path).expanduser().is_dir():
            raise DataError(f"{key}: no directory {path}", hint=f"a local path must hold {holds}")


def check_records(job: JobSpec) -> None:
    """The first records of the job's files that lie here, before they are queued or sent: a cluster's queue is a slow
    way to learn of a missing key. Raises DataError."""
    here = [path for sources in (job.data.train, job.data.eval or ()) for path in source_paths(sources)]
    # tables and hub data sets need packages that only a training environment has
    files = [path for path in here if Path(path).is_file() and not path.endswith(".parquet")]
    if not files or job.program:
        return
    # with `=`: a system message may begin with a dash
    words = [f"--on-error={job.data.on_error}", *([f"--system={job.data.system}"] if job.data.system else [])]
    argv = [facts.this_python(), "-m", "train.quickcheck", *words, *files]
    result = process.run(argv, env=trainer.environment(), check=False)
    if result.code == 2:
        said, advice = trainer.refusal(result.stderr)
        raise DataError("\n".join(said), hint=advice)
    if result.code:
        raise CommandError(result, "the records could not be looked at")


def _check_file(key: str, path: Path) -> None:
    try:
        if path.is_dir() or path.stat().st_size > 0:
            return
    except OSError as error:
        raise DataError(
            f"{key}: cannot read {path}: {error.strerror}",
            hint=f"correct {key}; paths in a job file are relative to that file, on the command line to this directory",
        ) from error
    raise DataError(f"{key}: {path} is empty")


def local_target(job: JobSpec) -> Target:
    """Facts of this machine for `zlaunch local`. Raises TargetError when it has not what the job asks for."""
    gpus = facts.local_gpus() if job.device != "cpu" else ()
    shared = bool(gpus) and os.environ.get("ZLAUNCH_SHARE_GPU") == "1"  # several ranks on GPU 0, see train/dist.py
    device, ranks = local_ranks(job, max(len(gpus), job.local.gpus or 0) if shared else len(gpus))
    gpus = gpus[:ranks]
    master_port, control_port = facts.free_ports(2)
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    return Target(
        backend="local",
        device=device,
        hosts=(("localhost", ranks),),
        python=job.local.python or facts.this_python(),
        master_port=master_port,
        control_port=control_port,
        token=facts.new_token(),
        cwd=os.getcwd(),
        gpu_memory_bytes=min((gpu.memory_bytes for gpu in gpus), default=None),
        gpu_name=gpus[0].name if gpus else None,
        compute_capability=min(capabilities, default=None),
    )


def local_ranks(job: JobSpec, gpus: int) -> tuple[Any, int]:
    """(device, ranks) on a machine with `gpus` GPUs."""
    if job.device == "cpu":
        if job.local.gpus:
            raise UsageError("--gpus and --device cpu contradict each other", hint="on a CPU say --procs N")
        return "cpu", job.local.procs or 1
    if job.local.gpus and gpus < job.local.gpus:
        hint = f"say --gpus {gpus}, or free the others" if gpus else "say --device cpu --procs N to train on the CPU"
        raise TargetError(f"{job.local.gpus} GPUs asked for, {gpus} found on this machine", hint=hint)
    if job.device == "cuda" and not gpus:
        raise TargetError("no GPU found on this machine", hint="say --device cpu --procs N to train on the CPU")
    if not gpus:
        return "cpu", job.local.procs or 1
    return "cuda", job.local.gpus or gpus


def refuse_procs_on_gpus(procs: int | None, target: Target) -> None:
    """A --procs on the command line that would count for nothing; in a job file it waits for a machine without GPUs."""
    if procs and target.device == "cuda":
        raise UsageError(
            "--procs counts ranks on a CPU, and this machine has GPUs", hint="say --gpus N, or --device cpu --procs N"
        )
