"""What `auto` means: the one list of settings that a job may leave open, each with its value and its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from launcher.job.spec import JobSpec
from launcher.plan.batch import wanted_batch
from launcher.plan.candidates import USUAL_MICRO_BATCH, Candidate
from launcher.plan.cost import NOT_KNOWN
from launcher.plan.situation import Situation
from launcher.plan.types import Reason
from train import compat
from train.memory import GIB


@dataclass(frozen=True)
class Case:
    """What the reasons are about: a job, where it runs, what was chosen, and from what."""

    spec: JobSpec
    situation: Situation
    best: Candidate
    candidates: tuple[Candidate, ...]
    """Every combination that could work, whether it fits or not."""

    @property
    def known(self) -> bool:
        """Whether memory could be predicted, so that there was something to compare."""
        return self.best.cost is not NOT_KNOWN


@dataclass(frozen=True)
class Rule:
    setting: str
    """Key of the job. The setting is open where the job says `auto`, or `about` a number."""
    value: Callable[[Candidate], Any]
    reason: Callable[[Case], str]

    def is_open(self, spec: JobSpec) -> bool:
        given = attrgetter(self.setting)(spec)
        return given == "auto" or str(given).startswith("about ")


def _why_dtype(case: Case) -> str:
    gpu, capability = case.situation.gpu_name, case.situation.compute_capability
    return {
        "float32": "most CPUs multiply bfloat16 no faster",
        "float16": f"{gpu} (compute capability {capability}) has no bfloat16",
        "bfloat16": "the GPU's native training format; needs no loss scaling",
    }[case.best.dtype]


def _why_micro_batch(case: Case) -> str:
    batch, situation = case.best.batch, case.situation
    share = batch.global_batch_size // batch.world_size
    if not case.known:
        largest = USUAL_MICRO_BATCH[situation.device]
        return f"the largest divisor up to {largest} of the {share} records per rank and step"
    return (
        f"{batch.micro_batch_size * case.spec.data.max_length} tokens per pass, of {share} records per rank and step; "
        f"needs {_gib(case.best.cost.memory.total)} of the {_gib(situation.room)} that {situation.gpu_name} has free"
    )


def _why_global_batch(case: Case) -> str:
    batch, micro = case.best.batch, case.spec.train.micro_batch_size
    ranks = f"{batch.world_size} rank{'s' * (batch.world_size != 1)}"
    passes = "" if micro == "auto" else f" in passes of {micro}"
    if tokens := case.spec.train.batch_tokens:
        length = case.spec.data.max_length
        return f"rows of {length} tokens for {tokens} per step; the training takes more records where they are shorter"
    return f"nearest to {wanted_batch(case.spec.train.global_batch_size)} of what {ranks} can share{passes}"


def _why_checkpointing(case: Case) -> str:
    best, room = case.best, case.situation.room
    if not case.known:
        gpu = "saves activation memory on the GPU"
        return gpu if best.checkpointing else "a CPU has memory to spare, and recomputing costs a third more work"
    if not best.checkpointing:
        return f"all activations fit ({_gib(best.cost.memory.activations)}); recomputing them costs a third more work"
    without = next(
        other.cost.memory.total
        for other in case.candidates
        if (other.batch, other.zero_stage, other.checkpointing) == (best.batch, best.zero_stage, False)
    )
    if without <= room:
        return f"it costs almost no speed here, and without it a pass needs {_gib(without)}"
    return f"without it a pass needs {_gib(without)}, more than the {_gib(room)} there are"


def _why_zero_stage(case: Case) -> str:
    ranks = case.situation.world_size
    if case.spec.train.offload_param != "none":
        return "only ZeRO-3 keeps weights outside the GPUs"
    if case.spec.train.offload == "cpu":
        return "DeepSpeed keeps the optimizer's state in the host's memory, from ZeRO-1 on"
    if ranks == 1:
        return "one rank has nothing to share"
    if case.best.zero_stage == 0:
        return "LoRA's optimizer state is small: plain data parallelism is fastest where the weights fit each GPU"
    if any(case.situation.holds(other.cost.memory) for other in case.candidates if other.zero_stage == 0):
        return f"sharing between {ranks} ranks frees memory for faster values of the other open settings"
    return f"a rank alone needs more memory than one GPU has; {ranks} ranks share it"


def _why_zero_group(case: Case) -> str:
    if case.best.zero_group == "host":
        return "the ranks of each host share the weights among themselves, so that no weights cross the network"
    return f"one host's {case.situation.ranks_per_host} ranks cannot hold the weights, so all ranks share them"


def _why_packing(case: Case) -> str:
    if case.best.packing == "pack":
        return "records share rows without padding and without seeing each other; as fast as dense batches"
    told = "records of like lengths share a micro batch within each step"
    return f"{told}: {case.best.why_apart}" if case.known and case.best.why_apart else told


def _why_engine(case: Case) -> str:
    return {
        "fused": "the model's family has fused layers here, the fastest path measured",
        "unsloth": "Unsloth's kernels (PEFT, if it is not installed): the fused layers do not cover this setting",
        "peft": f"plain transformers and PEFT: {case.best.why_engine}",
    }[case.best.engine]


RULES: tuple[Rule, ...] = (
    Rule("model.dtype", lambda best: best.dtype, _why_dtype),
    Rule("train.global_batch_size", lambda best: best.batch.global_batch_size, _why_global_batch),
    Rule("train.micro_batch_size", lambda best: best.batch.micro_batch_size, _why_micro_batch),
    Rule("train.gradient_checkpointing", lambda best: best.checkpointing, _why_checkpointing),
    Rule("train.zero_stage", lambda best: best.zero_stage, _why_zero_stage),
    Rule("train.zero_group", lambda best: best.zero_group, _why_zero_group),
    Rule("train.packing", lambda best: best.packing, _why_packing),
    Rule("train.engine", lambda best: best.engine, _why_engine),
)


def reasons_of(case: Case) -> tuple[Reason, ...]:
    """Why each open setting has its value, and warnings about settings of the job.

    A setting that stays open has no reason.
    """
    values = [(rule, rule.value(case.best)) for rule in RULES if rule.is_open(case.spec)]
    reasons = tuple(
        Reason(setting=rule.setting, value=value, reason=rule.reason(case)) for rule, value in values if value != "auto"
    )
    return reasons + _warnings(case)


def _warnings(case: Case) -> tuple[Reason, ...]:
    asked = compat.Combination(dtype=case.spec.model.dtype, capability=case.situation.capability)
    return tuple(
        Reason(setting=setting, value=attrgetter(setting)(case.spec), reason=told)
        for setting, told in compat.warnings(asked)
    )


def settled(spec: JobSpec, best: Candidate) -> JobSpec:
    """The job with every open setting replaced by its value.

    Unsloth stays `auto`: the training program takes PEFT where Unsloth is not installed.
    """
    values = {rule.setting: rule.value(best) for rule in RULES if rule.is_open(spec)}
    return spec.with_values({setting: value for setting, value in values.items() if value != "unsloth"})


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
