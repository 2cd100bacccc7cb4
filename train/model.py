"""The base model with its LoRA adapter, from either engine, behind one function.

fused     transformers + PEFT underneath, trained through train/fused.py: the fastest where the family is known
unsloth   FastLanguageModel and its own get_peft_model: hand-written kernels on a GPU, its CPU backend without one
peft      plain transformers + PEFT: any causal model; never imports unsloth
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train import compat, modules, pissa
from train.basemodel import BaseModel, read_json, register_types
from train.config import TrainConfig
from train.dist import World, quiet
from train.errors import UserError, first_line, is_disk_full
from train.families import Family


@dataclass(frozen=True)
class Choice:
    engine: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """The base model as an engine loaded it; `adapt` has not run yet."""

    model: Any
    tokenizer: Any
    dtype: Any
    engine: str


def check(config: TrainConfig, family: Family) -> None:
    """Raise UserError for settings that cannot work together (the launcher asks the same where it can)."""
    refusals = compat.check(compat.Settings.of(config, family, _capability(config)))
    if refusals:
        raise UserError(refusals[0].reason, *(f"set {refusal.instead}" for refusal in refusals))
    if config.train.engine == "unsloth" and not _has_unsloth():
        raise UserError("train.engine=unsloth, but Unsloth is not installed here", "set train.engine: auto or peft")


def choose_engine(config: TrainConfig, family: Family) -> Choice:
    """Which engine trains, and why."""
    settings = compat.Settings.of(config, family, _capability(config))
    return Choice(*compat.engine_for(settings, unsloth_installed=_has_unsloth()))


def _has_unsloth() -> bool:
    return importlib.util.find_spec("unsloth") is not None


def _capability(config: TrainConfig) -> tuple[int, int] | None:
    if config.device == "cpu":
        return None
    import torch

    found: tuple[int, int] = torch.cuda.get_device_capability()
    return found


def import_first(choice: Choice) -> None:
    """Unsloth wants to be imported before transformers, which it patches; neither is to draw progress bars in a log."""
    if choice.engine == "unsloth":
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import unsloth  # noqa: F401 - for its effects
    from transformers.utils import logging

    logging.disable_progress_bar()


def torch_dtype(config: TrainConfig) -> Any:
    """The model's dtype; `auto` asks the device."""
    import torch

    name = config.model.dtype
    if name != "auto":
        return getattr(torch, name)
    if config.device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(config: TrainConfig, world: World, base: BaseModel, engine: str, ds_config: dict[str, Any] | None) -> Loaded:
    """The base model and its tokenizer. `ds_config` is given for ZeRO stages from 1 on. Raises UserError."""
    try:
        if engine == "unsloth":
            model, tokenizer, dtype = _load_unsloth(config, base)
        else:
            model, tokenizer, dtype = _load_peft(config, world, base, ds_config, checkpointing=engine == "peft")
    except Exception as error:
        if not _is_of_the_model(error):
            raise
        said, advice = first_line(error), "is it whole, and a causal language model? else download it again"
        if _MISMATCH in str(error):
            said = "its weights have other sizes than its config.json says"
        if "trust_remote_code" in str(error):
            advice = "set model.trust_remote_code: true if you trust the code that comes with it"
        raise UserError(f"model.path: {base.name} cannot be loaded: {said}", advice) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {base.name} names no end-of-sequence token")
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {base.name} is not a fast one, which tells where in the text each token stands",
            "add a tokenizer.json to the model (transformers can convert most tokenizers)",
        )
    model.config.use_cache = False
    return Loaded(model, tokenizer, dtype, engine)


def _is_of_the_model(error: Exception) -> bool:
    """Whether the files of the model are at fault: torn, missing, of other sizes than config.json says, of no kind that
    transformers knows."""
    if is_disk_full(error):
        return False
    torn = isinstance(error, (OSError, ValueError)) or type(error).__name__ == "SafetensorError"
    return torn or _MISMATCH in str(error)


_MISMATCH = "ignore_mismatched_sizes"
"""An argument that transformers names when weights do not have the sizes of the model."""


def load_tokenizer(config: TrainConfig, base: BaseModel) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.directory, trust_remote_code=config.model.trust_remote_code)


def _load_unsloth(config: TrainConfig, base: BaseModel) -> tuple[Any, Any, Any]:
    quantization = config.model.quantization
    dtype = torch_dtype(config)
    with quiet():
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(base.directory),
            max_seq_length=config.data.max_length,
            dtype=dtype,
            load_in_4bit=quantization == "nf4",
            load_in_16bit=quantization == "none",
            trust_remote_code=config.model.trust_remote_code,
            use_gradient_checkpointing="unsloth" if config.train.gradient_checkpointing else False,
        )
    return model, tokenizer, dtype


def _load_peft(
    config: TrainConfig, world: World, base: BaseModel, ds_config: dict[str, Any] | None, *, checkpointing: bool
) -> tuple[Any, Any, Any]:
    """`checkpointing`: transformers' own, where the job wants one (the fused layers bring theirs)."""
    from transformers import AutoModelForCausalLM

    dtype = torch_dtype(config)
    keep_alive = _zero3_loading(ds_config) if ds_config and config.train.zero_stage == 3 else None
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.model.trust_remote_code}
    options.update(quantization_options(config, dtype))
    if keep_alive is None and config.device == "cuda":
        options["device_map"] = {"": world.device}
    register_types(base.directory)
    model = AutoModelForCausalLM.from_pretrained(base.directory, **options)
    keep_four_bit_unpacked(model)
    if checkpointing and config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model, load_tokenizer(config, base), dtype


