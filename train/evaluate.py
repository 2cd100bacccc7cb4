"""How the model does on data.eval: its loss, and the answers it gives, spread over the ranks.

    python -m train.evaluate --run-dir RUN [--data FILE] [--out DIR]     a finished (or stopped) run's adapter, again

writes scores.json and predictions.jsonl to DIR (default: RUN/evaluations/<name of the data>); also under torchrun.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError, report
from train.rundir import RunDir, write_atomic, write_json
from train.training.evaluator import Evaluator, InferenceOnly
from train.training.precision import autocast_for
from train.training.result import prediction_lines

# An adapter on its own ------------------------------------------------------------------------------------------------


def evaluate(config: TrainConfig, world: World, rundir: RunDir, adapter: Path) -> tuple[dict[str, Any], str] | None:
    """(scores, predictions) of an adapter on config.data.eval, on rank 0 (a collective). Raises UserError."""
    from peft import PeftModel

    from train.data.dataset import Data
    from train.data.prompts import set_template
    from train.model import load
    from train.model.base import local_directory
    from train.training.loss import AnswerLoss

    data = Data(config, rundir)
    base = local_directory(config, rundir, data.texts)
    dist.start(world, deepspeed=False)
    loaded = load.load(config, world, base, "peft", None)
    set_template(loaded.tokenizer, config.data.chat_template)
    model = PeftModel.from_pretrained(loaded.model, adapter)
    part = data.eval(loaded.tokenizer)
    assert part is not None  # _for_evaluation looked
    inference = InferenceOnly(AnswerLoss(model, fused=False), autocast_for(world, loaded.dtype))
    evaluator = Evaluator(config, world, part, inference, model, loaded.tokenizer, stop_requested=lambda: False)
    value = evaluator.loss()
    answers = evaluator.answers()
    if answers is None:
        return None
    return evaluator.scored(answers, value), prediction_lines(part.records, answers)


def main(arguments: list[str] | None = None) -> int:
    from train import config as schema
    from train.answers.trained import any_device, newest_adapter

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
