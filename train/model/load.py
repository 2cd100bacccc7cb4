"""The base model and its tokenizer, loaded for one of the engines that train.

fused     transformers and PEFT, trained through train/fused/model.py: the fastest for the families that it knows
unsloth   FastLanguageModel: hand-written kernels on a GPU, and a CPU backend
peft      transformers and PEFT: any causal language model; never imports unsloth
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.dist import World, quiet
from train.errors import UserError, first_line, is_disk_full
from train.model import limits
from train.model.base import BaseModel, read_config, register_types
from train.model.load_shares import each_rank_reads_its_share


@dataclass(frozen=True)
class Loaded:
    """The base model as an engine loaded it, still without an adapter."""

    model: Any
    tokenizer: Any
    dtype: Any
    engine: str


def load_for_training(
    config: TrainConfig, world: World, base: BaseModel, engine: str, ds_config: dict[str, Any] | None, tokenizer: Any
) -> Loaded:
    """Load the base model; `ds_config` is None without DeepSpeed. Raises UserError.

    `tokenizer` comes from `load_tokenizer`; Unsloth loads its own.
    """
    dtype = torch_dtype(config)
    check_form(config.model.quantization, read_config(base.directory), base.name)
    try:
        if engine == "unsloth":
            model, tokenizer = _load_unsloth(config, base, dtype)
            _check_tokenizer(tokenizer, base)
        else:
            model = _load_transformers(config, world, base, ds_config, dtype, checkpointing=engine == "peft")
    except Exception as error:
        if isinstance(error, ImportError) and config.model.quantization == "published":
            said = f"model.path: {base.name} needs a package that is not here: {first_line(error)}"
            raise UserError(said, "pip install gptqmodel optimum", code="ZL-MACHINE-02") from error
        if not is_fault_of_files(error):
            raise
        raise _explained(error, base) from error
    model.config.use_cache = False
    return Loaded(model, tokenizer, dtype, engine)


@contextmanager
def weights_counted(counted: Callable[[float, float | None], None] | None) -> Iterator[None]:
    """While a model is loaded, call `counted` with (weights that are in place, all weights).

    By the hook that transformers has for its progress bars; a version without it counts nothing.
    """
    from transformers.utils import logging

    set_hook = getattr(logging, "set_tqdm_hook", None)
    if counted is None or set_hook is None:
        yield
        return

    def bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return _counting(args[0], counted) if args and hasattr(args[0], "__len__") else factory(*args, **options)

    before = set_hook(bar)
    try:
        yield
    finally:
        set_hook(before)


def _counting(items: Any, counted: Callable[[float, float | None], None]) -> Iterator[Any]:
    for place, item in enumerate(items):
        counted(place, len(items))
        yield item


def torch_dtype(config: TrainConfig) -> Any:
    """The model's dtype; `auto` depends on the device."""
    import torch

    name = config.model.dtype
    if name != "auto":
        return getattr(torch, name)
    if config.device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_tokenizer(config: TrainConfig, base: BaseModel) -> Any:
    """The base model's tokenizer, with a padding token. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(base.directory, trust_remote_code=config.model.trust_remote_code)
    except Exception as error:
        if not is_fault_of_files(error):
            raise
        raise _explained(error, base) from error
    _check_tokenizer(found, base)
    return found


def load_plain(
    config: TrainConfig, source: str | Path, dtype: Any, *, revision: str | None = None, device: str | None = None
) -> Any:
    """The causal language model at `source`, a directory or hub id, by plain transformers.

    It is quantized as `config` has it. Without a `device` transformers chooses. Raises UserError if the files lack
    weights of the model, which transformers would fill with random numbers.
    """
    register_types(Path(source))
    options = quantization_options(config, dtype)
    if config.model.rope_scaling != "none":
        options["config"] = limits.with_scaled_rope(config, source, revision)
    if _published_in_mxfp4(source):
        from transformers import Mxfp4Config

        options["quantization_config"] = Mxfp4Config(dequantize=True)  # kernels for it would keep it packed, past LoRA
    if config.model.quantization == "published":
        options["quantization_config"] = _for_training(read_config(Path(source)))
    if device is not None:
        options["device_map"] = {"": device}
    trusted = config.model.trust_remote_code
    model, info = _class_of(source, revision, trusted).from_pretrained(
        source, revision=revision, dtype=dtype, trust_remote_code=trusted, output_loading_info=True, **options
    )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise UserError(
            f"model.path: {source} has no {missing[0]}, nor {len(missing) - 1} more weights of {type(model).__name__}",
            "download it again, or name a checkpoint of this architecture",
            code="ZL-MODEL-02",
        )
    _keep_four_bit_unpacked(model)
    return model


def _published_in_mxfp4(source: str | Path) -> bool:
    """Whether a directory holds weights as gpt-oss is published. A hub id is one of an adapter's base: its directory
    is not known here, and transformers decides."""
    found = (read_config(Path(source)) or {}).get("quantization_config")
    return isinstance(found, dict) and found.get("quant_method") == "mxfp4"


def _class_of(source: str | Path, revision: str | None, trusted: bool) -> Any:
    """The class of transformers that loads the whole checkpoint, also the parts of one that sees or hears.

    AutoModelForCausalLM takes the text part alone of some of these, under other names: an adapter would then not fit
    the published model. Other such models it does not know at all.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    found = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trusted)
    many_parts = found.get_text_config() is not found
    known = type(found) in AutoModelForImageTextToText._model_mapping  # there is no public list
    return AutoModelForImageTextToText if many_parts and known else AutoModelForCausalLM


