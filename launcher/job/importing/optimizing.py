"""Optimizers, schedules and learning rates of other programs, most of which have transformers' names for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.job.importing.draft import Draft, Note, Words, is_off, parsed_json

SCHEDULERS = {
    "linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant",
    "polynomial": "polynomial", "inverse_sqrt": "inverse_sqrt", "cosine_with_min_lr": "cosine",
    "cosine_with_restarts": "cosine_with_restarts", "warmup_stable_decay": "warmup_stable_decay",
}  # fmt: skip
NEAREST = {
    "reduce_lr_on_plateau": "constant", "cosine_warmup_with_min_lr": "cosine", "greedy": "constant", "rex": "cosine",
    "one_cycle": "cosine", "log_sweep": "linear",
}  # fmt: skip
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla",
                     "adamw_torch_npu_fused", "adamw"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw_8bit"),
    "paged_adamw_8bit": "paged_adamw_8bit", "adafactor": "adafactor", "lion_32bit": "lion", "lion": "lion",
    "muon": "muon",
}  # fmt: skip
ALIKE = {
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw", "adamw_anyprecision", "adamw_torch_4bit", "ao_adamw_4bit",
                     "ao_adamw_fp8"), ("adamw", "AdamW with states in 32 bits: the same steps, other memory")),
    **dict.fromkeys(("adamw_torch_8bit", "ao_adamw_8bit"), ("adamw_8bit", "8-bit states of bitsandbytes")),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "paged_lion_32bit"),
                    ("lion", "Lion with states in 32 bits: the same steps, other memory")),
}  # fmt: skip
"""{name: (ours, what differs)}."""
POLYNOMIAL_END = 1e-7
"""The rate at the end of transformers' polynomial schedule, unless lr_end says another."""


def schedule(words: Words, word: str, shape_default: str, warmup_default: float) -> None:
    """Scheduler and warm-up. `constant` of transformers has no warm-up, whatever the file says of one."""
    draft = words.draft
    given = words.text(word)
    shape = str(given or shape_default).lower()
    note = word if given else f"{word}: {draft.program}'s default"
    draft.set("train.scheduler", SCHEDULERS.get(shape, NEAREST.get(shape, "cosine")), note)
    if shape not in SCHEDULERS:
        near = NEAREST.get(shape, "cosine")
        draft.lost.append(Note(word, shape, f"zlaunch does not have it; {near} is set instead"))
    ratio, steps = words.number("warmup_ratio"), words.number("warmup_steps")
    if shape == "constant":
        draft.set("train.warmup_ratio", 0, f"{word}: constant has no warm-up in transformers")
    elif steps is not None and steps >= 1:
        draft.set("train.warmup_steps", int(steps), "warmup_steps")
    elif ratio is not None or steps:
        draft.set(
            "train.warmup_ratio", ratio if ratio is not None else steps, "warmup_ratio" if ratio else "warmup_steps"
        )
    else:
        draft.set("train.warmup_ratio", warmup_default, f"warmup: {draft.program}'s default")
    _shape_settings(words, shape)


def _shape_settings(words: Words, shape: str) -> None:
    """What lr_scheduler_kwargs says of the shape, and what transformers has where it says nothing."""
    draft, word = words.draft, "lr_scheduler_kwargs"
    left = _mapping(words, word)
    peak = float(draft.value("train.learning_rate") or 0)

    def number(name: str) -> float | None:
        value = left.get(name)
        usable = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(left.pop(name)) if usable else None

    def floor(value: float | None, name: str, share: float = 1.0) -> None:
        if value:
            draft.set("train.min_lr_ratio", float(f"{value / share:.6g}"), name)

    if shape == "polynomial":
        end, power = number("lr_end"), number("power")
        if peak:
            floor(POLYNOMIAL_END if end is None else end, "lr_end", peak)
        draft.set("train.scheduler_power", 1.0 if power is None else power, "power")
    elif shape == "cosine_with_restarts":
        draft.set("train.scheduler_cycles", int(number("num_cycles") or 1), "num_cycles")
    elif shape in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        floor(number("min_lr_rate"), "min_lr_rate")
        if peak:
            floor(number("min_lr"), "min_lr", peak)
    elif shape == "warmup_stable_decay":
        _stable(draft, left, number)
        floor(number("min_lr_ratio"), "min_lr_ratio")
        for name in ("warmup_type", "decay_type", "num_cycles"):
            if left.get(name) in ("linear" if name == "warmup_type" else "cosine", 0.5):
                del left[name]
    for name, value in left.items():
        draft.lost.append(Note(f"{word}.{name}", value, "zlaunch's schedules do not have it"))


