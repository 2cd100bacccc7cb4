"""train.json: the job's settings with every `auto` resolved, and the reason of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.job.deepspeed import ds_settings
from launcher.job.spec import JobSpec
from launcher.plan.autos import settled
from launcher.plan.fastest import choose, is_of_network
from launcher.plan.situation import Situation, model_of, scaled
from launcher.plan.types import Reason, Target
from train import memory
from train.config import MEASUREMENTS, MOST_COST, TrainConfig, Training, loss_schedule, steps_of


@dataclass(frozen=True)
class Configured:
    """The configuration of the training program, and what belongs to it."""

    train: TrainConfig
    reasons: tuple[Reason, ...]
    """Why each open setting has its value."""
    deepspeed: dict[str, Any]
    """As RunPlan has it."""
    notes: tuple[str, ...]
    """What the job says without effect."""


def configure(spec: JobSpec, target: Target, run_id: str, model_config: dict[str, Any] | None) -> Configured:
    """Raises BatchError, CompatibilityError, and DoesNotFit where memory can be predicted."""
    situation, model = Situation.at(target), model_of(spec.model.path, scaled(spec, model_config))
    hidden = model.shape.hidden if model.shape else None
    spec = ds_settings.for_target(spec, target.world_size, hidden)
    best, reasons = choose(spec, model, situation)
    spec = settled(spec, best)
    alone = spec.train.zero_group != "auto" and best.zero_group == "auto"
    given = {name: getattr(spec.train, name) for name in Training.__struct_fields__ if hasattr(spec.train, name)}
    config = TrainConfig(
        run_id=run_id,
        device=target.device,
        world_size=target.world_size,
        model=spec.model,
        data=spec.data,
        lora=spec.lora,
        train=Training(
            **{
                **given,
                "zero_group": best.zero_group,
                "gradient_accumulation_steps": best.batch.gradient_accumulation_steps,
            }
        ),
        eval=spec.eval,
        engine_reason=next((one.reason for one in reasons if one.setting == "train.engine"), ""),
        predicted_peak_bytes=best.cost.memory.total or None,
        predicted_tokens_per_second=round(best.cost.tokens_per_second, 1) or None,
        verify_adapter=spec.verify_adapter,
    )
    shares_itself = memory.shares_itself(best.engine, best.zero_stage)
    decided, notes = ds_settings.report(spec, config, shares_itself=shares_itself)
    notes = [*notes, *(f"{one.setting}: {one.reason}" for one in reasons if is_of_network(one))]
    if alone:
        notes = [
            *notes,
            "train.zero_group has no effect: only ZeRO-3 of the fused layers, on hosts with several ranks, has it",
        ]
    reasons += tuple(Reason(setting=key, value=value, reason=why) for key, (value, why) in decided.items())
    return Configured(config, reasons, ds_settings.for_deepspeed(spec, config, hidden), tuple(notes))


COST = f"{MOST_COST:.0%} of the training"


def loss_reason(config: TrainConfig, trained: int | None, held_out: int | None) -> tuple[Reason, ...]:
    """When the held-out loss is measured, and why; nothing where the job says it, or has no data.eval.

    `trained`, `held_out`: records of an epoch and of data.eval; None: not counted. The training program counts tokens,
    and so may come to other numbers of steps and records.
    """
    if not config.data.eval or config.eval.every != "auto":
        return ()
    steps, batch = config.train.max_steps, config.train.global_batch_size
    if steps is None and trained and not config.train.batch_tokens:
        steps = steps_of(config.train.epochs, trained, batch)
    if not steps or not held_out:
        told = f"the loss on data.eval is measured about {MEASUREMENTS} times, on as many records as {COST} allow"
        return (Reason(setting="eval.every", value="auto", reason=told),)
    held_out = min(held_out, config.eval.max_records or held_out)
    free = loss_schedule(steps, steps * batch, held_out)
    found = loss_schedule(steps, steps * batch, held_out, wanted=config.compares)
    if found != free:
        told = f"{found.records} of {held_out} records, ten times, because the job compares the measurements"
    elif not found.every:
        told = f"a measurement on {held_out} records costs more than {COST}; the loss is measured at the end only"
    else:
        share = f"{found.records} of {held_out}" if found.records < held_out else f"all {held_out}"
        times = -(-steps // found.every) + 1
        told = f"{times} measurements of the loss on {share} records of data.eval cost at most {COST}"
    return (Reason(setting="eval.every", value=found.every, reason=told),)


def best_reasons(config: TrainConfig) -> tuple[Reason, ...]:
    """What decides which step the adapter is of, and when the training ends."""
    if not config.data.eval or config.eval.every == 0:
        return ()
    found, chosen, patience = [], config.eval.keep_best, config.train.early_stopping_patience
    if chosen == "auto":
        told = "the adapter is of the step with the smallest loss on data.eval; its checkpoint is kept"
        found.append(Reason(setting="eval.keep_best", value="loss", reason=told))
    elif chosen not in ("loss", "none"):
        told = (
            f"each measurement also writes so many answers of at most {config.eval.max_new_tokens} tokens, "
            f"for {chosen}; the predicted time does not hold them"
        )
        found.append(Reason(setting="eval.scored_records", value=config.eval.scored_records, reason=told))
    if patience:
        told = "the planned steps and hours are the most that the training takes"
        found.append(Reason(setting="train.early_stopping_patience", value=patience, reason=told))
    return tuple(found)
