"""The alternatives: Unsloth and TRL, used as their notebooks and documentation show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.gpu.cases import TARGETS, Case, data_of, lengths_of
from tests.bench.gpu.models import checkpoint, device_kind
from tests.bench.gpu.tables import result
from train.memory import SHAPES

LONGEST = 8192
"""max_seq_length for the cases that share a model."""


@dataclass
class Loaded:
    """Unsloth's model, shared by the cases of one process."""

    key: tuple[str, str] = ("", "")
    model: Any = None
    tokenizer: Any = None


def run_unsloth(case: Case, loaded: Loaded, place: Path) -> dict[str, Any]:
    """FastLanguageModel + get_peft_model with its own loss on dense rows, or TRL's trainer with packing (`trl`)."""
    import gc

    import torch
    from unsloth import FastLanguageModel

    shape = SHAPES[case.shape]
    if loaded.key != (case.shape, case.quantization):
        loaded.model, loaded.tokenizer = _load(case, place)
        loaded.key = case.shape, case.quantization
    model, tokenizer = loaded.model, loaded.tokenizer
    if case.engine == "unsloth":  # transformers loads a model in evaluation mode, in which nothing is recomputed
        FastLanguageModel.for_training(model, use_gradient_checkpointing=case.checkpointing)
        armed = any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())
        if armed != case.checkpointing:
            raise RuntimeError(f"gradient checkpointing is {'on' if armed else 'off'}, not as the case says")
    run = _trl_steps if case.engine == "trl" else dense_or_padded_steps
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds, tokens, records, losses = run(case, model, tokenizer, place)
    step = sorted(seconds[case.warmup :])[len(seconds[case.warmup :]) // 2]
    peak = torch.cuda.max_memory_allocated()
    line = result(case, shape, tokens / step, step, peak, seconds[0], losses)
    return {**line, "records_per_second": round(records / step, 1)}


def _load(case: Case, place: Path) -> tuple[Any, Any]:
    import torch
    from unsloth import FastLanguageModel

    checkpointing = False if case.engine == "trl" and not case.checkpointing else "unsloth"
    longest = case.capacity if case.engine == "trl" else LONGEST
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(checkpoint(case.shape, place)), max_seq_length=longest, dtype=torch.bfloat16,
        load_in_4bit=case.quantization == "nf4", load_in_fp8=case.quantization == "fp8",
        use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=list(TARGETS), bias="none",
        use_gradient_checkpointing=checkpointing, random_state=0,
    )  # fmt: skip
    return model, tokenizer


def dense_or_padded_steps(
    case: Case, model: Any, tokenizer: Any, place: Path
) -> tuple[list[float], float, float, list[float]]:
    """Rows unchanged (dense), or an optimizer step of padded micro batches of similar lengths (records)."""
    import torch

    device = device_kind()
    data = data_of(case, SHAPES[case.shape].vocab)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, fused=device == "cuda")
    seconds, losses = [], []
    sampler = data.sampler(0)
    for step in range(case.steps + case.warmup):
        began = time.perf_counter()
        chosen = sampler.step(step, case.records_a_step)
        order = chosen[np.argsort(-data.lengths[chosen], kind="stable")]
        size = case.records_a_step if case.dense else 16
        total = 0.0
        for part in order.reshape(-1, size):
            rows = [data.tokens.sequence(int(i))[0] for i in part]
            width = -(-max(map(len, rows)) // 16) * 16
            ids = np.zeros((len(rows), width), dtype=np.int64)
            labels = np.full_like(ids, -100)
            for row, tokens in enumerate(rows):
                ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
            batch = {"input_ids": torch.from_numpy(ids).to(device), "labels": torch.from_numpy(labels).to(device)}
            loss = model(**batch).loss / (len(order) // size)
            loss.backward()
            total += float(loss)
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        assert float(norm) > 0, "no gradients"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(total)
    tokens = float(data.lengths.sum()) / (case.steps + case.warmup)
    return seconds, tokens, float(case.records_a_step), losses


def _trl_steps(case: Case, model: Any, tokenizer: Any, place: Path) -> tuple[list[float], float, float, list[float]]:
    """SFTTrainer with packing=True: one full row of `capacity` tokens per step."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rng = np.random.default_rng(7)
    lengths = lengths_of(case, 120 * (case.steps + case.warmup))
    vocab = SHAPES[case.shape].vocab
    rows = [{"input_ids": rng.integers(10, vocab - 10, n).tolist()} for n in lengths]
    stamps: list[float] = []
    logged: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logged.append(logs)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            import torch

            torch.cuda.synchronize()
            stamps.append(time.perf_counter())

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        callbacks=[Clock()],
        args=SFTConfig(
            output_dir=str(place / "trl"), per_device_train_batch_size=1, gradient_accumulation_steps=1, packing=True,
            max_length=case.capacity, max_steps=case.steps + case.warmup, learning_rate=2e-4, logging_steps=1,
            report_to="none", save_strategy="no", bf16=True, optim="adamw_torch_fused", warmup_steps=1,
            dataset_kwargs={"skip_prepare_dataset": False}, dataset_num_proc=1,
        ),
    )  # fmt: skip
    trainer.train()
    seconds = [end - begin for begin, end in zip(stamps[::2], stamps[1::2], strict=True)]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert all(line["grad_norm"] > 0 for line in logged if "grad_norm" in line), "no gradients"
    tokens = case.capacity * 0.97  # best-fit packing of these lengths leaves a few tokens of a row free
    return seconds, tokens, tokens / float(lengths.mean()), losses