def _mapping(words: Words, word: str) -> dict[str, Any]:
    """A mapping, also as the JSON of a command line."""
    told = words.take(word)
    told = parsed_json(told, word) if isinstance(told, str) and told.lstrip().startswith("{") else told
    if isinstance(told, Mapping):
        return dict(told)
    if not is_off(told):
        words.draft.lost.append(Note(word, told, "expected a mapping"))
    return {}


def _stable(draft: Draft, left: dict[str, Any], number: Any) -> None:
    """How long a schedule of three parts falls. LLaMA-Factory lets it stay for a third of what the warm-up leaves."""
    decay, stable = number("num_decay_steps"), number("num_stable_steps")
    warmup, total = draft.value("train.warmup_steps"), draft.value("train.max_steps")
    if decay is not None:
        draft.set("train.decay_steps", int(decay), "num_decay_steps")
    elif stable is not None and total and warmup is not None:
        draft.set("train.decay_steps", max(0, int(total - warmup - stable)), "num_stable_steps")
    elif draft.program == "LLaMA-Factory" and stable is None and warmup is None:
        share = (1 - float(draft.value("train.warmup_ratio", 0.0))) * 2 / 3
        draft.set("train.decay_ratio", round(share, 4), "two thirds of what the warm-up leaves, as in LLaMA-Factory")
    else:
        reason = "set train.decay_steps or train.decay_ratio: the steps of the fall are not known"
        draft.lost.append(Note("lr_scheduler_kwargs.num_decay_steps", None, reason))


def optimizer(words: Words, word: str) -> None:
    draft, name = words.draft, words.text(word)
    if name is None:
        return
    if name in OPTIMIZERS:
        if OPTIMIZERS[name] != "adamw":
            draft.set("train.optimizer", OPTIMIZERS[name], word)
    elif name in ALIKE:
        ours, reason = ALIKE[name]
        if ours != "adamw":
            draft.set("train.optimizer", ours, word)
        draft.differs.append(Note(word, name, reason))
    else:
        draft.lost.append(Note(word, name, f"zlaunch has {', '.join(dict.fromkeys(OPTIMIZERS.values()))}"))


def settle(draft: Draft, *, sharded: bool) -> None:
    """AdamW in 32 bits where weights or states are shared among GPUs (`sharded`, or ZeRO): only it can be there."""
    kind = draft.value("train.optimizer", "adamw")
    if kind == "adamw" or not (sharded or draft.value("train.zero_stage") or draft.value("train.ds_config")):
        return
    note = Note("optimizer", kind, "ZeRO shares states in 32 bits: the same steps")
    if "8bit" in kind:
        draft.differs.append(note)
    else:
        draft.lost.append(note._replace(reason="not with ZeRO or FSDP, which share the states of AdamW only"))
    del draft.settings["train.optimizer"]


def noise_and_smoothing(words: Words, *smoothings: str) -> None:
    if alpha := words.number("neftune_noise_alpha"):
        words.draft.set("train.neftune_alpha", alpha, "neftune_noise_alpha")
    for word in smoothings:
        if share := words.number(word):
            words.draft.set("train.label_smoothing", share, word)


def rates_of_modules(words: Words) -> None:
    """axolotl's lr_groups and embedding_lr."""
    draft, rates = words.draft, {}
    peak = float(draft.value("train.learning_rate") or 0)
    own, scale = words.number("embedding_lr"), words.number("embedding_lr_scale")
    rate = peak * scale if scale else own
    if rate and draft.value("lora.modules_to_save"):
        rates[r"modules_to_save\.default|embed_tokens|lm_head"] = rate
    groups = words.take("lr_groups")
    for group in groups if isinstance(groups, list) else ():
        known = isinstance(group, Mapping) and isinstance(group.get("lr"), (int, float, str))
        for module in group.get("modules", ()) if known else ():
            rates.setdefault(re.escape(str(module)), float(group["lr"]))
        if not known:
            draft.lost.append(Note("lr_groups", group, "expected modules and lr"))
    if rates:
        draft.set("train.learning_rates", rates, "lr_groups, embedding_lr")
