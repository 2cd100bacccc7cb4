"""What `auto` means: the fastest setting that fits the GPU with a margin. Pure.

    JobSpec + Situation + Shape -> Choice (every setting with its reason, bytes by part, tokens a second)

All combinations of what the user left open are few (micro batches that divide, checkpointing on or off, three ZeRO
stages), so all are computed and the fastest that fits is taken. Where none fits, the smallest changes that would are
tried in the order in which they cost the user least.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from launcher import batch, gpus
from launcher.errors import BatchError, CompatibilityError
from launcher.spec import JobSpec
from train import compat, families, memory
from train.memory import GIB, Memory, Setting, Shape

MARGIN = 0.05
"""Share of the GPU's memory kept free: for fragments of the allocator and a prediction that is a little low."""

CONTEXT_BYTES = round(0.9 * GIB)
"""CUDA's context and the libraries' workspaces, outside the allocator; NCCL's buffers come on top."""
NCCL_BYTES = round(0.7 * GIB)

ENOUGH_TOKENS = 32_768
"""A pass over more tokens is no faster: what each pass costs beside its tokens is a hundredth by then."""

ZERO_SPEED = {0: 1.0, 1: 0.95, 2: 0.95, 3: 0.8}
"""Speed relative to plain data parallelism, on one and two H100s (docs/performance.md); stage 1 as stage 2."""
FUSED_ZERO_3_SPEED = 0.92
"""Where the fused layers share the frozen weights themselves."""


@dataclass(frozen=True)
class Situation:
    """Where a job would run."""

    world_size: int
    gpu_memory_bytes: int
    gpu_name: str = "GPU"
    matrix_rate: float = 100e12
    bfloat16: bool = True
    """False on GPUs before Ampere, which train in float16."""


@dataclass(frozen=True)
class Reason:
    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Choice:
    batch: batch.Batch
    setting: Setting
    packing: str
    memory: Memory
    tokens_per_second: float
    """Of all ranks together."""
    reasons: tuple[Reason, ...]

    @property
    def predicted_peak_bytes(self) -> int:
        return self.memory.total


@dataclass(frozen=True)
class Change:
    """A change that makes an impossible job possible."""

    text: str
    """As the user would type it."""
    choice: Choice


class DoesNotFit(CompatibilityError):
    """No setting within what the user fixed fits the GPU."""

    def __init__(self, message: str, changes: tuple[Change, ...], smallest: Memory) -> None:
        hint = "; or: ".join(change.text for change in changes[:3]) or "a smaller model or a larger GPU is needed"
        super().__init__(message, hint=hint)
        self.changes = changes
        self.smallest = smallest


def choose(spec: JobSpec, shape: Shape, situation: Situation) -> Choice:
    """The fastest setting that fits. Raises DoesNotFit (with the changes that would help) and BatchError."""
    # refuses a global batch that the ranks cannot share before memory is looked at
    batch.solve(spec.train.global_batch_size, spec.train.micro_batch_size, situation.world_size, largest=1)
    candidates = list(_candidates(spec, shape, situation))
    fitting = [candidate for candidate in candidates if fits(candidate.memory, situation)]
    if not fitting:
        smallest = min(candidates, key=lambda candidate: candidate.memory.total)
        raise DoesNotFit(
            f"{spec.model.path or 'the model'} does not fit: at least {_gib(smallest.memory.total)} a GPU are needed, "
            f"{situation.gpu_name} has {_gib(room(situation))} for it",
            tuple(_changes(spec, shape, situation)),
            smallest.memory,
        )
    fastest = max(candidate.tokens_per_second for candidate in fitting)
    # what is within a hundredth of the fastest is as fast: then the one that needs least memory
    equals = [candidate for candidate in fitting if candidate.tokens_per_second >= 0.99 * fastest]
    best = min(equals, key=lambda candidate: (candidate.setting.zero_stage, candidate.memory.total))
    return replace(best, reasons=tuple(_reasons(spec, best, candidates, situation)))


def settled(spec: JobSpec, choice: Choice) -> JobSpec:
    """The job with every `auto` that the planner decides replaced by its word."""
    return _with(
        spec,
        train={
            "micro_batch_size": choice.batch.micro_batch_size,
            "gradient_checkpointing": choice.setting.checkpointing,
            "zero_stage": choice.setting.zero_stage,
            "packing": choice.packing,
            "engine": choice.setting.engine,
        },
    )


def room(situation: Situation) -> int:
    """Bytes of a GPU that a job's tensors may take."""
    outside = CONTEXT_BYTES + (NCCL_BYTES if situation.world_size > 1 else 0)
    return round(situation.gpu_memory_bytes * (1 - MARGIN)) - outside


