"""Settings that cannot work together: why, and the nearest setting that works. Checked before anything is queued.

A table of rules over plain values: nothing is raised, imported or looked up here. Each rule's claim was seen to fail
(tests/train/test_compat.py tries what a CPU can try) or names its source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from msgspec import structs

from train import families
from train.families import Engine, Family

AMPERE = (8, 0)
"""CUDA compute capability from which bfloat16 is native."""
ADA = (8, 9)
"""CUDA compute capability from which matrix instructions take fp8."""


@dataclass(frozen=True)
class Combination:
    """The settings that the rules look at. `engine` and `dtype` may be "auto"."""

    family: Family = families.FAMILIES[0]
    engine: str = "auto"
    quantization: str = "none"
    dtype: str = "auto"
    device: str = "cuda"
    capability: tuple[int, int] | None = None
    """Compute capability of the GPUs. None: unknown, and rules about it do not apply."""
    zero_stage: int = 0
    offload: str = "none"
    offload_param: str = "none"
    packing: str = "bucket"
    dora: bool = False
    init: str = "default"
    own_ranks: bool = False
    """Some modules or layers have another rank or scale than the others, or no adapter."""
    adapter: bool = False
    """Training continues from an existing adapter."""
    dropout: bool = False
    optimizer: str = "adamw"
    noise: bool = False
    """Noise on the embeddings (train.neftune_alpha)."""
    smoothing: bool = False
    """Label smoothing."""
    embeddings: bool = False
    """The job asks for LoRA on the embeddings or the output head, or trains both of them in full."""
    rope: str = "none"
    """How the job scales the rotary embedding."""
    router_loss: bool = False
    """The job adds a loss that balances the load of experts."""
    wide: bool = False
    """The job trains more than LoRA on the layers' own projections: other modules, or whole modules."""

    @staticmethod
    def of(config: Any, family: Family, capability: tuple[int, int] | None = None) -> Combination:
        """Collect the settings of a TrainConfig, or of a job, which has the same sections."""
        return Combination(
            family=family,
            engine=config.train.engine,
            quantization=config.model.quantization,
            dtype=config.model.dtype,
            device=config.device,
            capability=capability,
            zero_stage=config.train.zero_stage,
            offload=config.train.offload,
            offload_param=config.train.offload_param,
            packing=config.train.packing,
            dora=config.lora.dora,
            init=config.lora.init,
            own_ranks=config.lora.has_own_ranks,
            adapter=config.lora.adapter is not None,
            dropout=config.lora.dropout > 0,
            optimizer=config.train.optimizer,
            noise=config.train.neftune_alpha is not None,
            smoothing=config.train.label_smoothing > 0,
            embeddings=_names_embeddings(config.lora),
            rope=config.model.rope_scaling,
            router_loss=config.train.router_loss != 0,
            wide=bool(config.lora.modules_to_save) or not _usual(config.lora.target_modules),
        )


_PROJECTIONS = {*families.LLAMA_TARGETS, *families.GLM_TARGETS}


def _usual(targets: str | tuple[str, ...]) -> bool:
    """Whether all targets are projections of the layers. A regular expression could match anything."""
    return targets == "auto" or (not isinstance(targets, str) and set(targets) <= {"auto", *_PROJECTIONS})


_EMBEDDINGS = ("embed_tokens", "lm_head")


def _names_embeddings(lora: Any) -> bool:
    targets = lora.target_modules
    if {name.rpartition(".")[2] for name in lora.modules_to_save} >= set(_EMBEDDINGS):
        return True
    if not isinstance(targets, str):
        return any(name.rpartition(".")[2] in _EMBEDDINGS for name in targets)
    try:
        return any(re.fullmatch(targets, name) for name in ("model.embed_tokens", "lm_head"))
    except re.error:
        return False  # train/model/targets.py refuses it


@dataclass(frozen=True)
class Refusal:
    reason: str
    instead: str
    """The nearest setting that works, as in the job file: `train.engine: peft`."""
    changes: Mapping[str, Any]
    """The same change as fields of Combination."""


