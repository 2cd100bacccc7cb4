"""Measure a model on held-out records: loss and answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from train import dist
from train.answers.generation import answer_batch, stop_ids
from train.answers.metrics import score
from train.config import TrainConfig
from train.data.batches import collate
from train.data.dataset import Part
from train.data.schedule import spread
from train.dist import World
from train.training.precision import Autocast, inference
from train.training.strategy import Inference


class Interrupted(Exception):
    """A stop was asked for in the middle of an evaluation; raised by every rank at the same batch."""


@dataclass(frozen=True)
class Evaluation:
    scores: dict[str, Any]
    answers: list[str]
    """One per record of data.eval."""


@dataclass(frozen=True)
class Evaluator:
    config: TrainConfig
    world: World
    part: Part
    strategy: Inference
    model: Any
    tokenizer: Any
    stop_requested: Callable[[], bool]

    def evaluate(self) -> Evaluation | None:
        """Loss and answers together, on rank 0; None elsewhere (a collective)."""
        loss = self.loss()
        answers = self.answers()
        if answers is None:
            return None
        scores = self.scored(answers, loss)
        print(f"evaluation  loss {loss:.4f}  accuracy {scores['accuracy']:.3f}", flush=True)
        return Evaluation(scores, answers)

    def loss(self) -> float:
        """Cross entropy a labelled token over all of data.eval (a collective)."""
        shares = spread(len(self.part.tokens), self.world.world_size, self.config.eval.batch_size)[self.world.rank]
        total, count = 0.0, 0.0
        with _inference(self.strategy, self.model, generating=False), self.strategy.evaluation():
            for share in shares:
                self._look()
                batch = collate(
                    self.part.tokens,
                    share or [0],  # every rank takes every step
                    pad=self.tokenizer.pad_token_id,
                    multiple=1,
                    device=self.world.device,
                )
                value = float(self.strategy.loss(**batch))
                total += value if share else 0.0
                count += float(self.part.loss_tokens[share].sum()) if share else 0.0
        total, count = dist.sum_over_ranks(self.world, [total, count])
        return total / count

    def answers(self) -> list[str] | None:
        """The model's answer to every record of data.eval, on rank 0 (a collective)."""
        tokens, options = self.part.tokens, self.config.eval
        # Prompts of like lengths together: little padding. The order is undone at the end.
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens.prompt(i)))
        shares = spread(len(order), self.world.world_size, options.batch_size)[self.world.rank]
        stop = stop_ids(self.tokenizer, self.model.config)
        given: dict[int, str] = {}
        with _inference(self.strategy, self.model, generating=True), self.strategy.evaluation():
            for share in shares:
                self._look()
                indices = [order[place] for place in share]
                texts = answer_batch(
                    self.model,
                    self.tokenizer,
                    [tokens.prompt(index) for index in indices or [order[-1]]],
                    max_new_tokens=options.max_new_tokens,
                    stop=stop,
                    synced=self.config.train.zero_stage == 3 and self.world.many,
                )
                given.update(zip(indices, texts, strict=False))
        collected = dist.collect(self.world, given)
        if collected is None:
            return None
        everything = {index: text for part in collected for index, text in part.items()}
        return [everything[index] for index in range(len(tokens))]

    def scored(self, answers: list[str], loss: float) -> dict[str, Any]:
        """{"loss", "records", "accuracy", "tasks"}; a loss that is no number is None."""
        pairs = [(record.answer, given) for record, given in zip(self.part.records, answers, strict=True)]
        known = loss if math.isfinite(loss) else None  # JSON has no other numbers
        return {"loss": known, **score(pairs, [record.task for record in self.part.records])}

    def _look(self) -> None:
        asked = dist.sum_over_ranks(self.world, [float(self.stop_requested())])
        if asked[0]:
            raise Interrupted


class _inference:
    """Evaluation mode of the model, and back; Unsloth on a GPU has faster kernels for generation."""

    def __init__(self, strategy: Inference, model: Any, *, generating: bool) -> None:
        self.module = strategy.loss
        self.model = model
        self.switch = generating and torch.cuda.is_available() and hasattr(model, "for_inference")

    def __enter__(self) -> None:
        self.module.eval()
        if self.switch:
            self.model.for_inference()

    def __exit__(self, *details: Any) -> None:
        if self.switch:
            self.model.for_training()
        self.module.train()


@dataclass(frozen=True)
class InferenceOnly:
    """Evaluates a model that is not trained."""

    loss: Any
    autocast: Autocast

    def evaluation(self) -> AbstractContextManager[None]:
        return inference(self.autocast)
