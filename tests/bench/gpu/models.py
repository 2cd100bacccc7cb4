"""Random models of a named shape: in memory with an adapter, or as a checkpoint on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.gpu.cases import TARGETS, Case, checkpoint_place
from train.families import FUSED_TYPES
from train.memory import SHAPES, Shape


def device_kind() -> Any:
    """`cuda`; `cpu` only to try the program: its figures mean nothing."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def hf_config(shape: Shape) -> Any:
    """transformers' configuration of a shape. Families without fused layers become a Llama of the same size."""
    from transformers import AutoConfig

    kind = shape.family if shape.family in FUSED_TYPES else "llama"
    more = {"mistral": {"sliding_window": None}, "glm": {"attention_bias": True, "pad_token_id": 0}}.get(kind, {})
    return AutoConfig.for_model(
        kind,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=16_384,
        **more,
    )


def build(case: Case) -> Any:
    """The random PEFT model, its LoRA weights in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device_kind()):
        model = AutoModelForCausalLM.from_config(hf_config(SHAPES[case.shape]), dtype=torch.bfloat16)
    model.config.use_cache = False
    if case.quantization == "nf4":
        _to_nf4(model)
    if case.engine != "fused" and case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(TARGETS))
    adapted = get_peft_model(model, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _to_nf4(model: Any) -> None:
    """Replace the linear maps of the layers by bitsandbytes' 4-bit ones, as load_in_4bit does."""
    import bitsandbytes as bnb
    import torch

    model.is_loaded_in_4bit = True
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, old in list(parent.named_children()):
                if isinstance(old, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        old.in_features, old.out_features, bias=old.bias is not None, compute_dtype=torch.bfloat16,
                        compress_statistics=True, quant_type="nf4", device="meta",
                    )  # fmt: skip
                    weight = bnb.nn.Params4bit(
                        old.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
                    )
                    new.weight = weight.cuda()
                    new.bias = old.bias
                    setattr(parent, name, new)


def byte_tokenizer() -> Any:
    """A tokenizer with one token per byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def checkpoint(shape: str, place: Path, quantization: str = "none") -> Path:
    """Make a checkpoint of a shape with a byte tokenizer, once. All its layers are copies of one random layer.

    So a model may be larger than the memory of the machine; speed and memory do not depend on the weights. nf4 is
    stored as bitsandbytes does: packed weights, their scales, and the state of the quantization.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    target = checkpoint_place(shape, place, quantization)
    if (target / "tokenizer.json").is_file():  # written last
        return target
    target.mkdir(parents=True, exist_ok=True)
    config = hf_config(SHAPES[shape])
    config.num_hidden_layers = 1
    with torch.device(device_kind()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    kind = type(model).__name__
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    if quantization == "nf4":
        state = {name: part for item in state.items() for name, part in _saved_as_nf4(*item)}
        config.quantization_config = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
        }  # fmt: skip
    del model
    torch.cuda.empty_cache()
    prefix, layers = "model.layers.0.", SHAPES[shape].layers
    first, rest = target / _file_of(0), "model-rest.safetensors"
    save_file({name: part for name, part in state.items() if prefix in name}, first, metadata={"format": "pt"})
    save_file(
        {name: part for name, part in state.items() if prefix not in name}, target / rest, metadata={"format": "pt"}
    )
    with ThreadPoolExecutor(16) as pool:  # a hundred gigabytes
        list(pool.map(lambda layer: _copy_layer(first, layer), range(1, layers)))
    index = {name: rest for name in state if prefix not in name}
    for layer in range(layers):
        index |= {name.replace(prefix, f"model.layers.{layer}."): _file_of(layer) for name in state if prefix in name}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.num_hidden_layers = SHAPES[shape].layers
    config.architectures = [kind]
    config.save_pretrained(target)
    byte_tokenizer().save_pretrained(target)
    return target


def _file_of(layer: int) -> str:
    return f"model-{layer:05d}.safetensors"


def _copy_layer(first: Path, layer: int) -> None:
    """Write the file of a layer: the tensors of the first one under other names. The kernel copies their bytes."""
    with first.open("rb") as source, (first.parent / _file_of(layer)).open("wb") as copy:
        size = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(size))
        renamed = {name.replace("model.layers.0.", f"model.layers.{layer}."): value for name, value in header.items()}
        text = json.dumps(renamed).encode()
        text += b" " * (-len(text) % 8)
        copy.write(len(text).to_bytes(8, "little") + text)
        copy.flush()
        at, end = 8 + size, os.fstat(source.fileno()).st_size
        while at < end:
            at += os.sendfile(copy.fileno(), source.fileno(), at, end - at)


def _saved_as_nf4(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """A tensor as stored in a quantized checkpoint: linear maps of the layers packed, all others unchanged."""
    from bitsandbytes.functional import quantize_4bit

    if not any(f".{target}.weight" in name for target in TARGETS):
        yield name, tensor
        return
    packed, state = quantize_4bit(tensor.to(device_kind()), quant_type="nf4", compress_statistics=True)
    yield name, packed.cpu()
    for key, value in state.as_dict(packed=True).items():
        yield f"{name}.{key}", value.cpu().contiguous()
