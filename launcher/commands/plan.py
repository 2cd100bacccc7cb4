"""`zlaunch plan`: the predicted memory, settings and speed of a job, without a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from launcher.errors import SpecError, TargetError, UsageError
from launcher.job.load import read_job
from launcher.job.spec import JobSpec
from launcher.lifecycle import checks
from launcher.machine import facts
from launcher.plan import agent_plan, gpus, situation
from launcher.plan.candidates import Candidate
from launcher.plan.changes import DoesNotFit
from launcher.plan.fastest import choose, in_fp8
from launcher.plan.resolve import with_adapter
from launcher.plan.situation import Model, Situation
from launcher.plan.types import Reason
from train import memory
from train.config import remark_on_steps, steps_of
from train.memory import GIB, Shape

ASSUMED = "assumed, because this machine has no GPU; choose another with --gpu"


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


@click.command("plan")
@click.argument("job", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Model directory, hub id or built-in shape: llama3-8b, qwen3-14b, 70b ...")
@click.option("--gpu", help="GPU to plan for: h200, h100, a100-80, a100-40, l40s, 4090, 3090 ...")
@click.option("--gpu-memory", help="Memory of the GPU, such as 24GiB, if --gpu does not know it.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes to plan for.")
@click.option(
    "--gpus",
    "gpus_per_node",
    type=click.IntRange(min=1),
    help="GPUs per node (default: local.gpus of the job, else 1).",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set any key of the job. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    job: Path | None,
    model: str | None,
    gpu: str | None,
    gpu_memory: str | None,
    nodes: int,
    gpus_per_node: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Predict the memory and speed of JOB, with every automatic setting and its reason.

    If JOB does not fit, show what to change. JOB is a job file; without JOB and --model, it is job.yaml in the working
    directory.
    """
    if job is None and model is None and Path("job.yaml").exists():
        job = Path("job.yaml")
    wanted = read_job(job, overrides, {"model.path": model}).spec
    if wanted.program:
        raise UsageError(
            "the job runs a program of its own, but `plan` is for training a model",
            hint=f"zlaunch local {job or 'JOB'} --dry-run shows how the program would be started",
        )
    wanted, taken = with_adapter(wanted, facts.adapter_config(wanted.lora.adapter))
    known, shape = model_of(wanted)
    there, assumed = situation_of(gpu, gpu_memory, nodes, gpus_per_node or wanted.local.gpus or 1)
    try:
        best, reasons = choose(wanted, known, there)
    except DoesNotFit as error:
        if not as_json:
            if assumed:
                click.echo(f"{there.gpu_name} is {ASSUMED}", err=True)
            raise
        click.echo(json.dumps(_refusal(wanted, shape, there, assumed, error), indent=2, ensure_ascii=False))
        return error.exit_code
    planned = Planned(
        wanted,
        shape,
        there,
        assumed,
        best,
        (*taken, *reasons),
        work_of(wanted, best),
        in_fp8(wanted, known, there, best),
    )
    click.echo(json.dumps(report(planned), indent=2, ensure_ascii=False) if as_json else table(planned))
    return 0


def model_of(wanted: JobSpec) -> tuple[Model, Shape]:
    """The model, from its config.json or else its name. Raises SpecError."""
    path = wanted.model.path
    if not path:
        raise SpecError("no model to plan for", hint="name a job file, or use --model")
    found = situation.model_of(path, facts.model_files(path, wanted.env).config)
    if found.shape is not None:
        return found, found.shape
    if found.unknown:
        hint = f"plan for a model of a similar size, with --model: {', '.join(memory.SHAPES)}"
        raise SpecError(f"model.path {path!r}: {found.unknown}", hint=hint)
    raise SpecError(
        f"model.path {path!r}: no config.json on this machine, and no built-in shape of that name",
        hint=f"give a directory with config.json, or one of: {', '.join(memory.SHAPES)}",
    )


def situation_of(gpu: str | None, gpu_memory: str | None, nodes: int, per_node: int) -> tuple[Situation, bool]:
    """The GPUs to plan for: those given, or this machine's, or assumed H100s (True). Raises SpecError."""
    world = nodes * per_node
    size = gpus.parse_memory(gpu_memory) if gpu_memory is not None else None
    if gpu is not None:
        named = gpus.find(gpu)
        return Situation.of(world, size or named.memory_bytes, named.title), False
    if size is not None:
        return Situation(world, size, f"a GPU of {size / GIB:.0f} GiB"), False
    try:
        found = facts.local_gpus()
    except TargetError as error:
        raise TargetError(str(error), hint="name the GPU to plan for: --gpu h100, or --gpu-memory 80GiB") from error
    if found:
        smallest = min(card.memory_bytes for card in found)
        if not smallest:
            message = f"nvidia-smi does not report the memory of {found[0].name}"
            raise SpecError(message, hint="set it, for example --gpu-memory 24GiB")
        oldest = min((card.compute_capability for card in found if card.compute_capability), default=None)
        return Situation.of(world, smallest, found[0].name, oldest), False
    h100 = gpus.GPUS["h100"]
    return Situation.of(world, h100.memory_bytes, h100.title), True