def _load_transformers(
    config: TrainConfig,
    world: World,
    base: BaseModel,
    ds_config: dict[str, Any] | None,
    dtype: Any,
    *,
    checkpointing: bool,
) -> Any:
    """`checkpointing` allows that of transformers, where the job wants it; the fused layers bring their own."""
    keep_alive = _zero3_loading(ds_config) if ds_config and config.train.zero_stage == 3 else None
    on_gpu = config.device == "cuda" and keep_alive is None  # ZeRO-3 places the parameters itself
    with each_rank_reads_its_share() if keep_alive is not None else nullcontext():
        model = load_plain(config, base.directory, dtype, device=world.device if on_gpu else None)
    if checkpointing and config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def _zero3_loading(ds_config: dict[str, Any]) -> Any:
    """While this object lives, from_pretrained shards the parameters over the ranks as it builds them (zero.Init)."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(ds_config)


def _load_unsloth(config: TrainConfig, base: BaseModel, dtype: Any) -> tuple[Any, Any]:
    quantization = config.model.quantization
    with quiet():
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(base.directory),
            max_seq_length=config.data.max_length,
            dtype=dtype,
            load_in_4bit=quantization == "nf4",
            load_in_16bit=quantization != "nf4",
            trust_remote_code=config.model.trust_remote_code,
            use_gradient_checkpointing="unsloth" if config.train.gradient_checkpointing else False,
        )
    return model, tokenizer


def quantization_options(config: TrainConfig, dtype: Any) -> dict[str, Any]:
    """Arguments for from_pretrained that quantize the weights as this run does."""
    if not config.model.loads_quantized or config.model.quantization == "published":
        return {}
    from transformers import BitsAndBytesConfig

    if config.model.quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # ZeRO-3 can shard the packed weights only if their storage has the compute dtype.
        **({"bnb_4bit_quant_storage": dtype} if config.train.zero_stage == 3 else {}),
    )
    return {"quantization_config": four_bit}


def _keep_four_bit_unpacked(model: Any) -> None:
    """Stop bitsandbytes from repacking nf4 weights at the first forward pass without gradients.

    It does so on CPUs with AVX512-BF16. Afterwards no gradients flow, and the other kernel's logits differ from those
    of training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


_MISMATCH = "ignore_mismatched_sizes"
"""The argument that transformers suggests when weights do not have the sizes of the model."""


