"""`zlaunch plan`: the predicted memory, settings and speed of a job, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import click

from launcher.job.load import read_job
from launcher.job.network_rate import bytes_per_second
from launcher.lifecycle import forecast
from launcher.lifecycle.forecast import Planned, Refused
from launcher.machine.language.spoken import padded, said, shown
from launcher.plan import agent_plan
from launcher.plan.between_hosts import USUAL_RATE, rate_text
from launcher.plan.fastest import STAGES
from train.memory import GIB

ASSUMED = "assumed, because this machine has no GPU; choose another with --gpu"


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
@click.option("--network", metavar="RATE", help="Rate between the nodes: 25Gb (bits), 3.1GB (bytes).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set any key of the job. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    job: Path | None,
    model: str | None,
    gpu: str | None,
    gpu_memory: str | None,
    nodes: int,
    gpus_per_node: int | None,
    network: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Predict the memory and speed of JOB, with every automatic setting and its reason.

    If JOB does not fit, show what to change. JOB is a job file; without JOB and --model, it is job.yaml in the working
    directory.
    """
    if job is None and model is None and Path("job.yaml").exists():
        job = Path("job.yaml")
    wanted = read_job(job, overrides, {"model.path": model, "network": network}).spec
    there, assumed = forecast.situation_of(gpu, gpu_memory, nodes, gpus_per_node or wanted.local.gpus or 1)
    found = forecast.forecast(wanted, there, assumed=assumed)
    if as_json:
        click.echo(json.dumps(forecast.report(found), indent=2, ensure_ascii=False))
        return 0 if isinstance(found, Planned) else found.error.exit_code
    if isinstance(found, Refused):
        if assumed:
            click.echo(f"{there.gpu_name} is {ASSUMED}", err=True)
        raise found.error
    click.echo(table(found))
    return 0


def _active(planned: Planned) -> str:
    """How much of a mixture of experts a token meets."""
    shape = planned.shape
    active = f"{shape.active_parameters / 1e9:.2f}"
    return said("{size} billion of them active, ", size=active) if shape.experts else ""


def table(planned: Planned) -> str:
    """The plan as text."""
    job, there, cost, work = planned.job, planned.situation, planned.best.cost, planned.work
    row = forecast.report(planned)
    lines = [
        said(
            "{model}: {size} billion parameters, {active}{trained} million trained (LoRA r={r})",
            model=job.model.path,
            size=f"{planned.shape.parameters / 1e9:.2f}",
            active=_active(planned),
            trained=f"{row['trainable'] / 1e6:.1f}",
            r=job.lora.r,
        ),
        said(
            "on {count} x {gpu} ({size} GiB each)",
            count=there.world_size,
            gpu=there.gpu_name,
            size=f"{there.gpu_memory_bytes / GIB:.1f}",
        )
        + (f", {said(ASSUMED)}" if planned.assumed else ""),
        "",
        said("memory per GPU at the peak of a step"),
        *(f"  {padded(said(name), 12)} {size / GIB:8.2f} GiB" for name, size in cost.memory.parts.items()),
        f"  {padded(said('total'), 12)} {cost.memory.total / GIB:8.2f} GiB"
        + said(" of {size} free", size=f"{there.room / GIB:.2f}"),
        "",
        said("settings"),
    ]
    for key, item in row["settings"].items():
        lines.append(f"  {key:<34} {item['value']!s:<8} {shown(item['reason'])}")
    lines += ["", said("about {speed} tokens/s on all GPUs", speed=f"{cost.tokens_per_second:,.0f}")]
    lines += _between_hosts(planned)
    if planned.quantized:
        sizes = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in planned.quantized.items())
        lines.append(said("with other values of model.quantization: {sizes}", sizes=sizes))
    if planned.fp8_gain:
        lines.append(
            said(
                "model.quantization: fp8 would be about {times} times as fast, in the same memory "
                "(docs/fp8.md says what it costs)",
                times=f"{planned.fp8_gain:.2f}",
            )
        )
    if work:
        each = work["tokens_per_record"]
        estimate = said(", about {count} tokens per record", count=each) if work["records"] else ""
        lines.append(said("{count} steps", count=work["steps"]) + f"{estimate}: {_duration(work['hours'])}")
        if turns := work.get("turns"):
            lines.append(
                f"the chat template makes one sequence per answer, {turns['sequences'] / turns['records']:.1f} per "
                f"record: {turns['times']:.1f} times the tokens of data.turns: joined"
            )
        lines += [shown(f"note: data.train: {work['remark']}")] if work["remark"] else []
    lines += agent_plan.reporting_lines(job.train.trackers, agent_plan.notify_of(job))
    return "\n".join(lines)


def _between_hosts(planned: Planned) -> list[str]:
    """What a step of each stage sends and waits for."""
    if not planned.stages:
        return []
    there, given = planned.situation, planned.job.network
    rate = there.network if given == "auto" else bytes_per_second(given)
    from_where = "" if given != "auto" else " (assumed; --network RATE, or zlaunch doctor net)"
    from_where = " (measured)" if given == "auto" and there.network != USUAL_RATE else from_where
    lines = ["", f"between {there.hosts} nodes at {rate_text(rate)}{from_where}, a step"]
    for stage, found in planned.stages.items():
        if found is None:
            lines.append(f"  {STAGES[stage]:<7} does not fit")
            continue
        cost = found.cost
        lines.append(
            f"  {STAGES[stage]:<7} sends {cost.traffic.total / 1e9:8.3f} GB, waits {cost.waits_seconds:7.2f} of "
            f"{cost.step_seconds:.2f} s: {cost.tokens_per_second:,.0f} tokens/s"
            f"{', recomputing activations' if found.checkpointing else ''}"
        )
    return lines


def _duration(hours: float) -> str:
    if hours * 60 < 1:
        return said("less than a minute")
    if hours >= 1:
        return said("about {hours} hours", hours=f"{hours:.1f}")
    return said("about {minutes} minutes", minutes=f"{hours * 60:.1f}")
