"""What a job will take: memory and speed on given GPUs, every automatic setting with its reason, steps and hours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from launcher.backends.ssh.host_request import requested_hosts
from launcher.errors import SpecError, TargetError, UsageError
from launcher.job.deepspeed import ds_settings
from launcher.job.spec import JobSpec
from launcher.lifecycle import checks
from launcher.machine import facts, measured_networks
from launcher.plan import agent_plan, batch_job, gpus, situation
from launcher.plan.batch import global_batch_of
from launcher.plan.candidates import Candidate
from launcher.plan.changes import DoesNotFit
from launcher.plan.fastest import choose, in_fp8, stages_between_hosts
from launcher.plan.resolve import with_adapter
from launcher.plan.situation import Model, Situation
from launcher.plan.types import Reason
from train import memory
from train.config import records_of, remark_on_steps, steps_of
from train.memory import GIB, Shape


@dataclass(frozen=True)
class Planned:
    """A job, the GPUs it is planned for, and the settings chosen for it."""

    job: JobSpec
    shape: Shape
    situation: Situation
    assumed: bool
    """The GPU was not given, and this machine has none."""
    best: Candidate
    reasons: tuple[Reason, ...]
    work: dict[str, Any] | None
    """Steps and hours, if the records can be counted here."""
    fp8_gain: float | None
    """How many times as fast the job would be with model.quantization: fp8; None: it would not."""
    quantized: dict[str, int]
    """Bytes per GPU with other values of model.quantization and otherwise the same settings."""
    stages: dict[int, Candidate | None] = field(default_factory=dict)
    """On several hosts: the fastest setting of DDP (0), ZeRO-2 and ZeRO-3; None: it does not fit."""


@dataclass(frozen=True)
class Refused:
    """A job that does not fit these GPUs, with the changes that would help."""

    job: JobSpec
    shape: Shape
    situation: Situation
    assumed: bool
    error: DoesNotFit


def forecast(
    wanted: JobSpec, there: Situation, *, assumed: bool, with_work: bool = True, counted: Counted | None = None
) -> Planned | Refused:
    """Choose the settings of a job for these GPUs.

    `with_work`: say steps and hours too, from `counted` or else by reading the whole files. Raises UsageError for a
    model or settings that cannot be planned for.
    """
    if wanted.program:
        raise UsageError(
            "the job runs a program of its own, but `plan` is for training a model",
            hint="zlaunch local JOB --dry-run shows how the program would be started",
            code="ZL-OPT-01",
        )
    wanted, taken = with_adapter(wanted, facts.adapter_config(wanted.lora.adapter))
    known, shape = model_of(wanted)
    wanted = ds_settings.for_target(wanted, there.world_size, known.shape.hidden if known.shape else None)
    try:
        best, reasons = choose(wanted, known, there)
    except DoesNotFit as error:
        return Refused(wanted, shape, there, assumed, error)
    return Planned(
        wanted,
        shape,
        there,
        assumed,
        best,
        (*taken, *reasons),
        work_of(wanted, best, count(wanted) if counted is None else counted) if with_work else None,
        in_fp8(wanted, known, there, best),
        quantized(wanted, known, there, best),
        stages_between_hosts(wanted, known, there) if there.hosts > 1 else {},
    )


def quantized(wanted: JobSpec, known: Model, there: Situation, best: Candidate) -> dict[str, int]:
    """Bytes per GPU of `best` with smaller weights: {value of model.quantization: bytes}; empty if they are small."""
    found = {}
    for name in ("nf4", "int8") if wanted.model.quantization == "none" else ():
        fixed = {
            "model.quantization": name,
            "train.micro_batch_size": best.batch.micro_batch_size,
            "train.gradient_checkpointing": best.checkpointing,
        }
        with contextlib.suppress(UsageError):
            found[name] = choose(wanted.with_values(fixed), known, there)[0].cost.memory.total
    return {name: size for name, size in found.items() if size < best.cost.memory.total}


def model_of(wanted: JobSpec) -> tuple[Model, Shape]:
    """The model, from its config.json or else its name. Raises SpecError."""
    path = wanted.model.path
    if not path:
        raise SpecError("no model to plan for", hint="name a job file, or use --model", code="ZL-JOB-03")
    found = situation.model_of(path, situation.scaled(wanted, facts.model_files(path, wanted.env).config))
    if found.shape is not None:
        return found, found.shape
    if found.unknown:
        hint = f"plan for a model of a similar size, with --model: {', '.join(memory.SHAPES)}"
        raise SpecError(f"model.path {path!r}: {found.unknown}", hint=hint, code="ZL-PLAN-04")
    raise SpecError(
        f"model.path {path!r}: no config.json on this machine, and no built-in shape of that name",
        hint=f"give a directory with config.json, or one of: {', '.join(memory.SHAPES)}",
        code="ZL-PLAN-04",
    )


def situation_of(gpu: str | None, gpu_memory: str | None, nodes: int, per_node: int) -> tuple[Situation, bool]:
    """The GPUs to plan for: those given, or this machine's, or assumed H100s (True). Raises SpecError."""
    found, assumed = _cards_of(gpu, gpu_memory, nodes * per_node)
    return replace(found, hosts=nodes, ranks_per_host=per_node), assumed


