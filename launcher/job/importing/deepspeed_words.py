"""DeepSpeed configurations: ZeRO stage, offloading, clipping, batch, AdamW and warm-up as keys of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.job.importing.draft import Context, Draft, Note, Words, parsed_json

_ENGINE = (
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown",
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients",
    "dump_state", "flops_profiler", "comms_logger", "memory_breakdown", "disable_allgather",
    "seq_parallel_communication_data_type",
    "data_types", "elasticity", "autotuning", "graph_harvesting", "use_data_before_expert_parallelism", "timers",
    "zero_optimization_legacy_stage1", "checkpoint", "nebula", "torch_autocast", "load_universal_checkpoint",
)  # fmt: skip
_ADAMW = ("adam", "adamw")
NO_SCHEDULER = "zlaunch has cosine, linear and constant; set train.scheduler"


def read(tree: Mapping[str, Any], context: Context) -> Draft:
    """A DeepSpeed configuration by itself: no model, no data."""
    draft = Draft("DeepSpeed")
    words = Words(tree, draft)
    micro, steps = _numeric(words, "train_micro_batch_size_per_gpu"), _numeric(words, "gradient_accumulation_steps")
    whole = _numeric(words, "train_batch_size")
    if micro is not None:
        draft.set("train.micro_batch_size", int(micro), "train_micro_batch_size_per_gpu")
    gpus = context.gpus or 1
    if whole is not None:
        draft.set("train.global_batch_size", int(whole), "train_batch_size")
    elif micro is not None:
        note = f"{int(micro)} per GPU x {int(steps or 1)} accumulated x {gpus} GPU{'s' if gpus > 1 else ''}"
        draft.set("train.global_batch_size", int(micro * (steps or 1) * gpus), note)
        if context.gpus is None and whole is None:
            draft.differs.append(Note("--gpus", None, "the file does not say how many GPUs: 1 assumed"))
    clipping = _numeric(words, "gradient_clipping")
    draft.set("train.max_grad_norm", clipping or 0, "gradient_clipping" if clipping else "DeepSpeed clips nothing")
    _optimizer(words)
    _scheduler(words)
    _common(words)
    words.finish()
    return draft


def carry(value: Any, draft: Draft, context: Context, word: str = "deepspeed") -> None:
    """The configuration that a training configuration names: a file, a mapping, or a short name such as zero2.

    Batch, clipping and optimizer are the training configuration's own there, which DeepSpeed's file calls `auto`.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parsed_json(value, word)
    tree = value if isinstance(value, Mapping) else _file(str(value), context)
    if tree is None:
        named = re.search(r"(?:zero|z|stage)_?-?([0-3])(.*)", str(value), re.IGNORECASE)
        if named is None:
            draft.lost.append(Note(word, value, "no such file here; set train.zero_stage and train.offload"))
            return
        draft.set("train.zero_stage", int(named[1]), f"{word}: {value}")
        draft.differs.append(Note(word, value, f"not on this machine; its name says ZeRO stage {named[1]}"))
        if "offload" in named[2]:
            draft.set("train.offload", "cpu", f"{word}: {value}")
        return
    words = Words(tree, draft, f"{word}: ")
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        words.unused("the batch is that of the training configuration", name)
    clipping = _numeric(words, "gradient_clipping")
    if clipping is not None:
        draft.set("train.max_grad_norm", clipping, f"{word}: gradient_clipping")
    _optimizer(words)
    _scheduler(words)
    _common(words)
    words.finish()


def _file(name: str, context: Context) -> Mapping[str, Any] | None:
    place = context.find(name)
    if place is None or not place.is_file():
        return None
    found = parsed_json(place.read_bytes(), str(place))
    return found if isinstance(found, Mapping) else None


