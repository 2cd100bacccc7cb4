"""Words of other programs: which key of a job they mean, what differs, and why some have no key.

Loaded only when a word is not understood, or for a page about it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from launcher.job.reference.key_table import ROWS

DIFFERENCES: dict[str, str] = {
    "rope_scaling": "a mapping: its type, and its factor as `model.rope_factor`",
    "max_model_len": "divided by the model's positions",
    # model
    "use_cpu": "true is `cpu`",
    "use_hf": "false, the default of ms-swift, is `modelscope`",
    "use_modelscope_hub": "1 is `modelscope`",
    "load_in_4bit": "true is `nf4`",
    "load_in_8bit": "true is `int8`",
    "quantization_bit": "4 is `nf4`, 8 is `int8`; others are not trained",
    "quant_bits": "4 is `nf4`, 8 is `int8`; others are not trained",
    "quant_method": "bnb with 4 bits is `nf4`, with 8 bits `int8`; others are not trained",
    "quantization_method": "bnb with 4 bits is `nf4`, with 8 bits `int8`; others are not trained",
    "qlora": "`nf4`",
    "fp8": "true is `fp8`",
    "bf16": "true is `bfloat16`; auto chooses it where the GPU has it",
    "fp16": "true is `float16`; auto chooses it on older GPUs",
    "pure_bf16": "the adapter is float32 in any case; `bfloat16` is the computation",
    "bfloat16": "true is `bfloat16`",
    "float16": "true is `float16`",
    "float32": "true is `float32`",
    "mixed_precision": "bf16 is `bfloat16`, fp16 is `float16`",
    "enable_thinking": "true is `on`, false is `off`",
    "add_non_thinking_prefix": "`off` writes what the model's template writes without thoughts",
    # data
    "dataset": "files, directories or hub:OWNER/NAME, not names of dataset_info.json",
    "datasets": "a list of paths; the form of records is recognized, so `type` has no equivalent",
    "mix_strategy": "`concat` is `repeats`; the interleaving ones are `shares`",
    "interleave_probs": "`shares`, and each source's as its weight: {path: FILE, weight: 0.7}",
    "interleave_prob": "`shares`, and each source's as its weight: {path: FILE, weight: 0.7}",
    "disable_shuffling": "true is `given`",
    "pretraining_dataset": "`true`, and its files in data.train",
    "pt": "`true`",
    "curriculum_sampling": "true is `given`",
    "shuffle_dataset": "false is `given`",
    "dataset_shuffle": "false is `given`",
    "train_dataloader_shuffle": "false is `given`",
    "truncation_strategy": "delete is `drop`, right is `cut`",
    "excess_length_strategy": "drop is `drop`, truncate is `cut`",
    "truncation_mode": "keep_start is `cut`",
    "mask_history": "true is `last`",
    "roles_to_train": "only answers carry loss; this key says which of them",
    "loss_scale": "only answers carry loss; last_round is `last`",
    "assistant_only_loss": "always so; this key says which answers carry loss",
    "strict": "false is `skip`",
    "columns": "our name first, then that of the data: {instruction: question}",
    "tags": "our role first, then that of the data: {user: human, assistant: gpt}",
    "roles": "our role first, then that of the data: {user: human, assistant: gpt}",
    "template": "the template of the tokenizer by default; only another one must be named",
    # lora
    "lora_target": "`all` is `auto`",
    "lora_target_linear": "true is `auto`",
    "target_modules": "`all-linear` is `auto`",
    "init_lora_weights": "true is `default`",
    "pissa_init": "true is `pissa`",
    "init_weights": "true is `default`",
    # train
    "max_steps": "-1 is null",
    "gradient_accumulation_steps": "records per optimizer step of all GPUs together, that is per-device batch x "
    "accumulation x GPUs; the accumulation follows from it",
    "batch_size": "records per optimizer step of all GPUs together",
    "per_device_train_batch_size": "records per optimizer step are train.global_batch_size, that is this x "
    "accumulation x GPUs",
    "per_gpu_train_batch_size": "records per optimizer step are train.global_batch_size, that is this x "
    "accumulation x GPUs",
    "betas": "the second of the two; the first is train.adam_beta1",
    "deepspeed": "a file of DeepSpeed's keys, or its content",
    "zero_optimization": "its stage",
    "fsdp": "weights are shared by DeepSpeed ZeRO: full_shard is 3, shard_grad_op is 2",
    "fsdp_config": "weights are shared by DeepSpeed ZeRO: full_shard is 3, shard_grad_op is 2",
    "offload_optimizer": "device: cpu is `cpu`",
    "use_unsloth": "true is `unsloth`",
    "enable_liger_kernel": "`fused` has kernels of its own; auto takes it where it can",
    "use_liger_kernel": "`fused` has kernels of its own; auto takes it where it can",
    "liger_kernel": "`fused` has kernels of its own; auto takes it where it can",
    "packing": "true is `pack`",
    "neat_packing": "true is `pack`",
    "sample_packing": "true is `pack`",
    "padding_free": "true is `pack`",
    "group_by_length": "true is `bucket`",
    "pad_to_sequence_len": "false: rows are never padded to the longest that is allowed",
    "disable_gradient_checkpointing": "true is `false`",
    "use_gradient_checkpointing": "`unsloth` is `true`",
    "activation_checkpointing": "`true`",
    "save_strategy": "`epoch` is `epoch`, `no` is 0",
    "saves_per_epoch": "4 of them are `0.25 epochs`",
    "logging_first_step": "the first step is in the log in any case",
    "ddp_timeout": "the time without a step, not that of one collective",
    "use_wandb": "true is `wandb`",
    "use_swanlab": "true is `swanlab`",
    "use_mlflow": "true is `mlflow`",
    "use_trackio": "true is `trackio`",
    "wandb_project": "`wandb`; the project is in the variable WANDB_PROJECT",
    "wandb": "`wandb`; its project is in the variable WANDB_PROJECT",
    "swanlab_project": "`swanlab`; its project is in SwanLab's own variable",
    "tensorboard": "true is `tensorboard` in train.report_to",
    "logging_dir": "a directory in the run holds the curves",
    # eval
    "eval_strategy": "`epoch` is `epoch`, `no` is to leave out data.eval",
    "evaluation_strategy": "`epoch` is `epoch`, `no` is to leave out data.eval",
    "evals_per_epoch": "4 of them are `0.25 epochs`",
    "load_best_model_at_end": "true is `auto`, which is the default; false is `none`",
    "metric_for_best_model": "`eval_loss` is `loss`, `accuracy`, `eval_rouge-l` is `rouge_l`, `eval_bleu-4` is `bleu`",
    "greater_is_better": "known from the metric: a loss is best where it is smallest",
    "create_checkpoint_symlink": "the adapter of the run is the best one",
    "early_stopping_steps": "measurements without a better one",
    "early_stop_interval": "measurements without a better one",
    "predict_with_generate": "answers to data.eval are generated after the training",
    "do_predict": "answers to data.eval are generated after the training",
    "do_eval": "the loss on data.eval is measured where there is one",
    "generation_max_length": "tokens of the answer alone",
    # places
    "nproc_per_node": "on this machine; on Slurm slurm.gpus_per_node, over SSH ssh.slots",
    "num_gpus": "on this machine; on Slurm slurm.gpus_per_node, over SSH ssh.slots",
    "num_processes": "ranks of this machine; on Slurm slurm.gpus_per_node, over SSH ssh.slots",
    "n_gpu": "on this machine; on Slurm slurm.gpus_per_node, over SSH ssh.slots",
    "cuda_visible_devices": "a number; which GPUs, the variable says as always",
    "nnodes": "on Slurm; over SSH the nodes are ssh.hosts",
    "num_nodes": "on Slurm; over SSH the nodes are ssh.hosts",
    "num_machines": "on Slurm; over SSH the nodes are ssh.hosts",
    "gres": "without `gpu:`, as in `h200:8`",
    "gpus": "of each node, not of the job",
    "gpus_per_task": "of each node, where there is one task",
    "ntasks_per_node": "ranks on CPUs; with GPUs there is one rank per GPU",
    "array": "the number behind `%`; the points of a sweep are --sweep",
    "signal": "only the seconds",
    "requeue": "a number of times; 0 is --no-requeue",
    "export": "a mapping of variables and values",
    "container_image": "with container.runtime `pyxis`",
    "container_mounts": "with container.runtime `pyxis`",
    "rdzv_endpoint": "the address alone; a free port is found",
    "stricthostkeychecking": "accept-new is `true`",
    "hub_token": "the name of its variable, as in [HF_TOKEN], not the token",
    "hf_token": "the name of its variable, as in [HF_TOKEN], not the token",
    "hf_hub_token": "the name of its variable, as in [HF_TOKEN], not the token",
    "ms_hub_token": "the name of its variable, as in [MODELSCOPE_API_TOKEN], not the token",
    "hf_use_auth_token": "the name of its variable, as in [HF_TOKEN], not the token",
    "swanlab_api_key": "the name of its variable, as in [SWANLAB_API_KEY], not the key",
    "swanlab_token": "the name of its variable, as in [SWANLAB_API_KEY], not the key",
    "mail_type": "a list, as in [end, failure]",
}
"""{name of a peer: what a value of it is here}, where the value cannot be copied."""

OTHERS: dict[str, tuple[str, str]] = {
    "gpu": ("local.gpus", "a number; slurm.gpu names the kind of the nodes' GPUs"),
    "gpu_ids": ("local.gpus", "a number; which GPUs, CUDA_VISIBLE_DEVICES says as always"),
    "relora": ("", "an adapter is trained once, and not merged on the way"),
    "merge_lora": ("", "`zlaunch export RUN --to merged` writes merged weights"),
    "export_dir": ("", "`zlaunch export RUN --out DIR` writes the files"),
    "adapter_folder": ("", "`zlaunch export` and `chat` take the run"),
    "tf32": ("", "the engine (train.engine) chooses the kernels"),
    "plugins": ("", "train.engine chooses the layers"),
    "use_kernels": ("", "the engine (train.engine) chooses the kernels"),
    "activation_offloading": ("train.gradient_checkpointing", "activations are recomputed, not moved to the host"),
    "gradient_checkpointing_kwargs": ("", "train.gradient_checkpointing has no further settings"),
    "eval_sample_packing": ("", "held-out records are measured one by one in a batch, whatever train.packing is"),
    "tokenizer_type": ("", "the model's own tokenizer is used"),
    "tokenizer_config": ("", "the model's own tokenizer is used"),
    "processor_type": ("", "only text is trained"),
    "eot_tokens": ("", "the chat template says where answers end"),
    "skip_prepare_dataset": ("", "records become tokens before the first step"),
    "quantize_moe_experts": ("model.quantization", "of all frozen weights alike"),
    "wandb_name": ("name", "the name of the run is that in the tracker too"),
    "use_vllm": ("", "answers are generated by the trained model itself"),
    "infer_backend": ("", "answers are generated by the trained model itself"),
    "sequence_parallel": ("", "a record is computed by one rank"),
    "load_data_args": ("", "`zlaunch eval` and `chat` take the run"),
    "remove_unused_columns": ("", "columns of the data are named by data.columns; others are not used"),
    "loss_watchdog_threshold": ("", "a loss that is not finite ends the run; the verdict says if it diverged"),
    "loss_watchdog_patience": ("", "a loss that is not finite ends the run; the verdict says if it diverged"),
    "beta": ("", "only supervised fine-tuning is trained, not preferences"),
    "loss_type": ("", "the loss is the cross entropy of the answers"),
    "num_labels": ("", "only answers in words are trained, no classifier head"),
    "task_type": ("", "only causal language models are trained"),
    "compute_environment": ("", "zlaunch starts the ranks itself"),
    "distributed_type": ("", "zlaunch starts the ranks itself; train.zero_stage says how they share the model"),
    "main_training_function": ("", "zlaunch starts the ranks itself"),
    "downcast_bf16": ("", "zlaunch starts the ranks itself"),
    "same_network": ("", "zlaunch starts the ranks itself"),
    "debug": ("", "every node's log is in the run's directory"),
    "no_save_optim": ("", "checkpoints hold all that a resumed run needs; the adapter is separate"),
    "no_save_rng": ("", "checkpoints hold all that a resumed run needs; the adapter is separate"),
    "finetune": ("", "always so"),
    "recompute_granularity": ("train.gradient_checkpointing", "full is `true`"),
    "recompute_method": ("", "train.gradient_checkpointing has no further settings"),
    "recompute_num_layers": ("", "train.gradient_checkpointing has no further settings"),
    "attention_backend": ("", "the engine (train.engine) chooses the attention"),
    "cross_entropy_loss_fusion": ("", "the engine (train.engine) chooses the kernels"),
    "lora_mlp_kernel": ("", "the engine (train.engine) chooses the kernels"),
    "lora_qkv_kernel": ("", "the engine (train.engine) chooses the kernels"),
    "lora_o_kernel": ("", "the engine (train.engine) chooses the kernels"),
    "fsdp_version": ("train.zero_stage", "weights are shared by DeepSpeed ZeRO"),
    "max_completion_length": ("", "only supervised fine-tuning is trained; eval.max_new_tokens is for its answers"),
    "max_packed_sequence_len": ("data.max_length", "packed rows are as long as this"),
    "use_galore": ("", "train.optimizer changes the adapter alone"),
    "use_badam": ("", "train.optimizer changes the adapter alone"),
    "use_apollo": ("", "train.optimizer changes the adapter alone"),
    "steps": ("train.max_steps", "instead of train.epochs"),
    "rank": ("lora.r", "the rank of the adapter"),
    "gradient_accumulation": ("train.global_batch_size", "all GPUs together; the accumulation follows from it"),
    "model_type": ("", "the model's config.json has it"),
    "type": ("", "forms of records are recognized; see docs/data.md"),
    "adapter": ("lora.adapter", "the directory of an adapter to continue from; lora is what is trained in any case"),
    "max_source_length": ("data.max_length", "prompt and answer together"),
    "val_size": ("data.eval", "a share, as in 5%, or a number; records are chosen by their hash"),
    "val_set_size": ("data.eval", "a share, as in 5%, or a number; records are chosen by their hash"),
    "split_dataset_ratio": ("data.eval", "a share, as in 5%, or a number; records are chosen by their hash"),
    "test_split_size": ("data.eval", "a share, as in 5%, or a number; records are chosen by their hash"),
    "preprocessing_num_workers": ("", "records are read by as many processes as there are cores"),
    "dataset_num_proc": ("", "records are read by as many processes as there are cores"),
    "dataset_processes": ("", "records are read by as many processes as there are cores"),
    "dataloader_num_workers": ("", "records are tokens before the first step, so no loader can be slow"),
    "overwrite_cache": ("", "cached tokens are used only for the same records, model and settings"),
    "load_from_cache_file": ("", "cached tokens are used only for the same records, model and settings"),
    "dataset_prepared_path": ("", "tokens are cached by the content of records, model and settings"),
    "tokenized_path": ("", "tokens are cached by the content of records, model and settings"),
    "dataset_dir": ("", "write the paths in data.train; they are relative to the job file"),
    "dataset_info": ("", "write the paths in data.train, and names of columns in data.columns"),
    "streaming": ("", "all records become tokens before the first step, in files and not in memory"),
    "output_dir": ("", "runs are in $ZLAUNCH_RUNS (default ./runs), each in a directory named after `name`"),
    "logging_path": ("", "logs are in the run's directory; `zlaunch logs` prints them"),
    "overwrite_output_dir": ("", "every run has a directory of its own"),
    "resume_from_checkpoint": ("", "`zlaunch resume RUN` continues a run from its newest checkpoint"),
    "auto_resume_from_checkpoints": ("", "`zlaunch resume RUN` continues a run from its newest checkpoint"),
    "save_only_model": ("", "checkpoints hold all that a resumed run needs; the adapter is separate"),
    "save_safetensors": ("", "always so"),
    "plot_loss": ("", "`zlaunch report RUN` draws the curves"),
    "push_to_hub": ("", "`zlaunch push RUN --to hf:OWNER/NAME` uploads the adapter"),
    "hub_model_id": ("", "`zlaunch push RUN --to hf:OWNER/NAME` uploads the adapter"),
    "do_train": ("", "always so; `zlaunch eval` measures without training"),
    "stage": ("train.zero_stage", "of DeepSpeed; of LLaMA-Factory only sft is trained, and needs no key"),
    "rlhf_type": ("", "only supervised fine-tuning is trained, not preferences"),
    "rl": ("", "only supervised fine-tuning is trained, not preferences"),
    "reward_model": ("", "only supervised fine-tuning is trained, not preferences"),
    "pref_beta": ("", "only supervised fine-tuning is trained, not preferences"),
    "finetuning_type": ("", "always lora; full and freeze are not trained"),
    "tuner_type": ("", "always lora; full training is not offered"),
    "train_type": ("", "always lora; full training is not offered"),
    "sft_type": ("", "always lora; full training is not offered"),
    "freeze_vit": ("", "only text is trained"),
    "freeze_vision_tower": ("", "only text is trained"),
    "image_max_pixels": ("", "only text is trained"),
    "media_dir": ("", "only text is trained"),
    "flash_attn": ("", "the engine (train.engine) chooses the attention"),
    "flash_attention": ("", "the engine (train.engine) chooses the attention"),
    "attn_impl": ("", "the engine (train.engine) chooses the attention"),
    "attn_implementation": ("", "the engine (train.engine) chooses the attention"),
    "sdp_attention": ("", "the engine (train.engine) chooses the attention"),
    "lr_scheduler_kwargs": ("train.min_lr_ratio", "also train.scheduler_power, scheduler_cycles, decay_steps"),
    "loraplus_lr_embedding": ("", "LoRA+ has the ratio of B to A alone: lora.plus_ratio"),
    "bias": ("", "biases are not trained"),
    "lora_bias": ("", "biases are not trained"),
    "completion_only_loss": ("", "always so: only answers carry loss"),
    "rope_theta": ("", "positions are as the model's config.json has them"),
    "resize_vocab": ("", "the vocabulary is that of the tokenizer"),
    "special_tokens": ("", "tokens are those of the tokenizer; lora.modules_to_save trains their embeddings"),
    "torch_compile": ("", "the engine (train.engine) chooses the kernels"),
    "temperature": ("", "answers of an evaluation are greedy; chat and generate have --temperature"),
    "top_p": ("", "answers of an evaluation are greedy"),
    "top_k": ("", "answers of an evaluation are greedy"),
    "do_sample": ("", "answers of an evaluation are greedy"),
    "num_beams": ("", "answers of an evaluation are greedy"),
    "ddp_find_unused_parameters": ("", "never needed here"),
    "disable_tqdm": ("", "progress is shown only in a terminal"),
    "tensor_parallel_size": ("", "ranks share a model by train.zero_stage"),
    "pipeline_parallel_size": ("", "ranks share a model by train.zero_stage"),
    "sequence_parallel_size": ("", "a record is computed by one rank"),
    "context_parallel_size": ("", "a record is computed by one rank"),
    "shuffle": ("data.order", "false is `given`"),
    "master_port": ("", "a free port is found"),
    "main_process_port": ("", "a free port is found"),
    "rdzv_id": ("", "agents find each other without it"),
    "rdzv_backend": ("", "agents find each other without it"),
    "node_rank": ("", "one command starts all nodes"),
    "machine_rank": ("", "one command starts all nodes"),
    "standalone": ("", "`zlaunch local` always is"),
    "launcher": ("", "the command is the launcher: zlaunch local, ssh or slurm"),
    "ntasks": ("", "one task per node: slurm.nodes"),
    "wait": ("", "`zlaunch slurm --wait` follows the job"),
    "output": ("", "logs are in the run's directory; `zlaunch logs` prints them"),
    "error": ("", "logs are in the run's directory; `zlaunch logs` prints them"),
}  # fmt: skip
"""{word: (the key of which one would think, or none, why or what differs)}, for words without a key of that meaning.

