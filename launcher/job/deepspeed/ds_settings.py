"""A job with the settings of its DeepSpeed configuration, and what a user should know of both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from launcher.job.deepspeed.ds_reading import BY_HIDDEN_SIZE, KEY, DsConfig, load, read
from launcher.job.explain import Refusal
from launcher.job.spec import JobSpec
from train.config import TrainConfig

PLACES = {
    "train.reduce_bucket_size": "zero_optimization.reduce_bucket_size",
    "train.allgather_bucket_size": "zero_optimization.allgather_bucket_size",
    "train.prefetch_bucket_size": "zero_optimization.stage3_prefetch_bucket_size",
    "train.sub_group_size": "zero_optimization.sub_group_size",
    "train.round_robin_gradients": "zero_optimization.round_robin_gradients",
}
"""Keys of a job that only DeepSpeed reads, and its names for them."""
_OTHERS = {"train.warmup_steps": "train.warmup_ratio"}
"""{key: another key of a job that says the same in another way}"""


def applied(spec: JobSpec, tree: Mapping[str, Any]) -> JobSpec:
    """The job with the settings of train.ds_config where the mapping of sections `tree` leaves them open.

    Raises Refusal for a configuration that cannot be used, and for a ZeRO stage that is not the job's.
    """
    if spec.train.ds_config is None:
        return spec
    content = load(spec.train.ds_config, Path.cwd())
    if not isinstance(content, dict):
        raise Refusal(KEY, "expected the name of a JSON file, or its content")
    spec = spec.with_values({KEY: content})
    return spec.with_values({key: value for key, (value, name) in read(content).settings.items()
                             if _is_open(tree, key, value, name)})  # fmt: skip


def _is_open(tree: Mapping[str, Any], key: str, value: Any, name: str) -> bool:
    """Whether the job leaves a key to the configuration."""
    asked = [_given(tree, one) for one in (key, _OTHERS.get(key)) if one]
    if key == "train.zero_stage" and asked[0] not in (None, "auto", value) and str(asked[0]) != str(value):
        hint = "leave one of them out"
        raise Refusal("train.zero_stage", f"{asked[0]}, but {name} of train.ds_config is {value}", hint=hint)
    return all(one in (None, "auto") for one in asked)


def _given(tree: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = tree.get(section)
    return found.get(name) if isinstance(found, Mapping) else None


def _read(spec: JobSpec) -> DsConfig:
    return read(spec.train.ds_config) if isinstance(spec.train.ds_config, dict) else DsConfig()


def for_target(spec: JobSpec, world_size: int, hidden: int | None) -> JobSpec:
    """The job with what follows from the number of ranks and from the model's hidden size (None: not known)."""
    found, train = _read(spec), spec.train
    values: dict[str, Any] = {}
    if found.accumulation and train.global_batch_size == "auto" and isinstance(train.micro_batch_size, int):
        values["train.global_batch_size"] = train.micro_batch_size * found.accumulation * world_size
    for key, place in PLACES.items():
        if hidden and place in found.by_hidden_size and attrgetter(key)(spec) is None:
            values[key] = int(BY_HIDDEN_SIZE[place] * hidden * hidden)
    return spec.with_values(values)


def for_deepspeed(spec: JobSpec, config: TrainConfig, hidden: int | None) -> dict[str, Any]:
    """What ds_config.json holds beside the settings of train.json."""
    found = _read(spec)
    tree = copy.deepcopy(found.passed)
    zero = tree.setdefault("zero_optimization", {})
    for key, place in PLACES.items():
        value = attrgetter(key)(spec)
        if value not in (None, False):
            zero[place.rpartition(".")[2]] = value
    if hidden and (persistence := "zero_optimization.stage3_param_persistence_threshold") in found.by_hidden_size:
        zero[persistence.rpartition(".")[2]] = 10 * hidden
    train, pinned = config.train, {} if config.device == "cuda" else {"pin_memory": False}
    blocks = {
        "offload_optimizer": {"device": train.offload, "pin_memory": True},
        "offload_param": {"device": train.offload_param, "pin_memory": True},
    }
    for name, block in blocks.items():
        own = zero.pop(name, {})
        if block["device"] != "none":
            zero[name] = block | own | pinned
    return {name: block for name, block in tree.items() if block != {}}


def report(spec: JobSpec, config: TrainConfig, *, shares_itself: bool) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """({key: (value, why)} of what the configuration decided, what it says without effect).

    `shares_itself`: ZeRO-3 is that of the fused layers.
    """
    found = _read(spec)
    reasons: dict[str, tuple[Any, str]] = {}
    notes: list[str] = []
    for key, (value, name) in found.settings.items():
        final = attrgetter(key)(config if hasattr(config.train, key.rpartition(".")[2]) else spec)
        if final == value:
            reasons[key] = (value, f"{name} of train.ds_config")
        else:
            notes.append(f"train.ds_config: {name}: {value} has no effect: {key} is {final} in the job")
    train = config.train
    if found.accumulation not in (None, train.gradient_accumulation_steps):
        notes.append(
            f"train.ds_config: gradient_accumulation_steps: {found.accumulation} has no effect: "
            f"{train.global_batch_size} records per step and {config.world_size} ranks make it "
            f"{train.gradient_accumulation_steps}"
        )
    if found.dtype not in (None, config.model.dtype):
        notes.append(f"train.ds_config: {found.dtype} has no effect: model.dtype is {config.model.dtype}")
    for why in dict.fromkeys(found.idle.values()):
        names = [name for name, reason in found.idle.items() if reason == why]
        notes.append(f"train.ds_config: {', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect: {why}")
    notes += _without_deepspeed(spec, config, found, shares_itself=shares_itself)
    return reasons, notes


def _without_deepspeed(spec: JobSpec, config: TrainConfig, found: DsConfig, *, shares_itself: bool) -> list[str]:
    """What has no effect because DeepSpeed does not run."""
    default = JobSpec()
    names = [key for key in PLACES if attrgetter(key)(spec) != attrgetter(key)(default)]
    others = [name for name in _names(found.passed) if config.model.dtype == "float16" or not name.startswith("fp16.")]
    if others:
        shown = ", ".join(others[:3])
        names.append(f"{len(others)} keys of train.ds_config ({shown}{', ...' if len(others) > 3 else ''})")
    if not names:
        return []
    if not config.train.zero_stage:
        why = "ZeRO stage 0 does not use DeepSpeed"
    elif shares_itself:
        why = "the fused layers share the weights themselves; train.engine: peft trains with DeepSpeed's ZeRO-3"
    else:
        return []
    return [f"without effect: {', '.join(names)}: {why}"]


def _names(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in tree.items():
        names += _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names
