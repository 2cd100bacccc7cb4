"""LLaMA-Factory: its YAML files and `llamafactory-cli train`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.job.importing import llamafactory_data, trainer_arguments
from launcher.job.importing.draft import Context, Draft, Note, Words
from launcher.job.importing.trainer_arguments import Defaults

MARKS = ("finetuning_type", "stage", "cutoff_len", "dataset_dir", "template", "lora_target", "train_on_prompt")
"""Words of LLaMA-Factory beside model_name_or_path."""
V1_MARKS = ("model_class", "peft_config", "train_dataset")
TEMPLATES = {
    "alpaca": "alpaca", "chatml": "chatml", "gemma": "gemma", "llama2": "llama2", "llama3": "llama3",
    "mistral": "mistral", "vicuna": "vicuna", "zephyr": "zephyr",
}  # fmt: skip
"""Templates that zlaunch has by a name; for the others the model's own is used."""
PLAIN = ("default", "empty", "fewshot")
MULTIMODAL = re.compile(
    r"_vl\b|_vl_|vl$|\d+v$|vision|llava|omni|audio|video|pixtral|paligemma|mllama|keye|moss_vl|_ocr", re.IGNORECASE
)
STAGES = {
    "pt": "pre-training on plain text", "rm": "reward modeling", "ppo": "PPO", "dpo": "DPO", "kto": "KTO",
}  # fmt: skip


def read(tree: Mapping[str, Any], context: Context) -> Draft:
    """A configuration of LLaMA-Factory as a draft."""
    draft = Draft("LLaMA-Factory")
    words = Words(tree, draft)
    if any(words.given(word) for word in V1_MARKS):
        draft.refused.append(Note("model_class", None, "a configuration of the experimental v1 trainer"))
        return draft
    _method(words)
    _model(words)
    _adapter(words)
    _template(words)
    llamafactory_data.carry(words, context)
    words.carry("data.max_length", "cutoff_len", words.whole, 2048)
    _loss(words)
    if (workers := words.whole("ray_num_workers")) and context.gpus is None:
        context = replace(context, gpus=workers)
    words.unused("zlaunch starts the ranks itself", "ray_run_name", "ray_storage_path", "placement_strategy",
                 "resources_per_worker", "ray_init_kwargs", "master_addr", "master_port")  # fmt: skip
    trainer_arguments.carry(words, context, Defaults(), held_out="data.eval" in draft.settings)
    _packing(words, draft)
    _others(words)
    words.finish()
    return draft


def _method(words: Words) -> None:
    """What is trained, and how. Everything but supervised LoRA is refused."""
    draft = words.draft
    stage = words.text("stage", "sft")
    if stage in STAGES:
        draft.refused.append(Note("stage", stage, f"{STAGES[stage]}; zlaunch does supervised fine-tuning"))
    kind = words.text("finetuning_type", "lora")
    if kind != "lora":
        draft.refused.append(Note("finetuning_type", kind, "zlaunch trains LoRA adapters"))
    training = words.flag("do_train", default=True)
    if words.flag("do_predict"):
        note = Note("do_predict", True, "answers: zlaunch eval, or eval.after")
        (draft.unused if training and words.given("do_train") else draft.refused).append(note)
    elif not training:
        draft.refused.append(Note("do_train", False, "nothing is trained"))
    words.refuse("zlaunch trains LoRA adapters with AdamW", "use_galore", "use_apollo", "use_badam", "use_llama_pro")
    words.refuse("zlaunch has PyTorch and DeepSpeed", "use_mca", "use_megatron_bridge", "use_hyper_parallel")
    if words.flag("use_kt"):
        reason = "KTransformers keeps experts in the memory of the host; here they have to fit the GPUs (zlaunch plan)"
        draft.differs.append(Note("use_kt", True, reason))
        if "int" in str(words.tree.get("kt_config", {}).get("kt_expert_weight_format", "")):
            words.lost("experts in int8 or int4; zlaunch quantizes by model.quantization", "kt_config")
        else:
            words.unused("of KTransformers", "kt_config")
    else:
        words.take("kt_config")
    words.unused("of KTransformers", *(name for name in words.tree if name.startswith("kt_") and name != "kt_config"))
    words.lost("zlaunch does not have it", "use_adam_mini")
    if words.flag("use_muon"):
        draft.set("train.optimizer", "muon", "use_muon")
    words.lost("zlaunch has the plain cross-entropy", "use_dft_loss", "use_asft_loss", "use_eaft_loss", "asft_alpha",
               "eaft_alpha")  # fmt: skip
    unused = [name for name in words.tree if name.startswith(("galore_", "apollo_", "badam_", "oft_", "pref_", "kto_",
              "ppo_", "dpo_", "freeze_", "ref_model", "reward_model", "simpo_"))]  # fmt: skip
    words.unused("of a method that is not used", *unused)


