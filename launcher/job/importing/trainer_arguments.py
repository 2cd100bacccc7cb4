"""Arguments of transformers' Trainer, which LLaMA-Factory, ms-swift and TRL share: batch, steps, rates, saves.

Each program has defaults of its own; what a configuration leaves out is written into the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.job.importing import deepspeed_words, optimizing
from launcher.job.importing.draft import Context, Draft, Note, Words, is_off, parsed_json, set_batch
from launcher.job.trackers import TRACKERS


@dataclass(frozen=True)
class Defaults:
    """Of transformers 5; the other programs change some."""

    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    seed: int = 42
    save_steps: int = 500
    logging_steps: int = 500
    eval_strategy: str = "no"
    trackers: str = "none"


HOUSEKEEPING = {
    "the run directory of zlaunch holds the results": (
        "output_dir", "overwrite_output_dir", "logging_dir", "save_safetensors", "save_only_model", "plot_loss",
        "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
        "save_on_each_node", "restore_callback_states_from_checkpoint",
    ),
    "zlaunch resume continues a run": ("resume_from_checkpoint", "ignore_data_skip"),
    "speed, memory or output of the other program": (
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_timeout",
        "dataloader_persistent_workers", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_backend",
        "ddp_broadcast_buffers", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cpu",
        "gradient_checkpointing_kwargs", "use_liger_kernel", "liger_kernel_config", "remove_unused_columns",
        "log_level", "log_on_each_node", "logging_first_step", "logging_nan_inf_filter", "disable_tqdm", "no_cuda",
        "include_num_input_tokens_seen", "include_tokens_per_second", "skip_memory_metrics", "torch_empty_cache_steps",
        "auto_find_batch_size", "local_rank", "debug", "full_determinism", "use_mps_device", "fp16_opt_level",
        "bf16_full_eval", "fp16_full_eval", "eval_accumulation_steps", "half_precision_backend", "fp16_backend",
        "prediction_loss_only", "batch_eval_metrics", "eval_on_start", "past_index", "mp_parameters",
        "accelerator_config", "parallelism_config", "average_tokens_across_devices", "jit_mode_eval", "use_ipex",
        "logging_strategy", "label_names", "length_column_name", "train_sampling_strategy", "project",
        "trackio_space_id", "dispatch_batches", "split_batches", "tpu_num_cores", "tpu_metrics_debug",
        "use_legacy_prediction_loop", "enable_jit_checkpoint", "generation_config", "data_shared_file_system",
        "use_cache", "log_level_replica", "trackio_bucket_id", "trackio_static_space_id", "hub_revision",
        "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_static_graph",
    ),
    "the loss on data.eval is measured; see eval.after for answers": (
        "do_eval", "eval_delay", "include_for_metrics", "include_inputs_for_metrics", "sortish_sampler",
        "generation_num_beams", "eval_do_concat_batches", "eval_use_gather_object",
    ),
}  # fmt: skip

QUANTIZED = re.compile(r"[-_](awq|gptq|aqlm|eetq|hqq|fp8|bnb)(?:[-_]|\b)", re.IGNORECASE)
"""Checkpoints whose names say that their weights are quantized."""
OWN_LAYERS = re.compile(r"Linearized|DeepSeek-V|Mixtral|-A\d+B", re.IGNORECASE)
"""Checkpoints of mixtures in nf4, whose experts stand in layers of another program's own."""
CHECKPOINTING = "train.gradient_checkpointing: auto, by the memory; it changes no result"


def carry(words: Words, context: Context, defaults: Defaults, *, held_out: bool) -> None:
    """Carry every argument of the Trainer over. `held_out`: there are records to evaluate on."""
    draft = words.draft
    batch(words, context, defaults)
    words.carry("train.epochs", "num_train_epochs", words.number, defaults.num_train_epochs)
    steps = words.whole("max_steps")
    if steps is not None and steps > 0:
        draft.set("train.max_steps", steps, "max_steps")
    words.carry("train.learning_rate", "learning_rate", words.number, defaults.learning_rate)
    optimizing.schedule(words, "lr_scheduler_type", defaults.lr_scheduler_type, defaults.warmup_ratio)
    words.carry("train.weight_decay", "weight_decay", words.number, defaults.weight_decay)
    words.carry("train.max_grad_norm", "max_grad_norm", words.number, defaults.max_grad_norm)
    for beta in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        words.carry(f"train.{beta}", beta, words.number, getattr(defaults, beta))
    optimizing.optimizer(words, "optim")
    words.lost("zlaunch has no further settings of optimizers", "optim_args", "optim_target_modules")
    words.carry("train.seed", "seed", words.whole, defaults.seed)
    words.unused("train.seed also orders the records", "data_seed")
    saves(words, defaults)
    evaluations(words, defaults, held_out=held_out)
    if (every := words.number("logging_steps", defaults.logging_steps)) is not None and every >= 1:
        draft.set("train.log_every", int(every), "logging_steps")
    trackers(words, defaults)
    precision(words)
    words.unused(CHECKPOINTING, "gradient_checkpointing")
    if not is_off(config := words.take("deepspeed")):
        deepspeed_words.carry(config, draft, context)
    optimizing.settle(draft, sharded=not is_off(words.tree.get("fsdp")))
    sharded(words, "fsdp", "fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap")
    if name := words.text("run_name"):
        draft.set("name", name, "run_name")
    others(words)


