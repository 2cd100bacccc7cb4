"""Commands and files of TRL, arguments of transformers' Trainer, and DeepSpeed's configurations as jobs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import SpecError
from launcher.job.deepspeed import ds_keys, ds_reading, ds_settings
from launcher.job.explain import Refusal
from launcher.job.importing import imported_file, recognize
from launcher.job.importing.draft import Draft
from tests.beds.imported_jobs import job_of

SFT = {
    "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "dataset_name": "trl-lib/Capybara", "use_peft": True,
    "lora_r": 32, "lora_target_modules": "all-linear", "assistant_only_loss": True,
}  # fmt: skip


def drafted(folder: Path, **words: Any) -> Draft:
    (folder / "sft.yaml").write_text(yaml.safe_dump({**SFT, **words}))
    return recognize.read("sft.yaml", 1, here=folder)


def test_defaults_of_trl_are_written_out(tmp_path: Path) -> None:
    job = job_of(drafted(tmp_path, eval_strategy="steps", eval_steps=100), tmp_path)
    assert (job.train.learning_rate, job.train.scheduler, job.train.global_batch_size) == (2e-5, "linear", 8)
    assert (job.lora.r, job.lora.alpha, job.lora.dropout, job.lora.target_modules) == (32, 32, 0.05, "auto")
    assert (job.data.max_length, job.data.overlong) == (1024, "cut")
    assert (job.data.train, job.data.eval) == ("hub:trl-lib/Capybara", "hub:trl-lib/Capybara:test")
    assert job.eval.every == 100


def test_a_command_under_accelerate(tmp_path: Path) -> None:
    command = (
        "accelerate launch --num_processes 4 trl/scripts/sft.py --model_name_or_path Qwen/Qwen2-0.5B "
        "--dataset_name a/b --use_peft --lora_target_modules q_proj v_proj --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 8 --learning_rate 2.0e-4 --packing --eos_token '<|im_end|>' --push_to_hub"
    )
    draft = recognize.read(command, None, here=tmp_path)
    assert draft.value("train.batch_tokens") == 2 * 8 * 4 * 1024
    assert draft.value("lora.target_modules") == ["q_proj", "v_proj"]
    assert [note.word for note in draft.lost] == ["assistant_only_loss"]
    job_of(draft, tmp_path)


@pytest.mark.parametrize("words", [{"use_peft": False}, {"lora_task_type": "SEQ_CLS"}])
def test_other_training_is_refused(tmp_path: Path, words: Any) -> None:
    with pytest.raises(SpecError, match="cannot train"):
        imported_file.text(drafted(tmp_path, **words), "sft.yaml")


@pytest.mark.parametrize(
    "words",
    [{"no_such_word": 1}, {"loss_type": "dft"}, {"truncation_mode": "keep_end"}, {"assistant_only_loss": False}],
)
def test_what_a_job_cannot_say_is_named(tmp_path: Path, words: Any) -> None:
    assert drafted(tmp_path, **words).lost


def test_everything_that_transformers_writes_of_its_arguments_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # where a test before this one was a rank
        monkeypatch.delenv(name, raising=False)
    theirs = transformers.TrainingArguments(
        output_dir="out", use_cpu=True, num_train_epochs=2, warmup_steps=0.1, save_strategy="epoch"
    )
    (tmp_path / "training_args.json").write_text(theirs.to_json_string())
    draft = recognize.read("training_args.json", 4, here=tmp_path)
    assert draft.whole, draft.lost
    job = job_of(draft, tmp_path)
    assert (job.train.global_batch_size, job.train.epochs, job.train.warmup_ratio) == (32, 2, 0.1)
    assert (job.train.checkpoint_every, job.train.learning_rate) == ("epoch", 5e-5)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({"train_batch_size": 64, "zero_optimization": {"stage": 2}}, {"train.global_batch_size": 64}),
        (
            {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5},
            {"train.global_batch_size": 4 * 2 * 8, "train.micro_batch_size": 4, "train.max_grad_norm": 0.5},
        ),
        (
            {
                "train_batch_size": "auto", "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
                "fp16": {"enabled": True}, "steps_per_print": 10,
            },
            {"train.zero_stage": 3, "train.offload": "cpu", "model.dtype": "float16"},
        ),
        (
            {
                "train_batch_size": 8,
                "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
                "scheduler": {"type": "WarmupDecayLR", "params": {
                    "warmup_num_steps": 10, "warmup_max_lr": 2e-4, "warmup_type": "linear", "total_num_steps": "auto"}},
            },
            {
                "train.adam_beta2": 0.95, "train.weight_decay": 0.1, "train.scheduler": "linear",
                "train.warmup_steps": 10, "train.learning_rate": 2e-4,
            },
        ),
    ],
)  # fmt: skip
def test_a_configuration_of_deepspeed(tmp_path: Path, config: Any, settings: dict[str, Any]) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(config))
    draft = recognize.read("ds.json", 8, here=tmp_path)
    assert {key: draft.value(key) for key in settings} == settings
    assert draft.whole, draft.lost
    job_of(draft, tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        {"optimizer": {"type": "Lamb"}}, {"scheduler": {"type": "OneCycle"}},
        {"curriculum_learning": {"enabled": True}},
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, {"zero_optimization": {"stag": 3}},
    ],
)  # fmt: skip
def test_what_zlaunch_lacks_of_deepspeed_is_named(tmp_path: Path, part: Any) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 8, **part}))
    assert recognize.read("ds.json", 8, here=tmp_path).lost


def test_what_has_no_key_of_deepspeed_goes_into_its_own_configuration_of_the_job(tmp_path: Path) -> None:
    zero = {
        "stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "sub_group_size": 1e8,
        "offload_param": {"device": "nvme", "nvme_path": "/fast", "pin_memory": True},
    }  # fmt: skip
    config = {"train_batch_size": "auto", "comms_logger": {"enabled": True}, "zero_optimization": zero}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**SFT, "deepspeed": "ds.json"}))
    for name in ("ds.json", "sft.yaml"):
        draft = recognize.read(name, 8, here=tmp_path)
        job = job_of(draft, tmp_path)
        assert (job.train.zero_stage, job.train.offload_param, job.train.sub_group_size) == (3, "cpu", 100_000_000)
        assert "NVMe" in " ".join(note.reason for note in draft.differs)
        assert job.train.ds_config == {
            "comms_logger": {"enabled": True},
            "zero_optimization": {
                "stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "offload_param": {"pin_memory": True}
            },
        }  # fmt: skip
        for_two_ranks = ds_settings.for_target(job, 2, hidden=64)
        assert for_two_ranks.train.reduce_bucket_size == 64 * 64


def test_an_import_and_a_configuration_of_the_job_refuse_the_same_keys(tmp_path: Path) -> None:
    """Whatever an import calls lost, train.ds_config refuses, and the other way around."""
    for name, rule in ds_keys.KEYS.items():
        tree: dict[str, Any] = {}
        *blocks, last = name.split(".")
        inner = tree
        for block in blocks:
            inner = inner.setdefault(block, {})
        values = (True, 3, "cpu", "fp16", "x", [0.5])
        inner[last] = next(value for value in values if rule.accepted is None or rule.accepted.holds(value))
        (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 8, **tree}))
        lost = [note.word for note in recognize.read("ds.json", 1, here=tmp_path).lost]
        try:
            ds_reading.read(tree)
            refused = []
        except Refusal as refusal:
            refused = [refusal.place.removeprefix("train.ds_config.")]
        assert lost == refused, name


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), [], ["a"], {"a": 1}, "x", True, "${X}", [[1]]])
@pytest.mark.parametrize("word", ["optimizer", "scheduler", "zero_optimization", "train_batch_size", "fp16"])
def test_a_value_of_a_wrong_type_is_no_crash(tmp_path: Path, word: str, odd: Any) -> None:
    (tmp_path / "ds.yaml").write_text(yaml.safe_dump({"train_batch_size": 8, word: odd}))
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**SFT, "learning_rate": odd, "deepspeed": {word: odd}}))
    for name in ("ds.yaml", "sft.yaml"):
        draft = recognize.read(name, 8, here=tmp_path)
        with contextlib.suppress(SpecError):
            imported_file.text(draft, name)


@pytest.mark.parametrize(
    ("words", "weight", "lost"),
    [
        ({"router_aux_loss_coef": 0.01}, 0, []),
        ({"router_aux_loss_coef": 0.01, "model_init_kwargs": {"output_router_logits": True}}, 0.01, []),
        ({"model_init_kwargs": {"output_router_logits": True}}, "auto", []),
        ({"model_init_kwargs": {"output_router_logits": True, "a": 1}}, "auto", ["model_init_kwargs"]),
    ],
)
def test_the_loss_of_routers_is_added_where_trl_adds_it(
    tmp_path: Path, words: dict[str, Any], weight: float | str, lost: list[str]
) -> None:
    draft = drafted(tmp_path, assistant_only_loss=False, completion_only_loss=True, **words)
    assert job_of(draft, tmp_path).train.router_loss == weight
    assert [note.word for note in draft.lost if note.word in ("model_init_kwargs", "router_aux_loss_coef")] == lost
