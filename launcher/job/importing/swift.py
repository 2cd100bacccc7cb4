"""ms-swift: `swift sft` with its options, also in YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.job.importing import optimizing, swift_data, trainer_arguments
from launcher.job.importing.draft import Context, Draft, Note, Words, is_off
from launcher.job.importing.trainer_arguments import Defaults

MARKS = ("tuner_type", "train_type", "split_dataset_ratio", "torch_dtype", "model_author", "load_from_cache_file",
         "lorap_lr_ratio", "sft_type")  # fmt: skip
LENGTH = 8192
"""data.max_length where ms-swift takes the model's own limit, which only the model tells."""
MEDIA = re.compile(
    r"[-_]VL|Omni|Emu3|Audio|Vision|InternVL|MiniCPM-[VO]|Ovis|[-_]OCR|llava|Pixtral|GLM-4\.\dV", re.IGNORECASE
)
OUTPUT = (
    "output_dir", "add_version", "create_checkpoint_symlink", "safe_serialization", "max_shard_size", "logging_dir",
    "attn_impl", "experts_impl", "device_map", "max_memory", "vit_gradient_checkpointing", "use_logits_to_keep",
    "ddp_backend", "deepspeed_autotp_size", "use_flash_ckpt", "local_repo_path", "check_model", "init_strategy",
    "zero_hpz_partition_size", "norm_bbox", "padding_side", "use_cce", "sequence_parallel_impl", "max_pixels",
    "freeze_vit", "freeze_aligner", "temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty",
    "num_beams",     "stream", "load_args", "load_data_args", "logprobs", "callbacks", "acc_strategy", "acc_steps",
    "lora_dtype", "model_type", "packing_cache", "use_ray", "device_groups", "ignore_args_error", "val_dataset_sample",
    "is_multimodal", "model_kwargs", "hub_token",
)  # fmt: skip


