"""Speed and memory of training steps on a GPU, ours beside what a user would otherwise take.

    python -m train.bench speed            the speed table: every workload, engine by engine
    python -m train.bench memory           measured peaks beside the planner's predictions
    python -m train.bench case engine=fused workload=records shape=llama3-8b quantization=nf4 steps=8
    --out DIR                              results.jsonl, and a profile where a case asks for one

Models have random weights of a named shape (train.memory.SHAPES). Ours and plain PEFT run the real path of the program:
sampler, collation, train.loop, loss, gradient clipping, AdamW. `unsloth` and `trl` are what their documentation shows,
each in a process of its own because Unsloth changes transformers for good. All tokens carry loss, which is the most
expensive case; a result without gradients (grad_norm 0) is an error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from train import memory
from train.memory import GIB, SHAPES, Setting, Shape

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    engine: str = "fused"
    """fused, peft; unsloth (its notebooks), trl (Unsloth + TRL packing as documented)"""
    workload: str = "records"
    """records, or dense:ROWSxTOKENS"""
    shape: str = "llama3-8b"
    quantization: str = "none"
    checkpointing: bool = False
    capacity: int = 16_384
    """Most tokens of a packed pass."""
    zero: int = 0
    steps: int = 6
    warmup: int = 2
    profile: bool = False
    wide: bool = True

    @property
    def dense(self) -> tuple[int, int] | None:
        if not self.workload.startswith("dense:"):
            return None
        rows, _, length = self.workload.removeprefix("dense:").partition("x")
        return int(rows), int(length)

    @property
    def records_a_step(self) -> int:
        return self.dense[0] if self.dense else 96

    @property
    def name(self) -> str:
        extra = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return " ".join(extra) or "default"


def case_of(words: Iterable[str]) -> Case:
    """`engine=peft steps=4` -> Case. Raises ValueError."""
    kinds = {f.name: type(f.default) for f in fields(Case)}
    given: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in kinds:
            raise ValueError(f"no setting {key!r}; known: {', '.join(kinds)}")
        given[key] = value in ("1", "true", "True") if kinds[key] is bool else kinds[key](value)
    return Case(**given)


def lengths_of(case: Case, count: int) -> np.ndarray:
    """Tokens of `count` records: instruction records are lognormal, median 150, between 24 and 512 (mean about 173)."""
    if case.dense:
        return np.full(count, case.dense[1], dtype=np.int64)
    # evenly spaced quantiles in random order: the mean of a few hundred is that of the distribution
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    lengths = np.clip(np.round(150 * np.exp(0.55 * quantiles)), 24, 512).astype(np.int64)
    return np.random.default_rng(7).permutation(lengths)


def data_of(case: Case, vocab: int) -> Any:
    """A train.dataset.Part of random tokens, enough for every step to see records of its own."""
    from train.dataset import Part
    from train.tokens import Tokens

    count = case.records_a_step * (case.steps + case.warmup)
    lengths = lengths_of(case, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(11).integers(10, vocab - 10, int(offsets[-1])).astype(np.int32)
    labelled = np.ones(len(tokens), dtype=np.bool_)
    labelled[offsets[:-1]] = False
    return Part((), Tokens(tokens, labelled, offsets, np.arange(count)), (count,), (1.0,))


def train_config(case: Case) -> Any:
    from train.config import Data, Lora, Model, TrainConfig, Training

    records, length = case.records_a_step, case.dense[1] if case.dense else 512
    packed = case.engine == "fused"
    # the loop's capacity is micro_batch_size * max_length; for the padded engine, records a pass
    micro = records if case.dense else (max(1, case.capacity // length) if packed else 16)
    return TrainConfig(
        run_id="bench",
        device=device_kind(),
        model=Model(quantization=case.quantization, dtype="bfloat16"),
        data=Data(max_length=length),
        lora=Lora(),
        train=Training(
            global_batch_size=records,
            micro_batch_size=micro,
            gradient_accumulation_steps=max(1, records // micro),
            zero_stage=case.zero,
            engine=case.engine,
            packing="pack" if packed else "bucket",
            gradient_checkpointing=case.checkpointing,
        ),
    )


def device_kind() -> Any:
    """`cuda`; `cpu` only to try the program itself, its figures mean nothing."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def hf_config(shape: Shape) -> Any:
    """transformers' configuration of a shape; families without fused layers become a Llama of the same size."""
    from transformers import AutoConfig

    kind = shape.family if shape.family in ("llama", "mistral", "qwen2", "qwen3") else "llama"
    more = {"sliding_window": None} if kind == "mistral" else {}
    return AutoConfig.for_model(
        kind,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=16_384,
        **more,
    )


