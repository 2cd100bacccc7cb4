"""The table of DeepSpeed's keys: which belong to the job, which are passed on, which have no effect, which are refused.

Names, types and ranges are those of DeepSpeed 0.19 (deepspeed/runtime/config.py and zero/config.py). A test compares
the table with the installed version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Accepted:
    """The values that a key accepts, in words and as a check."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any, low: int) -> bool:
    return _is_number(value) and value == value // 1 and value >= low


BOOL = Accepted("true or false", lambda value: isinstance(value, bool))
SWITCH = Accepted("true, false or null", lambda value: value is None or isinstance(value, bool))
COUNT = Accepted("a whole number, at least 0", lambda value: _is_whole(value, 0))
POSITIVE = Accepted("a whole number, at least 1", lambda value: _is_whole(value, 1))
NUMBER = Accepted("a number, at least 0", lambda value: _is_number(value) and value >= 0)
TEXT = Accepted("a text or null", lambda value: value is None or isinstance(value, str))
STAGE = Accepted("0, 1, 2 or 3", lambda value: _is_whole(value, 0) and value <= 3)
DEVICE = Accepted("none, cpu or nvme", lambda value: value in ("none", "cpu", "nvme"))
LIST = Accepted("a list", lambda value: isinstance(value, list))
DTYPE = Accepted("fp16, bf16, fp32 or null", lambda value: value in (None, "fp16", "bf16", "fp32"))


@dataclass(frozen=True)
class Rule:
    """What becomes of a key."""

    fate: Literal["job", "passed", "idle", "refused"]
    accepted: Accepted | None = None
    text: str = ""
    """job: the key of the job that it sets. idle, refused: the reason."""
    off: tuple[Any, ...] = ()
    """Values that ask for nothing, beside null, false, {} and {"enabled": false}."""


def job(key: str, accepted: Accepted) -> Rule:
    return Rule("job", accepted, key)


def passed(accepted: Accepted) -> Rule:
    return Rule("passed", accepted)


def idle(reason: str, *off: Any) -> Rule:
    return Rule("idle", None, reason, off)


def refused(reason: str, *off: Any) -> Rule:
    return Rule("refused", None, reason, off)


def _below(prefix: str, rules: dict[str, Rule]) -> dict[str, Rule]:
    return {f"{prefix}.{name}": rule for name, rule in rules.items()}


_CPU_ADAM = "it works with DeepSpeed's CPU Adam only, and the optimizer here is torch's AdamW"
_KERNELS = "it compiles DeepSpeed's CUDA kernels at the start of a run, which zlaunch does not support"
_TRACKERS = "metrics go to the trackers of train.report_to"
_NOT_HERE = "the training program does not support it"
_REMOVED = "DeepSpeed has removed it"
_MASTERS = "masters and moments are kept in float32"
_ONLY_MODE = "it belongs to another optimizer or scheduler"

_ZERO: dict[str, Rule] = {
    "stage": job("train.zero_stage", STAGE),
    "reduce_bucket_size": job("train.reduce_bucket_size", POSITIVE),
    "allgather_bucket_size": job("train.allgather_bucket_size", POSITIVE),
    "stage3_prefetch_bucket_size": job("train.prefetch_bucket_size", COUNT),
    "sub_group_size": job("train.sub_group_size", COUNT),
    "round_robin_gradients": job("train.round_robin_gradients", BOOL),
    "offload_optimizer.device": job("train.offload", DEVICE),
    "offload_param.device": job("train.offload_param", DEVICE),
    **dict.fromkeys(
        (
            "contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce", "allgather_partitions",
            "load_from_fp32_weights", "ignore_unused_parameters", "parameter_alignment", "memory_efficient_linear",
            "override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks",
            "stage3_gather_16bit_weights_on_model_save", "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential", "offload_optimizer.pin_memory", "offload_optimizer.pipeline_read",
            "offload_optimizer.pipeline_write", "offload_optimizer.fast_init", "offload_param.pin_memory",
        ),
        passed(BOOL),
    ),
    **dict.fromkeys(
        (
            "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
            "stage3_max_reuse_distance", "stage3_module_granularity_threshold", "offload_optimizer.buffer_count",
            "offload_param.buffer_count", "offload_param.buffer_size", "offload_param.max_in_cpu",
        ),
        passed(COUNT),
    ),
    "overlap_comm": passed(SWITCH),
    "zero_hpz_partition_size": refused(_NOT_HERE, 0, 1),
    "offload_optimizer.nvme_path": idle("nothing is kept on NVMe"),
    "offload_param.nvme_path": idle("nothing is kept on NVMe"),
    "offload_optimizer.buffer_size": idle("DeepSpeed has no such key"),
    "offload_optimizer.ratio": refused(_CPU_ADAM, 1, 1.0),
    "offload_optimizer.super_offload": refused(_CPU_ADAM),
    "offload_optimizer.cpuadam_cores_perc": idle(_CPU_ADAM),
    "zenflow": refused(_CPU_ADAM),
    "zero_quantized_weights": refused(_KERNELS),
    "zero_quantized_nontrainable_weights": refused(_KERNELS),
    "zero_quantized_gradients": refused(_KERNELS),
    "compute_grad_norm": Rule("refused", BOOL, "the training loop reads the norm of the gradient", (True,)),
    "leaf_module": refused(_NOT_HERE),
    "pipeline_loading_checkpoint": idle("checkpoints are written by the training program"),
    "save_muon_momentum_buffer_in_memory": idle("the optimizer is AdamW"),
    "elastic_checkpoint": idle("checkpoints are those of the training program, and fit any number of ranks"),
    "legacy_stage1": idle(_REMOVED),
    "cpu_offload_use_pin_memory": idle("offload_optimizer.pin_memory has replaced it"),
    "mics_shard_size": refused(_REMOVED, -1),
    "mics_hierarchical_params_gather": refused(_REMOVED),
    "zeropp_loco_param": refused(_REMOVED),
}  # fmt: skip