def read(tree: Mapping[str, Any], context: Context) -> Draft:
    """Options of `swift sft` as a draft."""
    draft = Draft("ms-swift")
    words = Words(tree, draft)
    _method(words)
    _model(words, context)
    _adapter(words)
    swift_data.carry(words, context)
    _template(words)
    _length(words)
    defaults = Defaults(
        per_device_train_batch_size=1, learning_rate=1e-4, lr_scheduler_type="cosine", weight_decay=0.1,
        adam_beta2=0.95, logging_steps=5, trackers="tensorboard", eval_strategy="steps",
    )  # fmt: skip
    if words.tree.get("gradient_accumulation_steps") is None:
        micro = words.whole("per_device_train_batch_size", 1) or 1
        words.tree["gradient_accumulation_steps"] = max(1, -(-16 // (micro * (context.gpus or 1))))
    if words.tree.get("eval_steps") is None:
        words.tree["eval_steps"] = words.tree.get("save_steps")
    trainer_arguments.carry(words, context, defaults, held_out="data.eval" in draft.settings)
    if words.flag("packing"):
        trainer_arguments.packed_rows(draft, "packing")
    words.unused("train.packing: auto packs rows where the model allows it; no result changes", "padding_free")
    _others(words)
    words.finish()
    return draft


def _method(words: Words) -> None:
    draft = words.draft
    kind = words.text("tuner_type") or words.text("train_type") or words.text("sft_type") or "lora"
    if kind != "lora":
        draft.refused.append(Note("tuner_type", kind, "zlaunch trains LoRA adapters"))
    task = words.text("task_type", "causal_lm")
    if task != "causal_lm":
        draft.refused.append(Note("task_type", task, "zlaunch trains language models"))
    words.refuse("zlaunch does supervised fine-tuning", "rlhf_type", "reward_model", "num_labels", "problem_type")
    if words.flag("freeze_llm"):
        draft.refused.append(Note("freeze_llm", True, "zlaunch trains the language model"))
    kinds = r"(use_galore|galore|lisa|llamapro|adalora|vera|boft|fourier|reft|lora_ga|freeze_param|trainable_param)"
    others = [name for name in words.tree if re.match(kinds, name)]
    words.lost("zlaunch has LoRA, DoRA, rsLoRA, LoRA+ and PiSSA", *others)
    if words.tree.get("optimizer") == "lorap":
        words.unused("LoRA+ is lora.plus_ratio", "optimizer")
    else:
        optimizing.optimizer(words, "optimizer")
    if words.tree.get("loss_type") in ("loss_scale", "cross_entropy", "causal_lm"):
        words.unused("the cross-entropy, weighted as loss_scale says", "loss_type")
    words.lost("zlaunch has the plain cross-entropy", "enable_dft_loss", "loss_type")
    words.carry("train.router_loss", "router_aux_loss_coef", words.number)


def _model(words: Words, context: Context) -> None:
    draft = words.draft
    path = words.carry("model.path", "model", words.text)
    if path and MEDIA.search(path.rpartition("/")[2]):
        reason = "a model with images or audio: only its text part is trained"
        draft.differs.append(Note("model", path, reason))
    of_hub = words.tree.get("use_hf") in (True, "true") or context.environment.get("USE_HF", "") in ("1", "true")
    if path and context.find(path) is None and not of_hub:
        draft.set("model.source", "modelscope", "ms-swift downloads from ModelScope; --use_hf: from Hugging Face")
    words.carry("model.revision", "model_revision", words.text)
    dtype = words.text("torch_dtype")
    if dtype in ("bfloat16", "float16", "float32"):
        draft.set("model.dtype", dtype, "torch_dtype")
    method, bits = words.text("quant_method"), words.text("quant_bits") or words.text("quantization_bit")
    if method in ("bnb", None) and bits in ("4", "8"):
        draft.set("model.quantization", "nf4" if bits == "4" else "int8", "quant_method, quant_bits")
    elif method or bits:
        note = Note("quant_method", f"{method} {bits or ''}".strip(), "zlaunch has nf4, int8 and fp8")
        draft.lost.append(note)
    trainer_arguments.quantized_already(draft, "model", path)
    if words.text("bnb_4bit_quant_type", "nf4") != "nf4":
        draft.lost.append(Note("bnb_4bit_quant_type", words.tree["bnb_4bit_quant_type"], "zlaunch has nf4"))
    words.unused("as zlaunch does it", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
    trainer_arguments.rope(words)
    if words.given("max_model_len") and "model.rope_scaling" in draft.settings:
        words.differs("model.rope_factor: auto gives the positions that data.max_length needs", "max_model_len")
    words.unused("the model's own positions, of which data.max_length takes what it needs", "max_model_len")
    words.lost("zlaunch adds no tokens", "new_special_tokens")


def _adapter(words: Words) -> None:
    draft = words.draft
    words.carry("lora.r", "lora_rank", words.whole, 8)
    words.carry("lora.alpha", "lora_alpha", words.number, 32)
    words.carry("lora.dropout", "lora_dropout", words.number, 0.05)
    targets = words.names("target_modules") or ("all-linear",)
    pattern = words.text("target_regex")
    if pattern:
        draft.set("lora.target_modules", pattern, "target_regex")
    elif "all-linear" in targets:
        draft.set("lora.target_modules", "auto", "target_modules: all-linear")
        extra = [name for name in targets if name != "all-linear"]
        if extra:
            draft.set("lora.target_modules", ["auto", *extra], "target_modules: all-linear and more")
    else:
        draft.set("lora.target_modules", list(targets), "target_modules")
    words.unused("target_regex says it", "target_modules")
    if modules := words.names("modules_to_save"):
        draft.set("lora.modules_to_save", list(modules), "modules_to_save")
    words.carry("lora.rslora", "use_rslora", words.flag)
    words.carry("lora.dora", "use_dora", words.flag)
    words.carry("lora.plus_ratio", "lorap_lr_ratio", words.number)
    start = words.text("init_weights") or words.text("init_lora_weights") or "true"
    trainer_arguments.start_of_lora(draft, "init_weights", start, "kaiming")
    adapters = words.names("adapters") or words.names("resume_from_checkpoint")
    if len(adapters) == 1:
        draft.set("lora.adapter", adapters[0], "adapters")
    elif adapters:
        draft.lost.append(Note("adapters", list(adapters), "merge the older ones into the model first"))
    words.lost("LoRA goes on whole linear layers", "target_parameters", "lora_bias")
    if words.text("tuner_backend", "peft") == "unsloth":
        draft.set("train.engine", "unsloth", "tuner_backend")


def _template(words: Words) -> None:
    draft = words.draft
    words.carry("data.system", "system", words.text)
    if name := words.text("template"):
        draft.differs.append(Note("template", name, "the chat template of the model itself"))
    if name := words.text("agent_template"):
        draft.differs.append(Note("agent_template", name, "tools are shown by the model's chat template"))
    if not words.flag("use_chat_template", default=True):
        draft.refused.append(Note("use_chat_template", False, "pre-training on plain text"))
    scale = str(words.text("loss_scale", "default"))
    for part in scale.split("+"):
        if part == "last_round":
            draft.set("data.turns", "last", "loss_scale")
        elif part == "all":
            draft.set("data.train_on_prompt", True, "loss_scale: all")
        elif part == "ignore_empty_think":
            reason = "model.thinking: an empty thought is part of the prompt here, without loss"
            draft.differs.append(Note("loss_scale", part, reason))
        elif part != "default":
            draft.lost.append(Note("loss_scale", part, "every token of an answer has the same weight"))
    thinking = words.text("enable_thinking")
    if thinking is not None or words.flag("add_non_thinking_prefix"):
        draft.set("model.thinking", "on" if thinking == "true" else "auto", "enable_thinking")
    words.unused("model.thinking: auto", "response_prefix", "add_non_thinking_prefix")


def _length(words: Words) -> None:
    draft = words.draft
    if words.carry("data.max_length", "max_length", words.whole) is None:
        draft.set("data.max_length", LENGTH, "ms-swift: the limit of the model")
        reason = f"the limit of the model there; records of more than {LENGTH} tokens are dropped here"
        draft.differs.append(Note("max_length", None, reason))
    rule = words.text("truncation_strategy", "delete")
    draft.set("data.overlong", "cut" if rule == "right" else "drop", f"truncation_strategy: {rule}")
    if rule in ("left", "split"):
        draft.lost.append(Note("truncation_strategy", rule, "zlaunch drops longer records, or cuts their end"))


def _others(words: Words) -> None:
    draft = words.draft
    if (size := words.whole("sequence_parallel_size")) and size > 1:
        reason = "a row has to fit one GPU; it changes no result"
        draft.differs.append(Note("sequence_parallel_size", size, reason))
    trainer_arguments.early_stopping(words, "early_stop_interval")
    words.lost("training runs to its end", "max_epochs")
    words.lost("Python of yours: bring the records into a file, and the model into transformers' form",
               "external_plugins", "custom_register_path")  # fmt: skip
    words.unused("no code is taken from the model's repository by default", "trust_remote_code")
    words.unused("tokens and names of accounts are read from the environment", *(
        name for name in words.tree if name.startswith("swanlab_")))  # fmt: skip
    words.unused("answers are scored by eval.after", "eval_use_evalscope", "eval_dataset", "eval_dataset_args",
                 "eval_generation_config", "eval_limit", "metric", "eval_metric", "extra_eval_args")  # fmt: skip
    words.unused("another hub is chosen by model.source", "use_hf")
    words.unused("speed, memory or output of ms-swift", *OUTPUT)
    if is_off(words.tree.get("report_to")) and "train.report_to" not in draft.settings:
        draft.set("train.report_to", ["tensorboard"], "report_to: ms-swift's default")
