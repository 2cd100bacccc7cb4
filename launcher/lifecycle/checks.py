"""Checks before anything is written or started: files, records, settings and secrets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher.backends import container_choice
from launcher.errors import DataError, SpecError, UsageError
from launcher.job.notify_address import check_values, variable_of
from launcher.job.spec import Job, JobSpec
from launcher.job.trackers import variables_of
from launcher.machine import facts, process, trainer
from launcher.machine.process import CommandError
from launcher.plan.types import RunPlan
from launcher.rundir.directory import RunDir
from train.config import HUBS, Data, Source, quotas
from train.rundir import checkpoints

RECORDED = (
    "seed", "global_batch_size", "train.optimizer", "lora.r", "lora.alpha", "lora.rslora", "lora.init",
    "lora.rank_pattern", "lora.alpha_pattern", "lora.layers_to_transform",
)  # fmt: skip
"""Settings that a checkpoint records, and that later starts cannot change (train.training.checkpoint)."""


def check_checkpoint_settings(run: RunDir, run_plan: RunPlan) -> None:
    """Raise UsageError for settings that differ from those of the newest checkpoint, if it is on this machine.

    The training program refuses them too, but only after the run directory was rewritten.
    """
    steps = run.checkpoint_steps()
    if not steps or run_plan.train is None:
        return
    checkpoint = run.checkpoints / f"step-{steps[-1]}"
    recorded = checkpoints.recorded(checkpoint)
    if recorded is None:
        return  # the training program reports it, and uses an earlier one
    numbers = run_plan.train.train
    now = {"seed": numbers.seed, "global_batch_size": numbers.global_batch_size, "train.optimizer": numbers.optimizer}
    recorded = {"train.optimizer": "adamw", **recorded}  # an older version had no other
    if run_plan.train.lora.adapter is None:  # else they are the adapter's, and version 0.1 recorded the job's
        as_recorded = msgspec.json.decode(msgspec.json.encode(run_plan.train.lora))
        now.update({f"lora.{key}": value for key, value in as_recorded.items()})
    for name in RECORDED:
        if name in now and recorded.get(name, now[name]) != now[name]:
            raise UsageError(
                f"{name} is {now[name]}, but the checkpoint of step {steps[-1]} was made with {name} {recorded[name]}",
                hint="resume with the settings of the run, or start a new run with these",
                code="ZL-RUN-08",
            )


def read_secrets(job: Job, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The values of the job's secrets, and the variables of its trackers. Raises UsageError naming those not set."""
    spec, environ = job.spec, {**(os.environ if environ is None else environ), **job.held}
    names = spec.secret_names
    missing = [name for name in names if name not in environ]
    given = {"url": spec.notify.url, "sign": spec.notify.sign}
    of_notices = {key: name for key, value in given.items() if value and (name := variable_of(value))}
    if missing:
        key = next((key for key, name in of_notices.items() if name == missing[0]), None)
        leave_out = f"leave it out: --set notify.{key}=null" if key else "remove it from `secrets:`"
        raise UsageError(
            f"secrets not set in the environment: {', '.join(missing)}",
            hint=f"export {missing[0]}=..., or {leave_out}",
            code="ZL-JOB-04",
        )
    found = {name: environ[name] for name in names}
    check_values(of_notices, found)
    trackers = () if spec.program else spec.train.trackers
    return {**variables_of(trackers, environ, spec.env), **found}


def check_program(job: JobSpec, backend: str) -> None:
    """Raise UsageError if the program is a Python file that is missing, unless the ranks see other files than we do."""
    if backend == "ssh" or (backend == "slurm" and job.slurm.login is not None):
        return
    script = job.program[0] if job.program else ""
    if script.endswith(".py") and not Path(script).is_file() and not container_choice.in_container(job, backend):
        raise UsageError(
            f"no such program: {script}", hint=f"paths after `--` are relative to {Path.cwd()}", code="ZL-FILE-02"
        )


def check_python(job: JobSpec) -> None:
    """Raise TargetError if the interpreter of a job here does not exist or lacks the packages that it needs."""
    from launcher.backends.ssh import requirements

    brings_its_own = job.program or container_choice.in_container(job, "local")
    facts.check_python(job.local.python or facts.this_python(), () if brings_its_own else requirements.NEEDED)


def check_inputs(job: JobSpec, backend: str) -> None:
    """Raise SpecError or DataError for missing data, or a model or adapter missing on this machine."""
    if job.program:
        return
    if not job.model.path and job.model.source != "random":
        raise SpecError(
            "model.path is not set",
            hint="set a hub id such as Qwen/Qwen3-8B, or a local directory, with --model or in a job file "
            "(`zlaunch init` writes one)",
            code="ZL-JOB-03",
        )
    if not job.data.train:
        raise SpecError(
            "data.train is not set",
            hint="set a JSONL file of instruction / input / output records, with --train-data or in a job file",
            code="ZL-JOB-03",
        )
    remote = backend == "slurm" and job.slurm.login is not None
    for key, path in job.data.paths:
        # The Slurm backend checks a file of the cluster there.
        if "://" not in path and not path.startswith(HUBS) and not (remote and not Path(path).exists()):
            _check_file(key, Path(path))
    for key, path, holds in (
        ("model.path", job.model.path, "config.json and the weights"),
        ("lora.adapter", job.lora.adapter or "", "adapter_config.json and its weights"),
    ):
        if path.startswith(("/", "~", ".")) and backend == "local" and not Path(path).expanduser().is_dir():
            raise DataError(
                f"{key}: no such directory: {path}", hint=f"a local path must contain {holds}", code="ZL-MODEL-01"
            )