KEYS: dict[str, Rule] = {
    "train_batch_size": job("train.global_batch_size", POSITIVE),
    "train_micro_batch_size_per_gpu": job("train.micro_batch_size", POSITIVE),
    "gradient_accumulation_steps": Rule("job", POSITIVE),
    "gradient_clipping": job("train.max_grad_norm", NUMBER),
    "optimizer.type": Rule("job", TEXT),
    "optimizer.params.lr": job("train.learning_rate", NUMBER),
    "optimizer.params.weight_decay": job("train.weight_decay", NUMBER),
    "optimizer.params.betas": Rule("job", LIST),
    "optimizer.params.eps": job("train.adam_epsilon", NUMBER),
    "optimizer.params.torch_adam": idle("the optimizer is torch's AdamW", True),
    "optimizer.params.adam_w_mode": Rule("job", BOOL),
    "optimizer.params.bias_correction": Rule("refused", BOOL, "AdamW here always corrects its bias", (True,)),
    "optimizer.params.amsgrad": refused("AdamW here has no amsgrad"),
    "optimizer.params.fused": idle("the kernel is chosen by the device", True),
    "optimizer.params.max_grad_norm": idle("DeepSpeed reads gradient_clipping instead"),
    "optimizer.legacy_fusion": idle(_ONLY_MODE),
    "scheduler.type": Rule("job", TEXT),
    "scheduler.params.warmup_max_lr": job("train.learning_rate", NUMBER),
    "scheduler.params.warmup_num_steps": job("train.warmup_steps", COUNT),
    "scheduler.params.warmup_min_lr": Rule("refused", NUMBER, "the learning rate rises from 0", (0, 0.0)),
    "scheduler.params.warmup_min_ratio": Rule("refused", NUMBER, "the learning rate rises from 0", (0, 0.0)),
    "scheduler.params.warmup_type": Rule("job", TEXT),
    "scheduler.params.total_num_steps": idle("the learning rate falls until the last step of the run"),
    "scheduler.params.cos_min_ratio": idle("the learning rate falls to 0"),
    "scheduler.params.last_batch_iteration": idle("the schedule begins with the run", -1),
    **_below("bf16", {
        "enabled": Rule("job", BOOL),
        "auto_cast": idle("DeepSpeed has no such key"),
        "check_grad_overflow": idle("the training loop looks at the norm of the gradient", True),
        "immediate_grad_update": idle("it has no effect with ZeRO"),
        "bf16_master_weights_and_grads": refused(_MASTERS),
        "bf16_optimizer_states": refused(_MASTERS),
    }),
    **_below("fp16", {
        "enabled": Rule("job", BOOL),
        "loss_scale": passed(NUMBER),
        "initial_scale_power": passed(COUNT),
        "loss_scale_window": passed(POSITIVE),
        "hysteresis": passed(COUNT),
        "min_loss_scale": passed(NUMBER),
        "consecutive_hysteresis": passed(BOOL),
        "auto_cast": idle("the inputs are numbers of tokens, which are never cast"),
        "opt_level": idle("DeepSpeed has no such key", "O1", "O2"),
        "fp16_master_weights_and_grads": refused(_MASTERS),
    }),
    **_below("zero_optimization", _ZERO),
    "zero_allow_untested_optimizer": idle("AdamW is tested with ZeRO", True),
    "zero_force_ds_cpu_optimizer": idle(_CPU_ADAM),
    "steps_per_print": passed(POSITIVE),
    "wall_clock_breakdown": passed(BOOL),
    "memory_breakdown": passed(BOOL),
    "dump_state": passed(BOOL),
    "disable_python_gc": passed(BOOL),
    "communication_data_type": passed(DTYPE),
    **_below("flops_profiler", {
        "enabled": passed(BOOL), "profile_step": passed(POSITIVE), "module_depth": Rule("passed"),
        "top_modules": passed(POSITIVE), "detailed": passed(BOOL), "output_file": passed(TEXT),
        "recompute_fwd_factor": passed(NUMBER),
    }),
    **_below("comms_logger", {
        **dict.fromkeys(("enabled", "verbose", "prof_all", "debug"), passed(BOOL)), "prof_ops": passed(LIST),
    }),
    **_below("aio", {
        **dict.fromkeys(("block_size", "queue_depth", "thread_count", "intra_op_parallelism"), passed(POSITIVE)),
        **dict.fromkeys(("single_submit", "overlap_events"), passed(BOOL)),
        "use_gds": refused("GPUDirect Storage needs cuFile, which the environment does not have"),
    }),
    "prescale_gradients": refused("ZeRO does not support it"),
    "gradient_predivide_factor": refused("ZeRO does not support it", 1, 1.0),
    "gradient_allreduce_op": refused("the training loop scales the gradients for a mean", "avg", "mean", "average"),
    "managed_gradient_accumulation": Rule("refused", BOOL, "the training loop counts micro batches", (True,)),
    "disable_allgather": refused(_NOT_HERE),
    "amp": refused("precision is model.dtype; NVIDIA Apex is not used"),
    "torch_autocast": refused("precision is model.dtype"),
    "data_types": refused("precision is model.dtype, and gradients have that of the weights"),
    "fp8": refused("the fused layers multiply in fp8 with model.quantization: fp8"),
    "weight_quantization": refused("weights are quantized with model.quantization"),
    "compression_training": refused(_NOT_HERE),
    "tensor_parallel": refused(_NOT_HERE + ": every rank computes whole layers"),
    "sequence_parallel_size": refused(_NOT_HERE, 1),
    "expert_parallel": refused(_NOT_HERE),
    "pipeline": refused(_NOT_HERE),
    "hybrid_engine": refused(_NOT_HERE),
    "compile": refused(_NOT_HERE),
    "data_efficiency": refused(_NOT_HERE),
    "autotuning": refused("`zlaunch plan` chooses batch, stage and checkpointing before the start"),
    "elasticity": refused(_REMOVED + "; `elastic: true` of the job restarts with the nodes that are left"),
    "sparse_attention": refused(_REMOVED),
    "sparse_gradients": refused(_REMOVED),
    "progressive_layer_drop": refused(_REMOVED),
    "curriculum_learning": refused(_REMOVED),
    "eigenvalue": refused(_REMOVED),
    "quantize_training": refused(_REMOVED),
    "graph_harvesting": refused(_REMOVED),
    "activation_checkpointing": idle("train.gradient_checkpointing recomputes activations"),
    "checkpoint": idle("checkpoints are written by the training program"),
    "nebula": idle("checkpoints are written by the training program"),
    "datastates_ckpt": idle("checkpoints are written by the training program"),
    "dataloader_drop_last": idle("the training program has its own data loader"),
    "use_data_before_expert_parallelism": idle("there is no expert parallelism"),
    "seq_parallel_communication_data_type": idle("there is no sequence parallelism"),
    "timers": idle("steps are timed by the training loop"),
    "log_level": idle("the level is set by the training program"),
    "vocabulary_size": idle("the model has its own"),
    "comms_config": idle("DeepSpeed has no such key"),
    **dict.fromkeys(("tensorboard", "wandb", "comet", "csv_monitor", "monitor_config"), idle(_TRACKERS)),
}  # fmt: skip

OTHER_NAMES = {
    "bfloat16": "bf16",
    **{
        f"zero_optimization.{old}": f"zero_optimization.{new}"
        for old, new in {
            "prefetch_bucket_size": "stage3_prefetch_bucket_size",
            "param_persistence_threshold": "stage3_param_persistence_threshold",
            "model_persistence_threshold": "stage3_model_persistence_threshold",
            "max_live_parameters": "stage3_max_live_parameters",
            "max_reuse_distance": "stage3_max_reuse_distance",
            "gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
            "gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
            "module_granularity_threshold": "stage3_module_granularity_threshold",
            "use_all_reduce_for_fetch_params": "stage3_use_all_reduce_for_fetch_params",
            "allgather_sequential": "stage3_allgather_sequential",
        }.items()
    },
}
"""Older and shorter names that DeepSpeed knows too."""
