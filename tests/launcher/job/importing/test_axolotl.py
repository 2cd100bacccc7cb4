"""Configurations of axolotl as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import SpecError
from launcher.job.importing import imported_file, recognize
from launcher.job.importing.draft import Draft
from tests.beds.imported_jobs import job_of

BASE: dict[str, Any] = {
    "base_model": "NousResearch/Meta-Llama-3-8B", "adapter": "lora", "lora_r": 32, "lora_alpha": 16,
    "lora_target_linear": True, "datasets": [{"path": "someone/talk", "type": "chat_template"}],
    "micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_epochs": 4, "learning_rate": 2e-4,
}  # fmt: skip


def drafted(folder: Path, gpus: int | None = 1, **words: Any) -> Draft:
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump({**BASE, **words}))
    return recognize.read(str(file), gpus, here=folder)


def test_defaults_of_axolotl_are_written_out(tmp_path: Path) -> None:
    job = job_of(drafted(tmp_path, 2), tmp_path)
    assert (job.train.global_batch_size, job.train.scheduler, job.train.warmup_ratio) == (16, "cosine", 0.03)
    assert (job.data.max_length, job.data.overlong, job.data.train) == (512, "drop", "hub:someone/talk")
    assert (job.train.checkpoint_every, job.train.keep_checkpoints, job.train.seed) == ("epoch", 4, 42)
    assert (job.lora.r, job.lora.alpha, job.lora.dropout, job.lora.target_modules) == (32, 16, 0.0, "auto")


def test_ranks_of_their_own_chosen_layers_and_initializations_are_carried(tmp_path: Path) -> None:
    own = {"lora_rank_pattern": {"q_proj": 64}, "lora_alpha_pattern": {"q_proj": 128}}
    draft = drafted(tmp_path, **own, peft_layers_to_transform=[0, 1], peft_init_lora_weights="olora")
    lora = job_of(draft, tmp_path).lora
    assert (lora.rank_pattern, lora.alpha_pattern) == ({"q_proj": 64}, {"q_proj": 128.0})
    assert (lora.layers_to_transform, lora.init) == ((0, 1), "olora")
    assert draft.whole


def test_packed_rows_are_a_batch_in_tokens(tmp_path: Path) -> None:
    draft = drafted(tmp_path, 4, sample_packing=True, sequence_len=4096)
    job = job_of(draft, tmp_path)
    assert (job.train.batch_tokens, job.train.global_batch_size) == (2 * 4 * 4 * 4096, "auto")
    assert draft.whole


def test_alpaca_records_have_the_prompt_of_axolotl(tmp_path: Path) -> None:
    data = {"path": "someone/alpaca", "type": "alpaca", "split": "train", "name": "en"}
    draft = drafted(tmp_path, datasets=[data], val_set_size=0.05, evals_per_epoch=4, saves_per_epoch=1)
    job = job_of(draft, tmp_path)
    assert (job.data.train, job.data.eval) == ("hub:someone/alpaca:en:train", "5%")
    assert job.data.chat_template == "alpaca"
    assert job.data.system.startswith("Below is an instruction")
    assert (job.eval.every, job.train.checkpoint_every) == ("0.25 epochs", "epoch")


def test_turns_are_read_by_the_names_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_text("{}\n")
    data = {
        "path": "talk.jsonl", "type": "chat_template", "field_messages": "dialog",
        "message_property_mappings": {"role": "speaker", "content": "value"},
        "roles": {"user": ["human"], "assistant": ["gpt", "robot"]},
    }  # fmt: skip
    draft = drafted(tmp_path, datasets=[data], chat_template="chatml")
    job = job_of(draft, tmp_path)
    assert job.data.train == str(tmp_path / "talk.jsonl")
    assert job.data.columns == {"messages": "dialog", "role": "speaker"}
    assert job.data.roles == {"assistant": "robot"}
    assert job.data.chat_template == "chatml"
    assert draft.whole


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ({"load_in_4bit": True, "adapter": "qlora"}, {"model.quantization": "nf4"}),
        ({"load_in_8bit": True}, {"model.quantization": "int8"}),
        ({"bf16": "auto"}, {}),
        ({"bf16": True}, {"model.dtype": "bfloat16"}),
        ({"warmup_steps": 10}, {"train.warmup_steps": 10}),
        ({"warmup_ratio": 0.1}, {"train.warmup_ratio": 0.1}),
        ({"optimizer": "adamw_bnb_8bit", "adam_beta2": 0.95},
         {"train.adam_beta2": 0.95, "train.optimizer": "adamw_8bit"}),
        ({"optimizer": "lion_8bit", "neftune_noise_alpha": 5}, {"train.optimizer": "lion", "train.neftune_alpha": 5}),
        ({"optimizer": "adamw_bnb_8bit", "fsdp_config": {"fsdp_version": 2}}, {"train.optimizer": None}),
        ({"cosine_min_lr_ratio": 0.1, "label_smoothing": 0.2},
         {"train.min_lr_ratio": 0.1, "train.label_smoothing": 0.2}),
        ({"lr_groups": [{"name": "a", "modules": ["self_attn.q_proj"], "lr": 1e-3}]},
         {"train.learning_rates": {r"self_attn\.q_proj": 1e-3}}),
        ({"datasets": [{"path": "a/b", "data_files": ["c/d.json", "e.jsonl"], "type": "alpaca"}]},
         {"data.train": ["hub:a/b/c/d.json", "hub:a/b/e.jsonl"]}),
        ({"early_stopping_patience": 3, "val_set_size": 0.1},
         {"train.early_stopping_patience": 3, "eval.keep_best": "loss"}),
        ({"model_quantization_config": "Mxfp4Config", "model_quantization_config_kwargs": {"dequantize": True}}, {}),
        ({"peft_init_lora_weights": "olora"}, {"lora.init": "olora"}),
        ({"train_on_inputs": True}, {"data.train_on_prompt": True}),
        ({"curriculum_sampling": True}, {"data.order": "given"}),
        ({"gptq": True}, {"model.quantization": "published"}),
        ({"base_model": "a/B-BNB-NF4-BF16", "load_in_4bit": True}, {"model.quantization": "nf4"}),
        ({"embedding_lr": 1e-5}, {"train.learning_rates": None}),
        ({"embedding_lr_scale": 0.5, "learning_rate": 2e-4, "lora_modules_to_save": ["lm_head"]},
         {"train.learning_rates": {r"modules_to_save\.default|embed_tokens|lm_head": 1e-4}}),
        ({"lora_target_modules": ["q_proj"], "lora_target_linear": False}, {"lora.target_modules": ["q_proj"]}),
        ({"lora_modules_to_save": ["embed_tokens"]}, {"lora.modules_to_save": ["embed_tokens"]}),
        ({"saves_per_epoch": 2}, {"train.checkpoint_every": "0.5 epochs"}),
        ({"peft_use_dora": True, "loraplus_lr_ratio": 16}, {"lora.dora": True, "lora.plus_ratio": 16}),
        ({"wandb_project": "x"}, {"train.report_to": ["wandb"]}),
        ({"fsdp_config": {"fsdp_version": 2}, "plugins": ["axolotl.integrations.liger.LigerPlugin"]}, {}),
        ({"special_tokens": {"pad_token": "<pad>"}, "flash_attention": True, "tf32": True}, {}),
    ],
)  # fmt: skip
def test_words_become_keys_and_nothing_is_lost(tmp_path: Path, words: Any, settings: dict[str, Any]) -> None:
    draft = drafted(tmp_path, **words)
    assert {key: draft.value(key) for key in settings} == settings
    assert draft.whole, draft.lost
    job_of(draft, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        {"rl": "dpo"}, {"adapter": None}, {"processor_type": "AutoProcessor"}, {"reward_model": True},
        {"datasets": [{"path": "a/b", "type": "completion"}]}, {"pretraining_dataset": [{"path": "a/b"}]},
        {"datasets": [{"path": "a/b", "type": "bradley_terry.chat_template"}]},
    ],
)  # fmt: skip
def test_other_training_is_refused(tmp_path: Path, words: Any) -> None:
    with pytest.raises(SpecError, match="cannot train"):
        imported_file.text(drafted(tmp_path, **words), "config.yml")


@pytest.mark.parametrize(
    "words",
    [
        {"no_such_word": 1}, {"optimizer": "soap"}, {"lr_scheduler": "rex"}, {"lora_target_parameters": ["experts"]},
        {"relora": True}, {"tokens": ["<a>"]}, {"base_model": "a/B-16E-Linearized-bnb-nf4"},
        {"cosine_constant_lr_ratio": 0.5}, {"optimizer": "muon", "fsdp_config": {"fsdp_version": 2}},
        {"datasets": [{"path": "a/b", "type": "alpaca"}, {"path": "c/d", "type": "chat_template"}]},
        {"datasets": [{"path": "a/b", "type": {"field_output": "answer", "format": "[INST] {instruction}"}}]},
        {"datasets": [{"path": "a/b", "type": "chat_template", "no_such_word": 1}]},
        {"datasets": [{"path": "s3://a/b", "type": "alpaca"}]}, {"plugins": ["someone.Plugin"]},
    ],
)  # fmt: skip
def test_what_a_job_cannot_say_is_named(tmp_path: Path, words: Any) -> None:
    draft = drafted(tmp_path, **words)
    assert draft.lost
    job_of(draft, tmp_path)


@pytest.mark.parametrize(
    ("words", "weight", "lost"),
    [
        ({"router_aux_loss_coef": 0.02}, 0.02, []),
        ({"model_config": {"output_router_logits": True}}, "auto", []),
        ({"model_config": {"output_router_logits": True}, "router_aux_loss_coef": 0.1}, 0.1, []),
        ({"overrides_of_model_config": {"output_router_logits": True, "router_aux_loss_coef": 0.3}}, 0.3, []),
        ({"model_config": {"output_router_logits": True, "attn": 1}}, "auto", ["model_config"]),
        ({"model_config": {"output_router_logits": False}}, 0, ["model_config"]),
    ],
)
def test_the_loss_of_routers_keeps_its_weight(
    tmp_path: Path, words: dict[str, Any], weight: float | str, lost: list[str]
) -> None:
    draft = drafted(tmp_path, **words)
    assert job_of(draft, tmp_path).train.router_loss == weight
    assert [note.word for note in draft.lost if note.word in words] == lost


@pytest.mark.parametrize(
    ("given", "scaling", "factor"),
    [
        ({"type": "dynamic", "factor": 2.0}, "dynamic", 2.0),
        ({"rope_type": "yarn", "factor": 4}, "yarn", 4),
        ("linear", "linear", "auto"),
    ],
)
def test_scaled_positions_are_translated(tmp_path: Path, given: Any, scaling: str, factor: float | str) -> None:
    draft = drafted(tmp_path, rope_scaling=given)
    job = job_of(draft, tmp_path)
    assert (job.model.rope_scaling, job.model.rope_factor) == (scaling, factor)
    assert [note.word for note in draft.lost] == []


def test_a_scaling_that_zlaunch_lacks_is_named(tmp_path: Path) -> None:
    draft = drafted(tmp_path, rope_scaling={"type": "longrope", "factor": 2.0})
    assert [note.word for note in draft.lost] == ["rope_scaling"]