def fits(need: Memory, situation: Situation) -> bool:
    return need.total <= room(situation)


def engine_of(spec: JobSpec, shape: Shape, situation: Situation, zero_stage: int) -> memory.EngineName:
    """The engine that the training program would take on a GPU: by the same table and the same rules."""
    family = families.family_of({"model_type": shape.family})
    dtype = spec.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if situation.bfloat16 else "float16"
    settings = compat.Settings.of(spec, family)
    return compat.engine_for(replace(settings, device="cuda", dtype=dtype, zero_stage=zero_stage))[0]


def setting_of(
    spec: JobSpec, shape: Shape, situation: Situation, micro: int, checkpointing: bool, zero_stage: int
) -> Setting:
    """The arithmetic's setting for a micro batch whose records all have the greatest length."""
    targets = spec.lora.target_modules
    return Setting(
        tokens=micro * spec.data.max_length,
        sequence=spec.data.max_length,
        engine=engine_of(spec, shape, situation, zero_stage),
        quantization=spec.model.quantization,
        weight_bytes=4 if spec.model.dtype == "float32" else 2,
        lora_r=spec.lora.r,
        lora_targets=targets if isinstance(targets, tuple) else None,
        checkpointing=checkpointing,
        zero_stage=zero_stage,
        world_size=situation.world_size,
        offload=spec.train.offload == "cpu",
    )


def _candidates(spec: JobSpec, shape: Shape, situation: Situation) -> Iterator[Choice]:
    train = spec.train
    checkpointing = (False, True) if train.gradient_checkpointing == "auto" else (train.gradient_checkpointing,)
    for micro, recompute, stage in itertools.product(_micros(spec, situation), checkpointing, _stages(spec, situation)):
        setting = setting_of(spec, shape, situation, micro, recompute, stage)
        own = memory.shares_itself(setting.engine, stage)
        speed = memory.tokens_per_second(shape, setting, situation.matrix_rate)
        speed *= FUSED_ZERO_3_SPEED if own else ZERO_SPEED[stage]
        yield Choice(
            batch=batch.solve(train.global_batch_size, micro, situation.world_size, largest=micro),
            setting=setting,
            packing=_packing(spec, setting),
            memory=memory.predict(shape, setting),
            tokens_per_second=speed * situation.world_size,
            reasons=(),
        )


