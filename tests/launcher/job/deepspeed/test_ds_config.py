"""train.ds_config: what becomes of each key of a user's DeepSpeed configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import CompatibilityError, SpecError
from launcher.job.load import read_job
from launcher.machine import installation
from launcher.render import texts
from tests.beds.plans import make

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
ON_GPUS: dict[str, Any] = {
    "device": "cuda",
    "hosts": (("a", 2),),
    "gpu_memory_bytes": 80 * 2**30,
    "model_config": LLAMA,
}


def planned(content: dict[str, Any], *settings: str, **changes: Any) -> Any:
    return make(*settings, tree={"train.ds_config": content, "train.global_batch_size": None}, **changes)


def rendered(plan: Any) -> dict[str, Any]:
    return json.loads(texts.render(plan)["ds_config.json"])


def refusal(content: Any, *settings: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read_job(None, settings, {"train.ds_config": content})
    return caught.value


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_stage", 3),
        ({"zero_optimization": True}, "zero_stage", 1),
        ({"zero_optimization": {"reduce_bucket_size": 5e8}}, "zero_stage", 0),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "offload", "cpu"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}, "stage": 3}}, "offload_param", "cpu"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 2e8}}, "reduce_bucket_size", 200_000_000),
        ({"zero_optimization": {"stage": 3, "sub_group_size": 1e14}}, "sub_group_size", 10**12 - 1),
        ({"zero_optimization": {"stage": 3, "prefetch_bucket_size": 7}}, "prefetch_bucket_size", 7),
        ({"train_batch_size": 32}, "global_batch_size", 32),
        ({"train_micro_batch_size_per_gpu": 2}, "micro_batch_size", 2),
        ({"gradient_clipping": 0.5}, "max_grad_norm", 0.5),
        ({"optimizer": {"type": "Adam", "params": {"lr": 3e-5}}}, "learning_rate", 3e-5),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.8, 0.95], "eps": 1e-6}}}, "adam_beta2", 0.95),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 20}}}, "scheduler", "linear"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 20}}}, "warmup_steps", 20),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": "auto"}}}, "warmup_steps", None),
    ],
)  # fmt: skip
def test_a_key_sets_that_of_the_job_where_the_job_leaves_it_open(content: Any, key: str, value: Any) -> None:
    assert getattr(read_job(None, (), {"train.ds_config": content}).spec.train, key) == value


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage", "0, 1, 2 or 3"),
        ({"zero_optimization": {"stgae": 2}}, "zero_optimization.stgae", "no such key"),
        ({"zero_optimisation": {"stage": 2}, "fp16": {"enabled": False}}, "zero_optimisation", "no such key"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size", "at least 1"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "overlap_comm", "true, false"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "optimizer", "put states back"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param", "its buffers"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.3}}}, "ratio", "CPU Adam"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights", "CUDA"),
        ({"zero_optimization": {"mics_shard_size": 4}}, "mics_shard_size", "removed"),
        ({"zero_optimization": 2}, "zero_optimization", "a block"),
        ({"optimizer": {"type": "OneBitAdam", "params": {"freeze_step": 9}}}, "optimizer.type", "AdamW"),
        ({"optimizer": {"params": {"betas": [0.9]}}}, "betas", "two numbers"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler.type", "WarmupLR"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 1e-6}}}, "warmup_min_lr", "rises from 0"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16.enabled", "both"),
        ({"fp16": {"loss_scale_window": 0}}, "loss_scale_window", "at least 1"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel", "whole layers"),
        ({"prescale_gradients": True}, "prescale_gradients", "ZeRO"),
        ({"train_batch_size": 0}, "train_batch_size", "at least 1"),
        ({"gradient_clipping": True}, "gradient_clipping", "number"),
        ({"model": "Qwen", "learning_rate": 1}, "train.ds_config", "no key of DeepSpeed"),
        ("no-such-file.json", "train.ds_config", "cannot read"),
        (3, "train.ds_config", "expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_place_and_the_reason(content: Any, place: str, reason: str) -> None:
    error = refusal(content)
    assert place in str(error)
    assert reason in str(error)


def test_a_misspelt_key_names_the_nearest_one() -> None:
    assert refusal({"zero_optimization": {"overlap_com": True}}).hint == "did you mean 'overlap_comm'?"


def test_another_zero_stage_than_the_jobs_is_refused() -> None:
    error = refusal({"zero_optimization": {"stage": 3}}, "train.zero_stage=2")
    assert "train.zero_stage: 2, but zero_optimization.stage of train.ds_config is 3" in str(error)
    assert read_job(None, ["train.zero_stage=3"], {"train.ds_config": {"zero_optimization": {"stage": 3}}})


def test_a_file_is_found_beside_the_job_and_its_content_travels_with_the_job(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    (tmp_path / "job.yaml").write_text("train: {ds_config: ds.json}\n", encoding="utf-8")
    job = read_job(tmp_path / "job.yaml")
    assert job.tree["train"]["ds_config"] == {"zero_optimization": {"stage": 2}}
    assert job.spec.train.zero_stage == 2


@pytest.mark.parametrize("text", ["{", '{"a": 1, "a": 2}', "[]", "\xff\xfe", "null", "{'stage': 2}"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ds.json").write_text(text, encoding="latin-1")
    with pytest.raises(SpecError, match=r"ds\.json"):
        read_job(None, (), {"train.ds_config": str(tmp_path / "ds.json")})


def test_the_rest_is_passed_on_and_auto_is_filled_in() -> None:
    zero = {
        "stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}, "overlap_comm": False,
        "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "contiguous_gradients": "auto",
        "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
    }  # fmt: skip
    plan = planned({"zero_optimization": zero, "fp16": {"loss_scale": "auto"}, "steps_per_print": 10}, **ON_GPUS)
    written = rendered(plan)
    assert written["steps_per_print"] == 10
    assert "auto" not in json.dumps(written)
    assert written["zero_optimization"] == {
        "stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "overlap_comm": False,
        "contiguous_gradients": True, "offload_param": {"device": "cpu", "pin_memory": True},
        "reduce_bucket_size": 4096**2, "stage3_prefetch_bucket_size": int(0.9 * 4096**2),
        "stage3_param_persistence_threshold": 40960, "stage3_max_live_parameters": 10**9,
    }  # fmt: skip


def test_the_batch_follows_from_the_ranks_where_only_its_parts_are_given() -> None:
    content = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}
    plan = planned(content, device="cpu", hosts=(("a", 4),))
    assert plan.train is not None
    assert plan.train.train.global_batch_size == 24


def test_what_has_no_effect_is_reported() -> None:
    content = {
        "gradient_clipping": 0.5, "gradient_accumulation_steps": 64, "fp16": {"enabled": True},
        "tensorboard": {"enabled": True}, "csv_monitor": {"enabled": False}, "_comment": "ours",
        "zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}, "legacy_stage1": True},
    }  # fmt: skip
    plan = planned(content, "train.max_grad_norm=2", **ON_GPUS)
    notes = "\n".join(plan.notes)
    for said in (
        "gradient_clipping: 0.5 has no effect: train.max_grad_norm is 2.0 in the job",
        "gradient_accumulation_steps: 64 has no effect",
        "float16 has no effect: model.dtype is bfloat16",
        "tensorboard has no effect: metrics go to the trackers",
        "offload_param.device has no effect: DeepSpeed does this from ZeRO stage 3 on",
        "_comment has no effect",
        "legacy_stage1",
    ):
        assert said in notes
    assert "csv_monitor" not in notes
    assert ("train.zero_stage", 2) in [(reason.setting, reason.value) for reason in plan.reasons]


def test_settings_that_deepspeed_would_read_are_reported_where_it_does_not_run() -> None:
    zero = {"stage": 3, "overlap_comm": False, "sub_group_size": 10**6}
    assert "the fused layers share the weights themselves" in "\n".join(
        planned({"zero_optimization": zero}, **ON_GPUS).notes
    )
    assert "without effect" not in "\n".join(planned({"zero_optimization": zero}, "train.engine=peft", **ON_GPUS).notes)
    assert "stage 0 does not use DeepSpeed" in "\n".join(
        planned({"zero_optimization": {**zero, "stage": 0}}, **ON_GPUS).notes
    )


def test_offloaded_weights_take_zero_3_of_another_engine_and_less_memory() -> None:
    there = {**ON_GPUS, "hosts": (("a", 4),)}
    plain = make("train.zero_stage=3", "train.engine=peft", **there).train
    moved = make("train.offload_param=cpu", **there).train
    assert plain is not None
    assert moved is not None
    assert moved.train.zero_stage == 3
    assert moved.train.engine != "fused"
    assert moved.predicted_peak_bytes < plain.predicted_peak_bytes
    with pytest.raises(CompatibilityError, match="partition the frozen weights themselves"):
        make("train.offload_param=cpu", "train.engine=fused", **there)
    with pytest.raises(CompatibilityError, match="ZeRO-3 only"):
        make("train.offload_param=cpu", "train.zero_stage=2", **there)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("there", [ON_GPUS, {"device": "cpu", "hosts": (("a", 2),)}], ids=["gpus", "cpu"])
def test_the_file_that_templates_eject_writes_changes_nothing_but_says_all(stage: int, there: dict[str, Any]) -> None:
    content = json.loads((installation.path("templates") / "ds_config.json").read_text(encoding="utf-8"))
    content["zero_optimization"]["stage"] = stage
    stock = rendered(make(f"train.zero_stage={stage}", "train.engine=peft", **there))
    own = rendered(planned(content, "train.engine=peft", **there))
    for key, value in stock["zero_optimization"].items():
        if key != "overlap_comm":
            assert own["zero_optimization"][key] == value
    assert {key: own[key] for key in stock if key not in ("zero_optimization", "fp16")} == {
        key: value for key, value in stock.items() if key not in ("zero_optimization", "fp16")
    } | {key: own[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")}
