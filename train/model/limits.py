"""What a model has room for: positions, and rows of the embedding for token ids.

Beyond them a CPU raises an IndexError, and a GPU ends with an assertion of a kernel, both long after the model was
loaded. RoPE beyond its positions fails silently; model.rope_scaling stretches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train import compat, families
from train.config import TrainConfig
from train.errors import UserError
from train.model.base import BaseModel, read_config


def rows_of(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding, by config.json; None: it does not say."""
    text = config.get("text_config")
    rows = (text if isinstance(text, Mapping) else config).get("vocab_size")
    return rows if isinstance(rows, int) else None


FirstFrom = Callable[[Any, int], tuple[str, int, int] | None]
"""first_from(tokenizer, id) -> (file, line, id) of the first record that holds a token with this id or a higher one."""


def check(config: TrainConfig, base: BaseModel, tokenizer: Any, first_from: FirstFrom) -> None:
    """Raise UserError for records that are too long for the model, or hold tokens that it lacks."""
    found = rope_of(config, read_config(base.directory) or {})
    for refusal in compat.check_length(config.data.max_length, families.max_positions(found)):
        if config.model.source != "random":
            raise UserError(refusal.reason, f"set {refusal.instead}", code="ZL-PLAN-01")
    rows = rows_of(found)
    # Some models have a token more than rows, for images or padding. Only a record with such a token is a mistake.
    if rows is None or max(tokenizer.get_vocab().values()) < rows:
        return
    held = first_from(tokenizer, rows)
    if held is not None:
        file, line, token = held
        raise UserError(
            f"{file}:{line} needs the token {tokenizer.convert_ids_to_tokens(token)!r}, whose id is {token}, but "
            f"{base.name} has embeddings for the ids below {rows} only",
            "use the tokenizer that belongs to the model, or fit the model to its tokenizer with "
            "resize_token_embeddings(len(tokenizer)) of transformers and save both",
            code="ZL-MODEL-08",
        )


def room_for(model: Any, prompt: int, max_new_tokens: int) -> int:
    """How many of `max_new_tokens` may follow a prompt of this many tokens; at least 1."""
    most = families.max_positions(model.config.to_dict())
    return max_new_tokens if most is None else max(1, min(max_new_tokens, most - prompt))


def check_prompt(model: Any, ids: Sequence[int]) -> None:
    """Raise UserError for a prompt that the model cannot read."""
    most, rows = families.max_positions(model.config.to_dict()), model.get_input_embeddings().weight.shape[0]
    if most is not None and len(ids) >= most:
        raise UserError(
            f"the conversation has {len(ids)} tokens, and the model only {most} positions", code="ZL-MODEL-08"
        )
    if max(ids) >= rows:
        raise UserError(
            f"the conversation needs the token id {max(ids)}, and the model has only ids below {rows}",
            code="ZL-MODEL-08",
        )


def with_scaled_rope(config: TrainConfig, source: str | Path, revision: str | None = None) -> Any:
    """The configuration of the model at `source`, its rotary embedding scaled as the job says. Raises UserError."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=config.model.trust_remote_code)
    text = found.get_text_config()
    if not getattr(text, "rope_parameters", None):
        raise UserError(
            f"model.rope_scaling: {type(text).__name__} has no rotary embedding", _LEAVE_ROPE, code="ZL-PLAN-01"
        )
    scaled = rope_of(config, text.to_dict())
    text.rope_parameters = dict(scaled["rope_parameters"])
    own = "original_max_position_embeddings"
    if hasattr(text, own) and own in scaled["rope_parameters"]:
        setattr(text, own, scaled["rope_parameters"][own])  # Phi's, which transformers would put in the place of ours
    text.max_position_embeddings = scaled["max_position_embeddings"]
    return found


_LEAVE_ROPE = "set model.rope_scaling: none"


def rope_of(config: TrainConfig, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json of a model with the job's model.rope_scaling. Raises UserError."""
    try:
        return families.with_rope(model, config.model.rope_scaling, config.model.rope_factor, config.data.max_length)
    except ValueError as error:
        raise UserError(f"model.rope_scaling: {error}", _LEAVE_ROPE, code="ZL-PLAN-01") from None
