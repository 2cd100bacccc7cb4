"""`zlaunch plan`: what a job would need and how fast it would be, before any GPU is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from launcher.errors import SpecError, UsageError
from launcher.job import load
from launcher.job.spec import JobSpec
from launcher.machine import facts
from launcher.plan import autos, gpus
from launcher.plan.autos import Choice, DoesNotFit, Model, Situation
from train import memory
from train.memory import GIB, Shape

ASSUMED = "assumed: this machine has no GPU; --gpu names another"


class Assumed(Situation):
    """A situation on a GPU that nobody named and that was not found here."""


@click.command("plan")
@click.argument("job", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Model path, hub id or a built-in shape: llama3-8b, qwen3-14b, 70b ...")
@click.option("--gpu", help="GPU to plan for: h200, h100, a100-80, a100-40, l40s, 4090, 3090 ...")
@click.option("--gpu-memory", help="Its memory, 24GiB, for a GPU that --gpu does not know.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes to plan for.")
@click.option(
    "--gpus",
    "gpus_per_node",
    type=click.IntRange(min=1),
    help="GPUs a node (default: the job's local.gpus, else 1).",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any key of the job.")
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
    """Show memory by part, every automatic setting with its reason, speed, and what to change if JOB does not fit.

    JOB: a job file; without one, and without --model, job.yaml of the working directory.
    """
    here = Path("job.yaml")
    if job is None and model is None and here.exists():
        job = here
    wanted = load.load(job, overrides, {"model.path": model}).spec
    if wanted.program:
        raise UsageError(
            "the job runs a program of its own, and `plan` is about training a model",
            hint=f"zlaunch local {job or 'JOB'} --dry-run shows what the program would get",
        )
    planned = model_of(wanted)
    shape = planned.shape
    situation = situation_of(gpu, gpu_memory, nodes, gpus_per_node or wanted.local.gpus or 1)
    try:
        choice = autos.choose(wanted, planned, situation)
    except DoesNotFit as error:
        if not as_json:
            if isinstance(situation, Assumed):
                click.echo(f"{situation.gpu_name} is {ASSUMED}", err=True)
            raise
        click.echo(json.dumps(_refusal(wanted, shape, situation, error), indent=2, ensure_ascii=False))
        return error.exit_code
    work = work_of(wanted, choice)
    if as_json:
        click.echo(json.dumps(report(wanted, shape, situation, choice, work), indent=2, ensure_ascii=False))
    else:
        click.echo(table(wanted, shape, situation, choice, work))
    return 0


def model_of(wanted: JobSpec) -> Model:
    """The model by its config.json, else by its name. Raises SpecError."""
    if not wanted.model.path:
        raise SpecError("no model to plan for", hint="name a job file, or say --model")
    try:
        found = autos.model_of(wanted.model.path, facts.model_config(wanted.model.path, wanted.env))
    except memory.UnknownShape as error:
        hint = f"plan for a model of a like size, with --model: {', '.join(memory.SHAPES)}"
        raise SpecError(f"model.path {wanted.model.path!r}: {error}", hint=hint) from error
    if found is None:
        raise SpecError(
            f"model.path {wanted.model.path!r}: no config.json here and no built-in shape of that name",
            hint=f"give a directory with config.json, or one of: {', '.join(memory.SHAPES)}",
        )
    return found


def situation_of(gpu: str | None, gpu_memory: str | None, nodes: int, per_node: int) -> Situation:
    """The GPUs to plan for: those named, else this machine's, else an H100. Raises SpecError."""
    world = nodes * per_node
    size = gpus.parse_memory(gpu_memory) if gpu_memory is not None else None
    if gpu is not None:
        named = gpus.find(gpu)
        return Situation.of(world, size or named.memory_bytes, named.title)
    if size is not None:
        return Situation(world, size, f"a GPU of {size / GIB:.0f} GiB")
    found = facts.local_gpus()
    if found:
        smallest = min(one.memory_bytes for one in found)
        if not smallest:
            said = f"nvidia-smi does not say how much memory {found[0].name} has"
            raise SpecError(said, hint="give --gpu-memory 24GiB")
        oldest = min((one.compute_capability for one in found if one.compute_capability), default=None)
        return Situation.of(world, smallest, found[0].name, oldest)
    card = gpus.GPUS["h100"]
    return Assumed(world, card.memory_bytes, card.title, card.matrix_rate, card.compute_capability)


def work_of(wanted: JobSpec, choice: Choice) -> dict[str, Any] | None:
    """Steps and hours, where the number of records can be read here; tokens are estimated from the bytes."""
    records, size = _count(wanted)
    steps = wanted.train.max_steps
    if steps is None:
        if not records:
            return None
        steps = max(1, math.ceil(wanted.train.epochs * records / choice.batch.global_batch_size - 1e-9))
    tokens = min(wanted.data.max_length, size / records / 3.5) if records else wanted.data.max_length
    seconds = steps * choice.batch.global_batch_size * tokens / choice.tokens_per_second
    return {"records": records, "tokens_per_record": round(tokens), "steps": steps, "hours": seconds / 3600}


