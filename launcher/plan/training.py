"""train.json: the job's settings with every `auto` resolved, and the reason of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import structs

from launcher.errors import CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan.autos import settled
from launcher.plan.fastest import choose
from launcher.plan.situation import Situation, model_of
from launcher.plan.types import Reason, Target
from train.compat import ADVICE, continued
from train.config import Data, TrainConfig, Training
from train.families import template_of


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
        data=_with_template(spec.data),
        lora=spec.lora,
        train=Training(**{**given, "gradient_accumulation_steps": best.batch.gradient_accumulation_steps}),
        eval=spec.eval,
        predicted_peak_bytes=best.cost.memory.total or None,
        verify_adapter=spec.verify_adapter,
    )
    return config, reasons


def _with_template(data: Data) -> Data:
    """The data with the chat template that they name."""
    return structs.replace(data, chat_template=template_of(data.chat_template)) if data.chat_template else data


def with_adapter(spec: JobSpec, recorded: Mapping[str, Any] | None) -> tuple[JobSpec, tuple[Reason, ...]]:
    """The job with the settings of lora.adapter, and why each is what it is.

    `recorded` is its adapter_config.json; None: not readable here, or none. Raises CompatibilityError for settings of
    the job that are not the adapter's.
    """
    if spec.lora.adapter is None or recorded is None:
        return spec, ()
    found = continued(spec.lora, recorded)
    if found.refused:
        raise CompatibilityError(f"lora.adapter: {'; '.join(found.refused)}", hint=ADVICE)
    values = {f"lora.{key}": getattr(found.lora, key) for key in found.taken}
    why = dict.fromkeys(values, "the setting of the adapter that lora.adapter names")
    if found.only_peft and spec.train.engine == "auto":
        values["train.engine"] = "peft"
        why["train.engine"] = f"only PEFT continues an adapter with {found.only_peft}"
    elif found.only_peft and spec.train.engine != "peft":
        raise CompatibilityError(
            f"lora.adapter: only PEFT continues an adapter with {found.only_peft}", hint="set train.engine: peft"
        )
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return spec.with_values(values), tuple(Reason(setting=key, value=shown[key], reason=why[key]) for key in values)