def is_fault_of_files(error: Exception) -> bool:
    """Whether the files of a model or adapter are damaged, missing, of wrong sizes or of an unknown kind."""
    if is_disk_full(error):
        return False
    damaged = isinstance(error, (OSError, ValueError)) or type(error).__name__ == "SafetensorError"
    return damaged or _MISMATCH in str(error)


def _explained(error: Exception, base: BaseModel) -> UserError:
    said, advice = first_line(error), "check that it is whole and a causal language model, or download it again"
    if _MISMATCH in str(error):
        said = "the sizes of its weights differ from its config.json"
    if "trust_remote_code" in str(error):
        advice = "set model.trust_remote_code: true if you trust the code that comes with it"
    return UserError(f"model.path: {base.name} cannot be loaded: {said}", advice, code="ZL-MODEL-03")


def _check_tokenizer(tokenizer: Any, base: BaseModel) -> None:
    """Make sure of a padding token. Raises UserError for a tokenizer that cannot be used."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {base.name} has no end-of-sequence token", code="ZL-MODEL-04")
    rows = limits.rows_of(read_config(base.directory) or {})
    if tokenizer.pad_token_id is None or (rows is not None and tokenizer.pad_token_id >= rows):
        tokenizer.pad_token = tokenizer.eos_token  # padding is looked up in the embeddings too
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {base.name} is not a fast one; only fast tokenizers report where in the text a token is",
            "add a tokenizer.json to the model (transformers can convert most tokenizers)",
            code="ZL-MODEL-04",
        )


PACKED = {"gptq": "GPTQ", "awq": "AWQ"}
"""quant_method of config.json -> its name, for weights that PEFT's LoRA was seen to train beside."""
_ORIGINAL = "name the original checkpoint instead, with model.quantization: nf4"


def form_of_weights(found: Mapping[str, Any] | None) -> str | None:
    """How config.json says that the weights are: nf4, int8, fp4, or a quant_method; None: in numbers of 16 or 32 bits,
    or unpacked to such at loading."""
    settings = (found or {}).get("quantization_config")
    if not isinstance(settings, Mapping):
        return None
    method = str(settings.get("quant_method") or "bitsandbytes")
    if method == "bitsandbytes":
        four = settings.get("load_in_4bit", settings.get("_load_in_4bit"))
        return str(settings.get("bnb_4bit_quant_type", "fp4")) if four else "int8"
    return None if method in ("mxfp4", "fp8") else method


def check_form(asked: str, found: Mapping[str, Any] | None, name: str) -> None:
    """Raise UserError unless model.quantization (`asked`) is what the checkpoint `name` holds, or can make of it.

    `found`: its config.json.
    """
    form = form_of_weights(found)
    if form == asked or (form is None and asked != "published") or (form in PACKED and asked == "published"):
        return
    if form is None:
        advice = "set model.quantization: none, nf4 or int8"
        raise UserError(f"model.path: the weights of {name} are not quantized", advice, code="ZL-MODEL-02")
    if form in ("nf4", "int8"):
        said = f"model.path: the weights of {name} are in {form} already"
        raise UserError(said, f"set model.quantization: {form}", code="ZL-MODEL-02")
    if form in PACKED:
        said = f"model.path: the weights of {name} are quantized by {PACKED[form]} already"
        raise UserError(said, "set model.quantization: published", _ORIGINAL, code="ZL-MODEL-02")
    said = f"model.path: the weights of {name} are quantized by {form}, beside which LoRA is not trained here"
    raise UserError(said, _ORIGINAL, code="ZL-MODEL-02")


def _for_training(found: Mapping[str, Any] | None) -> Any:
    """What from_pretrained has to be told of packed weights: kernels that let gradients through. Some only infer."""
    from transformers import AwqConfig, GPTQConfig

    bits = int(((found or {}).get("quantization_config") or {}).get("bits", 4))
    return (AwqConfig if form_of_weights(found) == "awq" else GPTQConfig)(bits=bits, backend="auto_trainable")