def others(words: Words) -> None:
    """Arguments that a job does not have."""
    optimizing.noise_and_smoothing(words, "label_smoothing_factor")
    best(words)
    if words.flag("group_by_length"):
        words.draft.differs.append(
            Note("group_by_length", True, "train.packing joins records of similar length inside a batch only")
        )
    if words.flag("dataloader_drop_last"):
        words.draft.differs.append(
            Note("dataloader_drop_last", True, "zlaunch fills the last batch of an epoch with records of the next one")
        )
    for reason, names in HOUSEKEEPING.items():
        words.unused(reason, *names)


def best(words: Words) -> None:
    """Which weights the run ends with: those that measured best where it says so, else the last ones."""
    draft, metric = words.draft, words.text("metric_for_best_model", "loss") or "loss"
    words.unused("a smaller loss is better", "greater_is_better")
    if "data.eval" not in draft.settings:
        words.unused("there are no held-out records", "load_best_model_at_end")
    elif not words.flag("load_best_model_at_end"):
        draft.set("eval.keep_best", "none", "load_best_model_at_end: off, so the last weights are kept")
    elif metric.removeprefix("eval_") == "loss":
        draft.set("eval.keep_best", "loss", "load_best_model_at_end")
    else:
        draft.set("eval.keep_best", "loss", "load_best_model_at_end")
        draft.lost.append(Note("metric_for_best_model", metric, "the loss decides"))


def early_stopping(words: Words, word: str) -> None:
    """After `best`: training that stops early keeps the weights that measured best."""
    draft = words.draft
    if "data.eval" not in draft.settings:
        words.unused("there are no held-out records", word)
        return
    if (patience := words.whole(word)) and patience > 0:
        draft.set("train.early_stopping_patience", patience, word)
        if draft.value("eval.keep_best") == "none":
            draft.set("eval.keep_best", "loss", word)
            draft.differs.append(Note(word, patience, "eval.keep_best: the best weights are kept, not the last ones"))


def quantized_already(draft: Draft, word: str, path: str | None) -> None:
    """How the weights of a checkpoint are, where its name says that they are quantized."""
    found = QUANTIZED.search(path or "")
    kind = found[1].lower() if found else ""
    if kind in ("gptq", "awq"):
        draft.set("model.quantization", "published", f"{word}: the checkpoint is quantized by {kind.upper()}")
    elif kind == "bnb" and not OWN_LAYERS.search(path or ""):
        if draft.value("model.quantization") not in ("nf4", "int8"):
            draft.set("model.quantization", "nf4", f"{word}: the checkpoint is quantized by bitsandbytes")
    elif kind:
        reason = "its weights are quantized already; name the original checkpoint, with model.quantization: nf4"
        draft.lost.append(Note(word, path, reason))


def batch(words: Words, context: Context, defaults: Defaults, small: str = "per_device_train_batch_size") -> None:
    """The global batch: records per device x accumulation x number of GPUs."""
    micro = words.whole(small, defaults.per_device_train_batch_size) or 1
    steps = words.whole("gradient_accumulation_steps", defaults.gradient_accumulation_steps) or 1
    set_batch(words.draft, micro, steps, context.gpus)


def packed_rows(draft: Draft, word: str) -> None:
    """Packed rows: a step is counted in rows there, and in records or tokens here."""
    rows, length = draft.value("train.global_batch_size", 1), draft.value("data.max_length", 2048)
    draft.unused.append(Note(word, True, "train.packing: auto packs rows where the model allows it; no result changes"))
    draft.set("train.batch_tokens", rows * length, f"{word}: {rows} rows of {length} tokens per step")
    del draft.settings["train.global_batch_size"]


