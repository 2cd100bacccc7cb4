"""A job that was imported trains as the other program would, by transformers' own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.job.importing import imported_file, recognize
from launcher.job.load import read_job
from launcher.plan.training import configure
from tests.beds.plans import target
from tests.beds.ranks import events, train
from train.config import dump

pytestmark = pytest.mark.train
WORDS = {
    "model_name_or_path": "unused", "stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "chatml",
    "dataset": "mine", "max_samples": 32, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "num_train_epochs": 3, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "seed": 7,
    "save_strategy": "epoch", "cutoff_len": 128, "weight_decay": 0.01,
}  # fmt: skip


def test_rates_batches_steps_and_saves_are_those_of_the_other_program(
    tmp_path: Path, records: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps({"mine": {"file_name": records["train"]}}))
    (tmp_path / "sft.json").write_text(json.dumps(WORDS))
    job_file = tmp_path / "job.yaml"
    draft = recognize.read("sft.json", 2, here=tmp_path)
    assert draft.whole
    job_file.write_text(imported_file.text(draft, "sft.json"), encoding="utf-8")
    spec = read_job(job_file, ["model.source=random", "device=cpu", "train.engine=peft", "train.log_every=1"]).spec
    config = configure(spec, target(hosts=(("localhost", 1),)), "imported", None).train
    run = tmp_path / "run"
    run.mkdir()
    (run / "train.json").write_text(dump(config).replace('"run_dir": "."', f'"run_dir": {json.dumps(str(run))}'))
    train(run)

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    # One process for two GPUs, so twice the records on it.
    theirs = transformers.TrainingArguments(
        output_dir=str(tmp_path / "unused"), per_device_train_batch_size=2 * 2, gradient_accumulation_steps=2,
        num_train_epochs=3, learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=0.1, use_cpu=True, seed=7,
    )  # fmt: skip
    trainer = transformers.Trainer(model=torch.nn.Linear(1, 1), args=theirs, train_dataset=list(range(32)))
    loader = trainer.get_train_dataloader()
    *_, steps = trainer.set_initial_training_values(theirs, loader)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = transformers.get_scheduler("cosine", optimizer, theirs.get_warmup_steps(steps), steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (started,) = events(run, "steps")
    assert started["total_steps"] == steps == 12
    assert config.train.global_batch_size == 2 * 2 * 2
    assert (draft.value("train.log_every"), config.train.weight_decay, config.lora.alpha) == (500, 0.01, 16)
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    assert lines[-1]["epoch"] == 3
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-12", "step-4", "step-8"]