class RecordCounts(NamedTuple):
    """Records of an epoch of data.train, and of data.eval; None: not counted here, or too many to count."""

    train: int | None = None
    held_out: int | None = None


def check_records(job: JobSpec, model: Path | None = None) -> RecordCounts:
    """Read the first records of the job's files on this machine, and the names in the model's files. Raises DataError.

    A missing key is better found here than after hours in a queue, or after minutes of loading a model. `model`: the
    directory with its files, if it is here.
    """
    files = _files_here(job.data)
    if job.model.source not in ("huggingface", "modelscope"):
        model = None
    if job.program or not (files or model):
        return RecordCounts()
    result = _quickcheck(job.data, model, files, "--lora", msgspec.json.encode(job.lora).decode())
    if result.code == 2:
        told = trainer.told(result.stderr)
        raise DataError("\n".join(told.message), hint=told.hint, code=told.code)
    if result.code:
        raise CommandError(result, "cannot check the records and the model")
    if job.data.documents:  # how many sequences they become, only the tokenizer knows
        return RecordCounts()
    counts: dict[str, int | None] = msgspec.json.decode(result.stdout)
    limited = [source.limited(counts.get(source.path) or 0) for source in job.data.train_sources]
    known = all(counts.get(source.path) is not None for source in job.data.train_sources)
    trained = sum(quotas(job.data, limited)) if known else None
    if (held := job.data.held_out) is None:
        return RecordCounts(trained, _counted(job.data.eval_sources, counts))
    records = sum(limited)
    if not records or trained is None:
        return RecordCounts(trained, None)
    return RecordCounts(round(trained * (1 - held.of(records) / records)), held.of(records))


def _counted(sources: Iterable[Source], counts: Mapping[str, int | None]) -> int | None:
    known = [(source, counts.get(source.path)) for source in sources]
    if any(count is None for _, count in known):
        return None
    return sum(round(source.weight * (count or 0)) for source, count in known)


def turn_cost(job: JobSpec) -> dict[str, float] | None:
    """Records, sequences and times the text of the first records, where the chat template makes a sequence per answer.

    None where the template or the records are not on this machine, or records cannot be read.
    """
    files = _files_here(job.data)
    model = facts.model_directory(job.model.path, job.env)
    if not files or model is None:
        return None
    result = _quickcheck(msgspec.structs.replace(job.data, eval=None), model, files, "--turns")
    found: dict[str, float] | None = msgspec.json.decode(result.stdout) if result.code == 0 else None
    return found if found and found["sequences"] > found["records"] else None


def _files_here(data: Data) -> list[str]:
    """The data files that are on this machine."""
    return [source for (_, source), (_, path) in zip(data.sources, data.paths, strict=True) if Path(path).exists()]


def _quickcheck(data: Data, model: Path | None, files: Iterable[str], *options: str) -> process.Result:
    """What `python -m train.quickcheck` prints, and its exit status."""
    argv = [facts.this_python(), "-m", "train.quickcheck", "--data", msgspec.json.encode(data).decode(), *options]
    argv += ["--model", str(model.absolute())] if model else []
    return process.run([*argv, "--", *files], env=trainer.environment(), cwd=trainer.NEUTRAL, check=False)


def count_records(job: JobSpec) -> tuple[int, float]:
    """(records per epoch, their bytes); zeros if one of the files cannot be counted here."""
    used, each = [], []
    documents = job.data.documents
    for source in job.data.train_sources:
        file = Path(source.path).expanduser()
        if file.suffix != ".jsonl" and not (documents and file.suffix in (".txt", ".md")):
            return 0, 0
        try:
            with file.open("rb") as lines:
                sizes = (len(line) for line in lines if line.strip())
                if not documents:
                    held = sum(1 for _ in sizes)
                elif file.suffix == ".jsonl":
                    held = sum(_parts(job.data, size) for size in sizes)
                else:
                    held = _parts(job.data, sum(sizes))
            used.append(source.limited(held))
            each.append(file.stat().st_size / max(1, held))
        except OSError:
            return 0, 0
    kept = sum(used)
    share = 1.0 if job.data.held_out is None or not kept else 1 - job.data.held_out.of(kept) / kept
    taken = quotas(job.data, [round(share * count) for count in used])
    return sum(taken), sum(count * size for count, size in zip(taken, each, strict=True))


def _parts(data: Data, size: int) -> int:
    """About how many sequences a document of so many bytes becomes."""
    return max(1, -(-int(size / BYTES_PER_TOKEN) // max(1, data.max_length - data.document_overlap)))


BYTES_PER_TOKEN = 3.5


def _check_file(key: str, path: Path) -> None:
    try:
        if path.is_dir() or path.stat().st_size > 0:
            return
    except OSError as error:
        raise DataError(
            f"{key}: cannot read {path}: {error.strerror}",
            hint=f"correct {key}: paths in a job file are relative to the file, paths on the command line to the "
            "working directory",
        ) from error
    raise DataError(f"{key}: {path} is empty")