def saves(words: Words, defaults: Defaults) -> None:
    draft = words.draft
    strategy = words.text("save_strategy", "steps")
    every = words.number("save_steps", defaults.save_steps)
    if strategy == "epoch":
        draft.set("train.checkpoint_every", "epoch", "save_strategy: epoch")
    elif strategy in ("no", "false"):
        draft.set("train.checkpoint_every", 0, "save_strategy: no")
    elif strategy == "best":
        draft.lost.append(Note("save_strategy", "best", "checkpoints are saved by steps or epochs"))
    elif every is not None:
        draft.set("train.checkpoint_every", _interval(every, draft), "save_steps")
    limit = words.whole("save_total_limit")
    note = "save_total_limit" if limit else f"{draft.program} keeps every checkpoint"
    draft.set("train.keep_checkpoints", limit or 1000, note)


def _interval(every: float, draft: Draft) -> int | str:
    """Steps; a number below 1 is a share of the whole run in transformers."""
    if every >= 1 or every == 0:
        return int(every)
    if steps := draft.value("train.max_steps"):
        return max(1, round(every * int(steps)))
    return f"{every * float(draft.value('train.epochs', 1.0)):.4f} epochs"


def evaluations(words: Words, defaults: Defaults, *, held_out: bool) -> None:
    draft = words.draft
    old = "evaluation_strategy"
    names = ("eval_strategy", old, "eval_steps", "per_device_eval_batch_size", "predict_with_generate",
             "generation_max_length")  # fmt: skip
    if not held_out:
        words.unused("there are no held-out records", *names)
        return
    strategy = words.text("eval_strategy") or words.text(old) or defaults.eval_strategy
    every = words.number("eval_steps") or draft.value("train.log_every") or words.number("logging_steps")
    if strategy == "epoch":
        draft.set("eval.every", "epoch", "eval_strategy: epoch")
    elif strategy == "steps":
        interval = _interval(float(every), draft) if every else defaults.logging_steps
        draft.set("eval.every", interval, "eval_steps" if words.given("eval_steps") else "eval_steps: as logging_steps")
    else:
        draft.set("eval.every", 0, "eval_strategy: no")
    if batch_size := words.whole("per_device_eval_batch_size"):
        draft.set("eval.batch_size", batch_size, "per_device_eval_batch_size")
    draft.set("eval.after", words.flag("predict_with_generate"), "predict_with_generate")
    if length := words.whole("generation_max_length"):
        draft.set("eval.max_new_tokens", length, "generation_max_length")


def trackers(words: Words, defaults: Defaults) -> None:
    draft = words.draft
    named = words.names("report_to") or (defaults.trackers,)
    known = [name for name in named if name in TRACKERS]
    for name in named:
        if name in ("all", "none") or name in known:
            continue
        draft.unused.append(Note("report_to", name, f"zlaunch reports to {', '.join(TRACKERS)}"))
    if known:
        draft.set("train.report_to", known, "report_to")


def precision(words: Words) -> None:
    if words.flag("fp16"):
        words.draft.set("model.dtype", "float16", "fp16")
    if words.flag("bf16"):
        words.draft.set("model.dtype", "bfloat16", "bf16")


def sharded(words: Words, *names: str) -> None:
    words.unused("train.zero_stage: auto shards the weights where they do not fit; it changes no result", *names)


def is_meant(tree: Mapping[str, Any]) -> bool:
    """Whether a mapping looks like arguments of the Trainer."""
    return "per_device_train_batch_size" in tree or {"output_dir", "learning_rate"} <= set(tree)


def start_of_lora(draft: Draft, word: str, start: str, *same: str) -> None:
    """PEFT's init_lora_weights, by its name in `word`. `same`: further names of the default start."""
    if start.startswith("pissa"):
        draft.set("lora.init", "pissa", word)
    elif start in ("gaussian", "olora", "orthogonal"):
        draft.set("lora.init", start, word)
    elif start not in ("true", "false", *same):
        draft.lost.append(Note(word, start, "its weights come from data or another decomposition"))


ROPE = ("linear", "dynamic", "yarn", "llama3")


def rope(words: Words) -> None:
    """`rope_scaling`: a name, or a mapping of transformers with its type and factor."""
    given = words.tree.get("rope_scaling")
    if isinstance(given, str) and given.strip().startswith("{"):
        given = parsed_json(given, "rope_scaling")
    kind = given.get("rope_type", given.get("type")) if isinstance(given, Mapping) else given
    factor = given.get("factor") if isinstance(given, Mapping) else None
    if kind not in ROPE:
        words.lost(f"model.rope_scaling has {', '.join(ROPE)}", "rope_scaling")
        return
    words.take("rope_scaling")
    words.draft.set("model.rope_scaling", kind, "rope_scaling")
    if isinstance(factor, (int, float)):
        words.draft.set("model.rope_factor", factor, "rope_scaling.factor")