def _micros(spec: JobSpec, situation: Situation) -> tuple[int, ...]:
    if spec.train.micro_batch_size != "auto":
        return (spec.train.micro_batch_size,)
    share = spec.train.global_batch_size // situation.world_size
    largest = max(1, ENOUGH_TOKENS // spec.data.max_length)
    return tuple(size for size in range(1, min(share, largest) + 1) if share % size == 0)


def _stages(spec: JobSpec, situation: Situation) -> tuple[int, ...]:
    if spec.train.zero_stage != "auto":
        return (spec.train.zero_stage,)
    if spec.train.offload == "cpu":
        return (2, 3)
    if situation.world_size == 1:
        return (0,)
    # 8-bit weights under ZeRO-3 train with wrong losses (bitsandbytes#1451)
    return (0, 2) if spec.model.quantization == "int8" else (0, 2, 3)


def _packing(spec: JobSpec, setting: Setting) -> str:
    if spec.train.packing != "auto":
        return spec.train.packing
    return "pack" if setting.engine == "fused" else "bucket"


def _changes(spec: JobSpec, shape: Shape, situation: Situation) -> Iterator[Change]:
    """Changes that would make the job fit, the least costly for the user first."""
    found: set[str] = set()
    for kind, text, changed, place in _ideas(spec, situation):
        if kind in found:  # a smaller change of the same kind does already
            continue
        try:
            fitting = [c for c in _candidates(changed, shape, place) if fits(c.memory, place)]
        except BatchError:
            continue
        if fitting:
            found.add(kind)
            yield Change(text, max(fitting, key=lambda c: c.tokens_per_second))


def _ideas(spec: JobSpec, situation: Situation) -> Iterator[tuple[str, str, JobSpec, Situation]]:
    train, model = spec.train, spec.model
    if train.gradient_checkpointing is False:
        changed = _with(spec, train={"gradient_checkpointing": True})
        yield "checkpointing", "train.gradient_checkpointing: true", changed, situation
    if train.micro_batch_size not in ("auto", 1):
        assert isinstance(train.micro_batch_size, int)
        share = train.global_batch_size // situation.world_size
        for size in range(train.micro_batch_size - 1, 0, -1):
            if share % size == 0:
                changed = _with(spec, train={"micro_batch_size": size})
                yield "micro", f"train.micro_batch_size: {size}", changed, situation
    if train.zero_stage not in ("auto", 3) and situation.world_size > 1 and model.quantization != "int8":
        yield "zero", "train.zero_stage: 3", _with(spec, train={"zero_stage": 3}), situation
    open_ = _with(spec, train={"gradient_checkpointing": "auto", "micro_batch_size": "auto", "zero_stage": "auto"})
    if open_ != spec:
        yield "auto", "train.micro_batch_size, gradient_checkpointing and zero_stage: auto", open_, situation
    if model.quantization == "none":
        changed = _with(open_, model={"quantization": "nf4"})
        yield "quantization", "model.quantization: nf4", changed, situation
    length = spec.data.max_length // 2
    while length >= 256:
        changed = _with(open_, data={"max_length": length})
        yield "length", f"data.max_length: {length}", changed, situation
        length //= 2
    for world in (2, 4, 8, 16, 32, 64):
        if world > situation.world_size and spec.train.global_batch_size % world == 0:
            more = replace(situation, world_size=world)
            yield "gpus", f"{world} GPUs like this one (ZeRO-3 shares the weights)", open_, more
    for gpu in sorted(gpus.GPUS.values(), key=lambda gpu: gpu.memory_bytes):
        if gpu.memory_bytes > situation.gpu_memory_bytes * 1.05:
            bigger = replace(situation, gpu_memory_bytes=gpu.memory_bytes, gpu_name=gpu.title)
            yield "gpu", f"a GPU of {gpu.memory_bytes / GIB:.0f} GiB ({gpu.title})", open_, bigger
    if model.quantization == "none":
        for world in (2, 4, 8, 16):
            if world > situation.world_size and spec.train.global_batch_size % world == 0:
                changed = _with(open_, model={"quantization": "nf4"})
                yield "both", f"model.quantization: nf4 on {world} GPUs", changed, replace(situation, world_size=world)


def _with(spec: JobSpec, **sections: dict[str, Any]) -> JobSpec:
    changed = {name: msgspec.structs.replace(getattr(spec, name), **values) for name, values in sections.items()}
    return msgspec.structs.replace(spec, **changed)


def _reasons(spec: JobSpec, best: Choice, candidates: list[Choice], situation: Situation) -> Iterator[Reason]:
    """Why each setting that the user left open is what it is."""
    train, setting, solved = spec.train, best.setting, best.batch
    free = _gib(room(situation))
    if train.micro_batch_size == "auto":
        yield Reason(
            "train.micro_batch_size",
            solved.micro_batch_size,
            f"{setting.tokens} tokens a pass of the {solved.global_batch_size // solved.world_size} records a rank has "
            f"in a step; needs {_gib(best.memory.total)} of the {free} that {situation.gpu_name} has free",
        )
    if train.gradient_checkpointing == "auto":
        yield Reason("train.gradient_checkpointing", setting.checkpointing, _why_checkpointing(best, candidates, free))
    if train.zero_stage == "auto":
        yield Reason("train.zero_stage", setting.zero_stage, _why_zero(best, situation))
    if train.packing == "auto":
        why = {
            "pack": "records share rows without padding and without seeing each other; as fast as dense batches",
            "bucket": "records of like lengths share a micro batch within each step",
        }.get(best.packing, "as asked")
        yield Reason("train.packing", best.packing, why)
    if train.engine == "auto":
        why = {
            "fused": "the model's family has fused layers here, the fastest path measured",
            "unsloth": "Unsloth's kernels: the fused layers do not cover this setting",
            "peft": "plain transformers and PEFT: neither faster engine covers this setting",
        }[setting.engine]
        yield Reason("train.engine", setting.engine, why)


def _why_checkpointing(best: Choice, candidates: list[Choice], free: str) -> str:
    if not best.setting.checkpointing:
        return f"all activations fit ({_gib(best.memory.activations)}); recomputing them costs a third more work"
    without = [c for c in candidates if not c.setting.checkpointing and c.setting.zero_stage == best.setting.zero_stage]
    same = [c for c in without if c.batch.micro_batch_size == best.batch.micro_batch_size]
    needed = min((same or without), key=lambda c: c.memory.total).memory.total if without else 0
    return f"without it the pass needs {_gib(needed)}, more than the {free} there are"


def _why_zero(best: Choice, situation: Situation) -> str:
    stage = best.setting.zero_stage
    if situation.world_size == 1:
        return "one rank has nothing to share"
    if stage == 0:
        return "LoRA's optimizer state is small: plain data parallelism is fastest where the weights fit each GPU"
    if stage == 3:
        return f"the weights alone do not fit a GPU; {situation.world_size} ranks share them"
    return "the optimizer's state is shared by the ranks; the weights still fit each GPU"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
