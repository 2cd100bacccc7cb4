"""What is measured: cases, their records, and the lists of cases that make the tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from train.memory import MemoryCase

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""Names for all shapes; PEFT uses those that a model has."""


@dataclass(frozen=True)
class Case:
    engine: str = "fused"
    """fused, peft (transformers + PEFT, padded), liger and torchao (peft with these); unsloth (its notebooks), trl
    (Unsloth + TRL packing as documented)"""
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
    def ours(self) -> bool:
        """Whether the case runs on the real path of the program (tests/bench/gpu/ours.py)."""
        return self.engine in ("fused", "peft")

    @property
    def place(self) -> str:
        """Cases with the same value may share a process. DeepSpeed keeps its engines, and Unsloth patches transformers,
        until the process ends."""
        if self.zero:
            return self.name
        return "ours" if self.ours else f"{self.engine} {self.quantization}"

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
    """Tokens of `count` instruction records: lognormal, median 150, between 24 and 512 (mean about 173)."""
    if case.dense:
        return np.full(count, case.dense[1], dtype=np.int64)
    # evenly spaced quantiles in random order: the mean of a few hundred equals that of the distribution
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    lengths = np.clip(np.round(150 * np.exp(0.55 * quantiles)), 24, 512).astype(np.int64)
    return np.random.default_rng(7).permutation(lengths)


def data_of(case: Case, vocab: int) -> Any:
    """A Part of random tokens, enough for every step to see new records."""
    from train.data.dataset import Part
    from train.data.tokens import Tokens

    count = case.records_a_step * (case.steps + case.warmup)
    lengths = lengths_of(case, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(11).integers(10, vocab - 10, int(offsets[-1])).astype(np.int32)
    labelled = np.ones(len(tokens), dtype=np.bool_)
    labelled[offsets[:-1]] = False
    return Part((), Tokens(tokens, labelled, offsets, np.arange(count)), (count,), (1.0,))


def setting_of(case: Case) -> MemoryCase:
    """The case as input of the planner's arithmetic."""
    from train.data.packing import MULTIPLE, deal

    if case.dense:
        tokens, longest = case.dense[0] * case.dense[1], case.dense[1]
    else:
        lengths, longest = lengths_of(case, case.records_a_step * (case.steps + case.warmup)), 512
        if case.engine == "fused":
            from train.data.schedule import Sampler

            # the fullest row of all steps of the case
            sampler, fullest = Sampler((len(lengths),), (1.0,), 3407), 0
            for step in range(case.steps + case.warmup):
                records = sampler.step(step, case.records_a_step)
                (rows,) = deal(records, lengths[records], world_size=1, capacity=case.capacity)
                fullest = max(fullest, *(int(lengths[row].sum()) for row in rows))
            tokens = -(-fullest // MULTIPLE) * MULTIPLE
        else:
            tokens = case.capacity if case.engine == "trl" else 16 * 512
    engine: Any = {"trl": "unsloth", "liger": "peft", "torchao": "peft"}.get(case.engine, case.engine)
    return MemoryCase(
        tokens=tokens, sequence=longest, engine=engine, quantization=case.quantization,  # type: ignore[arg-type]
        checkpointing=case.checkpointing, zero_stage=case.zero,
    )  # fmt: skip


ONE_ROW = 18_432
"""One pass for a step of 96 records: 4% faster than two (H100, one process), and it fits 80 GB."""


def speed_cases() -> list[Case]:
    """The speed table. An alternative runs in the same session as what it is compared with."""
    dense, long = "dense:4x2048", "dense:2x8192"
    return [
        Case(capacity=ONE_ROW, profile=True),
        Case(workload=dense, profile=True),
        Case(workload=long, steps=4),
        Case(workload=long, checkpointing=True, steps=3),
        Case(engine="peft", checkpointing=True, steps=3),
        Case(engine="peft", workload=dense, checkpointing=True, steps=3),
        Case(capacity=ONE_ROW, quantization="nf4", profile=True),
        Case(capacity=ONE_ROW, quantization="fp8", profile=True),
        Case(workload=dense, quantization="fp8"),
        Case(workload="dense:4x4096", shape="llama2-7b", quantization="fp8", steps=3),
        Case(workload="dense:2x4096", shape="llama2-13b", quantization="fp8", steps=3),
        Case(workload=dense, engine="torchao", quantization="fp8", checkpointing=True, steps=4),
        Case(workload=dense, engine="liger", steps=4),
        Case(workload=dense, engine="unsloth", quantization="fp8", steps=4),
        Case(engine="unsloth", checkpointing=True, steps=3),
        Case(engine="unsloth", workload=dense, checkpointing=True, steps=4),
        Case(engine="unsloth", workload=dense, steps=4),
        Case(engine="unsloth", workload=long, checkpointing=True, steps=3),
        Case(engine="unsloth", workload=long, steps=3),
        Case(engine="trl", capacity=12_288, steps=5),  # 16,384 tokens do not fit 80 GB
        Case(workload=dense, zero=2),
        Case(workload=dense, zero=3, profile=True),
        Case(engine="peft", workload=dense, zero=3, checkpointing=True, steps=3),
    ]


def memory_cases() -> list[Case]:
    """Shapes from 1B to 14B, nf4 and bf16, sequences from 512 to 8192, checkpointing on and off, ZeRO 0, 2, 3."""
    short = Case(steps=1, warmup=1)
    shapes = ("llama3.2-1b", "qwen3-4b", "llama3-8b", "qwen2.5-14b")
    found = []
    for shape in shapes:
        of_shape = replace(short, shape=shape)
        found += [replace(of_shape, workload="dense:8x512"), replace(of_shape, workload="dense:1x8192")]
        found.append(replace(of_shape, workload="dense:2x2048", checkpointing=True))
        quantised = replace(of_shape, quantization="nf4")
        found.append(replace(quantised, workload="dense:8x512"))
        found.append(replace(quantised, workload="dense:2x2048", checkpointing=True))
    found += [replace(short, shape=shape, zero=2, workload="dense:2x2048") for shape in shapes[:3]]
    found += [
        replace(short, shape=shape, zero=3, engine="peft", workload="dense:2x1024", checkpointing=False)
        for shape in shapes[:2]
    ]
    return found


def checkpoint_place(shape: str, place: Path, quantization: str = "none") -> Path:
    """The directory where tests/bench/gpu/models.py writes the checkpoint of a shape."""
    return place / f"{shape}-{quantization}"


def jobs(cases: Iterable[Case]) -> list[list[Case]]:
    """Groups of cases that share a process, in order."""
    return [list(group) for _, group in groupby(cases, key=lambda case: case.place)]
