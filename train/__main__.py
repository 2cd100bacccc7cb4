"""LoRA fine-tuning from one configuration file, alone or under an agent or torchrun:

    python -m train --config train.json
    torchrun --nproc-per-node 2 -m train --config train.json

Reads top to bottom: load, adapt, data, evaluate, train, evaluate, save. Exit status: 0 done; 75 stopped on request with
a checkpoint; 2 a mistake in what was asked; anything else a failure, told in errors/rank-<R>.json.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from train.config import load
from train.training.result import evaluation_of, samples_of
from train.training.start import agree, check, clean, cut_metrics, kept_steps, tell_changes, where_to_start

STARTED = time.time()

from train import dist  # noqa: E402
from train.config import EXIT_STOPPED, TrainConfig  # noqa: E402
from train.dist import World  # noqa: E402
from train.errors import UserError, report  # noqa: E402
from train.rundir import RunDir, write_atomic, write_json  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, help="train.json of a run directory")
    options = parser.parse_args(arguments)
    config: TrainConfig | None = None
    rundir: RunDir | None = None
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = _read(options.config)
        world = dist.from_environment(config.device)
        rundir = RunDir(config.run_dir, node=world.node_rank, rank=world.rank)
        dist.prepare(world)
        check(config, world)
        status = train(config, world, rundir)
    except Exception as error:
        return report(error, rundir, config, rank)
    dist.stop()
    return status


def _read(path: str) -> TrainConfig:
    try:
        return load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def train(config: TrainConfig, world: World, rundir: RunDir) -> int:
    from train.memory import shares_itself
    from train.model import adapt, choose
    from train.model import load as models
    from train.model.base import family, family_at, local_directory
    from train.training import deepspeed

    # Load.
    clean(config, world, rundir)
    stage = config.train.zero_stage
    ds_config = deepspeed.read_ds_config(rundir.ds_config, config, world.world_size) if stage else None
    _phase(rundir, world, "model")
    choice = choose.choose_engine(config, family(config))
    if world.first:
        rundir.event("engine", engine=choice.engine, reason=choice.reason)
        print(f"engine {choice.engine}: {choice.reason}", flush=True)
    if shares_itself(choice.engine, stage) and not world.many:
        ds_config = None  # one rank has nobody to share with
    choose.import_first(choice)

    from train.data.dataset import Data
    from train.data.prompts import set_template
    from train.data.tokens import fingerprint

    data = Data(config, rundir)
    base = local_directory(config, rundir, data.texts)
    if world.local_rank == 0:
        data.prefetch(lambda: models.load_tokenizer(config, base))
    if dist.starts_early(world, engine=choice.engine, zero_stage=stage):
        dist.start(world, deepspeed=ds_config is not None)
    loaded = models.load(config, world, base, choice.engine, ds_config)
    dist.start(world, deepspeed=ds_config is not None)
    tokenizer = loaded.tokenizer
    set_template(tokenizer, config.data.chat_template)

    # Adapt.
    _phase(rundir, world, "adapter")
    model = adapt.adapt(config, loaded, base, family_at(base.directory))

    # Data.
    _phase(rundir, world, "data")
    train_part, eval_part = data.train(tokenizer), data.eval(tokenizer)
    # read now: the files may be others after hours of training
    records = eval_part.records if eval_part is not None and world.first else ()
    sampler = train_part.sampler(config.train.seed)
    total = config.train.max_steps or sampler.steps(config.train.epochs, config.train.global_batch_size)

    # The engine, and where an earlier start left off.
    from train.model import targets
    from train.training import adapter, checkpoint
    from train.training.checkpoint import Progress
    from train.training.evaluator import Evaluator, Interrupted, prediction_lines
    from train.training.loop import Loop
    from train.training.metrics_log import peak_memory
    from train.training.optimizer import trainable
    from train.training.strategy import build

    facts = {
        "seed": config.train.seed,
        "global_batch_size": config.train.global_batch_size,
        "total_steps": total,
        "lora.r": config.lora.r,
        "lora.alpha": config.lora.alpha,  # these three say what the weights of a checkpoint mean
        "lora.rslora": config.lora.rslora,
        "lora.init": config.lora.init,
        "data": {"sequences": len(train_part.tokens), "tokens": int(train_part.lengths.sum())},
        "trained_modules": targets.trained(name for name, _ in trainable(model)),
        "trained_parameters": sum(parameter.numel() for _, parameter in trainable(model)),
    }
    evaluated = fingerprint(eval_part.tokens) if eval_part is not None else None
    agree(world, {"data.train": fingerprint(train_part.tokens), "data.eval": evaluated, "steps": total})
    strategy = build(config, world, model, loaded.dtype, ds_config, choice.engine)

    def save_adapter(place: Any, state: Any) -> None:
        adapter.save(place, state, model, tokenizer)

    def save_checkpoint(progress: Progress) -> None:
        started = time.perf_counter()
        keep = config.train.keep_checkpoints
        checkpoint.save(rundir.checkpoints, strategy, world, progress, facts, save_adapter, keep)
        if world.first:
            rundir.event("checkpoint", step=progress.step, seconds=round(time.perf_counter() - started, 3))

    place = where_to_start(config, world, rundir)
    progress = checkpoint.restore(place, strategy, world, facts) or Progress(step=0)
    if world.first:
        rundir.result.unlink(missing_ok=True)  # not before: a start that is refused takes nothing from the one before
        if place is not None and progress.step:
            rundir.event("resumed", step=progress.step)
            print(f"resumed after step {progress.step}", flush=True)
            tell_changes(place, facts, rundir)
        cut_metrics(rundir, progress.step)

    evaluator = None
    if eval_part is not None:
        stop_asked = rundir.control("stop").exists
        evaluator = Evaluator(config, world, eval_part, strategy, model, tokenizer, stop_asked)
    first_step: list[float] = []
    loop = Loop(
        config=config,
        world=world,
        rundir=rundir,
        data=train_part,
        strategy=strategy,
        pad=tokenizer.pad_token_id,
        total=total,
        save=save_checkpoint,
        evaluate=evaluator.loss if evaluator else None,
        first_step_done=lambda: first_step.append(round(time.time() - STARTED, 3)),
    )
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    stopped = False
    try:
        # Evaluate before: once for a run, however often it is resumed.
        if config.eval.before and evaluator is not None:
            _phase(rundir, world, "evaluate_before")
            kept = rundir.cache / "evaluated-before.json"
            before = kept_steps(kept, world, evaluated)
            if before is None and progress.step == 0:
                before = evaluation_of(evaluator)
                if world.first and before is not None:
                    write_json(kept, {**before, "data": evaluated})

        # Train.
        _phase(rundir, world, "train", total_steps=total)
        progress, stopped = loop.run(progress)
        evaluates = config.eval.after and evaluator is not None
        stopped = stopped and (progress.step < total or evaluates)  # behind the last step nothing else is left

        # Evaluate after.
        if not stopped and config.eval.after and evaluator is not None:
            _phase(rundir, world, "evaluate_after")
            after = evaluation_of(evaluator)
    except Interrupted:
        stopped = True
        save_checkpoint(progress)
        dist.wait(world)
        rundir.withdraw("stop")

    # Save.
    _phase(rundir, world, "save")
    reloads: bool | None = None
    state = strategy.gather()
    if world.first and not stopped:
        adapter.replace(rundir.adapter, state, model, tokenizer)
    if config.verify_adapter and not stopped:
        reloads = adapter.reloads(rundir.adapter, config, world, base, strategy, model, loaded.dtype)
    if world.first:
        if after is not None:
            write_atomic(rundir.predictions, prediction_lines(records, after["answers"]))
        write_json(
            rundir.result,
            {
                "schema": 1,
                "state": "stopped" if stopped else "succeeded",
                "steps": progress.step,
                "loss_first": progress.loss_first,
                "loss_last": progress.loss_last,
                "grad_norm_min": progress.grad_norm_min,
                "world_size": world.world_size,
                "adapter": None if stopped else str(rundir.adapter),
                "adapter_reloads": reloads,
                "seconds": round(time.time() - STARTED, 3),
                "seconds_to_first_step": first_step[0] if first_step else None,
                "training_seconds": round(progress.seconds, 3),
                "peak_memory_bytes": {"predicted": config.predicted_peak_bytes, "measured": peak_memory(world)},
                "tokens": progress.tokens,
                "data": data.summary,
                "eval": {"before": before and before["scores"], "after": after and after["scores"]},
                "samples": samples_of(config, records, before, after),
                "engine": choice.engine,
                "engine_reason": choice.reason,
            },
        )
    dist.wait(world)
    return EXIT_STOPPED if stopped else 0


def _phase(rundir: RunDir, world: World, name: str, **facts: Any) -> None:
    if world.first:
        rundir.event("phase", name=name, **facts)


if __name__ == "__main__":
    dist.leave(main())
