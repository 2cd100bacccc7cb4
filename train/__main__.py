"""LoRA fine-tuning from one configuration file, alone or under an agent or torchrun:

    python -m train --config train.json
    torchrun --nproc-per-node 2 -m train --config train.json

Reads top to bottom: load, adapt, data, evaluate, train, evaluate, save. Exit status: 0 done; 75 stopped on request with
a checkpoint; 2 a mistake in what was asked; anything else a failure, told in errors/rank-<R>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

STARTED = time.time()

from train import config as schema  # noqa: E402 - the clock starts before the imports
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
        return schema.load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def check(config: TrainConfig, world: World) -> None:
    """What can be seen to be wrong before anything is loaded. Raises UserError."""
    numbers = config.train
    if config.world_size != world.world_size:
        raise UserError(f"this run was planned for {config.world_size} ranks, and {world.world_size} were started")
    product = numbers.micro_batch_size * numbers.gradient_accumulation_steps * world.world_size
    if product != numbers.global_batch_size:
        raise UserError(
            f"global_batch_size {numbers.global_batch_size} is not micro_batch_size {numbers.micro_batch_size} x "
            f"gradient_accumulation_steps {numbers.gradient_accumulation_steps} x {world.world_size} ranks = {product}"
        )
    if not config.data.train:
        raise UserError("data.train names no file of records")
    dist.check_device(world)
    from train import model as models
    from train.basemodel import family

    models.check(config, family(config))


def train(config: TrainConfig, world: World, rundir: RunDir) -> int:
    from train import model as models
    from train.basemodel import family, family_at, local_directory
    from train.memory import shares_itself

    # Load.
    _clean(config, world, rundir)
    stage = config.train.zero_stage
    ds_config = models.read_ds_config(rundir.ds_config, config, world.world_size) if stage else None
    _phase(rundir, world, "model")
    choice = models.choose_engine(config, family(config))
    if world.first:
        rundir.event("engine", engine=choice.engine, reason=choice.reason)
        print(f"engine {choice.engine}: {choice.reason}", flush=True)
    if shares_itself(choice.engine, stage) and not world.many:
        ds_config = None  # one rank has nobody to share with
    models.import_first(choice)

    from train.dataset import Data
    from train.tokens import fingerprint, set_template

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
    model = models.adapt(config, loaded, base, family_at(base.directory))

    # Data.
    _phase(rundir, world, "data")
    train_part, eval_part = data.train(tokenizer), data.eval(tokenizer)
    # read now: the files may be others after hours of training
    records = eval_part.records if eval_part is not None and world.first else ()
    sampler = train_part.sampler(config.train.seed)
    total = config.train.max_steps or sampler.steps(config.train.epochs, config.train.global_batch_size)

    # The engine, and where an earlier start left off.
    from train import adapter, checkpoint, modules
    from train.checkpoint import Progress
    from train.engine import build, trainable
    from train.evaluate import Evaluator, Interrupted, prediction_lines
    from train.loop import Loop, peak_memory

    facts = {
        "seed": config.train.seed,
        "global_batch_size": config.train.global_batch_size,
        "total_steps": total,
        "lora.r": config.lora.r,
        "lora.alpha": config.lora.alpha,  # these three say what the weights of a checkpoint mean
        "lora.rslora": config.lora.rslora,
        "lora.init": config.lora.init,
        "data": {"sequences": len(train_part.tokens), "tokens": int(train_part.lengths.sum())},
        "trained_modules": modules.trained(name for name, _ in trainable(model)),
        "trained_parameters": sum(parameter.numel() for _, parameter in trainable(model)),
    }
    evaluated = fingerprint(eval_part.tokens) if eval_part is not None else None
    _agree(world, {"data.train": fingerprint(train_part.tokens), "data.eval": evaluated, "steps": total})
    engine = build(config, world, model, loaded.dtype, ds_config, choice.engine)

    def save_adapter(place: Any, state: Any) -> None:
        adapter.save(place, state, model, tokenizer)

    def save_checkpoint(progress: Progress) -> None:
        started = time.perf_counter()
        checkpoint.save(rundir.checkpoints, engine, world, progress, facts, save_adapter, config.train.keep_checkpoints)
        if world.first:
            rundir.event("checkpoint", step=progress.step, seconds=round(time.perf_counter() - started, 3))

    place = _where_to_start(config, world, rundir)
    progress = checkpoint.restore(place, engine, world, facts) or Progress(step=0)
    if world.first:
        rundir.result.unlink(missing_ok=True)  # not before: a start that is refused takes nothing from the one before
        if place is not None and progress.step:
            rundir.event("resumed", step=progress.step)
            print(f"resumed after step {progress.step}", flush=True)
            _tell_changes(place, facts, rundir)
        _cut_metrics(rundir, progress.step)

    evaluator = None
    if eval_part is not None:
        stop_asked = rundir.control("stop").exists
        evaluator = Evaluator(config, world, eval_part, engine, model, tokenizer, stop_asked)
    first_step: list[float] = []
    loop = Loop(
        config=config,
        world=world,
        rundir=rundir,
        data=train_part,
        engine=engine,
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
            before = _kept(kept, world, evaluated)
            if before is None and progress.step == 0:
                before = _evaluation(evaluator)
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
            after = _evaluation(evaluator)
    except Interrupted:
        stopped = True
        save_checkpoint(progress)
        dist.wait(world)
        rundir.withdraw("stop")

    # Save.
    _phase(rundir, world, "save")
    reloads: bool | None = None
    state = engine.gather()
    if world.first and not stopped:
        adapter.replace(rundir.adapter, state, model, tokenizer)
    if config.verify_adapter and not stopped:
        reloads = adapter.reloads(rundir.adapter, config, world, base, engine, model, loaded.dtype)
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
                "samples": _samples(config, records, before, after),
                "engine": choice.engine,
                "engine_reason": choice.reason,
            },
        )
    dist.wait(world)
    return EXIT_STOPPED if stopped else 0


def _clean(config: TrainConfig, world: World, rundir: RunDir) -> None:
    """Leftovers of an earlier start that could be taken for this one's."""
    from train import checkpoint

    rundir.error(world.rank).unlink(missing_ok=True)
    if world.first:
        rundir.path.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(rundir.checkpoints)