def _numeric(words: Words, word: str) -> float | None:
    """A number; `auto` and an absent word are none."""
    if words.tree.get(word) == "auto":
        words.unused("filled in by zlaunch", word)
        return None
    return words.number(word)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _common(words: Words) -> None:
    draft = words.draft
    zero = words.take("zero_optimization", {})
    inner = Words(zero if isinstance(zero, Mapping) else {}, draft, f"{words.prefix}zero_optimization.")
    stage = inner.whole("stage", 0) or 0
    draft.set("train.zero_stage", stage, f"{words.prefix}zero_optimization.stage")
    offload = inner.take("offload_optimizer") or {}
    if isinstance(offload, Mapping) and str(offload.get("device", "none")) != "none":
        draft.set("train.offload", "cpu", f"{words.prefix}offload_optimizer")
        if offload["device"] != "cpu":
            draft.differs.append(Note(f"{inner.prefix}offload_optimizer", offload, "to the host's memory, not to NVMe"))
    parameters = inner.take("offload_param") or {}
    if isinstance(parameters, Mapping) and str(parameters.get("device", "none")) != "none":
        reason = "weights stay on the GPUs; it saves memory and changes no result"
        draft.differs.append(Note(f"{inner.prefix}offload_param", parameters, reason))
    for name in list(inner.tree):
        if name not in ("stage", "offload_optimizer", "offload_param"):
            inner.unused("speed and memory of ZeRO, chosen by zlaunch", name)
    for name, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        part = words.take(name)
        if isinstance(part, Mapping) and str(part.get("enabled")).lower() == "true":
            draft.set("model.dtype", dtype, f"{words.prefix}{name}.enabled")
    for name in ("amp", "compression_training", "data_efficiency", "curriculum_learning", "progressive_layer_drop",
                 "pipeline", "tensor_parallel", "hybrid_engine"):  # fmt: skip
        words.lost("zlaunch does not have it", name)
    for name in ("activation_checkpointing", "aio", "tensorboard", "wandb", "csv_monitor", "comet", *_ENGINE):
        words.unused("settings of DeepSpeed's engine that zlaunch makes itself", name)


def _optimizer(words: Words) -> None:
    part, draft = words.take("optimizer"), words.draft
    if not isinstance(part, Mapping):
        return
    kind = str(part.get("type", ""))
    if kind.lower() not in _ADAMW:
        draft.lost.append(Note(f"{words.prefix}optimizer.type", kind, "zlaunch has AdamW only"))
        return
    if kind.lower() == "adam" and not _mapping(part.get("params")).get("adam_w_mode", True):
        draft.lost.append(Note(f"{words.prefix}optimizer", part, "plain Adam; zlaunch decays weights as AdamW does"))
    inner = Words(_mapping(part.get("params")), draft, f"{words.prefix}optimizer.")
    keys = (("lr", "learning_rate"), ("weight_decay", "weight_decay"), ("eps", "adam_epsilon"))
    for word, key in keys:
        value = _numeric(inner, word)
        if value is not None:
            draft.set(f"train.{key}", value, f"{words.prefix}optimizer {word}")
    betas = inner.take("betas")
    if isinstance(betas, list) and len(betas) == 2:
        draft.set("train.adam_beta1", betas[0], f"{words.prefix}optimizer betas")
        draft.set("train.adam_beta2", betas[1], f"{words.prefix}optimizer betas")
    inner.unused("of DeepSpeed's implementation", "adam_w_mode", "torch_adam", "bias_correction", "fused", "amsgrad")
    inner.finish()


def _scheduler(words: Words) -> None:
    part, draft = words.take("scheduler"), words.draft
    if not isinstance(part, Mapping):
        return
    kind, prefix = str(part.get("type", "")), f"{words.prefix}scheduler."
    shapes = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
    if kind not in shapes:
        draft.lost.append(Note(f"{prefix}type", kind, NO_SCHEDULER))
        return
    draft.set("train.scheduler", shapes[kind], f"{prefix}type: {kind}")
    inner = Words(_mapping(part.get("params")), draft, prefix)
    warmup, rate = _numeric(inner, "warmup_num_steps"), _numeric(inner, "warmup_max_lr")
    if warmup is not None:
        draft.set("train.warmup_steps", int(warmup), f"{prefix}warmup_num_steps")
    if rate is not None:
        draft.set("train.learning_rate", rate, f"{prefix}warmup_max_lr")
    if inner.tree.get("warmup_type", "log" if kind != "WarmupCosineLR" else "linear") == "log" and warmup:
        draft.differs.append(Note(f"{prefix}warmup_type", "log", "zlaunch's warm-up is linear"))
    inner.take("warmup_type")
    least = _numeric(inner, "warmup_min_lr")
    if least:
        draft.differs.append(Note(f"{prefix}warmup_min_lr", least, "zlaunch's warm-up rises from 0"))
    inner.unused("the number of steps is that of the run", "total_num_steps", "last_batch_iteration")
    inner.finish()
