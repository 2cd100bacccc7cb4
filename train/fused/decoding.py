"""Answers of a fused model: many prompts at once, without padding, with their keys and values kept.

A prompt is read by the forward pass of training: several prompts are packed in a row. After that each forward pass
adds one token to every answer. An answer that ends gives its slot to the next prompt, so no slot waits for the longest
answer of a batch. On a GPU the pass for one token is recorded once as a CUDA graph, because it takes less time than
Python needs to launch its kernels.

    for answer in Decoder(model, slots=64, capacity=600, stop=[2]).answers(prompts, rooms): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from train.fused import attention, kernels
from train.fused.attention import PackedLayout
from train.fused.model import Batch, FusedModel, packed_attention

READ_AT_ONCE = 8192
"""Tokens of prompts that are packed in a row; a longer prompt is read alone."""
MOST_LIKELY = 50
"""With a temperature, a token is drawn from this many of the most likely ones: transformers' default."""
SHARE_OF_FREE = 0.5
"""Of the free memory of a GPU, what keys and values may take; the rest is for reading prompts."""


class Answer(NamedTuple):
    place: int
    """Index of the prompt."""
    tokens: list[int]
    """Without the token that ended it."""
    ended: bool
    """Whether the model ended it, instead of the room."""


@dataclass
class _Open:
    """An answer that is being written."""

    place: int
    room: int
    tokens: list[int] = field(default_factory=list)


class _Cache:
    """Keys and values of the tokens so far, per layer and slot."""

    def __init__(self, model: FusedModel, slots: int, capacity: int) -> None:
        layer = model.layers[0]
        like = model.embedding.weight
        shape = (len(model.layers), slots, capacity, layer.keys, layer.dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=like.device)