def _cards_of(gpu: str | None, gpu_memory: str | None, world: int) -> tuple[Situation, bool]:
    size = gpus.parse_memory(gpu_memory) if gpu_memory is not None else None
    if gpu is not None:
        named = gpus.find(gpu)
        return Situation.of(world, size or named.memory_bytes, named.title), False
    if size is not None:
        return Situation(world, size, f"a GPU of {size / GIB:.0f} GiB"), False
    try:
        found = facts.local_gpus()
    except TargetError as error:
        raise TargetError(
            str(error), hint="name the GPU to plan for: --gpu h100, or --gpu-memory 80GiB", code="ZL-GPU-03"
        ) from error
    return (_with_cards(found, world), False) if found else (_assumed(world), True)


def situation_for(
    wanted: JobSpec, backend: str, gpu: str | None, own: Callable[[Mapping[str, str]], facts.Gpus]
) -> tuple[Situation, bool] | None:
    """The GPUs that a start by `backend` would have, without asking a host; None: it trains on CPUs.

    `gpu`: a name or a size that counts instead. `own`: the GPUs of this machine, for an environment. True: the GPU is
    assumed. Raises UsageError and TargetError.
    """
    if wanted.device == "cpu" and not gpu:
        return None
    if backend == "local" and not gpu:
        here = _here(wanted, own(wanted.env))
        return (here, False) if here else None
    if backend == "local":
        return _named(wanted, backend, gpu, wanted.local.gpus or 1)
    found, assumed = _named(wanted, backend, gpu, ranks_of(wanted, backend))
    hosts = wanted.slurm.nodes if backend == "slurm" else len(requested_hosts(wanted.ssh).pool)
    names = measured_networks.of_partition(wanted.slurm.partition) if backend == "slurm" else ()
    known = measured_networks.known(names or requested_hosts(wanted.ssh).pool)
    each = found.world_size // hosts
    return replace(found, hosts=hosts, ranks_per_host=each, network=known or found.network), assumed


def _named(wanted: JobSpec, backend: str, gpu: str | None, ranks: int) -> tuple[Situation, bool]:
    """On the GPUs that `gpu` or the job names, else on assumed ones."""
    name = gpu or (wanted.slurm.gpu if backend == "slurm" else None)
    if name:
        title, size = gpus.parse_gpu(name)
        return Situation.of(ranks, size, title), False
    kind = str(wanted.slurm.gpus_per_node or "").rpartition(":")[0]
    known = gpus.of_gres(kind) if kind and backend == "slurm" else None
    return (Situation.of(ranks, known.memory_bytes, known.title), False) if known else (_assumed(ranks), True)


