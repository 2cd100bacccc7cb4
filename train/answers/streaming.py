"""An answer as a stream of text, while the model writes it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from train.answers.fused_answers import fused_for_answers
from train.answers.generation import generation_config
from train.model import limits

CAPACITY_STEP = 1024
"""The fused layers' cache of a conversation grows by this many tokens."""


class Writer:
    """Writes one answer at a time: with the fused layers if the model is on a GPU and they support it."""

    def __init__(self, model: Any, tokenizer: Any, *, stop: list[int]) -> None:
        self.model, self.tokenizer, self.stop = model, tokenizer, stop
        self._fused = fused_for_answers(model)
        self._decoder: Any = None

    def pieces(self, prompt: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0) -> Iterator[str]:
        """Pieces of the answer to the tokens of a prompt, as the model produces them.

        Raises UserError for a prompt that is too long. Closing the iterator, or a Ctrl-C, stops the model after its
        current token.
        """
        limits.check_prompt(self.model, prompt)
        room = limits.room_for(self.model, len(prompt), max_new_tokens)
        write = self._by_generate if self._fused is None else self._by_fused_layers
        return _without_leading_blanks(write(prompt, room, temperature))

    def _by_fused_layers(self, prompt: Sequence[int], room: int, temperature: float) -> Iterator[str]:
        from train.fused.decoding import Decoder

        needed = len(prompt) + room
        decoder = self._decoder
        if decoder is None or decoder.capacity < needed or decoder.temperature != temperature:
            decoder = self._decoder = None  # its memory is free before the next one's is taken
            capacity = -(-needed // CAPACITY_STEP) * CAPACITY_STEP
            decoder = Decoder(self._fused, slots=1, capacity=capacity, stop=self.stop, temperature=temperature)
            self._decoder = decoder
        streamer = _pieces_of(self.tokenizer)
        for token in decoder.stream(prompt, room):
            yield from streamer.after([token])
        yield from streamer.rest()

    def _by_generate(self, prompt: Sequence[int], room: int, temperature: float) -> Iterator[str]:
        import torch
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        ids = torch.tensor([list(prompt)], device=self.model.device)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        closed = threading.Event()

        def is_closed(ids: Any, _scores: Any, **_others: Any) -> Any:
            return torch.full((len(ids),), closed.is_set(), dtype=torch.bool, device=ids.device)

        def work() -> None:
            try:
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=generation_config(self.tokenizer, room, self.stop, temperature),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([is_closed]),
                )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:  # the C++ library aborts a process that ends while the model is at work
            closed.set()
            thread.join()
        if failure:
            raise failure[0]


def _pieces_of(tokenizer: Any) -> Any:
    """transformers' way from tokens to pieces of text, without its thread."""
    import torch
    from transformers import TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(tokenizer, skip_special_tokens=True)
            self.found: list[str] = []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.found.append(text)

        def after(self, tokens: list[int]) -> list[str]:
            self.found = []
            self.put(torch.tensor(tokens))
            return self.found

        def rest(self) -> list[str]:
            self.found = []
            self.end()
            return self.found

    return Pieces()


def _without_leading_blanks(pieces: Iterable[str]) -> Iterator[str]:
    """Some formats have a blank or a line break between prompt and answer, which the model writes."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        yield piece  # also an empty one: between two pieces a reader may stop