def slots_for(model: FusedModel, capacity: int, most: int) -> int:
    """How many answers fit side by side into half of a GPU's free memory, at least 1 and at most `most`."""
    weight, layer = model.embedding.weight, model.layers[0]
    if not weight.is_cuda:
        return most
    token: int = 2 * len(model.layers) * layer.keys * layer.dim * weight.element_size()
    free: int = torch.cuda.mem_get_info(weight.device)[0]
    free += torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    return max(1, min(most, int(SHARE_OF_FREE * free) // (token * capacity)))


class Decoder:
    """A fused model with room for `slots` answers of at most `capacity` tokens each, prompts included."""

    def __init__(
        self, model: FusedModel, *, slots: int, capacity: int, stop: Sequence[int], temperature: float = 0.0
    ) -> None:
        self.model, self.slots, self.capacity = model, slots, capacity
        self.stop, self.temperature = frozenset(stop), temperature
        for layer in model.layers:
            layer.refresh()
        self.cache = _Cache(model, slots, capacity)
        self.tables = model.rotary(capacity, self.cache.lengths.device)
        self.tokens = torch.zeros_like(self.cache.lengths)
        """The newest token of each slot, which the model has not read."""
        self._graph: Any = None

    def answers(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int]) -> Iterator[Answer]:
        """Yield the answer to each prompt as it ends; `rooms` has the most tokens of each."""
        waiting, answering = deque(range(len(prompts))), dict[int, _Open]()
        while waiting or answering:
            free = [slot for slot in range(self.slots) if slot not in answering]
            # A pass over a few tokens takes as long as one over many: prompts wait until several can be read at once.
            if waiting and len(free) * 4 >= self.slots:
                begun = [(slot, waiting.popleft()) for slot in free[: len(waiting)]]
                self._read([(slot, prompts[place]) for slot, place in begun])
                answering.update({slot: _Open(place, rooms[place]) for slot, place in begun})
            newest = self.tokens.tolist()
            for slot, answer in list(answering.items()):
                ended = newest[slot] in self.stop
                if not ended:
                    answer.tokens.append(newest[slot])
                if ended or len(answer.tokens) >= answer.room:
                    del answering[slot]
                    yield Answer(answer.place, answer.tokens, ended)
            if answering:
                self._step()

    def stream(self, prompt: Sequence[int], room: int) -> Iterator[int]:
        """Yield the tokens of the answer to one prompt as the model finds them, without the one that ends it."""
        self._read([(0, prompt)])
        for written in range(1, room + 1):
            token = int(self.tokens[0])
            if token in self.stop:
                return
            yield token
            if written < room:
                self._step()

    def _read(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read prompts into their slots, and find the first token of each answer."""
        part: list[tuple[int, Sequence[int]]] = []
        for slot, prompt in prompts:
            if part and sum(len(ids) for _, ids in part) + len(prompt) > READ_AT_ONCE:
                self._read_row(part)
                part = []
            part.append((slot, prompt))
        self._read_row(part)

    def _read_row(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        device = self.tokens.device
        sizes = torch.tensor([len(ids) for _, ids in prompts])
        slots = torch.tensor([slot for slot, _ in prompts])
        ids = torch.tensor([token for _, ids in prompts for token in ids], device=device)
        positions = torch.cat([torch.arange(size) for size in sizes.tolist()]).to(device)
        layout = PackedLayout.from_lengths(tuple(sizes.tolist()), device)
        slot_of_token, within_prompts = slots.repeat_interleave(sizes).to(device), packed_attention(layout)

        def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> tuple[Tensor, attention.Backward]:
            self.cache.keys[layer.index][slot_of_token, positions] = k
            self.cache.values[layer.index][slot_of_token, positions] = v
            return within_prompts(layer, q, k, v, out)

        hidden = self._layers(ids, Batch(positions, self.tables, attend))
        slots = slots.to(device)
        self.tokens[slots] = self._pick(hidden[sizes.to(device).cumsum(0) - 1])
        self.cache.lengths[slots] = sizes.to(device)

    def _step(self) -> None:
        """Read the newest token of every slot, and find the next. What empty slots hold does not matter."""
        if not self.tokens.is_cuda:
            self._advance()
            return
        if self._graph is None:
            self._graph = self._recorded()
        self._graph.replay()

    def _recorded(self) -> Any:
        """The pass for one token as a CUDA graph."""
        before = self.tokens.clone(), self.cache.lengths.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles the kernels, which recording cannot
            self._advance()
        torch.cuda.current_stream().wait_stream(side)
        self.tokens.copy_(before[0])
        self.cache.lengths.copy_(before[1])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        return graph

    def _advance(self) -> None:
        def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> tuple[Tensor, attention.Backward]:
            keys, values = self.cache.keys[layer.index], self.cache.values[layer.index]
            attend_to_cache(q, k, v, keys, values, self.cache.lengths, out, layer.form.attention)
            return out, _no_backward

        hidden = self._layers(self.tokens, Batch(self.cache.lengths, self.tables, attend))
        self.tokens.copy_(self._pick(hidden))
        self.cache.lengths.add_(1).clamp_(max=self.capacity - 1)

    def _layers(self, ids: Tensor, batch: Batch) -> Tensor:
        """ids [tokens] -> hidden states [tokens, hidden]."""
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            hidden = self.model.embed(ids)
            for layer in self.model.layers:
                hidden, _ = layer.forward(hidden, batch)
        return hidden

    def _pick(self, hidden: Tensor) -> Tensor:
        """The next token of each row of hidden states."""
        normed = torch.empty_like(hidden)
        kernels.rms_norm(hidden, self.model.norm, self.model.eps, normed)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            logits = (normed @ self.model.head.t()).float() * self.model.logit_scale
        if not self.temperature:
            return logits.argmax(-1)
        likely, ids = logits.topk(min(MOST_LIKELY, logits.shape[-1]))
        chances = (likely / self.temperature).softmax(-1)
        # the largest of p / e, with e exponentially distributed, is a draw from p, and needs no wait for the GPU
        drawn = (chances / torch.empty_like(chances).exponential_()).argmax(-1, keepdim=True)
        return ids.gather(-1, drawn)[:, 0]


def attend_to_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    out: Tensor,
    form: attention.Form | None = None,
) -> None:
    """Store the key and value of one token per slot, and let its query attend to all tokens of the slot so far.

    q, out [slots, heads, dim]; k, v [slots, key heads, dim]; keys, values [slots, capacity, key heads, dim];
    lengths [slots]: the tokens before this one.
    """
    form = form or attention.Form()
    if q.is_cuda:
        from train.fused import decoding_triton

        window = keys.shape[1] if form.window is None else form.window
        decoding_triton.attend_to_cache(q, k, v, keys, values, lengths, out, form.scale_of(q), window)
        return
    slots = torch.arange(len(q), device=q.device)
    keys[slots, lengths], values[slots, lengths] = k, v
    places = torch.arange(keys.shape[1], device=q.device)
    seen = places <= lengths[:, None]
    if form.window is not None:
        seen &= places > lengths[:, None] - form.window
    found = functional.scaled_dot_product_attention(
        q[:, :, None],
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=seen[:, None, None],
        enable_gqa=True,
        scale=form.scale,
    )
    out.copy_(found[:, :, 0])


def _no_backward(*_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    raise RuntimeError("answers have no gradients")