def _model(words: Words) -> None:
    draft = words.draft
    path = words.carry("model.path", "model_name_or_path", words.text)
    words.carry("model.revision", "model_revision", words.text)
    words.carry("model.trust_remote_code", "trust_remote_code", words.flag)
    bits = words.whole("quantization_bit")
    method = str(words.text("quantization_method", "bnb")).lower()
    if bits in (4, 8) and method in ("bnb", "bitsandbytes"):
        draft.set("model.quantization", "nf4" if bits == 4 else "int8", "quantization_bit")
    elif bits is not None:
        draft.lost.append(Note("quantization_bit", bits, f"{bits} bits by {method}; zlaunch has nf4, int8 and fp8"))
    trainer_arguments.quantized_already(draft, "model_name_or_path", path)
    if words.text("quantization_type", "nf4") != "nf4":
        draft.lost.append(Note("quantization_type", words.tree["quantization_type"], "zlaunch has nf4"))
    words.unused("memory of the quantization constants only", "double_quantization")
    words.unused("zlaunch places the model itself", "quantization_device_map", "low_cpu_mem_usage", "offload_folder")
    if words.flag("pure_bf16"):
        draft.set("model.dtype", "bfloat16", "pure_bf16")
    words.lost("model.dtype: the adapter is trained in float32", "upcast_layernorm", "upcast_lmhead_output")
    trainer_arguments.rope(words)
    words.lost("zlaunch does not change positions", "shift_attn", "mixture_of_depths")
    words.lost("zlaunch adds no tokens", "add_tokens", "add_special_tokens", "new_special_tokens_config",
               "resize_vocab")  # fmt: skip
    words.carry("train.router_loss", "moe_aux_loss_coef", words.number)
    words.refuse("zlaunch trains adapters of trained models", "train_from_scratch")
    words.unused("zlaunch chooses attention and kernels", "flash_attn", "enable_liger_kernel", "use_unsloth",
                 "use_unsloth_gc", "use_v1_kernels", "use_reentrant_gc", "use_kv_cache")  # fmt: skip
    words.unused("train.gradient_checkpointing: auto, by the memory; it changes no result",
                 "disable_gradient_checkpointing")  # fmt: skip
    media = [name for name in words.tree if name.startswith(("image_", "video_", "audio_", "crop_to_", "use_audio"))]
    words.unused("zlaunch trains on text only", *media, "freeze_vision_tower", "freeze_multi_modal_projector",
                 "freeze_language_model", "media_dir")  # fmt: skip


def _adapter(words: Words) -> None:
    draft = words.draft
    rank = words.carry("lora.r", "lora_rank", words.whole, 8)
    alpha = words.number("lora_alpha")
    if alpha:
        draft.set("lora.alpha", alpha, "lora_alpha")
    elif rank is not None:
        draft.set("lora.alpha", 2 * rank, "lora_alpha: twice lora_rank where LLaMA-Factory's file has none")
    words.carry("lora.dropout", "lora_dropout", words.number, 0.0)
    targets = words.names("lora_target") or ("all",)
    if targets == ("all",):
        draft.set("lora.target_modules", "auto", "lora_target: all linear layers")
    else:
        draft.set("lora.target_modules", list(targets), "lora_target")
    if modules := words.names("additional_target"):
        draft.set("lora.modules_to_save", list(modules), "additional_target")
    words.carry("lora.rslora", "use_rslora", words.flag)
    words.carry("lora.dora", "use_dora", words.flag)
    words.carry("lora.plus_ratio", "loraplus_lr_ratio", words.number)
    words.lost("with LoRA+ all B matrices have one rate", "loraplus_lr_embedding")
    if words.flag("pissa_init"):
        draft.set("lora.init", "pissa", "pissa_init")
        words.differs("zlaunch decomposes exactly", "pissa_iter")
        words.unused("the adapter is saved for the original weights", "pissa_convert")
    else:
        words.unused("only with pissa_init", "pissa_iter", "pissa_convert")
    adapters = words.names("adapter_name_or_path")
    if len(adapters) == 1 and not words.flag("create_new_adapter"):
        draft.set("lora.adapter", adapters[0], "adapter_name_or_path")
    elif adapters:
        reason = "merge the older adapters into the model first (zlaunch export --merged)"
        draft.lost.append(Note("adapter_name_or_path", list(adapters), reason))
    words.lost("name the folder in lora.adapter", "adapter_folder")
    words.unused("no adapter is continued", "create_new_adapter")


