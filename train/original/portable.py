"""Files of a model that transformers 4 and other programs read as well as transformers 5, which wrote them.

transformers 5 has other names for the same settings. Older releases, vLLM, llama.cpp and Ollama do not know them and
take their defaults instead, without an error: a rotary base of 10,000 instead of 1,000,000 changes every logit.
Both names stand beside each other; transformers 5 reads either.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.families import MARKER

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""Known to both, and exactly what tokenizer.json says."""
_RENAMED = re.compile("rope|rotary|expert")
"""Keys of which transformers 5 renamed some."""
_OWN = ("backend", "is_local", "local_files_only")
"""What transformers 5 writes about its own loading."""
_GPT_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Of transformers 4; Gemma 4 has another one."""
_LOCAL_BASE = "rope_local_base_freq"
_MODERNBERT = {"rope_theta": "global_rope_theta", _LOCAL_BASE: "local_rope_theta"}
_OTHER_NAMES = {
    "gpt_neox": _GPT_NEOX,
    "gpt_neox_japanese": _GPT_NEOX,
    "modernbert": _MODERNBERT,
    "modernbert-decoder": _MODERNBERT,
}
"""By model type, names in transformers 4 that differ from those of most models."""


def make_portable(place: Path, base: str | Path | None = None, revision: str | None = None) -> None:
    """Complete the files in `place`: config.json, tokenizer_config.json and, if `base` has one, tokenizer.model.

    `base` is a directory or hub id. Its config.json has the names that this very model was published with.
    """
    published = None if base is None else _file_of(base, "config.json", revision)
    _rewrite(place / "config.json", lambda config: portable_config(config, _read(published)))
    template = place / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else None
    _rewrite(place / "tokenizer_config.json", lambda config: portable_tokenizer_config(config, text))
    vocabulary = None if base is None else _file_of(base, "tokenizer.model", revision)
    if vocabulary is not None and not (place / "tokenizer.model").exists():
        shutil.copyfile(vocabulary, place / "tokenizer.model")
    if (place / "tokenizer.model").exists():
        _name_added_tokens(place)


def _name_added_tokens(place: Path) -> None:
    """Write the added tokens where Ollama and llama.cpp look: beside a tokenizer.model they ignore tokenizer.json."""
    added = _read(place / "tokenizer.json").get("added_tokens") or []
    kinds = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    decoder = {str(token["id"]): {kind: token[kind] for kind in kinds} for token in added}
    _rewrite(place / "tokenizer_config.json", lambda config: {**config, "added_tokens_decoder": decoder})
    names = {token["content"]: token["id"] for token in added}
    (place / "added_tokens.json").write_text(json.dumps(names, indent=2, ensure_ascii=False), encoding="utf-8")


def portable_config(config: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the names of transformers 4 beside those of 5, and the base model's own names for positions."""
    made = dict(config)
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict) and "model_type" in value:  # such as text_config
            made[key] = portable_config(value, published.get(key) or {})
    if "dtype" in made:
        made["torch_dtype"] = made["dtype"]
    kept = {key: value for key, value in published.items() if _RENAMED.search(key) or key == MARKER}
    return {**_experts(made), **_rope(made), **kept, **made}


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The number of experts under the other names that transformers 5 accepts for it."""
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    names = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
    return {other: config[name] for other, name in names.items() if "expert" in other and name in config}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` says, in the words of transformers 4."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or not parameters:
        return {}
    whole, local = parameters.get("full_attention", parameters), parameters.get("sliding_attention")
    if "rope_theta" not in whole or whole.get("rope_type") not in (None, *_ROPE_TYPES):
        return {}  # a form that transformers 4 does not have
    scaling = {key: value for key, value in whole.items() if key not in ("rope_theta", "partial_rotary_factor")}
    found = {"rope_theta": whole["rope_theta"], "rope_scaling": None}
    if whole.get("rope_type", "default") != "default":
        found["rope_scaling"] = {**scaling, "type": whole["rope_type"]}  # Ollama reads `type`, transformers either
    if "partial_rotary_factor" in whole:
        found["partial_rotary_factor"] = whole["partial_rotary_factor"]
    if isinstance(local, dict) and "rope_theta" in local:
        found[_LOCAL_BASE] = local["rope_theta"]
    others = _OTHER_NAMES.get(str(config.get("model_type")), {})
    return found | {name: found[key] for key, name in others.items() if key in found}


def portable_tokenizer_config(config: Mapping[str, Any], template: str | None) -> dict[str, Any]:
    """tokenizer_config.json with a class that both know, special tokens as a list, and the chat template."""
    made = {key: value for key, value in config.items() if key not in _OWN}
    if "auto_map" not in made:
        made["tokenizer_class"] = TOKENIZER_CLASS
    extra = made.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 4 has a mapping under this name
        del made["extra_special_tokens"]
        made["additional_special_tokens"] = extra
    # without it, transformers 4 adds token types, which `generate` refuses
    made.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if template is not None:
        made["chat_template"] = template
    return made


def _rewrite(file: Path, change: Any) -> None:
    if file.is_file():
        changed = change(_read(file))
        file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(file: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    return found


def _file_of(base: str | Path, name: str, revision: str | None) -> Path | None:
    """A file of a model on disk, or of one in the hub's cache; None if it has no such file."""
    if Path(base).is_dir():
        return Path(base) / name if (Path(base) / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(str(base), name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
