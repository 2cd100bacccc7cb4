"""What `auto` means: the fastest setting that fits the GPU with a margin. Pure.

    JobSpec + Situation + Model -> Choice (every setting with its reason, bytes by part, tokens a second)

All combinations of what the user left open are few (micro batches that divide, checkpointing on or off, three ZeRO
stages), so all that train/compat.py lets pass are computed and the fastest that fits is taken. Where none fits, the
smallest changes that would are tried in the order in which they cost the user least.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec

from launcher.errors import BatchError, CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan import batch, gpus
from train import compat, families, memory
from train.families import Family
from train.memory import GIB, Memory, MemoryCase, Shape

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
    compute_capability: float | None = None
    """Of the oldest GPU; before 8.0 they train in float16. None: not known, and taken for newer."""

    @staticmethod
    def of(world_size: int, memory_bytes: int, name: str | None, capability: float | None = None) -> Situation:
        """On GPUs of this name, as nvidia-smi or the table calls them."""
        card = gpus.identify(name, memory_bytes)
        return Situation(
            world_size,
            memory_bytes,
            name or "GPU",
            card.matrix_rate if card else 100e12,
            capability or (card.compute_capability if card else None),
        )


@dataclass(frozen=True)
class Model:
    """What is known of a model before it is loaded."""

    shape: Shape
    family: Family


def model_of(path: str, config: Mapping[str, Any] | None) -> Model | None:
    """By its config.json, else by its name; None for a name without a built-in shape. Raises memory.UnknownShape."""
    if config is not None:
        return Model(memory.from_config(config), families.family_of(config))
    shape = memory.named(path)
    return Model(shape, families.of_type(shape.family)) if shape else None


@dataclass(frozen=True)
class Reason:
    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Choice:
    batch: batch.Batch
    setting: MemoryCase
    dtype: str
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


def refuse(refusals: Iterable[compat.Refusal]) -> None:
    """Raise CompatibilityError with the nearest settings that work, if there are refusals."""
    found = list(refusals)
    if found:
        raise CompatibilityError(
            "; ".join(refusal.reason for refusal in found),
            hint="set " + ", ".join(dict.fromkeys(refusal.instead for refusal in found)),
        )


def choose(spec: JobSpec, model: Model, situation: Situation) -> Choice:
    """The fastest setting that fits.

    Raises DoesNotFit (with the changes that would help), CompatibilityError for what the gate refuses, and BatchError.
    """
    # refuses a global batch that the ranks cannot share before memory is looked at
    batch.solve(spec.train.global_batch_size, spec.train.micro_batch_size, situation.world_size, largest=1)
    candidates = list(_candidates(spec, model, situation))
    fitting = [candidate for candidate in candidates if fits(candidate.memory, situation)]
    if not fitting:
        smallest = min(candidates, key=lambda candidate: candidate.memory.total)
        raise DoesNotFit(
            f"{spec.model.path or 'the model'} does not fit: at least {_gib(smallest.memory.total)} a GPU are needed, "
            f"{situation.gpu_name} has {_gib(room(situation))} for it",
            tuple(_changes(spec, model, situation)),
            smallest.memory,
        )
    fastest = max(candidate.tokens_per_second for candidate in fitting)
    # what is within a hundredth of the fastest is as fast: then the one that needs least memory
    equals = [candidate for candidate in fitting if candidate.tokens_per_second >= 0.99 * fastest]
    best = min(equals, key=lambda candidate: (candidate.setting.zero_stage, candidate.memory.total))
    return replace(best, reasons=tuple(_reasons(spec, best, candidates, situation)))


def settled(spec: JobSpec, choice: Choice) -> JobSpec:
    """The job with every `auto` that the planner decides replaced by its word."""
    # whether Unsloth is installed there is not known here; without it the training program takes PEFT
    engine = spec.train.engine if choice.setting.engine == "unsloth" else choice.setting.engine
    return _with(
        spec,
        model={"dtype": choice.dtype},
        train={
            "micro_batch_size": choice.batch.micro_batch_size,
            "gradient_checkpointing": choice.setting.checkpointing,
            "zero_stage": choice.setting.zero_stage,
            "packing": choice.packing,
            "engine": engine,
        },
    )


def room(situation: Situation) -> int:
    """Bytes of a GPU that a job's tensors may take."""
    outside = CONTEXT_BYTES + (NCCL_BYTES if situation.world_size > 1 else 0)
    return max(0, round(situation.gpu_memory_bytes * (1 - MARGIN)) - outside)