Where a key of that meaning comes, its row in ROWS names the word, and the word leaves this table.
"""


VALUES: dict[str, dict[str, str]] = {
    "device": {"gpu": "cuda", "cuda:0": "cuda"},
    "model.source": {"hf": "huggingface", "hub": "huggingface", "ms": "modelscope"},
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "model.quantization": {
        "4": "nf4", "4bit": "nf4", "int4": "nf4", "qlora": "nf4", "bnb-4bit": "nf4",
        "8": "int8", "8bit": "int8", "bnb-8bit": "int8", "null": "none", "false": "none",
    },
    "model.thinking": {"true": "on", "false": "off"},
    "data.overlong": {"truncate": "cut", "right": "cut", "delete": "drop"},
    "lora.init": {"true": "default", "kaiming": "default"},
    "train.scheduler": {
        "constant_with_warmup": "constant", "cosine_with_min_lr": "cosine", "wsd": "warmup_stable_decay",
    },
    "train.optimizer": {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adam": "adamw",
        "adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_8bit", "paged_adamw_32bit": "adamw",
        "lion_32bit": "lion", "lion_8bit": "lion", "paged_lion_8bit": "lion", "paged_lion_32bit": "lion",
    },
    "train.max_steps": {"-1": "null"},
    "train.packing": {"true": "pack", "false": "none"},
    "train.offload": {"true": "cpu", "false": "none", "null": "none"},
    "train.engine": {"hf": "peft", "transformers": "peft", "liger": "fused"},
    "train.gradient_checkpointing": {"unsloth": "true"},
    "eval.max_records": {"-1": "null"},
    "eval.keep_best": {
        "true": "auto", "false": "none", "eval_loss": "loss", "eval_accuracy": "accuracy", "eval_f1": "macro_f1",
        "f1": "macro_f1", "eval_bleu": "bleu", "bleu-4": "bleu", "eval_bleu-4": "bleu", "rouge-l": "rouge_l",
        "eval_rouge-l": "rouge_l", "rougeL": "rouge_l", "eval_rougeL": "rouge_l",
    },
    "container.runtime": {"singularity": "apptainer", "null": "none"},
}  # fmt: skip
"""{key: {what other programs have for a value of it: ours}}."""

PREFIXES: dict[str, str] = {
    "wandb_": "the tracker's own variables, as in WANDB_ENTITY, say it",
    "mlflow_": "the tracker's own variables, as in MLFLOW_TRACKING_URI, say it",
    "trackio_": "the tracker's own variables say it",
    "swanlab_": "the tracker's own variables say it",
    "comet_": "the trackers are tensorboard, wandb, swanlab, mlflow and trackio: train.report_to",
    "liger_": "train.engine `fused` has kernels of its own",
    "vllm_": "answers are generated by the trained model itself",
    "sglang_": "answers are generated by the trained model itself",
    "lmdeploy_": "answers are generated by the trained model itself",
    "galore_": "train.optimizer changes the adapter alone",
    "apollo_": "train.optimizer changes the adapter alone",
    "badam_": "train.optimizer changes the adapter alone",
    "reward_": "only supervised fine-tuning is trained, not preferences",
    "dpo_": "only supervised fine-tuning is trained, not preferences",
    "kto_": "only supervised fine-tuning is trained, not preferences",
    "ppo_": "only supervised fine-tuning is trained, not preferences",
    "ref_model": "only supervised fine-tuning is trained, not preferences",
    "pref_": "only supervised fine-tuning is trained, not preferences",
    "num_generations": "only supervised fine-tuning is trained, not preferences",
    "freeze_": "the base model is frozen whole; lora.target_modules says what is adapted",
    "oft_": "the adapter is LoRA; see lora.init, lora.dora, lora.rslora",
    "adalora_": "the adapter is LoRA; see lora.init, lora.dora, lora.rslora",
    "vera_": "the adapter is LoRA; see lora.init, lora.dora, lora.rslora",
    "image_": "only text is trained",
    "video_": "only text is trained",
    "audio_": "only text is trained",
    "moe_": "experts are trained as the rest of the model; their router is not adapted",
    "tensor_model_parallel": "ranks share a model by train.zero_stage",
    "pipeline_model_parallel": "ranks share a model by train.zero_stage",
    "expert_model_parallel": "ranks share a model by train.zero_stage",
    "tpu_": "ranks train on GPUs or on the CPU: device",
    "export_": "`zlaunch export` has options of its own",
    "bnb_4bit_": "nf4 is loaded as QLoRA has it, with double quantization",
    "gptq": "a model in GPTQ's format is not trained; model.quantization quantizes another one",
}
"""{beginning of words of other programs: why none of them has a key}."""


class Meaning(NamedTuple):
    """What a word of other programs is here."""

    key: str
    """Dotted; empty: no key."""
    note: str
    """What differs, or why there is none; empty: nothing, the value can be copied."""

    @property
    def text(self) -> str:
        """The end of a sentence: `not a key here: ...`, or the key and what differs."""
        if not self.key:
            return f"not a key here: {self.note}"
        return f"`{self.key}` here" + (f": {self.note}" if self.note else "")


def plain(word: str) -> str:
    """The word as it is looked up: without dashes, in lower case."""
    return word.strip().lstrip("-").replace("-", "_").lower()


def find(word: str) -> list[Meaning]:
    """What a word of other programs means; empty: not known."""
    name = plain(word)
    found = [Meaning(key, DIFFERENCES.get(name, "")) for key in _by_name().get(name, ())]
    if not found and name in OTHERS:
        found = [Meaning(*OTHERS[name])]
    if not found:
        found = [Meaning("", note) for beginning, note in PREFIXES.items() if name.startswith(beginning)]
    return found


@functools.cache
def _by_name() -> dict[str, list[str]]:
    """{name of peers, as it is looked up: keys}."""
    found: dict[str, list[str]] = {}
    for key, row in ROWS.items():
        for entry in row.peers.split(";"):
            if entry.strip():
                keys = found.setdefault(plain(entry.split()[0]), [])
                if key not in keys:
                    keys.append(key)
    return found


def names() -> list[str]:
    """Every word that `find` knows."""
    return [*_by_name(), *OTHERS]