def _where_to_start(config: TrainConfig, world: World, rundir: RunDir) -> Any:
    """The newest complete checkpoint of this run, else the one it was told to start from; rank 0 alone looks."""
    from pathlib import Path

    from train import checkpoint

    if not world.first:
        return None
    own = checkpoint.complete(rundir.checkpoints)
    if not config.resume:
        if own:  # they would be taken for this start's, and its own be pruned for them
            raise UserError(f"resume is false, and {rundir.checkpoints} holds checkpoints of an earlier start")
        return None
    if own:
        return own[-1]
    if config.init_from is None:
        return None
    place = Path(config.init_from)
    if not (place / checkpoint.MARKER).is_file():
        raise UserError(f"init_from: {place} is not a complete checkpoint")
    return place


def _tell_changes(place: Any, facts: dict[str, Any], rundir: RunDir) -> None:
    """What a resumed run has otherwise than its checkpoint, and may."""
    from train import checkpoint

    total, planned = facts["total_steps"], checkpoint.recorded(place, "total_steps")
    if planned != total:
        rundir.event("length_changed", steps=total, planned=planned)
        print(f"the run has {total} steps now, not {planned}; its learning rate follows", flush=True)
    now, then = facts["data"], checkpoint.recorded(place, "data")
    if then not in (None, now):
        rundir.event("data_changed", now=now, then=then)
        print(
            f"warning: data.train has changed: {now['sequences']} sequences of {now['tokens']} tokens in all, and "
            f"{then['sequences']} of {then['tokens']} when the checkpoint was made; from here on every step sees other "
            "records than the run was to have",
            file=sys.stderr,
        )


def _cut_metrics(rundir: RunDir, step: int) -> None:
    """Forget the steps after the checkpoint: they are about to happen again."""
    if not rundir.metrics.exists():
        return
    kept = []
    for line in rundir.metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # a line cut off by a crash
            continue
    write_atomic(rundir.metrics, "".join(kept))


def _evaluation(evaluator: Any) -> dict[str, Any] | None:
    """{"scores", "answers"} on rank 0 (a collective)."""
    loss = evaluator.loss()
    answers = evaluator.answers()
    if answers is None:
        return None
    scores = evaluator.scored(answers, loss)
    print(f"evaluation  loss {loss:.4f}  accuracy {scores['accuracy']:.3f}", flush=True)
    return {"scores": scores, "answers": answers}


def _agree(world: World, seen: dict[str, Any]) -> None:
    """Raise UserError on a rank that sees other records than rank 0: it would compute something else, or fewer steps,
    and the others wait for it."""
    first = dist.share(world, seen)
    for name, value in seen.items():
        if value != first[name]:
            raise UserError(
                f"node {world.node_rank} has other records than node 0: {name} {value}, and {first[name]} there",
                "every node needs the same files of records, and the same model",
            )


def _kept(path: Any, world: World, data: str | None) -> dict[str, Any] | None:
    """What an earlier start measured before training on the same records, by rank 0's disk."""
    kept = json.loads(path.read_text(encoding="utf-8")) if world.first and path.exists() else {}
    return dist.share(world, kept if kept.get("data") == data else None)


def _samples(config: TrainConfig, records: Any, before: Any, after: Any) -> list[dict[str, Any]]:
    """A few answers for people to read, spread over the whole of data.eval."""
    from train.evaluate import question

    if not records or not (before or after):
        return []
    stride = max(1, len(records) // max(1, config.eval.samples))
    return [
        {
            "prompt": question(records[place]),
            "expected": records[place].answer,
            "before": before["answers"][place] if before else None,
            "after": after["answers"][place] if after else None,
        }
        for place in range(0, len(records), stride)
    ][: config.eval.samples]


def _phase(rundir: RunDir, world: World, name: str, **facts: Any) -> None:
    if world.first:
        rundir.event("phase", name=name, **facts)


if __name__ == "__main__":
    dist.leave(main())
