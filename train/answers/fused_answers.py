"""Answers by the fused layers (train/fused/decoding.py), for models and devices that they support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from train.answers.generation import decode
from train.model import limits

MOST_SLOTS = 64
"""Answers that are written side by side: with more of them, a pass for one token is no longer bound by the weights."""
TOKENS_BETWEEN_CHECKS = 65_536
"""Tokens of answers after which ranks ask each other whether a stop was requested: about ten seconds of an 8B model."""


def fused_for_answers(model: Any) -> Any:
    """The model with fused layers if it is on a GPU and they support it, else None."""
    if model.get_input_embeddings().weight.device.type != "cuda":
        return None
    from train.fused.model import fuse, unsupported_reason

    return None if unsupported_reason(model, training=False) else fuse(model, training=False)


class FusedAnswers:
    """Greedy answers to prompts of at most `longest` tokens."""

    def __init__(
        self, fused: Any, tokenizer: Any, *, longest: int, max_new_tokens: int, stop: list[int], slots: int | None
    ) -> None:
        """`slots`: the answers that are written side by side; None: as many as fit, at most MOST_SLOTS."""
        from train.fused.decoding import Decoder, slots_for

        self.tokenizer, self.stop, self.max_new_tokens = tokenizer, stop, max_new_tokens
        self.model = fused.model
        capacity = longest + limits.room_for(self.model, longest, max_new_tokens)
        self.decoder = Decoder(
            fused, slots=slots or slots_for(fused, capacity, MOST_SLOTS), capacity=capacity, stop=stop
        )
        self.at_once = max(1, TOKENS_BETWEEN_CHECKS // max_new_tokens)
        """Prompts of one call."""

    def __call__(self, prompts: Sequence[Sequence[int]], wrote: Callable[[int], None]) -> list[tuple[str, bool]]:
        """(answer, whether the model has ended it) of each prompt; `wrote` is called with the number so far."""
        rooms = [limits.room_for(self.model, len(prompt), self.max_new_tokens) for prompt in prompts]
        found: dict[int, tuple[str, bool]] = {}
        for place, tokens, ended in self.decoder.answers(prompts, rooms):
            found[place] = decode(self.tokenizer, tokens, self.stop), ended
            wrote(len(found))
        return [found[place] for place in range(len(prompts))]
