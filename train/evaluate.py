"""Evaluate a run's adapter on data.eval, or on other records.

    python -m train.evaluate --run-dir RUN [--data FILE] [--out DIR]

writes scores.json and predictions.jsonl to DIR (default: RUN/evaluations/<name of the data>). Works on one rank or, by
torchrun, on several.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from train.rundir import bytecode

bytecode.keep()  # before the imports of torch below

from msgspec.structs import replace

from train import dist
from train.answers.fused_answers import fused_for_answers
from train.answers.trained import (
    TrainedAdapter,
    adapter_tokenizer,
    add_checkpoint_option,
    device_and_world,
    find_adapter,
)
from train.config import HUBS, TrainConfig
from train.data.dataset import Data
from train.dist import World
from train.errors import UserError, report
from train.model import limits
from train.model.base import local_directory
from train.model.load import load_for_training, load_tokenizer, weights_counted
from train.rundir.counter import Lines, doing
from train.rundir.run_files import RunDir, write_atomic, write_json
from train.training.evaluator import Evaluator, InferenceOnly
from train.training.loss import AnswerLoss, autocast_for
from train.training.result import prediction_lines


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        device, world = device_and_world(options.device)
        rundir = RunDir(options.run_dir, node=world.node_rank, rank=world.rank, is_over=True)
        adapter = find_adapter(rundir.path, options.checkpoint)
        config = evaluation_config(adapter.config, options, world, device)
        place = options.out or rundir.evaluations / Path(options.data or "eval").stem
        evaluate(config, world, rundir, adapter, place)
    except Exception as error:
        return report(error, None, None, int(os.environ.get("RANK", "0")))
    dist.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data", help="records to evaluate on; default: the run's data.eval")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--max-records", type=int)
    add_checkpoint_option(parser)
    return parser


def evaluation_config(config: TrainConfig, options: argparse.Namespace, world: World, device: str) -> TrainConfig:
    """The run's configuration, changed to evaluate on this device and these records. Raises UserError."""
    data = config.data
    if options.data:
        hub = options.data.startswith(HUBS)
        data = replace(data, eval=options.data if hub else str(Path(options.data).resolve()))
    if not data.eval:
        raise UserError("this run has no data.eval", "name a file of records with --data", code="ZL-DATA-03")
    return replace(
        config,
        device=device,
        world_size=world.world_size,
        data=data,
        eval=replace(config.eval, max_records=options.max_records or config.eval.max_records),
        # the dtype of training may not exist on another kind of device
        model=config.model if device == config.device else replace(config.model, dtype="auto"),
        train=replace(config.train, zero_stage=0, engine="peft", gradient_checkpointing=False),
    )


def evaluate(config: TrainConfig, world: World, rundir: RunDir, adapter: TrainedAdapter, place: Path) -> None:
    """Measure the adapter on config.data.eval, and write what was found to `place` (a collective). Raises UserError."""
    with Lines() if world.first else contextlib.nullcontext():
        evaluator = _evaluator(config, world, rundir, adapter)
        evaluation = evaluator.evaluate(doing("answering", "records"))
    if evaluation is None:  # rank 0 has it
        return
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / "predictions.jsonl", prediction_lines(evaluator.part, evaluation.answers))
    facts = {"schema": 1, "adapter": str(adapter.directory), "data": config.data.eval}
    write_json(place / "scores.json", {**facts, **evaluation.scores})
    print(f"{evaluation}  {place}", file=sys.stderr)


def _evaluator(config: TrainConfig, world: World, rundir: RunDir, adapter: TrainedAdapter) -> Evaluator:
    from peft import PeftModel

    counted = doing("loading the base model", "weights")
    data = Data(config, rundir)
    base = local_directory(config, rundir, data.texts)
    dist.start(world, deepspeed=False)
    tokenizer = load_tokenizer(config, base)
    limits.check(config, base, tokenizer, data.first_from)
    with weights_counted(counted):
        loaded = load_for_training(config, world, base, "peft", None, tokenizer)
    loaded.tokenizer.chat_template = adapter_tokenizer(adapter).chat_template
    model = PeftModel.from_pretrained(loaded.model, adapter.directory)
    doing("reading the records")
    part = data.eval(loaded.tokenizer)
    assert part is not None  # evaluation_config checked it
    loss = fused_for_answers(model) or AnswerLoss(model, fused=False)
    inference = InferenceOnly(loss, autocast_for(world, loaded.dtype))
    return Evaluator(config, world, part, inference, model, loaded.tokenizer, stop_requested=lambda: False)


if __name__ == "__main__":
    dist.leave(main())
