"""Configurations of LLaMA-Factory as jobs: its defaults, its data sets, and a reason for every other word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import SpecError
from launcher.job.importing import imported_file, recognize
from launcher.job.importing.draft import Draft
from tests.beds.imported_jobs import job_of

SFT = {
    "model_name_or_path": "Qwen/Qwen3-4B", "stage": "sft", "do_train": True, "finetuning_type": "lora",
    "dataset": "mine", "template": "qwen3_nothink",
}  # fmt: skip
INFO: dict[str, Any] = {
    "mine": {"file_name": "mine.json"},
    "asked": {"file_name": "asked.json", "columns": {"prompt": "question", "response": "answer", "query": "hint"}},
    "talk": {
        "hf_hub_url": "someone/talk", "split": "train_sft", "formatting": "sharegpt",
        "columns": {"messages": "dialog", "system": "rules"},
        "tags": {"role_tag": "speaker", "content_tag": "text", "user_tag": "customer", "assistant_tag": "agent"},
    },
    "usual": {"hf_hub_url": "someone/usual", "subset": "en", "formatting": "sharegpt"},
    "ranked": {"file_name": "ranked.json", "ranking": True},
    "seen": {"file_name": "seen.json", "columns": {"messages": "messages", "images": "images"}},
    "elsewhere": {"ms_hub_url": "someone/elsewhere"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(INFO))
    records = [{"instruction": f"q{n}", "input": "", "output": "a"} for n in range(5)]
    for name in ("mine", "asked"):
        (tmp_path / f"data/{name}.json").write_text(json.dumps(records))
    return tmp_path


def drafted(folder: Path, gpus: int | None = None, **words: Any) -> Draft:
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump({**SFT, **words}))
    return recognize.read(str(file), gpus, here=folder)


def test_defaults_that_the_file_leaves_out_are_written_out(folder: Path) -> None:
    job = job_of(drafted(folder, 2), folder)
    assert (job.lora.r, job.lora.alpha, job.lora.dropout, job.lora.target_modules) == (8, 16, 0.0, "auto")
    train = job.train
    assert (train.learning_rate, train.scheduler, train.warmup_ratio, train.epochs) == (5e-5, "linear", 0, 3)
    assert (train.weight_decay, train.max_grad_norm, train.seed, train.checkpoint_every) == (0, 1, 42, 500)
    assert train.global_batch_size == 8 * 2
    assert (job.data.max_length, job.model.thinking, job.name) == (2048, "off", "train")


def test_the_batch_is_that_of_all_gpus_and_an_unknown_number_is_reported(folder: Path) -> None:
    words = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    assert drafted(folder, 4, **words).value("train.global_batch_size") == 64
    alone = drafted(folder, **words)
    assert alone.value("train.global_batch_size") == 16
    assert any(note.word == "--gpus" for note in alone.differs)
    assert drafted(folder, ray_num_workers=4, **words).value("train.global_batch_size") == 64


def test_data_sets_are_found_by_name_with_their_columns_and_roles(folder: Path) -> None:
    job = job_of(drafted(folder, dataset="mine,asked"), folder)
    assert job.data.train == tuple(str(folder / f"data/{name}.json") for name in ("mine", "asked"))
    assert job.data.columns == {"instruction": "question", "output": "answer", "input": "hint"}
    job = job_of(drafted(folder, dataset=["talk", "usual"]), folder)
    assert job.data.train == ("hub:someone/talk:train_sft", "hub:someone/usual:en:train")
    assert job.data.columns == {"messages": "dialog", "role": "speaker", "content": "text", "system": "rules"}
    assert job.data.roles == {"user": "customer", "assistant": "agent"}


def test_a_limit_of_records_holds_for_each_data_set(folder: Path) -> None:
    job = job_of(drafted(folder, dataset=["mine", "usual"], max_samples=3), folder)
    assert job.data.max_samples == 3
    assert [source.first for source in job.data.train_sources] == [3, 3]


@pytest.mark.parametrize(("size", "eval_"), [(0.1, "10%"), (0.005, "0.5%"), (200, 200), (200.0, 200)])
@pytest.mark.parametrize("name", ["mine", "usual"])
def test_held_out_records_are_a_part_of_files_and_of_data_sets_of_the_hub(
    folder: Path, name: str, size: float, eval_: Any
) -> None:
    draft = drafted(folder, dataset=name, val_size=size, eval_strategy="epoch")
    assert draft.whole
    assert draft.value("eval.every") == "epoch"
    assert job_of(draft, folder).data.eval == eval_


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ({"lora_alpha": 64, "lora_rank": 16}, {"lora.alpha": 64, "lora.r": 16}),
        ({"lora_target": "q_proj,v_proj"}, {"lora.target_modules": ["q_proj", "v_proj"]}),
        ({"save_strategy": "epoch"}, {"train.checkpoint_every": "epoch"}),
        ({"save_steps": 0.1}, {"train.checkpoint_every": "0.3000 epochs"}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"train.warmup_ratio": 0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}, {"train.warmup_steps": 20}),
        ({"quantization_bit": 4}, {"model.quantization": "nf4"}),
        ({"quantization_bit": 8}, {"model.quantization": "int8"}),
        ({"learning_rate": "1e-4"}, {"train.learning_rate": 1e-4}),
        ({"mask_history": True}, {"data.turns": "last"}),
        ({"template": "llama3"}, {"data.chat_template": "llama3"}),
        ({"deepspeed": "x/ds_z3_offload_config.json"}, {"train.zero_stage": 3, "train.offload": "cpu"}),
        ({"deepspeed": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}}, {"train.zero_stage": 2}),
        ({"pissa_init": True, "pissa_iter": 16, "pissa_convert": True}, {"lora.init": "pissa"}),
        ({"report_to": "wandb,swanlab"}, {"train.report_to": ["wandb", "swanlab"]}),
        ({"additional_target": "embed_tokens,lm_head"}, {"lora.modules_to_save": ["embed_tokens", "lm_head"]}),
        ({"max_steps": 7, "adam_beta2": 0.95}, {"train.max_steps": 7, "train.adam_beta2": 0.95}),
        ({"optim": "paged_adamw_8bit"}, {"train.optimizer": "paged_adamw_8bit"}),
        ({"optim": "adamw_8bit", "fsdp": "full_shard"}, {"train.optimizer": None}),
        ({"dataset": "elsewhere"}, {"data.train": "ms:someone/elsewhere"}),
        ({"val_size": 0.1, "eval_steps": 9, "eval_strategy": "steps", "early_stopping_steps": 3},
         {"train.early_stopping_patience": 3, "eval.keep_best": "loss"}),
        ({"val_size": 0.1, "eval_strategy": "epoch", "load_best_model_at_end": True}, {"eval.keep_best": "loss"}),
        ({"val_size": 0.1, "eval_strategy": "epoch"}, {"eval.keep_best": "none"}),
        ({"model_name_or_path": "someone/Model-7B-AWQ"}, {"model.quantization": "published"}),
        ({"model_name_or_path": "someone/Model-7B-bnb-4bit"}, {"model.quantization": "nf4"}),
        ({"train_on_prompt": True}, {"data.train_on_prompt": True}),
        ({"optim": "adafactor"}, {"train.optimizer": "adafactor"}), ({"use_muon": True}, {"train.optimizer": "muon"}),
        ({"neftune_noise_alpha": 5, "label_smoothing_factor": 0.1},
         {"train.neftune_alpha": 5, "train.label_smoothing": 0.1}),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-4},
         {"train.scheduler": "polynomial", "train.min_lr_ratio": 1e-3, "train.scheduler_power": 1.0}),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}, "learning_rate": 1e-4},
         {"train.scheduler": "cosine", "train.min_lr_ratio": 0.1}),
        ({"lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.1},
         {"train.scheduler": "warmup_stable_decay", "train.decay_ratio": 0.6}),
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": '{"num_decay_steps": 9}'},
         {"train.decay_steps": 9}),
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 4}},
         {"train.scheduler": "cosine_with_restarts", "train.scheduler_cycles": 4}),
        ({"neat_packing": True, "cutoff_len": 100}, {"train.batch_tokens": 800}),
    ],
)  # fmt: skip
def test_words_become_keys_and_nothing_is_lost(folder: Path, words: Any, settings: dict[str, Any]) -> None:
    draft = drafted(folder, **words)
    assert {key: draft.value(key) for key in settings} == settings
    assert draft.whole, draft.lost
    job_of(draft, folder)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"stage": "dpo"}, "stage: dpo"), ({"stage": "pt"}, "pre-training"), ({"finetuning_type": "full"}, "full"),
        ({"finetuning_type": "oft"}, "oft"), ({"template": "qwen2_vl"}, "images"), ({"dataset": "seen"}, "images"),
        ({"dataset": "ranked"}, "preference"), ({"dataset": "nowhere"}, "nowhere"),
        ({"use_galore": True}, "use_galore"),
        ({"do_train": False, "do_predict": True}, "do_predict"), ({"learning_rate": "fast"}, "expected a number"),
    ],
)  # fmt: skip
def test_what_zlaunch_does_not_train_is_refused_with_the_word_and_the_reason(
    folder: Path, words: Any, named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        imported_file.text(drafted(folder, **words), "train.yaml")


@pytest.mark.parametrize(
    "words",
    [
        {"no_such_word": 1}, {"lr_scheduler_type": "greedy"}, {"optim": "sgd"}, {"optim_args": "a=1"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"rope_scaling": "longrope"}, {"use_dft_loss": True},
        {"model_name_or_path": "someone/Model-7B-AQLM-2Bit"}, {"quantization_bit": 3, "quantization_method": "hqq"},
        {"adapter_name_or_path": "a,b"}, {"mix_strategy": "interleave_under"}, {"template": "default"},
    ],
)  # fmt: skip
def test_what_a_job_cannot_say_is_named_in_the_file_and_in_the_terminal(folder: Path, words: Any) -> None:
    draft = drafted(folder, **words)
    assert not draft.whole
    job_of(draft, folder)
    said = "\n".join(imported_file.report(draft))
    text = imported_file.text(draft, "train.yaml")
    for note in draft.lost:
        assert note.word in said
        assert note.word in text


def test_every_word_of_a_file_is_in_the_draft_somewhere(folder: Path) -> None:
    words = {"no_such_word": 0, "other_word": None, "hf_hub_token": "hf_abcdef", "output_dir": "x\n- y: |"}
    draft = drafted(folder, **words)
    named = {note.word for notes in (draft.lost, draft.differs, draft.unused) for note in notes}
    assert set(words) <= named
    text = imported_file.text(draft, "a\nname: b")
    assert "hf_abcdef" not in text
    assert "\nname: b" not in text


def test_a_folder_without_dataset_info_is_reported_and_the_file_named(tmp_path: Path) -> None:
    draft = drafted(tmp_path)
    assert [note.word for note in draft.lost] == ["dataset"]
    assert draft.value("data.train") == "data/mine.json"


def test_the_loss_of_routers_keeps_its_weight(folder: Path) -> None:
    draft = drafted(folder, moe_aux_loss_coef=0.001)
    assert job_of(draft, folder).train.router_loss == 0.001
    assert not [note for note in draft.lost if note.word == "moe_aux_loss_coef"]
