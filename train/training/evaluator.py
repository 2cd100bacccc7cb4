"""Measure a model on held-out records: its loss and its answers, spread over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from train import dist
from train.answers.fused_answers import FusedAnswers
from train.answers.generation import answers_and_ends
from train.answers.metrics import measured, score
from train.config import TrainConfig
from train.data.batches import collate
from train.data.dataset import Part
from train.data.prompts import stop_ids
from train.data.schedule import spread
from train.dist import World
from train.errors import UserError
from train.training.loss import Autocast, inference
from train.training.strategy import Inference

BATCH_SIZE = 16
"""What `eval.batch_size: auto` means for padded batches."""
_Answer = Callable[[Sequence[Sequence[int]], Callable[[int], None]], list[tuple[str, bool]]]
"""(prompts, called with the number of answers so far) -> (answer, whether the model has ended it) of each prompt."""


class Interrupted(Exception):
    """A stop was requested during an evaluation. Every rank raises it at the same batch."""


@dataclass(frozen=True)
class Evaluation:
    scores: dict[str, Any]
    """{"loss", "records", "accuracy", <metric>: value, "tasks"}; the loss is None if it is not finite."""
    answers: list[str]
    """One per record of data.eval that has an answer: Part.asked."""

    def __str__(self) -> str:
        loss = math.nan if self.scores["loss"] is None else self.scores["loss"]
        right = self.scores.get("accuracy")
        return f"loss {loss:.4f}" + (f"  accuracy {right:.3f}" if right is not None else "")


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
        places = zip(self.part.asked, found, strict=True)
        unended = sum(not ended and self._fits(place) for place, (_, ended) in places)
        return Evaluation({**self.scored(answers, loss), "unended": unended}, answers)

    def _fits(self, place: int) -> bool:
        """Whether the expected answer of a record, with its end, is no longer than eval.max_new_tokens."""
        tokens = self.part.tokens
        answer = len(tokens.sequence(place)[0]) - tokens.prompt_size(place)
        return answer <= self.config.eval.max_new_tokens

    def measure(self, records: int | None, metric: str | None) -> dict[str, float]:
        """The loss on this many records of data.eval (None: all) and, if a metric of answers is wanted, its value on
        eval.scored_records of them, on every rank (a collective)."""
        found = {"loss": self.loss(records)}
        if metric in (None, "loss"):
            return found
        asked, wanted = self.part.asked, self.config.eval.scored_records
        if not asked:
            raise UserError(
                f"eval.keep_best: {metric} is of answers, and data.eval has documents only",
                "set eval.keep_best: loss",
                code="ZL-PLAN-01",
            )
        count = min(wanted, len(asked))
        places = [asked[place * len(asked) // count] for place in range(count)]
        given = self._answers(lambda done, total: None, places)
        pairs = [(self.part.records[place].answer, text) for place, (text, _) in zip(places, given or (), strict=False)]
        return {**found, metric: float(dist.share(self.world, measured(metric, pairs) if pairs else 0.0))}

    def _sample(self, records: int | None) -> list[int]:
        """This many places of data.eval, spread over all of it; None: all."""
        everything = len(self.part.tokens)
        wanted = min(records or everything, everything)
        return [place * everything // wanted for place in range(wanted)]

    def loss(self, records: int | None = None) -> float:
        """Cross entropy per labeled token over data.eval, or over this many records of it (a collective)."""
        sample = self._sample(records)
        shares = spread(len(sample), self.world.world_size, self._batch_size)[self.world.rank]
        total, count = 0.0, 0.0
        with self._evaluating(generating=False):
            for places in shares:
                self._check_for_stop()
                share = [sample[place] for place in places]
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

    def _answers(
        self, answered: Callable[[int, int], None], places: Sequence[int] | None = None
    ) -> list[tuple[str, bool]] | None:
        """(the model's answer, whether it ended) for these records of data.eval, or all, on rank 0 (a collective)."""
        tokens, world = self.part.tokens, self.world
        places = self.part.asked if places is None else places
        if not places:
            return [] if world.first else None
        # Prompts of similar lengths share a batch, which saves padding. The order is undone at the end.
        order = sorted(places, key=lambda i: -tokens.prompt_size(i))
        given: dict[int, tuple[str, bool]] = {}
        with self._evaluating(generating=True):
            answer, at_once = self._answering(tokens.prompt_size(order[0]))
            for share in spread(len(order), world.world_size, at_once)[world.rank]:
                self._check_for_stop()
                indices = [order[place] for place in share]
                before = len(given)

                def wrote(count: int, before: int = before) -> None:
                    answered(min((before + count) * world.world_size, len(order)), len(order))

                texts = answer([tokens.prompt(index) for index in indices or [order[-1]]], wrote)
                given.update(zip(indices, texts, strict=False))
                wrote(len(indices))
        collected = dist.collect(world, given)
        if collected is None:
            return None
        everything = {index: text for part in collected for index, text in part.items()}
        return [everything[index] for index in places]

    def _answering(self, longest: int) -> tuple[_Answer, int]:
        """What answers prompts of at most this many tokens, and how many of them at a time."""
        stop, options = stop_ids(self.tokenizer, self.model.config), self.config.eval
        fused = self.strategy.loss
        if getattr(fused, "writes_answers", False):
            slots = None if options.batch_size == "auto" else options.batch_size
            found = FusedAnswers(
                fused,
                self.tokenizer,
                longest=longest,
                max_new_tokens=options.max_new_tokens,
                stop=stop,
                slots=slots,
            )
            return found, found.at_once

        def answer(prompts: Sequence[Sequence[int]], _wrote: Callable[[int], None]) -> list[tuple[str, bool]]:
            return answers_and_ends(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=options.max_new_tokens,
                stop=stop,
                synced=self.config.train.zero_stage == 3 and self.world.many,
            )

        return answer, self._batch_size

    @property
    def _batch_size(self) -> int:
        """Records of a padded batch."""
        return BATCH_SIZE if self.config.eval.batch_size == "auto" else self.config.eval.batch_size

    def scored(self, answers: list[str], loss: float) -> dict[str, Any]:
        """The scores of an Evaluation."""
        records = [self.part.records[place] for place in self.part.asked]
        pairs = [(record.answer, given) for record, given in zip(records, answers, strict=True)]
        known = loss if math.isfinite(loss) else None  # JSON has no other numbers
        return {"loss": known, **score(pairs, [record.task for record in records])}

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