@dataclass(frozen=True)
class Rule:
    applies: Callable[[Combination], bool]
    reason: Callable[[Combination], str] | str
    key: str
    """Key of the job file to change; `value` is its nearest value that works."""
    value: Any

    def refusal(self, settings: Combination) -> Refusal:
        reason = self.reason(settings) if callable(self.reason) else self.reason
        return Refusal(reason, f"{self.key}: {self.value}", {_FIELDS[self.key]: self.value})


_FIELDS = {
    "train.engine": "engine",
    "model.quantization": "quantization",
    "model.dtype": "dtype",
    "train.zero_stage": "zero_stage",
    "train.offload": "offload",
    "train.offload_param": "offload_param",
    "train.packing": "packing",
    "lora.init": "init",
    "train.router_loss": "router_loss",
    "train.optimizer": "optimizer",
}


def _unfused(family: Family) -> str:
    return f"the fused layers do not support this model: {family.unfused}"


_CUT = {
    "adamw_8bit": "so blocks of 8-bit states would not fit another number of ranks",
    "paged_adamw_8bit": "so blocks of 8-bit states would not fit another number of ranks",
    "adafactor": "and Adafactor needs rows and columns",
    "lion": "and its states are moved and saved for AdamW only",
    "muon": "and Muon needs whole matrices",
}
"""Why DeepSpeed trains with AdamW only, for each other optimizer."""

REPLACES_WEIGHTS = {"pissa": "PiSSA", "olora": "OLoRA"}
"""Initializations that move a part of each base weight into the adapter, and their names."""


def _name(init: str) -> str:
    return REPLACES_WEIGHTS.get(init, init)


