"""How the model does on data.eval: its loss, and the answers it gives, spread over the ranks.

    python -m train.evaluate --run-dir RUN [--data FILE] [--out DIR]     a finished (or stopped) run's adapter, again

writes scores.json and predictions.jsonl to DIR (default: RUN/evaluations/<name of the data>); also under torchrun.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train import dist
from train.batches import collate
from train.config import TrainConfig
from train.dataset import Part
from train.dist import World
from train.engine import Engine
from train.errors import UserError, report
from train.generate import answer_batch, stop_ids
from train.metrics import score
from train.records import Record
from train.rundir import RunDir, write_atomic, write_json
from train.schedule import spread


class Interrupted(Exception):
    """A stop was asked for in the middle of an evaluation; raised by every rank at the same batch."""


@dataclass(frozen=True)
class Evaluator:
    config: TrainConfig
    world: World
    part: Part
    engine: Engine
    model: Any
    tokenizer: Any
    stop_asked: Callable[[], bool]

    def loss(self) -> float:
        """Cross entropy a labelled token over all of data.eval (a collective)."""
        shares = spread(len(self.part.tokens), self.world.world_size, self.config.eval.batch_size)[self.world.rank]
        total, count = 0.0, 0.0
        with _inference(self.engine, self.model, generating=False), self.engine.evaluation():
            for share in shares:
                self._look()
                batch = collate(
                    self.part.tokens,
                    share or [0],  # every rank takes every step
                    pad=self.tokenizer.pad_token_id,
                    multiple=1,
                    device=self.world.device,
                )
                value = float(self.engine.loss(**batch))
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
        with _inference(self.engine, self.model, generating=True), self.engine.evaluation():
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
        asked = dist.sum_over_ranks(self.world, [float(self.stop_asked())])
        if asked[0]:
            raise Interrupted


class _inference:
    """Evaluation mode of the model, and back; Unsloth on a GPU has faster kernels for generation."""

    def __init__(self, engine: Engine, model: Any, *, generating: bool) -> None:
        self.module = engine.loss
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


def prediction_lines(records: Sequence[Record], answers: Sequence[str]) -> str:
    """predictions.jsonl: one object a record."""
    lines = [
        {"prompt": question(record), "expected": record.answer, "given": given, "task": record.task}
        for record, given in zip(records, answers, strict=True)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def question(record: Record) -> str:
    """The last thing that the user said."""
    return next((text for role, text in reversed(record.messages) if role == "user"), "")


# An adapter on its own ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Still:
    """What an evaluation needs of an engine, for a model that is not trained."""

    loss: Any
    world: World
    dtype: torch.dtype

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        kind = self.world.device.partition(":")[0]
        half = nullcontext() if self.dtype == torch.float32 else torch.autocast(kind, dtype=self.dtype)
        with torch.no_grad(), half:
            yield


def evaluate(config: TrainConfig, world: World, rundir: RunDir, adapter: Path) -> tuple[dict[str, Any], str] | None:
    """(scores, predictions) of an adapter on config.data.eval, on rank 0 (a collective). Raises UserError."""
    from peft import PeftModel

    from train import model as models
    from train.basemodel import local_directory
    from train.dataset import Data
    from train.loss import AnswerLoss
    from train.tokens import set_template

    data = Data(config, rundir)
    base = local_directory(config, rundir, data.texts)
    dist.start(world, deepspeed=False)
    loaded = models.load(config, world, base, "peft", None)
    set_template(loaded.tokenizer, config.data.chat_template)
    model = PeftModel.from_pretrained(loaded.model, adapter)
    part = data.eval(loaded.tokenizer)
    assert part is not None  # _for_evaluation looked
    loss = AnswerLoss(model, fused=False)
    still: Any = Still(loss, world, loaded.dtype)
    evaluator = Evaluator(config, world, part, still, model, loaded.tokenizer, stop_asked=lambda: False)
    value = evaluator.loss()
    answers = evaluator.answers()
    if answers is None:
        return None
    return evaluator.scored(answers, value), prediction_lines(part.records, answers)


def main(arguments: list[str] | None = None) -> int:
    from train import config as schema
    from train.generate import any_device, newest_adapter

    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data", help="records to evaluate on; default: the run's data.eval")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--max-records", type=int)
    options = parser.parse_args(arguments)
    try:
        device = any_device() if options.device == "auto" else options.device
        world = dist.from_environment(device)
        dist.prepare(world)
        dist.check_device(world)
        rundir = RunDir(options.run_dir, node=world.node_rank, rank=world.rank)
        adapter = newest_adapter(rundir.path)
        if not (adapter / "adapter_config.json").is_file():
            raise UserError(f"{rundir.path} has no adapter yet", "a run has one after its first checkpoint")
        config = _for_evaluation(schema.load(rundir.path / "train.json"), options, world, device)
        found = evaluate(config, world, rundir, adapter)
        if found is not None:
            scores, predictions = found
            place = options.out or rundir.evaluations / Path(options.data or "eval").stem
            place.mkdir(parents=True, exist_ok=True)
            write_atomic(place / "predictions.jsonl", predictions)
            facts = {"schema": 1, "adapter": str(adapter), "data": config.data.eval}
            write_json(place / "scores.json", {**facts, **scores})
            loss = math.nan if scores["loss"] is None else scores["loss"]
            print(f"loss {loss:.4f}  accuracy {scores['accuracy']:.3f}  {place}", file=sys.stderr)
    except Exception as error:
        return report(error, None, None, int(os.environ.get("RANK", "0")))
    dist.stop()
    return 0


def _for_evaluation(config: TrainConfig, options: argparse.Namespace, world: World, device: str) -> TrainConfig:
    from msgspec.structs import replace

    data = config.data
    if options.data:
        hub = options.data.startswith("hub:")
        data = replace(data, eval=options.data if hub else str(Path(options.data).resolve()))
    if not data.eval:
        raise UserError("this run has no data.eval", "name a file of records with --data")
    moved = device != config.device
    return replace(
        config,
        device=device,
        world_size=world.world_size,
        data=data,
        eval=replace(config.eval, max_records=options.max_records or config.eval.max_records),
        model=replace(config.model, dtype="auto") if moved else config.model,
        train=replace(config.train, zero_stage=0, engine="peft", gradient_checkpointing=False),
    )


if __name__ == "__main__":
    dist.leave(main())