def _count(wanted: JobSpec) -> tuple[int, float]:
    """Records of an epoch and their bytes; none if one of the files cannot be counted here."""
    records, size = 0, 0.0
    given = wanted.data.train
    for source in given if isinstance(given, tuple) else (given,):
        path, weight = (source, 1.0) if isinstance(source, str) else (source.path, source.weight)
        file = Path(path).expanduser()
        if file.suffix != ".jsonl":
            return 0, 0
        try:
            with file.open("rb") as lines:
                records += round(weight * sum(1 for line in lines if line.strip()))
            size += weight * file.stat().st_size
        except OSError:
            return 0, 0
    return records, size


def report(
    wanted: JobSpec, shape: Shape, situation: Situation, choice: Choice, work: dict[str, Any] | None
) -> dict[str, Any]:
    setting, solved = choice.setting, choice.batch
    settings = {
        "model.quantization": setting.quantization,
        "model.dtype": choice.dtype,
        "train.engine": setting.engine,
        "train.global_batch_size": solved.global_batch_size,
        "train.micro_batch_size": solved.micro_batch_size,
        "train.gradient_accumulation_steps": solved.gradient_accumulation_steps,
        "train.gradient_checkpointing": setting.checkpointing,
        "train.zero_stage": setting.zero_stage,
        "train.packing": choice.packing,
    }
    reasons = {reason.setting: reason.reason for reason in choice.reasons}
    reasons["train.gradient_accumulation_steps"] = (
        f"{solved.global_batch_size} records a step / ({solved.micro_batch_size} a pass x {solved.world_size} ranks)"
    )
    return {
        "fits": True,
        **_heading(wanted, shape, situation),
        "predicted_peak_bytes": choice.predicted_peak_bytes,
        "parts": choice.memory.parts,
        "room_bytes": autos.room(situation),
        "settings": {
            key: {"value": value, "reason": reasons.get(key, "the job's, or the default")}
            for key, value in settings.items()
        },
        "tokens_per_second": round(choice.tokens_per_second),
        "work": work,
    }


def _refusal(wanted: JobSpec, shape: Shape, situation: Situation, error: DoesNotFit) -> dict[str, Any]:
    return {
        "fits": False,
        **_heading(wanted, shape, situation),
        "predicted_peak_bytes": error.smallest.total,
        "parts": error.smallest.parts,
        "room_bytes": autos.room(situation),
        "error": str(error),
        "changes": [
            {
                "change": change.text,
                "predicted_peak_bytes": change.choice.predicted_peak_bytes,
                "tokens_per_second": round(change.choice.tokens_per_second),
            }
            for change in error.changes
        ],
    }


def _heading(wanted: JobSpec, shape: Shape, situation: Situation) -> dict[str, Any]:
    targets = wanted.lora.target_modules if isinstance(wanted.lora.target_modules, tuple) else None
    return {
        "model": wanted.model.path,
        "parameters": shape.parameters,
        "trainable": memory.trainable(shape, wanted.lora.r, targets, wanted.lora.modules_to_save),
        "gpu": situation.gpu_name,
        "gpu_assumed": isinstance(situation, Assumed),
        "gpu_memory_bytes": situation.gpu_memory_bytes,
        "world_size": situation.world_size,
    }


def table(wanted: JobSpec, shape: Shape, situation: Situation, choice: Choice, work: dict[str, Any] | None) -> str:
    """The plan as text."""
    facts_ = report(wanted, shape, situation, choice, work)
    lines = [
        f"{wanted.model.path}: {shape.parameters / 1e9:.2f} billion parameters, "
        f"{facts_['trainable'] / 1e6:.1f} million trained (LoRA r={wanted.lora.r})",
        f"on {situation.world_size} x {situation.gpu_name} ({situation.gpu_memory_bytes / GIB:.1f} GiB each)"
        f"{f', {ASSUMED}' if facts_['gpu_assumed'] else ''}",
        "",
        "memory a GPU at the peak of a step",
        *(f"  {name:<12} {size / GIB:8.2f} GiB" for name, size in choice.memory.parts.items()),
        f"  {'together':<12} {choice.predicted_peak_bytes / GIB:8.2f} GiB of {autos.room(situation) / GIB:.2f} free",
        "",
        "settings",
    ]
    for key, item in facts_["settings"].items():
        lines.append(f"  {key:<34} {item['value']!s:<8} {item['reason']}")
    lines += ["", f"about {choice.tokens_per_second:,.0f} tokens/s on all GPUs together"]
    if work:
        estimate = f", about {work['tokens_per_record']} tokens a record" if work["records"] else ""
        lines.append(f"{work['steps']} steps{estimate}: {_duration(work['hours'])}")
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours * 60 < 1:
        return "less than a minute"
    return f"about {hours:.1f} hours" if hours >= 1 else f"about {hours * 60:.1f} minutes"
