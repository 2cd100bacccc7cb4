"""JobSpec + facts about the target -> RunPlan: every number and every argv resolved. Pure.

Nothing here touches the network, the clock or a GPU. What must be known of the target is in `Target`, and what is known
of the model in its config.json; launcher/machine/facts.py and the backends gather both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from launcher.errors import CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan import batch_job
from launcher.plan.agent_plan import defaults_of, launch_of
from launcher.plan.container import NO_CONTAINER, ContainerChoice, contain
from launcher.plan.training import best_reasons, configure, loss_reason
from launcher.plan.types import Reason, RunPlan, Target
from train.compat import ADVICE, continued
from train.config import Source, TrainConfig, remark_on_steps, split_of

KILL_AFTER = 5.0
"""Seconds between SIGTERM and SIGKILL, for processes that a requested stop did not end."""


def plan(
    spec: JobSpec,
    target: Target,
    *,
    run_id: str,
    model_config: dict[str, Any] | None = None,
    adapter_config: dict[str, Any] | None = None,
    container: ContainerChoice = NO_CONTAINER,
    records: int | None = None,
    held_out: int | None = None,
) -> RunPlan:
    """Resolve a job for a target.

    `model_config` is the model's config.json where it can be read; None: unknown until the model is loaded.
    `adapter_config` is the adapter_config.json of lora.adapter, likewise. `records`: in an epoch; None: not counted.
    `held_out`: records of data.eval, likewise. Raises UsageError.
    """
    spec = on_target(spec, target.paths)
    if target.cpus_per_task is not None:
        spec = spec.with_values({"slurm.cpus_per_task": target.cpus_per_task})
    spec, taken = with_adapter(spec, adapter_config)
    found = None if spec.program else configure(spec, target, run_id, model_config)
    config = found.train if found else None
    reasons = (*target.reasons, *taken)
    if found:
        reasons += (*found.reasons, *loss_reason(found.train, records, held_out), *best_reasons(found.train))
    on_slurm = target.backend == "slurm"
    slurm = batch_job.section(spec, run_id, target.device) if on_slurm else None
    stop_deadline, kill_after = batch_job.stop_times(spec, KILL_AFTER) if on_slurm else (spec.stop_deadline, KILL_AFTER)
    # The container comes last: its engine must wait for as long as the run has for its last checkpoint.
    container_plan, pyxis = contain(container, spec, target, run_id, stop_deadline)
    if slurm is not None:
        slurm |= {"inputs": dict(target.paths), "pyxis": pyxis, "python": target.python}
    reasons = (*reasons, *_of_environment(spec, target))
    if container.reason:
        reasons = (*reasons, Reason(setting="container.runtime", value=container.runtime, reason=container.reason))
    notes = [*target.notes, *(f"{one.setting} = {one.value}: {one.reason}" for one in taken)]
    if found:
        notes += [*found.notes, *_remarks(found.train, records)]
    return RunPlan(
        run_id=run_id,
        name=spec.name,
        backend=target.backend,
        launch=launch_of(
            spec, target, container, container_plan,
            run_id=run_id, stop_deadline=stop_deadline, kill_after=kill_after,
        ),
        train=config,
        deepspeed=found.deepspeed if found else {},
        reasons=reasons,
        notes=tuple(notes),
        setup=spec.slurm.setup if on_slurm else (),
        node_template=spec.node_template,
        slurm=slurm,
    )  # fmt: skip


def _of_environment(spec: JobSpec, target: Target) -> Iterator[Reason]:
    """Why variables that the job does not set have their values."""
    for name, (value, source) in target.forwarded.items():
        if name not in spec.env:
            yield Reason(setting=f"env.{name}", value=value, reason=f"from {source}")
    hosts = f"{len(target.hosts)} hosts; unless they set it themselves"
    for name, value in defaults_of(target).items():
        if name not in {**spec.env, **target.forwarded}:
            yield Reason(setting=f"env.{name}", value=value, reason=hosts)


def _remarks(config: TrainConfig, records: int | None) -> list[str]:
    """What a user would not expect of the number of records in an epoch."""
    train = config.train
    if records is None or train.batch_tokens:
        return []
    remark = remark_on_steps(records, train.epochs, train.max_steps, train.global_batch_size)
    return [f"data.train: {remark}"] if remark else []


def on_target(spec: JobSpec, names: Mapping[str, str]) -> JobSpec:
    """The job with the names that its files have on the target. `names` maps paths here to paths there."""

    def sources(value: Any) -> Any:
        if isinstance(value, str):
            folder, split = split_of(value)
            return f"{names[folder]}:{split}" if split and folder in names else names.get(value, value)
        if isinstance(value, Source):
            return msgspec.structs.replace(value, path=sources(value.path))
        return value if value is None or isinstance(value, int) else tuple(sources(item) for item in value)

    adapter = spec.lora.adapter
    return msgspec.structs.replace(
        spec,
        data=msgspec.structs.replace(spec.data, train=sources(spec.data.train), eval=sources(spec.data.eval)),
        lora=msgspec.structs.replace(spec.lora, adapter=names.get(adapter, adapter) if adapter else adapter),
        program=sources(spec.program),
    )


def with_adapter(spec: JobSpec, recorded: Mapping[str, Any] | None) -> tuple[JobSpec, tuple[Reason, ...]]:
    """The job with the settings of lora.adapter, and why each is what it is.

    `recorded` is its adapter_config.json; None: not readable here, or none. Raises CompatibilityError for settings of
    the job that are not the adapter's.
    """
    if spec.lora.adapter is None or recorded is None:
        return spec, ()
    found = continued(spec.lora, recorded)
    if found.refused:
        raise CompatibilityError(f"lora.adapter: {'; '.join(found.refused)}", hint=ADVICE, code="ZL-MODEL-07")
    values = {f"lora.{key}": getattr(found.lora, key) for key in found.taken}
    why = dict.fromkeys(values, "the setting of the adapter that lora.adapter names")
    if found.only_peft and spec.train.engine == "auto":
        values["train.engine"] = "peft"
        why["train.engine"] = f"only PEFT continues an adapter with {found.only_peft}"
    elif found.only_peft and spec.train.engine != "peft":
        raise CompatibilityError(
            f"lora.adapter: only PEFT continues an adapter with {found.only_peft}",
            hint="set train.engine: peft",
            code="ZL-MODEL-07",
        )
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return spec.with_values(values), tuple(Reason(setting=key, value=shown[key], reason=why[key]) for key in values)
