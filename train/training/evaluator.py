"""Measure a model on held-out records: its loss and its answers, spread over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from train import dist
from train.answers.generation import answers_and_ends, stop_ids
from train.answers.metrics import score
from train.config import TrainConfig
from train.data.batches import collate
from train.data.dataset import Part
from train.data.schedule import spread
from train.dist import World
from train.training.precision import Autocast, inference
from train.training.strategy import Inference


class Interrupted(Exception):
    """A stop was requested during an evaluation. Every rank raises it at the same batch."""


@dataclass(frozen=True)
class Evaluation:
    scores: dict[str, Any]
    """{"loss", "records", "accuracy", <metric>: value, "tasks"}; the loss is None if it is not finite."""
    answers: list[str]
    """One per record of data.eval."""

    def __str__(self) -> str:
        loss = math.nan if self.scores["loss"] is None else self.scores["loss"]
        return f"loss {loss:.4f}  accuracy {self.scores['accuracy']:.3f}"


@dataclass(frozen=True)
class Evaluator:
    config: TrainConfig
    world: World
    part: Part
    strategy: Inference
    model: Any
    tokenizer: Any
    stop_requested: Callable[[], bool]

    def evaluate(self, answered: Callable[[int, int], None] = lambda done, total: None) -> Evaluation | None:
        """Loss and answers together, on rank 0; None elsewhere (a collective).

        `answered` is called on each rank with (records answered, records), as if all ranks were as far as this one.
        """
        loss, found = self.loss(), self._answers(answered)
        if found is None:
            return None
        answers = [text for text, _ in found]
        unended = sum(not ended and self._fits(place) for place, (_, ended) in enumerate(found))
        return Evaluation({**self.scored(answers, loss), "unended": unended}, answers)

    def _fits(self, place: int) -> bool:
        """Whether the expected answer of a record, with its end, is no longer than eval.max_new_tokens."""
        tokens = self.part.tokens
        answer = len(tokens.sequence(place)[0]) - tokens.prompt_size(place)
        return answer <= self.config.eval.max_new_tokens

    def loss(self, records: int | None = None) -> float:
        """Cross entropy per labeled token over data.eval, or over this many records of it (a collective)."""
        everything = len(self.part.tokens)
        wanted = min(records or everything, everything)
        shares = spread(wanted, self.world.world_size, self.config.eval.batch_size)[self.world.rank]
        total, count = 0.0, 0.0
        with self._evaluating(generating=False):
            for places in shares:
                self._check_for_stop()
                share = [place * everything // wanted for place in places]
                batch = collate(
                    self.part.tokens,
                    share or [0],  # a rank without a share takes part with any record: each pass is a collective
                    pad=self.tokenizer.pad_token_id,
                    multiple=1,
                    device=self.world.device,
                )
                value = float(self.strategy.loss(**batch))
                total += value if share else 0.0
                count += float(self.part.loss_tokens[share].sum()) if share else 0.0
        total, count = dist.sum_over_ranks(self.world, [total, count])
        return total / count

    def _answers(self, answered: Callable[[int, int], None]) -> list[tuple[str, bool]] | None:
        """(the model's answer, whether it ended) for every record of data.eval, on rank 0 (a collective)."""
        tokens, options = self.part.tokens, self.config.eval
        # Prompts of similar lengths share a batch, which saves padding. The order is undone at the end.
        order = sorted(range(len(tokens)), key=lambda i: -tokens.prompt_size(i))
        shares = spread(len(order), self.world.world_size, options.batch_size)[self.world.rank]
        stop = stop_ids(self.tokenizer, self.model.config)
        given: dict[int, tuple[str, bool]] = {}
        with self._evaluating(generating=True):
            for share in shares:
                self._check_for_stop()
                indices = [order[place] for place in share]
                texts = answers_and_ends(
                    self.model,
                    self.tokenizer,
                    [tokens.prompt(index) for index in indices or [order[-1]]],
                    max_new_tokens=options.max_new_tokens,
                    stop=stop,
                    synced=self.config.train.zero_stage == 3 and self.world.many,
                )
                given.update(zip(indices, texts, strict=False))
                answered(min(len(given) * self.world.world_size, len(order)), len(order))
        collected = dist.collect(self.world, given)
        if collected is None:
            return None
        everything = {index: text for part in collected for index, text in part.items()}
        return [everything[index] for index in range(len(tokens))]

    def scored(self, answers: list[str], loss: float) -> dict[str, Any]:
        """The scores of an Evaluation."""
        pairs = [(record.answer, given) for record, given in zip(self.part.records, answers, strict=True)]
        known = loss if math.isfinite(loss) else None  # JSON has no other numbers
        return {"loss": known, **score(pairs, [record.task for record in self.part.records])}

    @contextmanager
    def _evaluating(self, *, generating: bool) -> Iterator[None]:
        """Put the model into evaluation mode for a while; Unsloth on a GPU has faster kernels for generation."""
        switch = generating and torch.cuda.is_available() and hasattr(self.model, "for_inference")
        self.strategy.loss.eval()
        if switch:
            self.model.for_inference()
        try:
            with self.strategy.evaluation():
                yield
        finally:
            if switch:
                self.model.for_training()
            self.strategy.loss.train()

    def _check_for_stop(self) -> None:
        requested = dist.sum_over_ranks(self.world, [float(self.stop_requested())])
        if requested[0]:
            raise Interrupted


@dataclass(frozen=True)
class InferenceOnly:
    """What an Evaluator needs of a strategy, for a model that is not trained."""

    loss: Any
    autocast: Autocast

    def evaluation(self) -> AbstractContextManager[None]:
        return inference(self.autocast)