def _here(wanted: JobSpec, found: facts.Gpus) -> Situation | None:
    """On the GPUs that a run on this machine would take; None: it would train on the CPU. Raises TargetError."""
    if found.error:
        raise TargetError(
            f"cannot tell which GPUs this machine has: {found.error}", hint=facts.GPU_HINT, code="ZL-GPU-03"
        )
    if not found.seen and wanted.device == "auto" and not wanted.local.gpus:
        return None
    ranks = wanted.local.gpus or max(1, len(found.seen))
    if len(found.seen) < ranks:
        raise TargetError(f"{ranks} GPUs requested, {len(found.seen)} found on this machine", code="ZL-GPU-02")
    return _with_cards(found.seen[:ranks], ranks)


def _with_cards(found: Sequence[facts.Gpu], world: int) -> Situation:
    """On these GPUs of this machine. Raises SpecError."""
    smallest = min(card.memory_bytes for card in found)
    if not smallest:
        message = f"nvidia-smi does not report the memory of {found[0].name}"
        raise SpecError(message, hint="set it, for example --gpu-memory 24GiB", code="ZL-PLAN-04")
    oldest = min((card.compute_capability for card in found if card.compute_capability), default=None)
    return Situation.of(world, smallest, found[0].name, oldest)


def _assumed(world: int) -> Situation:
    h100 = gpus.GPUS["h100"]
    return Situation.of(world, h100.memory_bytes, h100.title)


GPU_TITLES = {key: gpu.title for key, gpu in gpus.GPUS.items()}
"""{name that a job or --gpu gives: title} of the GPUs that can be planned for."""


def ranks_of(wanted: JobSpec, backend: str) -> int:
    """Ranks that a start by `ssh` or `slurm` would have, without asking a host: one where nothing says how many."""
    if backend == "slurm":
        return wanted.slurm.nodes * batch_job.procs_per_node(wanted.slurm, "cpu" if wanted.device == "cpu" else "cuda")
    hosts = requested_hosts(wanted.ssh)
    return sum(len(slots) for slots in hosts.slots(dict.fromkeys(hosts.pool, 1)).values())


class Counted(NamedTuple):
    """What an epoch holds: records and their bytes, zeros if they cannot be counted here; and checks.turn_cost."""

    records: int
    size: float
    turns: dict[str, float] | None

    @property
    def sequences(self) -> float:
        return self.records * self.turns["sequences"] / self.turns["records"] if self.turns else self.records

    def steps(self, wanted: JobSpec, ranks: int) -> int | None:
        """Optimizer steps of a job; None where they depend on what could not be counted."""
        batch = self.batch(wanted, ranks)
        if wanted.train.max_steps is not None:
            return wanted.train.max_steps
        return steps_of(wanted.train.epochs, round(self.sequences), batch) if self.records else None

    def tokens(self, wanted: JobSpec) -> float:
        """Tokens of a sequence, estimated from bytes; at most data.max_length, which stands for what is not counted."""
        size = self.size * (self.turns["times"] if self.turns else 1)
        return min(wanted.data.max_length, size / self.sequences / 3.5) if self.records else wanted.data.max_length

    def batch(self, wanted: JobSpec, ranks: int) -> int:
        """Records per optimizer step; with train.batch_tokens an estimate."""
        planned = global_batch_of(wanted.train, ranks, wanted.data.max_length)
        return records_of(wanted.train.batch_tokens, self.tokens(wanted), planned)


def count(wanted: JobSpec) -> Counted:
    """Read the records of a job, which may take long."""
    return Counted(*checks.count_records(wanted), checks.turn_cost(wanted))


