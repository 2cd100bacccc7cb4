"""train.json: the job's settings with every `auto` resolved, and the reason of each."""

from __future__ import annotations

from typing import Any

from launcher.job.spec import JobSpec
from launcher.plan.autos import settled
from launcher.plan.fastest import choose
from launcher.plan.situation import Situation, model_of
from launcher.plan.types import Reason, Target
from train.config import TrainConfig, Training


def configure(
    spec: JobSpec, target: Target, run_id: str, model_config: dict[str, Any] | None
) -> tuple[TrainConfig, tuple[Reason, ...]]:
    """The configuration of the training program, and why each open setting has its value.

    Raises BatchError, CompatibilityError, and DoesNotFit where memory can be predicted.
    """
    situation, model = Situation.at(target), model_of(spec.model.path, model_config)
    best, reasons = choose(spec, model, situation)
    spec = settled(spec, best)
    given = {name: getattr(spec.train, name) for name in Training.__struct_fields__ if hasattr(spec.train, name)}
    config = TrainConfig(
        run_id=run_id,
        device=target.device,
        world_size=target.world_size,
        model=spec.model,
        data=spec.data,
        lora=spec.lora,
        train=Training(**{**given, "gradient_accumulation_steps": best.batch.gradient_accumulation_steps}),
        eval=spec.eval,
        predicted_peak_bytes=best.cost.memory.total or None,
        verify_adapter=spec.verify_adapter,
    )
    return config, reasons
