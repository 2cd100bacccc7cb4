"""Commands of ms-swift as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.errors import SpecError
from launcher.job.importing import imported_file, recognize
from launcher.job.importing.draft import Draft
from tests.beds.imported_jobs import job_of

SCRIPT = r"""
nproc_per_node=4
CUDA_VISIBLE_DEVICES=0,1,2,3 NPROC_PER_NODE=$nproc_per_node NNODES=2 \
swift sft \
    --model Qwen/Qwen2.5-7B-Instruct \
    --tuner_type lora \
    --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' \
              'swift/self-cognition#300' \
    --split_dataset_ratio 0.1 \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps $(expr 32 / $nproc_per_node / 2) \
    --target_modules all-linear --max_length 2048 --num_train_epochs 1 \
    --system 'You are a helpful assistant.' \
    --warmup_ratio 0.05 --deepspeed zero2 --eval_steps 50 --save_steps 50 \
    --model_author swift --model_name swift-robot
"""


def drafted(folder: Path, *options: str, prefix: str = "") -> Draft:
    command = f"{prefix} swift sft --model Qwen/Qwen3-8B --dataset AI-ModelScope/alpaca-gpt4-data-en "
    return recognize.read(command + " ".join(options), None, here=folder)


def test_a_script_becomes_a_job(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(SCRIPT)
    draft = recognize.read("train.sh", None, here=tmp_path)
    job = job_of(draft, tmp_path)
    assert (job.model.source, job.train.global_batch_size, job.train.zero_stage) == ("modelscope", 1 * 4 * 8, 2)
    assert [(source.path, source.first) for source in job.data.train_sources] == [
        ("hub:llm-wizard/alpaca-gpt4-data-zh", 500), ("hub:modelscope/self-cognition", 300),
    ]  # fmt: skip
    assert job.data.eval == "10%"
    assert job.data.replace == {"{{NAME}}": "swift-robot", "{{AUTHOR}}": "swift"}
    assert (job.data.system, job.data.overlong) == ("You are a helpful assistant.", "drop")
    assert (job.lora.r, job.lora.alpha, job.lora.dropout) == (8, 32, 0.05)
    assert (job.train.weight_decay, job.train.adam_beta2, job.train.scheduler) == (0.1, 0.95, "cosine")
    assert (job.train.learning_rate, job.eval.every, job.train.report_to) == (1e-4, 50, ("tensorboard",))
    assert draft.whole


def test_the_accumulation_that_is_not_given_makes_sixteen_records(tmp_path: Path) -> None:
    assert drafted(tmp_path).value("train.global_batch_size") == 16
    given = drafted(tmp_path, "--per_device_train_batch_size 4", prefix="NPROC_PER_NODE=8")
    assert given.value("train.global_batch_size") == 32
    two = drafted(tmp_path, "--gradient_accumulation_steps 2", prefix="CUDA_VISIBLE_DEVICES=0,1")
    assert two.value("train.global_batch_size") == 2  # one process over both GPUs


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("--init_weights gaussian", {"lora.init": "gaussian"}),
        ("--use_dora true --init_weights pissa_niter_16", {"lora.dora": True, "lora.init": "pissa"}),
        ("--quant_method bnb --quant_bits 4", {"model.quantization": "nf4"}),
        ("--packing true --max_length 2048", {"train.batch_tokens": 16 * 2048}),
        ("--loss_scale all --loss_type loss_scale", {"data.train_on_prompt": True}),
        ("--dataset_shuffle false", {"data.order": "given"}),
        ("--loss_scale last_round", {"data.turns": "last"}),
        ("--use_hf true", {"model.source": None}),
        ("--lorap_lr_ratio 16 --optimizer lorap", {"lora.plus_ratio": 16}),
        ("--optimizer muon --neftune_noise_alpha 15", {"train.optimizer": "muon", "train.neftune_alpha": 15}),
        ("--target_modules q_proj v_proj", {"lora.target_modules": ["q_proj", "v_proj"]}),
        ("--target_modules all-linear lm_head", {"lora.target_modules": ["auto", "lm_head"]}),
        ("--init_weights olora", {"lora.init": "olora"}),
        ("--dataset swift/only-there:zh#9", {"data.train": [{"path": "ms:swift/only-there:zh", "first": 9}]}),
        ("--dataset swift/self-cognition:empty_think", {"data.train": "hub:modelscope/self-cognition"}),
        (
            "--early_stop_interval 3 --split_dataset_ratio 0.1",
            {"train.early_stopping_patience": 3, "eval.keep_best": "loss"},
        ),
        ("--early_stop_interval 3", {"train.early_stopping_patience": None}),
        (
            "--dataset swift/self-cognition --model_name 小黄 'Xiao Huang' --model_author me",
            {"data.replace": {"{{NAME}}": ["小黄", "Xiao Huang"], "{{AUTHOR}}": "me"}},
        ),
        ("--save_strategy epoch", {"train.checkpoint_every": "epoch"}),
        ("--truncation_strategy right", {"data.overlong": "cut"}),
        ("--tuner_backend unsloth", {"train.engine": "unsloth"}),
    ],
)
def test_options_become_keys_and_nothing_is_lost(tmp_path: Path, options: str, settings: dict[str, Any]) -> None:
    draft = drafted(tmp_path, options)
    assert {key: draft.value(key) for key in settings} == settings
    assert draft.whole, draft.lost
    job_of(draft, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        "--no_such_word 1", "--optimizer muonclip", "--loss_scale hermes", "--init_weights corda",
        "--quant_method eetq", "--dataset swift/self-cognition:qwen3",
        "--rope_scaling longrope", "--external_plugins a.py", "--optim_args a=1",
        "--model_author $(whoami)", "--new_special_tokens a.txt", "--interleave_prob 0.5 0.5",
    ],
)  # fmt: skip
def test_what_a_job_cannot_say_is_named(tmp_path: Path, options: str) -> None:
    draft = drafted(tmp_path, options)
    assert draft.lost
    job_of(draft, tmp_path)


@pytest.mark.parametrize("options", ["--tuner_type full", "--task_type seq_cls", "--rlhf_type dpo"])
def test_other_training_is_refused(tmp_path: Path, options: str) -> None:
    with pytest.raises(SpecError, match="cannot train"):
        imported_file.text(drafted(tmp_path, options), "a command")


def test_a_file_of_options_and_a_data_set_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    (tmp_path / "sft.yaml").write_text("model: Qwen/Qwen3-8B\ntuner_type: lora\ndataset: mine.jsonl#7\n")
    for source in ("sft.yaml", "NPROC_PER_NODE=2 swift sft --config sft.yaml", "swift sft sft.yaml"):
        draft = recognize.read(source, None, here=tmp_path)
        assert draft.value("data.train") == [{"path": str(tmp_path / "mine.jsonl"), "first": 7}]


def test_the_loss_of_routers_keeps_its_weight(tmp_path: Path) -> None:
    draft = drafted(tmp_path, "--router_aux_loss_coef 1e-3")
    assert job_of(draft, tmp_path).train.router_loss == 1e-3
    assert draft.whole
    assert drafted(tmp_path).value("train.router_loss", 0) == 0


@pytest.mark.parametrize(
    ("options", "scaling", "factor"),
    [
        ("--rope_scaling yarn --max_model_len 65536", "yarn", "auto"),
        ("""--rope_scaling '{"type": "linear", "factor": 4.0}'""", "linear", 4.0),
        ("", "none", "auto"),
    ],
)
def test_scaled_positions_are_translated(tmp_path: Path, options: str, scaling: str, factor: float | str) -> None:
    draft = drafted(tmp_path, options)
    job = job_of(draft, tmp_path)
    assert (job.model.rope_scaling, job.model.rope_factor) == (scaling, factor)
    assert draft.whole
