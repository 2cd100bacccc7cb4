"""A DeepSpeed configuration, sorted by what becomes of each key."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import SpecError
from launcher.job.deepspeed.ds_keys import KEYS, OTHER_NAMES, Rule
from launcher.job.explain import Refusal
from launcher.job.ranges import JOB_RANGES
from train.config import MOST

KEY = "train.ds_config"


@dataclass
class DsConfig:
    """A user's configuration."""

    values: dict[str, Any] = field(default_factory=dict)
    """Every key of the file under DeepSpeed's own name today."""
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """{key of the job: (value, key of DeepSpeed that says so)}"""
    passed: dict[str, Any] = field(default_factory=dict)
    """What goes to ds_config.json as it is."""
    by_hidden_size: tuple[str, ...] = ()
    """Keys of zero_optimization that are "auto" in the file: transformers sets them by the model's hidden size."""
    accumulation: int | None = None
    """gradient_accumulation_steps, which follow from batch and ranks here."""
    dtype: str | None = None
    """The precision that the file enables; the job's own decides."""
    idle: dict[str, str] = field(default_factory=dict)
    """{key of DeepSpeed that has no effect: why}"""
    refusals: list[Refusal] = field(default_factory=list)
    """What cannot be used, with its place, in the order of the file."""

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            self.refusals.append(refusal)


def load(value: Any, base: Path) -> Any:
    """The content of the JSON file that `value` names; anything but a name is returned as it is. Raises SpecError."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        file = base / Path(value).expanduser()
        loaded = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise SpecError(f"{KEY}: cannot read {value}: {error.strerror or error}", code="ZL-JOB-07") from error
    except (RuntimeError, ValueError, RecursionError) as error:
        raise SpecError(f"{KEY}: {value} is not valid JSON: {error}", code="ZL-JOB-07") from error
    if not isinstance(loaded, dict):
        raise SpecError(f"{KEY}: {value}: expected an object of DeepSpeed's keys", code="ZL-JOB-07")
    return loaded


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"the key {min(twice)!r} stands twice")
    return dict(pairs)


def read(tree: Mapping[str, Any]) -> DsConfig:
    """Sort a configuration by its keys. Raises Refusal with the place of the first key that cannot be used."""
    found = sort(tree)
    if found.refusals:
        raise found.refusals[0]
    return found


def sort(tree: Mapping[str, Any]) -> DsConfig:
    """Sort a configuration by its keys, and go on behind what cannot be used."""
    found = DsConfig()
    values = found.values = dict(_leaves(_modern(tree), "", found))
    known = {name.partition(".")[0] for name in KEYS}
    if values and not any(name.partition(".")[0] in known for name in values):
        found.refusals.append(Refusal(KEY, f"no key of DeepSpeed in it, only {', '.join(sorted(values)[:4])}"))
        return found
    for block in _unknown_types(found, values):  # nothing else of its block means anything then
        values = {name: value for name, value in values.items() if not name.startswith(f"{block}.")}
    for name, value in values.items():
        with found.collecting():
            _sort(found, name, value)
    for settle in (_precision, _optimizer, _scheduler):
        with found.collecting():
            settle(found, values)
    if "zero_optimization" in tree and "zero_optimization.stage" not in values:
        found.settings["train.zero_stage"] = (0, "zero_optimization (no stage)")
    _by_stage(found)
    return found


def _by_stage(found: DsConfig) -> None:
    """Drop what DeepSpeed ignores in the stage of the file."""
    stage = found.settings.get("train.zero_stage", (3, ""))[0]
    for key, least in (("train.offload", 1), ("train.offload_param", 3)):
        if key in found.settings and stage < least:
            _, name = found.settings.pop(key)
            found.idle[name] = f"DeepSpeed does this from ZeRO stage {least} on, and the stage is {stage}"


def refuse(name: str, message: str, hint: str | None = None) -> Refusal:
    return Refusal(f"{KEY}.{name}", message, hint=hint)


def _modern(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with today's names for blocks that were written otherwise."""
    changed = {OTHER_NAMES.get(name, name): value for name, value in tree.items()}
    zero = changed.get("zero_optimization")
    if isinstance(zero, bool):
        changed["zero_optimization"] = {"stage": int(zero)}
    elif isinstance(zero, dict):
        zero = dict(zero)
        for old, new in (
            ("cpu_offload", "offload_optimizer"),
            ("cpu_offload_param", "offload_param"),
            ("cpu_offload_params", "offload_param"),
        ):
            if zero.pop(old, False) is True:
                zero.setdefault(new, {"device": "cpu"})
        changed["zero_optimization"] = zero
    return changed


