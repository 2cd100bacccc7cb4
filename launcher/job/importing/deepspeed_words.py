"""DeepSpeed configurations: what has a key becomes that key of the job, and the rest goes into train.ds_config.

What each word becomes is decided in one place, for imports as for train.ds_config: launcher/job/deepspeed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from launcher.job.deepspeed import ds_reading
from launcher.job.deepspeed.ds_reading import DsConfig
from launcher.job.importing.draft import Context, Draft, Note, parsed_json, set_batch

_BATCH = {
    "train.global_batch_size": "train_batch_size",
    "train.micro_batch_size": "train_micro_batch_size_per_gpu",
}
_ACCUMULATION = "gradient_accumulation_steps"
_OTHERWISE = ("scheduler.params.warmup_type", "scheduler.params.cos_min_ratio")
"""Words without effect here that change the training a little."""


def read(tree: Mapping[str, Any], context: Context) -> Draft:
    """A DeepSpeed configuration by itself: no model, no data."""
    draft = Draft("DeepSpeed")
    found = _sorted(tree, draft, "")
    micro = draft.value("train.micro_batch_size")
    if micro is not None and "train.global_batch_size" not in draft.settings:
        set_batch(draft, int(micro), found.accumulation or 1, context.gpus)
    elif found.accumulation is not None:
        reason = "follows from the batch and the number of ranks"
        draft.unused.append(Note(_ACCUMULATION, found.accumulation, reason))
    if found.values.get("gradient_clipping") in (None, 0):
        draft.set("train.max_grad_norm", 0, "DeepSpeed clips nothing")
    return draft


def carry(value: Any, draft: Draft, context: Context, word: str = "deepspeed") -> None:
    """The configuration that a training configuration names: a file, a mapping, or a short name such as zero2.

    The batch is the training configuration's own there, which DeepSpeed's file calls `auto`.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parsed_json(value, word)
    tree = value if isinstance(value, Mapping) else _file(str(value), context)
    if tree is None:
        named = re.search(r"(?:zero|z|stage)_?-?([0-3])(.*)", str(value), re.IGNORECASE)
        if named is None:
            draft.lost.append(Note(word, value, "no such file here; set train.zero_stage and train.offload"))
            return
        draft.set("train.zero_stage", int(named[1]), f"{word}: {value}")
        draft.differs.append(Note(word, value, f"not on this machine; its name says ZeRO stage {named[1]}"))
        if "offload" in named[2]:
            draft.set("train.offload", "cpu", f"{word}: {value}")
        return
    batch = {name: tree[name] for name in (*_BATCH.values(), _ACCUMULATION) if name in tree}
    for name, given in batch.items():
        draft.unused.append(Note(f"{word}: {name}", given, "the batch is that of the training configuration"))
    _sorted({name: given for name, given in tree.items() if name not in batch}, draft, f"{word}: ")


def _file(name: str, context: Context) -> Mapping[str, Any] | None:
    place = context.find(name)
    if place is None or not place.is_file():
        return None
    found = parsed_json(place.read_bytes(), str(place))
    return found if isinstance(found, Mapping) else None


def _sorted(tree: Mapping[str, Any], draft: Draft, prefix: str) -> DsConfig:
    """Put every word of a configuration into the draft; return how launcher/job/deepspeed sorted them."""
    found = ds_reading.sort(_without_nvme(tree, draft, prefix))
    for key, (value, name) in found.settings.items():
        draft.set(key, value, prefix + name)
    if "train.zero_stage" not in found.settings and "zero_optimization.stage" not in found.values:
        draft.set("train.zero_stage", 0, f"{prefix}zero_optimization: DeepSpeed's default is stage 0")
    if found.dtype:
        name = "bf16" if found.dtype == "bfloat16" else "fp16"
        draft.set("model.dtype", found.dtype, f"{prefix}{name}.enabled")
    for name, reason in found.idle.items():
        where = draft.differs if name in _OTHERWISE else draft.unused
        where.append(Note(prefix + name, found.values.get(name), reason))
    for refusal in found.refusals:
        name = refusal.place.removeprefix(f"{ds_reading.KEY}.")
        reason = str(refusal.args[0]).removeprefix(f"{refusal.place}: ")
        draft.lost.append(Note(prefix + name, found.values.get(name), reason))
    for name, value in found.values.items():
        if value == "auto" and name not in found.by_hidden_size:
            draft.unused.append(Note(prefix + name, value, "filled in by zlaunch"))
    if passed := _passed(found):
        draft.set(ds_reading.KEY, passed, f"{prefix}what has no key of its own")
    return found


def _passed(found: DsConfig) -> dict[str, Any]:
    """What has no key of its own, with the sizes that are filled in by the model."""
    passed = copy.deepcopy(found.passed)
    for name in found.by_hidden_size:
        block, _, last = name.rpartition(".")
        passed.setdefault(block, {})[last] = "auto"
    stage = found.settings.get("train.zero_stage")
    if stage and "zero_optimization" in passed:  # a block without a stage is stage 0
        passed["zero_optimization"] = {"stage": stage[0], **passed["zero_optimization"]}
    return passed


def _without_nvme(tree: Mapping[str, Any], draft: Draft, prefix: str) -> Mapping[str, Any]:
    """The tree with the host's memory in place of NVMe, which changes where states lie and no result."""
    zero = tree.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return tree
    changed = dict(zero)
    for name in ("offload_optimizer", "offload_param"):
        part = zero.get(name)
        if isinstance(part, Mapping) and part.get("device") == "nvme":
            changed[name] = {**part, "device": "cpu"}
            reason = "to the host's memory, not to NVMe: more memory, the same results"
            draft.differs.append(Note(f"{prefix}zero_optimization.{name}.device", "nvme", reason))
    return {**tree, "zero_optimization": changed}