RULES: tuple[Rule, ...] = (
    Rule(
        lambda s: s.engine == "fused" and "fused" not in s.family.engines,
        lambda s: _unfused(s.family) if s.family.unfused else f"there are no fused layers for {s.family.title}",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine in ("fused", "unsloth") and s.quantization == "published",
        "only plain transformers and PEFT read weights that other packages have packed",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.quantization == "published" and s.zero_stage == 3,
        "packed weights of other packages are no parameters, which is what ZeRO-3 shares",
        "train.zero_stage",
        2,
    ),
    Rule(
        lambda s: s.quantization == "published" and s.dora,
        "PEFT has no DoRA beside weights that other packages have packed",
        "model.quantization",
        "nf4",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.quantization == "int8",
        "the fused layers read 16-bit and nf4 weights, not int8",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.quantization == "nf4" and s.zero_stage == 3,
        "the fused layers read nf4 weights in place, and ZeRO-3 partitions them",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.quantization == "fp8" and s.device == "cuda" and engine_for(s)[0] != "fused",
        lambda s: f"only the fused layers multiply in fp8, and the engine is {' ('.join(engine_for(s))})",
        "model.quantization",
        "none",
    ),
    Rule(
        lambda s: s.quantization == "fp8" and s.device == "cpu",
        "fp8 products need a GPU",
        "model.quantization",
        "none",
    ),
    Rule(
        lambda s: s.quantization == "fp8" and s.capability is not None and s.capability < ADA,
        "fp8 products need compute capability 8.9 (Ada) or newer",
        "model.quantization",
        "none",
    ),
    Rule(
        lambda s: s.quantization == "fp8" and s.dtype not in ("auto", "bfloat16"),
        "the fp8 kernels add LoRA's part in bfloat16",
        "model.dtype",
        "bfloat16",
    ),
    Rule(
        lambda s: s.engine == "fused" and (s.dora or s.dropout),
        lambda s: f"the fused layers do not support {'DoRA' if s.dora else 'LoRA dropout'}",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.wide,
        "the fused layers train LoRA on q, k, v, o, gate, up and down projections and nothing else",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.noise,
        "the fused layers have no NEFTune",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.smoothing,
        "the fused layers have no label smoothing",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.smoothing and s.device == "cuda",
        "Unsloth's own loss has no label smoothing",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.optimizer != "adamw" and s.offload == "cpu",
        "DeepSpeed offloads the states of AdamW only",
        "train.optimizer",
        "adamw",
    ),
    Rule(
        lambda s: s.optimizer != "adamw" and s.zero_stage in (1, 2) and s.offload == "none",
        lambda s: f"ZeRO joins the weights of all matrices and cuts them anew for each rank, {_CUT[s.optimizer]}",
        "train.zero_stage",
        0,
    ),
    Rule(
        lambda s: s.optimizer != "adamw" and s.zero_stage == 3 and engine_for(s)[0] != "fused",
        lambda s: f"DeepSpeed's ZeRO-3 cuts every matrix among the ranks, {_CUT[s.optimizer]}",
        "train.optimizer",
        "adamw",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.device == "cuda" and s.dtype == "float32",
        "the attention kernels of the fused layers compute in 16 bits",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "fused" and s.capability is not None and s.capability < AMPERE,
        "the attention kernels of the fused layers need compute capability 8.0 (Ampere)",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and "unsloth" not in s.family.engines,
        lambda s: f"Unsloth cannot train {s.family.title}: {s.family.why}",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.quantization == "int8",
        "Unsloth's kernels read 16-bit and nf4 weights, not int8",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.quantization == "nf4" and s.zero_stage == 3,
        "Unsloth stores nf4 weights as bytes, and ZeRO-3 partitions only weights in the compute type",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.dora,
        "Unsloth's get_peft_model has no DoRA",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.embeddings,
        "Unsloth trains embed_tokens and lm_head otherwise than the job says: whole matrices instead of LoRA, and one "
        "of them where both are tied",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.adapter,
        "only PEFT's own loader can continue an adapter",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.own_ranks,
        "Unsloth trains all modules and layers with one rank",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.init not in ("default", "pissa"),
        lambda s: f"Unsloth has no initialization {s.init}",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.engine == "unsloth" and s.device == "cpu" and s.init == "pissa",
        "Unsloth's CPU backend has no PiSSA initialization",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.quantization == "int8" and s.zero_stage == 3,
        "int8 weights under ZeRO-3 give wrong losses (bitsandbytes issue 1451)",
        "train.zero_stage",
        2,
    ),
    Rule(
        lambda s: s.quantization in ("nf4", "int8") and s.family.experts and s.engine != "unsloth",
        "bitsandbytes quantizes linear layers, and this model's experts, nearly all of its weights, are none: "
        "they would stay in 16 bits, or become 32",
        "model.quantization",
        "none",
    ),
    Rule(
        lambda s: s.init in REPLACES_WEIGHTS and s.quantization != "none",
        lambda s: f"{_name(s.init)} decomposes the weights, and {s.quantization} weights cannot be decomposed",
        "lora.init",
        "default",
    ),
    Rule(
        lambda s: s.init in REPLACES_WEIGHTS and s.zero_stage == 3,
        lambda s: f"{_name(s.init)} decomposes whole weights, and no rank has them under ZeRO-3",
        "train.zero_stage",
        2,
    ),
    Rule(
        lambda s: s.init != "default" and s.adapter,
        lambda s: f"an existing adapter already has its weights, and {_name(s.init)} would replace them",
        "lora.init",
        "default",
    ),
    Rule(
        lambda s: s.init in REPLACES_WEIGHTS and s.dora,
        lambda s: f"an adapter of {_name(s.init)} is converted for the original weights as a sum, and DoRA rescales it",
        "lora.init",
        "default",
    ),
    Rule(
        lambda s: s.dora and s.quantization == "int8",
        "DoRA needs the norms of the weights before the first step, and bitsandbytes prepares int8 weights during it",
        "model.quantization",
        "nf4",
    ),
    Rule(
        lambda s: s.dora and s.zero_stage == 3,
        "DoRA starts from the norms of whole weights, and no rank has them under ZeRO-3",
        "train.zero_stage",
        2,
    ),
    Rule(
        lambda s: s.packing == "pack" and s.engine == "unsloth" and s.family.name == families.ANY.name,
        "only plain transformers was seen to keep the records of this model's packed rows apart",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.packing == "pack" and not s.family.packs,
        lambda s: (
            f"records of a packed row would see each other: {s.family.unpacked}"
            if s.family.unpacked
            else "this model's attention is unknown, so records in one packed row could see each other"
        ),
        "train.packing",
        "bucket",
    ),
    Rule(
        lambda s: s.rope == "dynamic" and s.engine == "fused",
        "the fused layers do not support a rotary embedding that depends on the length of the row",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.rope != "none" and s.engine == "unsloth",
        "Unsloth scales the rotary embedding by a rule of its own",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.router_loss and bool(s.family.unbalanced),
        lambda s: (
            f"a loss of routers balances the load of experts, and for {s.family.title} there is none: "
            f"{s.family.unbalanced}"
        ),
        "train.router_loss",
        0,
    ),
    Rule(
        lambda s: s.router_loss and s.engine == "unsloth",
        "Unsloth computes its own loss, without that of routers",
        "train.engine",
        "peft",
    ),
    Rule(
        lambda s: s.dtype == "bfloat16" and s.device == "cuda" and s.capability is not None and s.capability < AMPERE,
        "these GPUs only emulate bfloat16",
        "model.dtype",
        "float16",
    ),
    Rule(
        lambda s: s.dtype == "float16" and s.device == "cpu",
        "float16 training on a CPU has no loss scaling and underflows",
        "model.dtype",
        "float32",
    ),
    Rule(
        lambda s: s.offload == "cpu" and s.zero_stage == 0,
        "DeepSpeed offloads the optimizer, and it is used only with ZeRO",
        "train.zero_stage",
        2,
    ),
    Rule(
        lambda s: s.offload == "cpu" and s.zero_stage == 3 and s.engine == "fused",
        "under ZeRO-3 the fused layers partition the frozen weights and keep the adapter's optimizer on the GPU",
        "train.engine",
        "auto",
    ),
    Rule(
        lambda s: s.offload_param != "none" and s.zero_stage != 3,
        "DeepSpeed offloads weights under ZeRO-3 only",
        "train.offload_param",
        "none",
    ),
    Rule(
        lambda s: s.offload_param != "none" and s.zero_stage == 3 and s.engine == "fused",
        "under ZeRO-3 the fused layers partition the frozen weights themselves and keep them on the GPUs",
        "train.engine",
        "auto",
    ),
)