def fits(need: Memory, situation: Situation) -> bool:
    return need.total <= room(situation)


def dtype_of(spec: JobSpec, situation: Situation) -> tuple[str, str]:
    """The type to train in, and why."""
    capability = situation.compute_capability
    if spec.model.dtype != "auto":
        return spec.model.dtype, f"model.dtype={spec.model.dtype} in the job"
    if capability is not None and capability < 8.0:
        return "float16", f"{situation.gpu_name} (compute capability {capability}) has no bfloat16"
    return "bfloat16", "the GPU's native training format; needs no loss scaling"


def compat_settings(spec: JobSpec, model: Model, situation: Situation, zero_stage: int) -> compat.Combination:
    """What the gate would be asked about the job with this stage, on GPUs; its engine by the training program's own
    table and rules."""
    capability = None if situation.compute_capability is None else two_parts(situation.compute_capability)
    asked = compat.Combination.of(spec, model.family, capability)
    asked = replace(asked, device="cuda", dtype=dtype_of(spec, situation)[0], zero_stage=zero_stage)
    return replace(asked, engine=compat.engine_for(asked)[0])


def two_parts(capability: float) -> tuple[int, int]:
    """8.6 -> (8, 6)"""
    major, _, minor = f"{capability:.1f}".partition(".")
    return int(major), int(minor)


def setting_of(
    spec: JobSpec, engine: memory.EngineName, situation: Situation, micro: int, checkpointing: bool, zero_stage: int
) -> MemoryCase:
    """The arithmetic's setting for a micro batch whose records all have the greatest length."""
    targets = spec.lora.target_modules
    return MemoryCase(
        tokens=micro * spec.data.max_length,
        sequence=spec.data.max_length,
        engine=engine,
        quantization=spec.model.quantization,
        weight_bytes=4 if spec.model.dtype == "float32" else 2,
        lora_r=spec.lora.r,
        lora_targets=targets if isinstance(targets, tuple) else None,
        whole=spec.lora.modules_to_save,
        checkpointing=checkpointing,
        zero_stage=zero_stage,
        world_size=situation.world_size,
        offload=spec.train.offload == "cpu",
    )


def _candidates(spec: JobSpec, model: Model, situation: Situation) -> Iterator[Choice]:
    """Every setting that the gate lets pass, fitting or not. Raises CompatibilityError if it lets none pass."""
    train, shape = spec.train, model.shape
    engines = _engines(spec, model, situation)
    checkpointing = (False, True) if train.gradient_checkpointing == "auto" else (train.gradient_checkpointing,)
    for micro, recompute, stage in itertools.product(_micros(spec, situation), checkpointing, engines):
        setting = setting_of(spec, engines[stage], situation, micro, recompute, stage)
        own = memory.shares_itself(setting.engine, stage)
        speed = memory.tokens_per_second(shape, setting, situation.matrix_rate)
        speed *= FUSED_ZERO_3_SPEED if own else ZERO_SPEED[stage]
        yield Choice(
            batch=batch.solve(train.global_batch_size, micro, situation.world_size, largest=micro),
            setting=setting,
            dtype=dtype_of(spec, situation)[0],
            packing=_packing(spec, setting),
            memory=memory.predict(shape, setting),
            tokens_per_second=speed * situation.world_size,
            reasons=(),
        )


def _engines(spec: JobSpec, model: Model, situation: Situation) -> dict[int, memory.EngineName]:
    """{ZeRO stage: its engine} of the stages that come into question. Raises CompatibilityError if there is none."""
    asked = {stage: compat_settings(spec, model, situation, stage) for stage in _stages(spec, situation)}
    refused = {stage: compat.check(settings) for stage, settings in asked.items()}
    if all(refused.values()):
        refuse(next(iter(refused.values())))
    return {stage: cast(memory.EngineName, asked[stage].engine) for stage in asked if not refused[stage]}