def build(case: Case) -> Any:
    """The random PEFT model, its LoRA weights in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device_kind()):
        model = AutoModelForCausalLM.from_config(hf_config(SHAPES[case.shape]), dtype=torch.bfloat16)
    model.config.use_cache = False
    if case.quantization == "nf4":
        _to_nf4(model)
    if case.engine == "peft" and case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(TARGETS))
    adapted = get_peft_model(model, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _to_nf4(model: Any) -> None:
    """Linear maps of the layers as bitsandbytes' 4-bit ones, as loading with load_in_4bit makes them."""
    import bitsandbytes as bnb
    import torch

    model.is_loaded_in_4bit = True
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, old in list(parent.named_children()):
                if isinstance(old, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        old.in_features, old.out_features, bias=old.bias is not None, compute_dtype=torch.bfloat16,
                        compress_statistics=True, quant_type="nf4", device="meta",
                    )  # fmt: skip
                    weight = bnb.nn.Params4bit(
                        old.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
                    )
                    new.weight = weight.cuda()
                    new.bias = old.bias
                    setattr(parent, name, new)


@dataclass
class Held:
    """The model that cases of one shape share, so that it is built once."""

    key: tuple[Any, ...] = ()
    model: Any = None
    leaked: int = 0
    """Bytes that earlier cases left behind (DeepSpeed keeps its engines): not this case's."""


def run_case(case: Case, held: Held, out: Path) -> dict[str, Any]:
    """One case on the real path of the program; a line of results."""
    import gc

    import torch

    from train import dist
    from train.checkpoint import Progress
    from train.engine import build as build_engine
    from train.loop import Loop
    from train.rundir import RunDir

    key = (case.engine, case.shape, case.quantization, case.checkpointing and case.engine == "peft", case.zero)
    if held.key != key:
        held.model = None
        gc.collect()
        torch.cuda.empty_cache()
        held.leaked = torch.cuda.memory_allocated()
        held.model, held.key = build(case), key
    shape, config, data = SHAPES[case.shape], train_config(case), data_of(case, SHAPES[case.shape].vocab)
    world = dist.from_environment(device_kind())
    engine = build_engine(config, world, held.model, torch.bfloat16, _ds_config(case, config), case.engine)
    gc.collect()
    torch.cuda.empty_cache()
    marks: list[float] = []
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        rundir = RunDir(Path(place))
        loop = Loop(
            config=config, world=world, rundir=rundir, data=data, engine=engine, pad=0,
            total=case.steps + case.warmup, save=lambda progress: None, evaluate=None,
            first_step_done=lambda: marks.append(time.perf_counter() - begun),
        )  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        with _quiet():
            loop.run(Progress(step=0))
        lines = [json.loads(line) for line in rundir.metrics.read_text().splitlines()]
    peak = max(1, torch.cuda.max_memory_allocated() - held.leaked)
    if case.profile:
        _profile(loop, out / f"profile-{case.workload.replace(':', '-')}-{case.quantization}.txt")
    del engine, loop
    return _line(case, shape, lines, peak, marks[0])


class _quiet:
    """The loop prints a line a step; a table does not want them."""

    def __enter__(self) -> None:
        self.kept = sys.stdout
        sys.stdout = Path(os.devnull).open("w")

    def __exit__(self, *_: Any) -> None:
        sys.stdout.close()
        sys.stdout = self.kept


def _ds_config(case: Case, config: Any) -> dict[str, Any] | None:
    if not case.zero:
        return None
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29533")
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(key, value)
    train = config.train
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": case.zero, "overlap_comm": True, "contiguous_gradients": True},
        "steps_per_print": 10**9,
    }