def check(settings: Combination) -> list[Refusal]:
    """Every rule that the settings break, in the table's order; empty if they work together."""
    return [rule.refusal(settings) for rule in RULES if rule.applies(settings)]


def check_length(max_length: int, most: int | None) -> list[Refusal]:
    """Refuse a data.max_length beyond the `most` positions of a model."""
    if most is None or max_length <= most:
        return []
    said = f"data.max_length={max_length}, but the model has {most} positions; model.rope_scaling stretches them"
    return [Refusal(said, f"data.max_length: {most}", {})]


def warnings(settings: Combination) -> list[tuple[str, str]]:
    """(key of the job file, what to know about its value) for settings that work, but rarely are what one wants."""
    if settings.dtype == "float16" and settings.capability is not None and settings.capability >= AMPERE:
        return [("model.dtype", "float16 overflows and needs loss scaling; these GPUs compute bfloat16 as fast")]
    return []


def engine_for(settings: Combination, *, unsloth_installed: bool = True) -> tuple[Engine, str]:
    """Choose the engine, and say why: the first of the family's engines that no rule refuses.

    An engine that the job names is returned as it is; `check` may refuse it.
    """
    if settings.engine != "auto":
        return cast(Engine, settings.engine), f"train.engine={settings.engine} in the job"
    family = settings.family
    reason = _unfused(family) if family.unfused and settings.device == "cuda" else ""
    for engine in family.engines:
        if engine == "fused" and settings.device != "cuda":
            continue  # its kernels need a GPU
        if engine == "unsloth" and not unsloth_installed:
            reason = "Unsloth is not installed here"
            continue
        tried = replace(settings, engine=engine)
        refused = [rule for rule in RULES if rule.key == "train.engine" and rule.applies(tried)]
        if not refused:
            where = " (its CPU backend here)" if engine == "unsloth" and settings.device == "cpu" else ""
            return engine, (reason or _WHY.get(engine) or family.why) + where
        reason = refused[0].refusal(tried).reason
    return "peft", reason  # PEFT takes everything


