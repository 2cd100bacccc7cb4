"""axolotl: its YAML files, and `axolotl train`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.job.importing import axolotl_data, deepspeed_words, optimizing, trainer_arguments
from launcher.job.importing.draft import Context, Draft, Note, Words, is_off, set_batch
from launcher.job.importing.trainer_arguments import Defaults

KERNELS = (
    "model_type", "tokenizer_type", "is_llama_derived_model", "is_mistral_derived_model", "is_falcon_derived_model",
    "is_qwen_derived_model", "attn_implementation", "flash_attention", "xformers_attention", "sdp_attention",
    "s2_attention", "flex_attention", "eager_attention", "flash_attn_cross_entropy", "flash_attn_rms_norm",
    "flash_attn_fuse_mlp", "flash_attn_fuse_qkv", "flash_optimum", "tf32", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading",
    "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "use_kernels", "use_scattermoe",
    "use_sonicmoe", "experts_implementation", "fused_attn_kernel", "gemma4_hybrid_attn_impl", "cut_cross_entropy",
    "unsloth_cross_entropy_loss", "unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o", "unsloth_rms_norm",
    "unsloth_rope", "tiled_mlp", "chunked_cross_entropy", "use_glm_dsa_kernels", "use_dsv4_kernels",
    "dsv4_fp4_grouped_mode", "flex_attn_compile_kwargs", "low_cpu_mem_usage", "device_map", "max_memory",
    "lora_fan_in_fan_out", "llama4_linearized_experts", "experimental_skip_move_to_device", "gc_steps",
    "gc_collect_steps",
    "pad_to_sequence_len", "eval_sample_packing", "sample_packing_group_size", "sample_packing_bin_size",
    "sample_packing_eff_est", "sample_packing_sequentially", "sample_packing_seq_len_multiplier",
    "max_packed_sequence_len", "pretrain_multipack_attn", "multipack_real_batches", "batch_flattening", "strict",
    "torchdistx_path", "gptq_groupsize", "gptq_model_v1", "gptq_disable_exllama", "local_rank", "lora_on_cpu",
    "ddp", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters",
    "tokenizer_use_fast", "tokenizer_legacy", "noisy_embedding", "lora_kernels", "deepcompile", "accelerator_config",
    "fsdp_version", "dp_shard_size", "dp_replicate_size", "torch_dtype", "auto_find_batch_size",
    "resize_token_embeddings_to_32x", "shrink_embeddings", "peft_autocast_adapter_dtype",
)  # fmt: skip
OUTPUT = (
    "output_dir", "hub_model_id", "hub_strategy", "hub_revision", "save_safetensors", "resume_from_checkpoint",
    "auto_resume_from_checkpoints", "save_only_model", "save_first_step", "push_to_hub", "hf_use_auth_token", "debug",
    "profiler_steps", "profiler_steps_start", "include_tokens_per_second", "include_tkps", "generate_samples",
    "num_generation_samples", "generation_max_new_tokens", "generation_temperature", "eval_table_size", "logging_dir",
    "eval_max_new_tokens", "eval_causal_lm_metrics", "do_causal_lm_eval", "do_bench_eval", "bench_dataset", "use_ray",
    "ray_run_name", "resources_per_worker", "use_otel_metrics", "otel_metrics_host", "otel_metrics_port", "gpu_count",
    "dynamic_checkpoint", "comet_project_name", "use_comet", "lm_eval_tasks", "vllm", "mean_resizing_embeddings",
    "tokenizer_use_mistral_common", "test_value", "project_name", "telemetry", "base_model_ignore_patterns",
    "gpu_memory_limit", "base_model_config",
)  # fmt: skip
PLUGINS = ("liger", "cut_cross_entropy", "cce", "kernels", "spectrum", "hatchery", "swanlab", "expert_parallel")
"""Plugins that change speed, memory or output only."""


def read(tree: Mapping[str, Any], context: Context) -> Draft:
    """A configuration of axolotl as a draft."""
    draft = Draft("axolotl")
    words = Words(tree, draft)
    _method(words)
    _model(words)
    _adapter(words)
    axolotl_data.carry(words, context)
    words.carry("data.max_length", "sequence_len", words.whole, 512)
    _length(words)
    _training(words, context)
    _saves(words)
    _trackers(words)
    _others(words)
    words.finish()
    return draft


def _method(words: Words) -> None:
    draft = words.draft
    kind = words.text("adapter")
    if kind not in ("lora", "qlora"):
        draft.refused.append(Note("adapter", kind, "zlaunch trains LoRA adapters"))
    if not is_off(rl := words.take("rl")):
        draft.refused.append(Note("rl", rl, "preferences or rewards; zlaunch does supervised fine-tuning"))
    words.refuse("zlaunch trains on text only", "processor_type", "is_multimodal", "freeze_mm_modules", "image_size")
    words.refuse("zlaunch does supervised fine-tuning", "reward_model", "process_reward_model", "diffusion",
                 "num_labels", "qat", "quantization", "full_finetune", "kd_trainer", "ebft", "trl",
                 "center_rewards_coefficient")  # fmt: skip
    words.lost("zlaunch has plain LoRA", "relora", "relora_steps", "lisa_n_layers", "unfrozen_parameters",
               "llmcompressor", "relora_prune_ratio", "relora_cpu_offload", "lisa_step_interval",
               "lisa_layers_attribute")  # fmt: skip
    words.lost("zlaunch has the plain cross-entropy", "use_eaft", "eaft_alpha", "eaft_k", "use_dft")
    words.carry("train.router_loss", "router_aux_loss_coef", words.number)
    optimizing.noise_and_smoothing(words, "label_smoothing", "label_smoothing_factor")


def _model(words: Words) -> None:
    draft = words.draft
    path = words.carry("model.path", "base_model", words.text)
    words.carry("model.revision", "revision_of_model", words.text)
    words.carry("model.trust_remote_code", "trust_remote_code", words.flag)
    _weights(words, path)
    for word in ("model_config", "overrides_of_model_config"):
        asked = words.tree.get(word)
        if isinstance(asked, Mapping) and asked.get("output_router_logits") is True:
            weight = asked.get("router_aux_loss_coef", draft.value("train.router_loss", "auto"))
            draft.set("train.router_loss", weight, f"{word}.output_router_logits")
            if set(asked) <= {"output_router_logits", "router_aux_loss_coef"}:
                words.take(word)
    trainer_arguments.rope(words)
    words.lost("zlaunch loads the model as its config.json says", "model_config", "overrides_of_model_config",
               "overrides_of_model_kwargs", "cls_model_config", "reinit_weights")  # fmt: skip
    words.lost(
        "the tokenizer is the model's", "tokenizer_config", "tokenizer_save_jinja_files", "added_tokens_overrides"
    )
    words.lost("zlaunch adds no tokens", "tokens")
    named = words.take("special_tokens") or {}
    for name in named if isinstance(named, Mapping) else ():
        note = Note(f"special_tokens.{name}", named[name], "padding is never trained")
        if name == "pad_token" or is_off(named[name]):
            draft.unused.append(note)
        else:
            draft.differs.append(note._replace(reason="the tokenizer's own is used; the chat template ends answers"))


def _weights(words: Words, path: str | None) -> None:
    """Form and type of the frozen weights."""
    draft = words.draft
    if words.flag("load_in_4bit"):
        draft.set("model.quantization", "nf4", "load_in_4bit")
    if words.flag("load_in_8bit"):
        draft.set("model.quantization", "int8", "load_in_8bit")
    if words.flag("gptq"):
        draft.set("model.quantization", "published", "gptq")
    else:
        trainer_arguments.quantized_already(draft, "base_model", path)
    for word, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16"), ("float16", "float16")):
        value = str(words.take(word, "")).lower()
        if value in ("true", "full"):
            draft.set("model.dtype", dtype, word)
    if words.flag("fp8"):
        draft.set("model.quantization", "fp8", "fp8")
    words.unused("with fp8", "fp8_enable_fsdp_float8_all_gather")
    if words.flag("quantize_moe_experts"):
        reason = "expert weights that are no linear layers stay in 16 bits: more memory, and more exact"
        draft.differs.append(Note("quantize_moe_experts", True, reason))
    if words.tree.get("bnb_config_kwargs") == {"bnb_4bit_use_double_quant": True}:
        words.unused("as zlaunch does it", "bnb_config_kwargs")
    unpacked = words.tree.get("model_quantization_config_kwargs") == {"dequantize": True}
    if words.tree.get("model_quantization_config") == "Mxfp4Config" and unpacked:
        words.unused("as zlaunch loads it", "model_quantization_config", "model_quantization_config_kwargs")
    words.lost("nf4 with zlaunch's own settings", "bnb_config_kwargs", "model_quantization_config",
               "model_quantization_config_kwargs", "nvfp4_merge_aware")  # fmt: skip


def _adapter(words: Words) -> None:
    draft = words.draft
    words.carry("lora.r", "lora_r", words.whole, 8)
    words.carry("lora.alpha", "lora_alpha", words.number, 8)
    words.carry("lora.dropout", "lora_dropout", words.number, 0.0)
    targets = words.take("lora_target_modules")
    linear = words.flag("lora_target_linear") or targets in ("all-linear", ["all-linear"])
    if linear or is_off(targets):
        draft.set("lora.target_modules", "auto", "lora_target_linear" if linear else "all linear layers")
    elif isinstance(targets, list):
        draft.set("lora.target_modules", [str(name) for name in targets], "lora_target_modules")
    else:
        draft.set("lora.target_modules", str(targets), "lora_target_modules")
    if modules := words.names("lora_modules_to_save"):
        draft.set("lora.modules_to_save", list(modules), "lora_modules_to_save")
    words.carry("lora.rslora", "peft_use_rslora", words.flag)
    words.carry("lora.dora", "peft_use_dora", words.flag)
    words.carry("lora.plus_ratio", "loraplus_lr_ratio", words.number)
    words.carry("lora.adapter", "lora_model_dir", words.text)
    start = words.text("peft_init_lora_weights", "true") or "true"
    trainer_arguments.start_of_lora(draft, "peft_init_lora_weights", start)
    for key, theirs in (("rank_pattern", "lora_rank_pattern"), ("alpha_pattern", "lora_alpha_pattern")):
        if isinstance(found := words.take(theirs), dict) and found:
            draft.set(f"lora.{key}", found, theirs)
    if not is_off(layers := words.take("peft_layers_to_transform")):
        draft.set(
            "lora.layers_to_transform", layers if isinstance(layers, list) else [layers], "peft_layers_to_transform"
        )
    words.lost("LoRA goes on whole linear layers", "lora_target_parameters", "peft", "peft_layers_pattern",
               "peft_trainable_token_indices", "peft_ensure_weight_tying", "loraplus_lr_embedding")  # fmt: skip


def _length(words: Words) -> None:
    rule = words.text("excess_length_strategy", "drop")
    note = "excess_length_strategy" if words.given("excess_length_strategy") else "axolotl drops longer records"
    words.draft.set("data.overlong", "cut" if rule == "truncate" else "drop", note)
    words.unused("data.max_length counts for data.eval too", "eval_sequence_len")


def _training(words: Words, context: Context) -> None:
    draft = words.draft
    defaults = Defaults(
        per_device_train_batch_size=1, num_train_epochs=1.0, lr_scheduler_type="cosine", warmup_ratio=0.03
    )
    if (workers := words.whole("ray_num_workers")) and context.gpus is None:
        context = replace(context, gpus=workers)
    micro, each = words.whole("micro_batch_size"), words.whole("batch_size")
    steps = words.whole("gradient_accumulation_steps") or (each // (micro or 1) if each else 1)
    set_batch(draft, micro or (each or 1) // steps or 1, max(1, steps), context.gpus)
    words.carry("train.epochs", "num_epochs", words.number, defaults.num_train_epochs)
    if (limit := words.whole("max_steps")) and limit > 0:
        draft.set("train.max_steps", limit, "max_steps")
    words.carry("train.learning_rate", "learning_rate", words.number)
    optimizing.schedule(words, "lr_scheduler", defaults.lr_scheduler_type, defaults.warmup_ratio)
    if draft.value("train.scheduler") == "cosine" and (floor := words.number("cosine_min_lr_ratio")):
        draft.set("train.min_lr_ratio", floor, "cosine_min_lr_ratio")
    words.lost("zlaunch's schedules do not have it", "cosine_min_lr_ratio", "cosine_constant_lr_ratio",
               "lr_quadratic_warmup", "lr_div_factor", "eta_min", "jagged_restart_steps",
               "jagged_restart_warmup_steps", "jagged_restart_anneal_steps")  # fmt: skip
    optimizing.rates_of_modules(words)
    words.carry("train.weight_decay", "weight_decay", words.number, 0.0)
    words.carry("train.max_grad_norm", "max_grad_norm", words.number, 1.0)
    words.carry("train.adam_beta1", "adam_beta1", words.number, 0.9)
    words.carry("train.adam_beta2", "adam_beta2", words.number, 0.999)
    words.carry("train.adam_epsilon", "adam_eps" if words.given("adam_eps") else "adam_epsilon", words.number, 1e-8)
    optimizing.optimizer(words, "optimizer")
    words.lost("zlaunch has no further settings of optimizers", "optim_args", "optim_target_modules", "adam_epsilon2",
               "adam_beta3")  # fmt: skip
    words.carry("train.seed", "seed", words.whole, 42)
    if words.flag("sample_packing"):
        trainer_arguments.packed_rows(draft, "sample_packing")
    if not is_off(config := words.take("deepspeed")):
        deepspeed_words.carry(config, draft, context)
    optimizing.settle(draft, sharded=not is_off(words.tree.get("fsdp")) or not is_off(words.tree.get("fsdp_config")))
    trainer_arguments.sharded(words, "fsdp", "fsdp_config", "fsdp_final_state_dict_type")
    for word in ("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree", "expert_parallel_size",
                 "context_parapllel_size"):  # fmt: skip
        if (words.whole(word) or 1) > 1:
            reason = "a row has to fit one GPU; it changes no result"
            draft.differs.append(Note(word, words.tree[word], reason))
    words.unused("of parallel rows", "ring_attn_func", "heads_k_stride", "expert_parallel_num_nvl_bytes",
                 "expert_parallel_token_capacity", "expert_parallel_backend")  # fmt: skip


def _saves(words: Words) -> None:
    draft = words.draft
    times, every = words.number("saves_per_epoch"), words.number("save_steps")
    if times:
        draft.set("train.checkpoint_every", _share_of_epoch(times), "saves_per_epoch")
        words.unused("saves_per_epoch says it", "save_steps", "save_strategy")
    elif every:
        interval = int(every) if every >= 1 else f"{every * float(draft.value('train.epochs', 1)):.4f} epochs"
        draft.set("train.checkpoint_every", interval, "save_steps")
        words.unused("save_steps says it", "save_strategy")
    else:
        strategy = words.text("save_strategy", "epoch")
        draft.set("train.checkpoint_every", 0 if strategy in ("no", "false") else "epoch", "save_strategy")
    draft.set("train.keep_checkpoints", words.whole("save_total_limit") or 4, "save_total_limit (axolotl: 4)")
    times, every = words.number("evals_per_epoch"), words.number("eval_steps")
    strategy = words.text("eval_strategy") or words.text("evaluation_strategy")
    if "data.eval" in draft.settings:
        if times or (not every and strategy in (None, "epoch")):
            draft.set("eval.every", _share_of_epoch(times or 1), "evals_per_epoch")
        elif every and strategy != "no":
            draft.set("eval.every", int(every) if every >= 1 else f"{every:.4f} epochs", "eval_steps")
        else:
            draft.set("eval.every", 0, "eval_strategy")
        draft.set("eval.after", False, "axolotl measures the loss only")
    if size := words.whole("eval_batch_size"):
        draft.set("eval.batch_size", size, "eval_batch_size")
    if (every := words.number("logging_steps")) is not None and every >= 1:
        draft.set("train.log_every", int(every), "logging_steps")


def _share_of_epoch(times: float) -> str:
    return "epoch" if times == 1 else f"{round(1 / times, 4):g} epochs"


def _trackers(words: Words) -> None:
    draft, found = words.draft, []
    for tracker, marks in (
        ("wandb", ("use_wandb", "wandb_project")), ("mlflow", ("use_mlflow", "mlflow_tracking_uri")),
        ("swanlab", ("use_swanlab",)), ("tensorboard", ("use_tensorboard",)), ("trackio", ("use_trackio",)),
    ):  # fmt: skip
        if any(not is_off(words.take(mark)) for mark in marks):
            found.append(tracker)
    if found:
        draft.set("train.report_to", found, "trackers")
    names = [word for word in words.tree if re.match(r"(wandb|mlflow|swanlab|trackio|comet)_", word)]
    words.unused("the variables of the tracker name them", *(name for name in names if name != "wandb_project"))
    if words.text("wandb_name"):
        draft.set("name", re.sub(r"\s+", "-", str(words.tree["wandb_name"])), "wandb_name")


def _others(words: Words) -> None:
    draft = words.draft
    for plugin in words.names("plugins"):
        if not any(known in plugin.lower() for known in PLUGINS):
            draft.lost.append(Note("plugins", plugin, "unknown here"))
        else:
            draft.unused.append(Note("plugins", plugin, "speed and memory only"))
    words.unused("speed and memory only", *(word for word in words.tree if word.startswith("liger_")))
    words.unused("speed, memory and loading, chosen by zlaunch", *KERNELS)
    words.unused("the run directory of zlaunch holds the results", *OUTPUT)
    trainer_arguments.best(words)
    trainer_arguments.early_stopping(words, "early_stopping_patience")
    if words.number("loss_watchdog_threshold"):
        reason = "training stops where the loss is no number"
        draft.differs.append(Note("loss_watchdog_threshold", words.tree["loss_watchdog_threshold"], reason))
    words.unused("as loss_watchdog_threshold", "loss_watchdog_patience")
    if words.flag("group_by_length"):
        reason = "train.packing joins records of similar length inside a batch only"
        draft.differs.append(Note("group_by_length", True, reason))
    words.unused("of a method that is not used", *(word for word in words.tree if re.match(
        r"(rl_|dpo_|kto_|orpo_|simpo_|cpo_|grpo|galore|qgalore|dion_|bench_|kd_|hub_|fsdp_)", word)))  # fmt: skip