def work_of(wanted: JobSpec, best: Candidate) -> dict[str, Any] | None:
    """Steps and hours, if the records can be counted here. Tokens are estimated from bytes.

    `turns` says what it costs that a conversation becomes one sequence per answer; an epoch is all sequences.
    """
    records, size = checks.count_records(wanted)
    turns = checks.turn_cost(wanted)
    sequences = records * turns["sequences"] / turns["records"] if turns else records
    steps = wanted.train.max_steps
    if steps is None:
        if not records:
            return None
        steps = steps_of(wanted.train.epochs, round(sequences), best.batch.global_batch_size)
    size *= turns["times"] if turns else 1
    tokens = min(wanted.data.max_length, size / sequences / 3.5) if records else wanted.data.max_length
    seconds = steps * best.batch.global_batch_size * tokens / best.cost.tokens_per_second
    found = {"records": records, "tokens_per_record": round(tokens), "steps": steps, "hours": seconds / 3600}
    said = remark_on_steps(round(sequences), wanted.train.epochs, wanted.train.max_steps, best.batch.global_batch_size)
    return {**found, "remark": said, **({"turns": turns} if turns else {})}


def report(planned: Planned) -> dict[str, Any]:
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
    reasons["train.gradient_accumulation_steps"] = (
        f"{batch.global_batch_size} records per step / ({batch.micro_batch_size} per pass x {batch.world_size} ranks)"
    )
    return {
        "fits": True,
        **_heading(planned.job, planned.shape, planned.situation, planned.assumed),
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
    }


def _refusal(wanted: JobSpec, shape: Shape, there: Situation, assumed: bool, error: DoesNotFit) -> dict[str, Any]:
    return {
        "fits": False,
        **_heading(wanted, shape, there, assumed),
        "predicted_peak_bytes": error.smallest.total,
        "parts": error.smallest.parts,
        "room_bytes": there.room,
        "error": str(error),
        "changes": [
            {
                "change": change.text,
                "predicted_peak_bytes": change.candidate.cost.memory.total,
                "tokens_per_second": round(change.candidate.cost.tokens_per_second),
            }
            for change in error.changes
        ],
    }


def _heading(wanted: JobSpec, shape: Shape, there: Situation, assumed: bool) -> dict[str, Any]:
    targets = wanted.lora.target_modules if isinstance(wanted.lora.target_modules, tuple) else None
    return {
        "model": wanted.model.path,
        "parameters": shape.parameters,
        "trainable": memory.trainable(shape, wanted.lora.r, targets, wanted.lora.modules_to_save),
        "gpu": there.gpu_name,
        "gpu_assumed": assumed,
        "gpu_memory_bytes": there.gpu_memory_bytes,
        "world_size": there.world_size,
    }


def table(planned: Planned) -> str:
    """The plan as text."""
    job, there, cost, work = planned.job, planned.situation, planned.best.cost, planned.work
    row = report(planned)
    lines = [
        f"{job.model.path}: {planned.shape.parameters / 1e9:.2f} billion parameters, "
        f"{row['trainable'] / 1e6:.1f} million trained (LoRA r={job.lora.r})",
        f"on {there.world_size} x {there.gpu_name} ({there.gpu_memory_bytes / GIB:.1f} GiB each)"
        f"{f', {ASSUMED}' if planned.assumed else ''}",
        "",
        "memory per GPU at the peak of a step",
        *(f"  {name:<12} {size / GIB:8.2f} GiB" for name, size in cost.memory.parts.items()),
        f"  {'total':<12} {cost.memory.total / GIB:8.2f} GiB of {there.room / GIB:.2f} free",
        "",
        "settings",
    ]
    for key, item in row["settings"].items():
        lines.append(f"  {key:<34} {item['value']!s:<8} {item['reason']}")
    lines += ["", f"about {cost.tokens_per_second:,.0f} tokens/s on all GPUs"]
    if planned.fp8_gain:
        lines.append(
            f"model.quantization: fp8 would be about {planned.fp8_gain:.2f} times as fast, in the same memory "
            "(docs/fp8.md says what it costs)"
        )
    if work:
        estimate = f", about {work['tokens_per_record']} tokens per record" if work["records"] else ""
        lines.append(f"{work['steps']} steps{estimate}: {_duration(work['hours'])}")
        if turns := work.get("turns"):
            lines.append(
                f"the chat template makes one sequence per answer, {turns['sequences'] / turns['records']:.1f} per "
                f"record: {turns['times']:.1f} times the tokens of data.turns: joined"
            )
        lines += [f"note: data.train: {work['remark']}"] if work["remark"] else []
    lines += agent_plan.reporting_lines(job.train.trackers, agent_plan.notify_of(job))
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours * 60 < 1:
        return "less than a minute"
    return f"about {hours:.1f} hours" if hours >= 1 else f"about {hours * 60:.1f} minutes"