def _leaves(tree: Mapping[str, Any], prefix: str, found: DsConfig) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every key that the table has, and of those that no part of it has."""
    for key, value in tree.items():
        name = OTHER_NAMES.get(f"{prefix}{key}", f"{prefix}{key}")
        if name in KEYS or not _is_block(name):
            yield name, value
        elif isinstance(value, dict):
            yield from _leaves(value, f"{name}.", found)
        elif value is not None:
            found.refusals.append(refuse(name, "expected a block like {name: value}"))


def _is_block(name: str) -> bool:
    return any(known.startswith(f"{name}.") for known in KEYS)


def _sort(found: DsConfig, name: str, value: Any) -> None:
    rule = KEYS.get(name)
    if rule is None:
        _unknown(found, name)
    elif value == "auto":
        if name in BY_HIDDEN_SIZE:
            found.by_hidden_size = (*found.by_hidden_size, name)
    elif rule.fate in ("idle", "refused"):
        if _asks_for_something(value, rule):
            if rule.fate == "refused":
                raise refuse(name, rule.text)
            found.idle[name] = rule.text
    elif rule.accepted and not rule.accepted.holds(value):
        raise refuse(name, f"expected {rule.accepted.words}, got {json.dumps(value)[:60]}")
    elif rule.fate == "passed":
        _pass_on(found, name, value)
    elif rule.text:
        _set(found, rule.text, value, name)
    elif name == "gradient_accumulation_steps":
        found.accumulation = int(value)


def _asks_for_something(value: Any, rule: Rule) -> bool:
    if isinstance(value, dict):
        return bool(value) and value.get("enabled", True) is not False and value.get("enabled") != "auto"
    if rule.accepted and isinstance(value, bool):
        return value not in rule.off
    return value not in (None, False) and not any(value == off and type(value) is type(off) for off in rule.off)


_ON_NVME = {
    "train.offload": "a resumed run could not put states back that DeepSpeed keeps on NVMe only",
    "train.offload_param": "DeepSpeed ends a run on NVMe at the first layer with more weights than its buffers, "
    "whose number and size nobody can tell beforehand",
}
"""What was seen on two CPU ranks with DeepSpeed 0.19 (docs/deepspeed.md)."""


def _set(found: DsConfig, key: str, value: Any, name: str) -> None:
    """Set a key of the job. Raises Refusal for a value that the job does not accept."""
    if key.startswith("train.offload") and value == "nvme":
        raise refuse(name, _ON_NVME[key], hint='set "device": "cpu"')
    accepted = JOB_RANGES.get(key)
    if _is_whole(value) and key not in FLOATS:
        value = min(int(value), MOST - 1)  # as good as no limit
    if accepted and not accepted.holds(value):
        raise refuse(name, f"expected {accepted}, got {value}")
    if value not in (None, "none"):
        found.settings[key] = (value, name)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1


def _pass_on(found: DsConfig, name: str, value: Any) -> None:
    if name == "fp16.min_loss_scale" and not _is_whole(value):
        found.idle[name] = "DeepSpeed takes whole numbers only, and its default is 1"
    else:
        _put(found.passed, name, int(value) if _is_whole(value) else value)


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *blocks, last = name.split(".")
    for block in blocks:
        tree = tree.setdefault(block, {})
    tree[last] = value


def _unknown(found: DsConfig, name: str) -> None:
    """A key that DeepSpeed does not have: a comment or a whole unknown block is reported, a misspelt key refused."""
    prefix, _, last = name.rpartition(".")
    siblings = {known.removeprefix(f"{prefix}.").split(".")[0] for known in KEYS if known.startswith(prefix)}
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.7)
    if prefix or (close and not last.startswith(("_", "comment"))):
        hint = f"did you mean {close[0]!r}?" if close else None
        raise refuse(name, "DeepSpeed has no such key", hint)
    found.idle[name] = "DeepSpeed has no such key"


def _precision(found: DsConfig, values: Mapping[str, Any]) -> None:
    enabled = [name for name in ("bf16", "fp16") if values.get(f"{name}.enabled") is True]
    if len(enabled) == 2:
        raise refuse("fp16.enabled", "bf16 and fp16 cannot both be enabled")
    if enabled:
        found.dtype = {"bf16": "bfloat16", "fp16": "float16"}[enabled[0]]


FLOATS = (
    "train.max_grad_norm", "train.learning_rate", "train.weight_decay", "train.adam_beta1", "train.adam_beta2",
    "train.adam_epsilon",
)  # fmt: skip
ADAM = ("adam", "adamw", "fusedadam", "cpuadam", "deepspeedcpuadam", "torchadam")


SCHEDULERS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def _unknown_types(found: DsConfig, values: Mapping[str, Any]) -> list[str]:
    """Refuse an optimizer or a schedule that is not available; return the blocks concerned."""
    blocks = []
    kind = values.get("optimizer.type", "AdamW")
    if str(kind).lower().replace("_", "") not in ADAM:
        hint = "leave the block optimizer out"
        found.refusals.append(refuse("optimizer.type", f"the optimizer here is AdamW, not {kind}", hint))
        blocks.append("optimizer")
    kind = str(values.get("scheduler.type", "WarmupLR"))
    if kind not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        hint = "leave the block scheduler out"
        found.refusals.append(refuse("scheduler.type", f"{kind} is not available; known: {known}", hint))
        blocks.append("scheduler")
    return blocks


def _optimizer(found: DsConfig, values: Mapping[str, Any]) -> None:
    decay = found.settings.get("train.weight_decay", (0, ""))[0]
    if values.get("optimizer.params.adam_w_mode") is False and decay:
        raise refuse("optimizer.params.adam_w_mode", "weights decay as in AdamW, not through the gradient")
    betas = values.get("optimizer.params.betas")
    if isinstance(betas, list):
        if len(betas) != 2 or "auto" in betas:
            raise refuse("optimizer.params.betas", "expected two numbers")
        for key, beta in zip(("train.adam_beta1", "train.adam_beta2"), betas, strict=True):
            if isinstance(beta, bool) or not isinstance(beta, (int, float)):
                raise refuse("optimizer.params.betas", "expected two numbers")
            _set(found, key, float(beta), "optimizer.params.betas")


def _scheduler(found: DsConfig, values: Mapping[str, Any]) -> None:
    if "scheduler.type" not in values:
        return
    found.settings["train.scheduler"] = (SCHEDULERS[values["scheduler.type"]], "scheduler.type")
    warmup = values.get("scheduler.params.warmup_num_steps")
    if values.get("scheduler.params.warmup_type", "log") == "log" and warmup not in (0, None, "auto"):
        found.idle["scheduler.params.warmup_type"] = "the learning rate rises linearly, not logarithmically"


BY_HIDDEN_SIZE = {
    "zero_optimization.reduce_bucket_size": 1.0,
    "zero_optimization.stage3_prefetch_bucket_size": 0.9,
    "zero_optimization.stage3_param_persistence_threshold": 0.0,
}
"""{key: share of the square of the hidden size}; 0.0: ten times the hidden size (transformers, HfTrainerDeepSpeedConfig
.trainer_config_finalize)."""