def _line(case: Case, shape: Shape, lines: list[dict[str, Any]], peak: int, first: float) -> dict[str, Any]:
    timed = lines[case.warmup :]
    if not all(line["grad_norm"] and math.isfinite(line["loss"]) for line in lines):
        raise RuntimeError(f"{case.name}: a step without gradients or with a loss that is not finite")
    # tokens of each step over its seconds; the median step
    rates = sorted(line["tokens_per_second"] for line in timed)
    tokens = (lines[-1]["tokens"] - lines[case.warmup - 1]["tokens"]) / len(timed)
    rate = rates[len(rates) // 2]
    return _result(case, shape, rate, tokens / rate, peak, first, [line["loss"] for line in lines])


def _result(
    case: Case, shape: Shape, rate: float, seconds: float, peak: int, first: float, losses: list[float]
) -> dict[str, Any]:
    predicted = memory.predict(shape, setting_of(case)).total
    return {
        "case": case.name,
        "tokens_per_second": round(rate),
        "records_per_second": round(case.records_a_step / seconds, 1),
        "peak_gib": round(peak / GIB, 2),
        "predicted_gib": round(predicted / GIB, 2),
        "error": round(predicted / peak - 1, 4),
        "first_step_seconds": round(first, 1),
        "losses": [round(loss, 5) for loss in losses],
    }


def setting_of(case: Case) -> Setting:
    """What the planner's arithmetic would be told of a case."""
    from train.packing import MULTIPLE, deal

    if case.dense:
        tokens, longest = case.dense[0] * case.dense[1], case.dense[1]
    else:
        lengths, longest = lengths_of(case, case.records_a_step * (case.steps + case.warmup)), 512
        if case.engine == "fused":
            from train.schedule import Sampler

            # the fullest row of all steps that the case sees
            sampler, fullest = Sampler((len(lengths),), (1.0,), 3407), 0
            for step in range(case.steps + case.warmup):
                records = sampler.step(step, case.records_a_step)
                (rows,) = deal(records, lengths[records], world_size=1, capacity=case.capacity)
                fullest = max(fullest, *(int(lengths[row].sum()) for row in rows))
            tokens = -(-fullest // MULTIPLE) * MULTIPLE
        else:
            tokens = case.capacity if case.engine == "trl" else 16 * 512
    engine: Any = {"trl": "unsloth"}.get(case.engine, case.engine)
    return Setting(
        tokens=tokens, sequence=longest, engine=engine, quantization=case.quantization,  # type: ignore[arg-type]
        checkpointing=case.checkpointing, zero_stage=case.zero,
    )  # fmt: skip


def _profile(loop: Any, file: Path) -> None:
    """One more optimizer step under torch's profiler: time by kernel."""
    import torch

    records = loop.data.sampler(0).step(0, loop.config.train.global_batch_size)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        loop._forward_backward(0, records)
        loop.engine.step(1e-5)
        torch.cuda.synchronize()
    table = profile.key_averages().table(sort_by="self_device_time_total", row_limit=45, max_name_column_width=90)
    file.write_text(table)


# What a user would otherwise take: Unsloth as its notebooks and documentation show it.


def checkpoint(shape: str, place: Path) -> Path:
    """A random model of a shape on disk with a byte tokenizer, for engines that load from there. Made once."""
    import torch
    from transformers import AutoModelForCausalLM

    target = place / shape
    if (target / "tokenizer.json").is_file():
        return target
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(hf_config(SHAPES[shape]), dtype=torch.bfloat16)
    model.save_pretrained(target)
    byte_tokenizer().save_pretrained(target)
    return target


def byte_tokenizer() -> Any:
    """A token for each byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def large_checkpoint(shape: str, place: Path, quantization: str) -> Path:
    """A checkpoint of a model too large to be built whole: one random layer, written as every layer of the model.

    nf4 as bitsandbytes saves it: packed weights, their scales, and the quantisation's state beside them.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    target = place / f"{shape}-{quantization}"
    target.mkdir(parents=True, exist_ok=True)
    config = hf_config(SHAPES[shape])
    config.num_hidden_layers = 1
    with torch.device(device_kind()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    kind = type(model).__name__
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    if quantization == "nf4":
        state = {name: part for item in state.items() for name, part in _saved_as_nf4(*item)}
        config.quantization_config = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
        }  # fmt: skip
    del model
    torch.cuda.empty_cache()
    prefix, shards = "model.layers.0.", {}
    for layer in range(SHAPES[shape].layers):
        part = {name.replace(prefix, f"model.layers.{layer}."): t for name, t in state.items() if prefix in name}
        shards[f"model-{layer:05d}.safetensors"] = part
    shards["model-rest.safetensors"] = {name: tensor for name, tensor in state.items() if prefix not in name}
    with ThreadPoolExecutor(8) as pool:  # tens of gigabytes
        list(pool.map(lambda item: save_file(item[1], target / item[0], metadata={"format": "pt"}), shards.items()))
    index = {tensor: name for name, part in shards.items() for tensor in part}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.num_hidden_layers = SHAPES[shape].layers
    config.architectures = [kind]
    config.save_pretrained(target)
    byte_tokenizer().save_pretrained(target)
    return target


def _saved_as_nf4(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """A tensor as it stands in a quantised checkpoint: linear maps of the layers packed, all others as they are."""
    from bitsandbytes.functional import quantize_4bit

    if not any(f".{target}.weight" in name for target in TARGETS):
        yield name, tensor
        return
    packed, state = quantize_4bit(tensor.to(device_kind()), quant_type="nf4", compress_statistics=True)
    yield name, packed.cpu()
    for key, value in state.as_dict(packed=True).items():
        yield f"{name}.{key}", value.cpu().contiguous()


def run_unsloth(case: Case, place: Path) -> dict[str, Any]:
    """FastLanguageModel + get_peft_model; its own loss; dense rows, or TRL's trainer with packing=True (`trl`)."""
    import torch
    from unsloth import FastLanguageModel

    shape = SHAPES[case.shape]
    checkpointing = "unsloth" if case.checkpointing else False
    longest = case.dense[1] if case.dense else case.capacity if case.engine == "trl" else 512
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(checkpoint(case.shape, place)), max_seq_length=longest, dtype=torch.bfloat16,
        load_in_4bit=case.quantization == "nf4", use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=list(TARGETS), bias="none",
        use_gradient_checkpointing=checkpointing, random_state=0,
    )  # fmt: skip
    if case.engine == "unsloth":  # transformers leaves a loaded model in evaluation mode, where nothing is recomputed
        FastLanguageModel.for_training(model, use_gradient_checkpointing=checkpointing)
        armed = any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())
        if armed != case.checkpointing:
            raise RuntimeError(f"gradient checkpointing is {'on' if armed else 'off'}, not as the case says")
    run = _trl_steps if case.engine == "trl" else _unsloth_steps
    torch.cuda.reset_peak_memory_stats()
    seconds, tokens, records, losses = run(case, model, tokenizer, place)
    step = sorted(seconds[case.warmup :])[len(seconds[case.warmup :]) // 2]
    peak = torch.cuda.max_memory_allocated()
    result = _result(case, shape, tokens / step, step, peak, seconds[0], losses)
    return {**result, "records_per_second": round(records / step, 1)}


def _unsloth_steps(
    case: Case, model: Any, tokenizer: Any, place: Path
) -> tuple[list[float], float, float, list[float]]:
    """Rows as they are (dense), or one optimizer step of padded micro batches of like lengths (records)."""
    import torch

    data = data_of(case, SHAPES[case.shape].vocab)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, fused=True)
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
            batch = {"input_ids": torch.from_numpy(ids).cuda(), "labels": torch.from_numpy(labels).cuda()}
            loss = model(**batch).loss / (len(order) // size)
            loss.backward()
            total += float(loss)
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        assert float(norm) > 0, "no gradients"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(total)
    tokens = float(data.lengths.sum()) / (case.steps + case.warmup)
    return seconds, tokens, float(case.records_a_step), losses


def _trl_steps(case: Case, model: Any, tokenizer: Any, place: Path) -> tuple[list[float], float, float, list[float]]:
    """SFTTrainer with packing=True, one full row of `capacity` tokens a step."""
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
    tokens = case.capacity * 0.97  # best-fit packing of these lengths leaves a few tokens free in a row
    return seconds, tokens, tokens / float(lengths.mean()), losses


def matrix_rate() -> float:
    """FLOP/s of an 8192 x 8192 x 8192 bf16 product of random numbers: what the limit is counted from."""
    import torch

    if device_kind() == "cpu":
        return 1e11
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000)


def speed_cases() -> Iterator[Case]:
    """The speed table."""
    for quantization in ("none", "nf4"):
        yield Case(quantization=quantization, profile=True)
        if quantization == "none":
            yield Case(workload="dense:4x2048", profile=True)
            yield Case(workload="dense:2x8192")
            yield Case(workload="dense:2x8192", checkpointing=True, steps=3)
    yield Case(workload="dense:4x2048", zero=2)
    yield Case(workload="dense:4x2048", zero=3)
    yield Case(engine="peft", workload="dense:4x2048", zero=3, checkpointing=True, steps=3)
    yield Case(engine="peft", checkpointing=True, steps=3)
    yield Case(engine="peft", workload="dense:4x2048", checkpointing=True, steps=3)
    yield Case(engine="unsloth", checkpointing=True, steps=4)
    yield Case(engine="trl", capacity=12_288, steps=5)  # 16,384 tokens do not fit 80 GB
    yield Case(engine="unsloth", workload="dense:4x2048", steps=4)
    yield Case(engine="unsloth", workload="dense:4x2048", checkpointing=True, steps=4)
    yield Case(engine="unsloth", workload="dense:2x8192", steps=4)
    yield Case(engine="unsloth", workload="dense:2x8192", checkpointing=True, steps=4)


def memory_cases() -> Iterator[Case]:
    """Shapes from 1B to 14B, nf4 and bf16, sequences from 512 to 8192, checkpointing on and off, ZeRO 0, 2, 3."""
    short = Case(steps=1, warmup=1)
    shapes = ("llama3.2-1b", "qwen3-4b", "llama3-8b", "qwen2.5-14b")
    for shape in shapes:
        for quantization in ("none", "nf4"):
            yield replace(short, shape=shape, quantization=quantization, workload="dense:8x512")
            yield replace(short, shape=shape, quantization=quantization, workload="dense:2x2048", checkpointing=True)
        yield replace(short, shape=shape, workload="dense:1x8192")
    for shape in shapes[:3]:
        yield replace(short, shape=shape, zero=2, workload="dense:2x2048")
    for shape in shapes[:2]:
        yield replace(short, shape=shape, zero=3, engine="peft", workload="dense:2x1024")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", choices=("speed", "memory", "case", "child"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "zlaunch-bench")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for a case in its own process")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.table == "child":
        case = case_of(options.settings)
        ours = case.engine in ("fused", "peft")
        print(json.dumps(run_case(case, Held(), options.out) if ours else run_unsloth(case, options.scratch)))
        return 0
    import torch

    rate = matrix_rate()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    heading = {"device": card, "torch": torch.__version__, "matrix_tflops": round(rate / 1e12)}
    print(json.dumps(heading), flush=True)
    tables = {"speed": speed_cases, "memory": memory_cases}
    wanted = [case_of(options.settings)] if options.table == "case" else tables[options.table]()
    held, failed = Held(), 0
    with (options.out / "results.jsonl").open("a") as file:
        print(json.dumps(heading), file=file)
        for case in wanted:
            try:
                line = _run(case, held, options)
            except (OutOfMemory, torch.cuda.OutOfMemoryError):
                line = {"case": case.name, "out_of_memory": True}
            except Exception as error:
                failed += 1
                line = {"case": case.name, "failed": f"{type(error).__name__}: {error}"[:600]}
            if "tokens_per_second" in line:
                limit = rate / memory.flops_per_token(
                    SHAPES[case.shape], replace(setting_of(case), checkpointing=False)
                )
                line["share_of_limit"] = round(line["tokens_per_second"] / limit, 3)
            print(json.dumps(line), flush=True)
            print(json.dumps(line), file=file, flush=True)
    return 1 if failed else 0


class OutOfMemory(Exception):
    """A case needs more than this GPU has: an answer, not a failure."""


def _run(case: Case, held: Held, options: Any) -> dict[str, Any]:
    if case.engine in ("fused", "peft") and not case.zero:  # DeepSpeed keeps its engines until its process ends
        return run_case(case, held, options.out)
    import gc

    import torch

    held.model, held.key = None, ()
    gc.collect()
    torch.cuda.empty_cache()
    words = [f"{f.name}={getattr(case, f.name)}" for f in fields(case)]
    command = [sys.executable, "-m", "train.bench", "child", *words]
    command += ["--scratch", str(options.scratch), "--out", str(options.out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    (options.out / f"{case.engine}-{abs(hash(case.name)) % 10**6}.log").write_text(
        done.stdout[-20000:] + done.stderr[-20000:]
    )
    if "OutOfMemoryError" in done.stderr:
        raise OutOfMemory
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    sys.exit(main())