def _micros(spec: JobSpec, situation: Situation) -> tuple[int, ...]:
    if spec.train.micro_batch_size != "auto":
        return (spec.train.micro_batch_size,)
    share = spec.train.global_batch_size // situation.world_size
    largest = max(1, ENOUGH_TOKENS // spec.data.max_length)
    return tuple(size for size in batch.divisors(share) if size <= largest)


def _stages(spec: JobSpec, situation: Situation) -> tuple[int, ...]:
    if spec.train.zero_stage != "auto":
        return (spec.train.zero_stage,)
    if spec.train.offload == "cpu":
        return (2, 3)
    return (0,) if situation.world_size == 1 else (0, 2, 3)


def _packing(spec: JobSpec, setting: MemoryCase) -> str:
    if spec.train.packing != "auto":
        return spec.train.packing
    return "pack" if setting.engine == "fused" else "bucket"


def _changes(spec: JobSpec, model: Model, situation: Situation) -> Iterator[Change]:
    """Changes that would make the job fit, the least costly for the user first."""
    found: set[str] = set()
    for kind, changed, place in _ideas(spec, situation):
        if kind in found:  # a smaller change of the same kind does already
            continue
        try:
            batch.solve(changed.train.global_batch_size, changed.train.micro_batch_size, place.world_size, largest=1)
            fitting = [c for c in _candidates(changed, model, place) if fits(c.memory, place)]
        except (BatchError, CompatibilityError):
            continue
        if fitting:
            found.add(kind)
            best = max(fitting, key=lambda c: c.tokens_per_second)
            yield Change(", ".join(_told(spec, changed, situation, place, best)), best)


def _told(spec: JobSpec, changed: JobSpec, before: Situation, place: Situation, choice: Choice) -> Iterator[str]:
    """Every difference, in the words of a job file and of `zlaunch plan`."""
    for section in ("model", "data", "train"):
        old, new = getattr(spec, section), getattr(changed, section)
        for name in new.__struct_fields__:
            if getattr(old, name) != getattr(new, name):
                value = getattr(new, name)
                yield f"{section}.{name}: {'true' if value is True else value}"
    if place.world_size != before.world_size:
        shared = " (ZeRO-3 shares the weights)" if choice.setting.zero_stage == 3 else ""
        yield f"{place.world_size} GPUs like this one{shared}"
    elif place != before:
        yield f"a GPU of {place.gpu_memory_bytes / GIB:.0f} GiB ({place.gpu_name})"


def _ideas(spec: JobSpec, situation: Situation) -> Iterator[tuple[str, JobSpec, Situation]]:
    """(kind, job, where) to try, the least costly for the user first; of a kind, the smallest change first."""
    train, worlds = spec.train, [world for world in (2, 4, 8, 16, 32, 64) if world > situation.world_size]
    if train.gradient_checkpointing is False:
        yield "checkpointing", _with(spec, train={"gradient_checkpointing": True}), situation
    if train.micro_batch_size != "auto":
        for size in reversed(batch.divisors(train.global_batch_size // situation.world_size)):
            if size < train.micro_batch_size:
                yield "micro", _with(spec, train={"micro_batch_size": size}), situation
    if train.zero_stage not in ("auto", 3) and situation.world_size > 1:
        yield "zero", _with(spec, train={"zero_stage": 3}), situation
    if train.engine != "auto":
        yield "engine", _with(spec, train={"engine": "auto"}), situation
    open_ = _with(spec, train={"gradient_checkpointing": "auto", "micro_batch_size": "auto", "zero_stage": "auto"})
    bases = [spec] if open_ == spec else [spec, open_]
    if open_ != spec:
        yield "auto", open_, situation
    if spec.model.quantization == "none":
        for base in bases:
            yield "quantization", _with(base, model={"quantization": "nf4"}), situation
    for base in bases:
        length = spec.data.max_length // 2
        while length >= 256:
            yield "length", _with(base, data={"max_length": length}), situation
            length //= 2
    for base in bases:
        for world in worlds:
            yield "gpus", base, replace(situation, world_size=world)
    for base in bases:
        for gpu in sorted(gpus.GPUS.values(), key=lambda gpu: gpu.memory_bytes):
            if gpu.memory_bytes > situation.gpu_memory_bytes * 1.05:
                yield "gpu", base, Situation.of(situation.world_size, gpu.memory_bytes, gpu.title)
    if spec.model.quantization == "none":
        for world in worlds:
            yield "both", _with(open_, model={"quantization": "nf4"}), replace(situation, world_size=world)


def _with(spec: JobSpec, **sections: dict[str, Any]) -> JobSpec:
    changed = {name: msgspec.structs.replace(getattr(spec, name), **values) for name, values in sections.items()}
    return msgspec.structs.replace(spec, **changed)


def _reasons(spec: JobSpec, best: Choice, candidates: list[Choice], situation: Situation) -> Iterator[Reason]:
    """Why each setting that the user left open is what it is."""
    train, setting, solved = spec.train, best.setting, best.batch
    free = _gib(room(situation))
    if spec.model.dtype == "auto":
        yield Reason("model.dtype", *dtype_of(spec, situation))
    if train.micro_batch_size == "auto":
        yield Reason(
            "train.micro_batch_size",
            solved.micro_batch_size,
            f"{setting.tokens} tokens a pass of the {solved.global_batch_size // solved.world_size} records a rank has "
            f"in a step; needs {_gib(best.memory.total)} of the {free} that {situation.gpu_name} has free",
        )
    if train.gradient_checkpointing == "auto":
        yield Reason(
            "train.gradient_checkpointing", setting.checkpointing, _why_checkpointing(best, candidates, situation)
        )
    if train.zero_stage == "auto":
        yield Reason("train.zero_stage", setting.zero_stage, _why_zero(spec, best, candidates, situation))
    if train.packing == "auto":
        why = {
            "pack": "records share rows without padding and without seeing each other; as fast as dense batches",
            "bucket": "records of like lengths share a micro batch within each step",
        }.get(best.packing, "as asked")
        yield Reason("train.packing", best.packing, why)
    if train.engine == "auto":
        why = {
            "fused": "the model's family has fused layers here, the fastest path measured",
            "unsloth": "Unsloth's kernels (PEFT, if it is not installed): the fused layers do not cover this setting",
            "peft": "plain transformers and PEFT: neither faster engine covers this setting",
        }[setting.engine]
        yield Reason("train.engine", setting.engine, why)


def _why_checkpointing(best: Choice, candidates: list[Choice], situation: Situation) -> str:
    if not best.setting.checkpointing:
        return f"all activations fit ({_gib(best.memory.activations)}); recomputing them costs a third more work"
    without = [c for c in candidates if not c.setting.checkpointing and c.setting.zero_stage == best.setting.zero_stage]
    needed = next(c for c in without if c.batch.micro_batch_size == best.batch.micro_batch_size).memory
    if fits(needed, situation):
        return f"it costs no speed worth naming here, and without it the pass needs {_gib(needed.total)}"
    return f"without it the pass needs {_gib(needed.total)}, more than the {_gib(room(situation))} there are"


def _why_zero(spec: JobSpec, best: Choice, candidates: list[Choice], situation: Situation) -> str:
    stage = best.setting.zero_stage
    if spec.train.offload == "cpu":
        return "DeepSpeed keeps the optimizer's state in the host's memory, from ZeRO-1 on"
    if situation.world_size == 1:
        return "one rank has nothing to share"
    if stage == 0:
        return "LoRA's optimizer state is small: plain data parallelism is fastest where the weights fit each GPU"
    if not any(fits(c.memory, situation) for c in candidates if c.setting.zero_stage == 0):
        return f"a GPU has no room for all that one rank needs alone; {situation.world_size} ranks share it"
    return f"what {situation.world_size} ranks share makes room for the faster of the settings that are left open"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