_WHY: Mapping[str, str] = {"fused": "the family has fused layers, the fastest path, and the job asks for plain LoRA"}


# A run that continues an adapter trains the adapter's own settings, which the job may leave out but not change. The
# launcher asks as well, where it can read adapter_config.json, so that plan.json shows what is trained.

_RECORDED: dict[str, tuple[str, Any]] = {
    "r": ("r", 8),
    "alpha": ("lora_alpha", 8),
    "dropout": ("lora_dropout", 0.0),
    "rslora": ("use_rslora", False),
    "dora": ("use_dora", False),
    "target_modules": ("target_modules", None),
    "modules_to_save": ("modules_to_save", ()),
    "rank_pattern": ("rank_pattern", {}),
    "alpha_pattern": ("alpha_pattern", {}),
    "layers_to_transform": ("layers_to_transform", ()),
}
"""Key of `lora` -> (key of adapter_config.json, PEFT's default where the file lacks it)."""
_BEYOND = (
    "bias", "layer_replication", "exclude_modules",
    "trainable_token_indices", "target_parameters", "lora_bias", "use_qalora", "alora_invocation_tokens",
    "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
"""Settings of PEFT that a job does not have. They are continued as they are, by PEFT alone."""


@dataclass(frozen=True)
class Continued:
    lora: Any
    """The job's section (train.config.Lora) with the adapter's settings."""
    taken: tuple[str, ...]
    """Keys of `lora` whose value is the adapter's, because the job has the default."""
    refused: tuple[str, ...]
    """What the job says otherwise than the adapter, one sentence each."""
    only_peft: str
    """What of the adapter only the engine `peft` trains; empty: nothing."""

    def __str__(self) -> str:
        """The settings that are taken, as in a job file."""
        return ", ".join(f"lora.{key}: {_shown(getattr(self.lora, key))}" for key in self.taken)


def continued(lora: Any, recorded: Mapping[str, Any]) -> Continued:
    """The settings of a run that continues the adapter with this adapter_config.json.

    LoRA dropout is not part of the weights, so the job may have its own. A pattern in
    `lora.target_modules` is compared with the adapter's modules once the model is loaded (train/model/targets.py).
    """
    default, taken, refused = type(lora)(), {}, []
    for key, (name, otherwise) in _RECORDED.items():
        asked, found = getattr(lora, key), recorded.get(name)
        value = _plain(otherwise if found is None else found)
        if value is None or _same(asked, value):
            continue
        if asked == getattr(default, key):
            taken[key] = value
        elif key != "dropout" and not (key == "target_modules" and _is_pattern(asked, value)):
            refused.append(f"lora.{key} is {_shown(asked)}, but the adapter's is {_shown(value)}")
    beyond = ", ".join(key for key in _BEYOND if recorded.get(key) not in (None, False, "none", {}, []))
    return Continued(structs.replace(lora, **taken), tuple(taken), tuple(refused), beyond)


ADVICE = "leave these settings out, so that the adapter's own are taken, or train a new adapter without lora.adapter"
"""What to do about refused settings."""


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, set)):
        numbers = all(isinstance(one, int) for one in value)
        return tuple(sorted(value if numbers else map(str, value)))
    return value


def _same(asked: Any, value: Any) -> bool:
    return set(asked) == set(value) if isinstance(asked, tuple) and isinstance(value, tuple) else bool(asked == value)


def _is_pattern(asked: Any, value: Any) -> bool:
    """Whether only the model tells if two values of lora.target_modules are the same modules."""
    return isinstance(asked, str) or isinstance(value, str) or any("." in name for name in (*asked, *value))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{name}: {one}" for name, one in value.items())
        return f"{{{pairs}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)