def _zero3_loading(ds_config: dict[str, Any]) -> Any:
    """While this object lives, from_pretrained builds its parameters sharded over the ranks (zero.Init)."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(ds_config)


def quantization_options(config: TrainConfig, dtype: Any) -> dict[str, Any]:
    """What from_pretrained takes to quantise the weights as this run does; nothing for `none`."""
    if config.model.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if config.model.quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # ZeRO-3 shards the packed weights like any other, if they look like the compute dtype.
        **({"bnb_4bit_quant_storage": dtype} if config.train.zero_stage == 3 else {}),
    )
    return {"quantization_config": four_bit}


def keep_four_bit_unpacked(model: Any) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks nf4 weights at the first forward pass without gradients. None flow
    from then on, and the other kernel's logits are not the training's: every model of ours goes without."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def target_modules(config: TrainConfig, family: Family) -> Any:
    """`auto`: the projections of the model's family, or every linear layer but the head of a model of no known one."""
    targets = config.lora.target_modules
    if targets == "auto":
        return list(family.lora_targets) or "all-linear"
    return targets if isinstance(targets, str) else list(targets)


def adapt(config: TrainConfig, loaded: Loaded, base: BaseModel, family: Family) -> Any:
    """The PEFT model: LoRA weights in float32, everything else frozen. The same on every rank for the same seed."""
    import torch

    lora = config.lora
    torch.manual_seed(config.train.seed)
    if lora.adapter is not None:
        adapted = _continue_adapter(config, loaded)
    else:
        wanted: dict[str, Any] = {
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": target_modules(config, family),
            "bias": "none",
            "use_rslora": lora.rslora,
            "modules_to_save": list(lora.modules_to_save) or None,
            "init_lora_weights": True if lora.init == "default" else lora.init,
        }
        adapt_one = _adapt_unsloth if loaded.engine == "unsloth" else _adapt_peft
        modules.check(lora, loaded.model, loaded.engine)
        try:
            adapted = adapt_one(config, loaded, wanted)
        except (TypeError, ValueError) as error:
            refused = modules.refusal(error)
            if refused is None:
                raise
            raise refused from error
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    for peft_config in adapted.peft_config.values():
        peft_config.base_model_name_or_path = base.name
        peft_config.revision = base.revision
    if lora.init == "pissa" and lora.adapter is None:
        pissa.remember(adapted)
    return adapted


def _adapt_unsloth(config: TrainConfig, loaded: Loaded, wanted: dict[str, Any]) -> Any:
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if config.train.gradient_checkpointing else False
    with quiet():
        return FastLanguageModel.get_peft_model(
            loaded.model, random_state=config.train.seed, use_gradient_checkpointing=checkpointing, **wanted
        )


def _adapt_peft(config: TrainConfig, loaded: Loaded, wanted: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    model = _ready_for_training(config, loaded)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", use_dora=config.lora.dora, **wanted))


def _ready_for_training(config: TrainConfig, loaded: Loaded) -> Any:
    # PEFT turns what is not quantised (embeddings, head, norms) into float32, which the fused layers do without
    if config.model.quantization == "none" or loaded.engine == "fused":
        return loaded.model
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        loaded.model,
        use_gradient_checkpointing=config.train.gradient_checkpointing and loaded.engine == "peft",
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def _continue_adapter(config: TrainConfig, loaded: Loaded) -> Any:
    """An adapter in PEFT's format on this base; its own adapter_config.json says rank, targets and kind."""
    from peft import PeftModel

    place = Path(str(config.lora.adapter)).expanduser()
    advice = "name the adapter/ of a finished run"
    if not (place / "adapter_config.json").is_file():
        raise UserError(f"lora.adapter: {place} has no adapter_config.json", advice)
    if not any(place.glob("adapter_model.*")):
        raise UserError(f"lora.adapter: {place} has no adapter_model.safetensors", advice)
    kind = (read_json(place / "adapter_config.json") or {}).get("peft_type")
    if kind != "LORA":
        raise UserError(f"lora.adapter: {place}/adapter_config.json is not that of a LoRA (peft_type: {kind})", advice)
    try:
        return PeftModel.from_pretrained(_ready_for_training(config, loaded), place, is_trainable=True)
    except Exception as error:
        sizes = isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"  # torch's is one as well
        if _is_of_the_model(error) or sizes:  # torn, of other layers or sizes
            said = f"lora.adapter: {place} does not fit this base model: {first_line(error)}"
            raise UserError(said) from error
        raise


def read_ds_config(path: Path, config: TrainConfig, world_size: int) -> dict[str, Any]:
    """ds_config.json of the run directory for this start: the batch of train.json, nothing printed a step."""
    try:
        ds_config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"train.zero_stage={config.train.zero_stage} needs {path}, which is not there") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    stage = ds_config.get("zero_optimization", {}).get("stage")
    if stage != config.train.zero_stage:
        raise UserError(f"{path} is for ZeRO stage {stage}, train.json for {config.train.zero_stage}")
    train = config.train
    return {
        **ds_config,
        "train_batch_size": train.micro_batch_size * train.gradient_accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.max_grad_norm,
    }