def _template(words: Words) -> None:
    draft = words.draft
    name = words.text("template")
    if name is None:
        if words.given("dataset"):
            reason = "LLaMA-Factory needs one; the model's own is used here"
            draft.unused.append(Note("template", None, reason))
    elif MULTIMODAL.search(name):
        draft.refused.append(Note("template", name, "a template for images, audio or video; zlaunch trains on text"))
    elif name in TEMPLATES:
        draft.set("data.chat_template", TEMPLATES[name], "template")
    elif name in PLAIN:
        draft.lost.append(Note("template", name, "write it as Jinja into data.chat_template"))
    else:
        words.draft.differs.append(Note("template", name, "the chat template of the model itself"))
    if name and (name.endswith("_nothink") or not words.flag("enable_thinking", default=True)):
        draft.set("model.thinking", "off", "template" if name.endswith("_nothink") else "enable_thinking")
    words.take("enable_thinking")
    words.carry("data.system", "default_system", words.text)
    words.lost("tools are shown by the chat template", "tool_format")
    words.lost("the chat template shows past turns", "preserve_thinking")


def _loss(words: Words) -> None:
    draft = words.draft
    if words.flag("mask_history"):
        draft.set("data.turns", "last", "mask_history")
    if words.flag("train_on_prompt"):
        words.draft.set("data.train_on_prompt", True, "train_on_prompt")
    words.unused("padding never carries loss", "ignore_pad_token_for_loss")


def _packing(words: Words, draft: Draft) -> None:
    """Packed rows: their number is the batch of LLaMA-Factory, and records are that of zlaunch."""
    neat = words.flag("neat_packing")
    if not (words.flag("packing") or neat):
        return
    trainer_arguments.packed_rows(draft, "neat_packing" if neat else "packing")


def _others(words: Words) -> None:
    words.unused("zlaunch tokenizes in the background and keeps it", "preprocessing_num_workers", "overwrite_cache",
                 "preprocessing_batch_size", "tokenized_path", "cache_dir", "buffer_size",
                 "use_fast_tokenizer", "data_shared_file_system")  # fmt: skip
    words.lost("special tokens of a text are encoded as text", "split_special_tokens")
    if words.flag("disable_shuffling"):
        words.draft.set("data.order", "given", "disable_shuffling")
    trainer_arguments.early_stopping(words, "early_stopping_steps")
    parallel = [name for name in words.tree if name.endswith("_parallel_size")]
    words.unused("one, as here", *(name for name in parallel if words.tree[name] in (0, 1)))
    words.lost("zlaunch shards by ZeRO only", *(name for name in parallel if words.tree[name] not in (0, 1)))
    words.unused("measured by zlaunch eval", "compute_accuracy", "eval_on_each_dataset", "eval_num_beams",
                 "include_effective_tokens_per_second", "print_param_status", "enable_torch_profiler")  # fmt: skip
    words.unused("of generation and export", *(name for name in words.tree if name.startswith(
        ("vllm_", "sglang_", "export_", "infer_", "profiler_", "temperature", "top_", "max_new_tokens", "do_sample",
         "num_beams", "repetition_penalty", "length_penalty", "skip_special_tokens"))))  # fmt: skip
    words.unused("tokens of hubs are read from the environment", "hf_hub_token", "ms_hub_token", "om_hub_token")
    if words.flag("use_swanlab"):
        tracked = list(words.draft.value("train.report_to", []))
        words.draft.set("train.report_to", [*tracked, "swanlab"], "use_swanlab")
    words.unused("swanlab's own variables name them", *(n for n in words.tree if n.startswith("swanlab_")))
    if words.flag("fp8"):
        words.draft.set("model.quantization", "fp8", "fp8")
        words.draft.differs.append(Note("fp8", True, "the products of the frozen weights"))
    words.unused("with fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather")
