"""The base model with its LoRA adapter, from either engine, behind one function.

fused     transformers + PEFT underneath, trained through train/fused/model.py: the fastest where the family is known
unsloth   FastLanguageModel and its own get_peft_model: hand-written kernels on a GPU, its CPU backend without one
peft      plain transformers + PEFT: any causal model; never imports unsloth
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.config import TrainConfig
from train.dist import World, quiet
from train.errors import UserError, first_line, is_disk_full
from train.model.base import BaseModel, register_types


@dataclass(frozen=True)
class Loaded:
    """The base model as an engine loaded it; `adapt` has not run yet."""

    model: Any
    tokenizer: Any
    dtype: Any
    engine: str


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
        if not is_of_the_model(error):
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


def is_of_the_model(error: Exception) -> bool:
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
