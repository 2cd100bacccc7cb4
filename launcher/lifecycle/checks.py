"""What is refused before anything is written or started: files, records, settings and secrets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from launcher.errors import DataError, SpecError, UsageError
from launcher.job.paths import source_paths
from launcher.job.spec import JobSpec
from launcher.machine import facts, process, trainer
from launcher.machine.process import CommandError
from launcher.plan.types import RunPlan
from launcher.rundir.directory import RunDir

RECORDED = ("seed", "global_batch_size", "lora.r", "lora.alpha", "lora.rslora", "lora.init")
"""What a checkpoint records of the settings it was made with, fixed for later starts (train.training.checkpoint)."""


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


def check_inputs(job: JobSpec, backend: str) -> None:
    """What can be known to fail before anything starts: absent data, an absent model or adapter of this machine."""
    if job.program:
        return
    if not job.model.path and job.model.source != "random":
        raise SpecError("model.path is not set", hint="a hub id such as Qwen/Qwen3-8B, or a local directory")
    if not job.data.train:
        raise SpecError("data.train is not set", hint="a JSONL file of instruction / input / output records")
    elsewhere = backend == "slurm" and job.slurm.login is not None
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
        if path.startswith(("/", "~", ".")) and backend == "local" and not Path(path).expanduser().is_dir():
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