def work_of(wanted: JobSpec, best: Candidate, counted: Counted) -> dict[str, Any] | None:
    """Steps and hours, if the records can be counted here. Tokens are estimated from bytes.

    `turns` says what it costs that a conversation becomes one sequence per answer; an epoch is all sequences.
    """
    records, _, turns = counted
    steps = counted.steps(wanted, best.batch.world_size)
    if steps is None:
        return None
    sequences, tokens = counted.sequences, counted.tokens(wanted)
    batch = counted.batch(wanted, best.batch.world_size)
    seconds = steps * batch * tokens / best.cost.tokens_per_second
    found = {"records": records, "tokens_per_record": round(tokens), "steps": steps, "hours": seconds / 3600}
    said = remark_on_steps(round(sequences), wanted.train.epochs, wanted.train.max_steps, batch)
    return {**found, "remark": said, **({"turns": turns} if turns else {})}


def report(planned: Planned | Refused) -> dict[str, Any]:
    """The plan as one JSON object."""
    if isinstance(planned, Refused):
        return _refusal(planned)
    best, batch = planned.best, planned.best.batch
    settings = {
        "model.quantization": planned.job.model.quantization,
        "model.dtype": best.dtype,
        "train.engine": best.engine,
        "train.global_batch_size": batch.global_batch_size,
        "train.micro_batch_size": batch.micro_batch_size,
        "train.gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "train.gradient_checkpointing": best.checkpointing,
        "train.zero_stage": best.zero_stage,
        "train.packing": best.packing,
    }
    reasons = {reason.setting: reason.reason for reason in planned.reasons}
    if "lora.target_modules" in reasons:  # of a mixture of experts
        settings["lora.target_modules"] = planned.job.lora.target_modules
    reasons["train.gradient_accumulation_steps"] = (
        f"{batch.global_batch_size} records per step / ({batch.micro_batch_size} per pass x {batch.world_size} ranks)"
    )
    return {
        "fits": True,
        **_heading(planned),
        "predicted_peak_bytes": best.cost.memory.total,
        "parts": best.cost.memory.parts,
        "room_bytes": planned.situation.room,
        "settings": {
            key: {"value": value, "reason": reasons.get(key, "from the job, or the default")}
            for key, value in settings.items()
        },
        "tokens_per_second": round(best.cost.tokens_per_second),
        "work": planned.work,
        "trackers": planned.job.train.trackers,
        "notices": msgspec.to_builtins(agent_plan.notify_of(planned.job)),
        "fp8_gain": planned.fp8_gain and round(planned.fp8_gain, 2),
        "quantized_bytes": planned.quantized,
        "network": {
            f"zero_stage_{stage}": found
            and {
                "bytes_per_step": round(found.cost.traffic.total),
                "waits_seconds": round(found.cost.waits_seconds, 4),
                "step_seconds": round(found.cost.step_seconds, 4),
                "tokens_per_second": round(found.cost.tokens_per_second),
            }
            for stage, found in planned.stages.items()
        },
    }


def _refusal(refused: Refused) -> dict[str, Any]:
    error = refused.error
    return {
        "fits": False,
        **_heading(refused),
        "predicted_peak_bytes": error.smallest.total,
        "parts": error.smallest.parts,
        "room_bytes": refused.situation.room,
        "error": str(error),
        "changes": [
            {
                "change": change.text,
                "values": change.values,
                "predicted_peak_bytes": change.candidate.cost.memory.total,
                "tokens_per_second": round(change.candidate.cost.tokens_per_second),
            }
            for change in error.changes
        ],
    }


def _heading(planned: Planned | Refused) -> dict[str, Any]:
    wanted, shape, there = planned.job, planned.shape, planned.situation
    targets = wanted.lora.target_modules if isinstance(wanted.lora.target_modules, tuple) else None
    return {
        "model": wanted.model.path,
        "parameters": shape.parameters,
        "active_parameters": shape.active_parameters,
        "trainable": memory.trainable(shape, wanted.lora.r, targets, wanted.lora.modules_to_save),
        "gpu": there.gpu_name,
        "gpu_assumed": planned.assumed,
        "gpu_memory_bytes": there.gpu_memory_bytes,
        "world_size": there.world_size,
    }
