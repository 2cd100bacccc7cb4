"""The steps of a training run, in the order in which train/__main__.py takes them."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from train import dist
from train.config import Data as Mixed
from train.config import TrainConfig, loss_schedule, records_of, steps_between
from train.data.dataset import Data, Part
from train.data.prompts import end_ids, set_template, template_facts
from train.data.tokens import fingerprint
from train.dist import World
from train.memory import shares_itself
from train.model import choose, end_token, limits, targets
from train.model.adapt import adapt
from train.model.base import BaseModel, family_at, family_of_job, local_directory, read_config
from train.model.load import Loaded, load_for_training, load_tokenizer, weights_counted
from train.model.read_ahead import EarlyWeights, begin_copying, handed_to_transformers, read_ahead
from train.rundir.best import Best
from train.rundir.checkpoints import complete
from train.rundir.counter import Counter
from train.rundir.heartbeat import Heartbeat
from train.rundir.run_files import RunDir, write_atomic, write_json
from train.training import adapter, checkpoint, deepspeed, model_card, result, start, strategy
from train.training.checkpoint import Progress
from train.training.copies import Copies
from train.training.evaluator import Evaluation, Evaluator, Interrupted
from train.training.loop import Loop
from train.training.metrics_log import gpu_memory, peak_memory
from train.training.optimizer import State, trainable
from train.training.strategy import Strategy


@dataclass
class Run:
    """What the steps hand on: each sets the fields under its name, and reads those of earlier steps."""

    config: TrainConfig
    world: World
    rundir: RunDir
    started: float
    """Unix time at which this process began."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    # choose_engine
    choice: choose.EngineChoice = field(init=False)
    ds_config: dict[str, Any] | None = field(init=False)
    """None without DeepSpeed."""
    early: EarlyWeights | None = None
    """The model's weights on their way to the GPU."""
    # load_model
    data: Data = field(init=False)
    base: BaseModel = field(init=False)
    loaded: Loaded = field(init=False)
    # add_adapter
    warnings: list[str] = field(default_factory=list)
    """What the model card has to tell."""
    model: Any = field(init=False)
    """The PEFT model."""
    # read_records
    train_part: Part = field(init=False)
    eval_part: Part | None = field(init=False)
    eval_fingerprint: str | None = field(init=False)
    planned_batch: int = field(init=False)
    """train.global_batch_size of train.json; with batch_tokens, `config` has another one from read_records on."""
    total: int = field(init=False)
    """Optimizer steps of the whole run."""
    loss_records: int | None = None
    """How many records the loss on data.eval is measured on during the training; None: all."""
    loss_also_at: tuple[int, ...] = ()
    """Steps at which it is measured beside the multiples of eval.every."""
    best: Best | None = None
    """What measurements are compared by, without one; None: they are not compared."""
    # build_strategy
    strategy: Strategy = field(init=False)
    evaluator: Evaluator | None = field(init=False)
    facts: dict[str, Any] = field(init=False)
    """What a checkpoint records beside the progress; see `checkpoint.restore`."""
    # resume, evaluate_and_train
    copies: Copies = field(init=False)
    progress: Progress = field(init=False)
    # evaluate_and_train
    adapter_step: int = 0
    """The step that the adapter is of: the best one, or the last."""
    before: Evaluation | None = None
    after: Evaluation | None = None
    stopped: bool = False
    ended_early: bool = False
    """By train.early_stopping_patience."""
    seconds_to_first_step: float | None = None
    reported_peak: int = 0
    """Bytes of the last `memory` event of this rank."""
    # save_adapter
    adapter_difference: float | None = None
    """Between the logits of the trained model and of the saved adapter, norm over norm."""

    def phase(self, name: str, **facts: Any) -> None:
        """Record that a phase begins: in events.jsonl, and for the agent."""
        self.heartbeat.working(name)
        if self.world.first:
            self.rundir.event("phase", name=name, **facts)


def remove_leftovers(run: Run) -> None:
    """Remove what an earlier start left and a reader would take for this start's."""
    run.rundir.error(run.world.rank).unlink(missing_ok=True)
    if run.world.first:
        run.rundir.path.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_incomplete(run.rundir.checkpoints)


def choose_engine(run: Run) -> None:
    """Decide which engine trains, and whether DeepSpeed takes part."""
    config, world, stage = run.config, run.world, run.config.train.zero_stage
    run.ds_config = deepspeed.read_ds_config(run.rundir.ds_config, config, world.world_size) if stage else None
    run.phase("model")
    local = Path(config.model.path).expanduser()
    if world.local_rank == 0 and config.model.path and local.is_dir():
        read_ahead(local)
    run.choice = choose.choose_engine(config, family_of_job(config))
    if config.model.path and local.is_dir():
        run.early = begin_copying(config, world, run.choice.engine, local)
    if world.first:
        run.rundir.event("engine", engine=run.choice.engine, reason=run.choice.reason)
        print(f"engine {run.choice.engine}: {run.choice.reason}", flush=True)
        for warning in choose.warnings_about(config, family_of_job(config)):
            _warn(run, warning)
    if shares_itself(run.choice.engine, stage) and not world.many:
        run.ds_config = None  # a single rank has nobody to share weights with
    choose.import_first(run.choice, config.model)


def _warn(run: Run, warning: str) -> None:
    if run.world.first:
        run.rundir.event("warning", text=warning)
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def load_model(run: Run) -> None:
    """Load base model and tokenizer, form the group of ranks, and start to make tokens in the background."""
    config, world = run.config, run.world
    run.data = Data(config, run.rundir)
    run.base = local_directory(config, run.rundir, run.data.texts)
    if run.base.directory != Path(config.model.path).expanduser().resolve():
        if world.local_rank == 0:
            read_ahead(run.base.directory)
        run.early = begin_copying(config, world, run.choice.engine, run.base.directory)
    counted = Counter(run.rundir, "model", "weights").at if world.first else None
    tokenizer = load_tokenizer(config, run.base)
    limits.check(config, run.base, tokenizer, run.data.first_from)
    if config.model.rope_scaling != "none":
        _tell_rope(run)
    if world.local_rank == 0:
        run.data.prefetch(lambda: load_tokenizer(config, run.base))
    deepspeed = run.ds_config is not None
    if dist.starts_early(world, engine=run.choice.engine, zero_stage=config.train.zero_stage):
        dist.start(world, deepspeed=deepspeed, watched=run.heartbeat.watched)
    with weights_counted(counted), handed_to_transformers(run.early):
        run.loaded = load_for_training(config, world, run.base, run.choice.engine, run.ds_config, tokenizer)
    dist.start(world, deepspeed=deepspeed, watched=run.heartbeat.watched)
    set_template(run.loaded.tokenizer, config.data.chat_template, config.model.thinking)


def _tell_rope(run: Run) -> None:
    """Say how the rotary embedding is scaled, and that whoever loads the base model elsewhere has to do the same."""
    scaled = limits.rope_of(run.config, read_config(run.base.directory) or {})
    text = scaled.get("text_config")
    parameters = dict((text if isinstance(text, dict) else scaled)["rope_parameters"])
    said = f"the adapter needs its base model with rope_parameters {json.dumps(parameters)}; a merged export has them"
    run.warnings.append(said)
    _warn(run, said)


def add_adapter(run: Run) -> None:
    """Put LoRA weights on the model."""
    run.phase("adapter")
    lora, loaded = run.config.lora, run.loaded
    unknown = end_token.untrained_end(
        loaded.model, loaded.tokenizer, end_ids(loaded.tokenizer)[::-1], f"{lora.modules_to_save} {lora.target_modules}"
    )
    if unknown is not None:
        run.warnings.append(unknown)
        _warn(run, unknown)
    family = family_at(run.base.directory)
    run.model, left_out = adapt(run.config, run.loaded, run.base, family)
    if family.experts and not run.config.train.router_loss:
        left_out += ("no loss balances the load of the experts (train.router_loss: 0)",)
    for sentence in left_out:
        run.warnings.append(sentence)
        _warn(run, sentence)


def read_records(run: Run) -> None:
    """Map the tokens of data.train and data.eval; all ranks must see the same ones. Raises UserError."""
    run.phase("data")
    numbers = run.config.train
    run.train_part, run.eval_part = run.data.train(run.loaded.tokenizer), run.data.eval(run.loaded.tokenizer)
    if run.eval_part is not None and run.world.first:
        _ = run.eval_part.records  # read and kept now: the file may have changed when training ends, hours later
    sampler = run.train_part.sampler(numbers.seed)
    run.planned_batch = numbers.global_batch_size
    batch = records_of(numbers.batch_tokens, float(run.train_part.lengths.mean()), numbers.global_batch_size)
    if batch != numbers.global_batch_size:
        numbers = replace(numbers, global_batch_size=batch)
        run.config = replace(run.config, train=numbers)
        if run.world.first:
            print(f"{batch} records per step: about {numbers.batch_tokens} tokens", flush=True)
    run.total = numbers.max_steps or sampler.steps(numbers.epochs, numbers.global_batch_size)
    said = sampler.remark(numbers.epochs, numbers.max_steps, numbers.global_batch_size)
    if said and run.world.first:
        run.rundir.event("warning", text=f"data.train: {said}")
        print(f"warning: data.train: {said}", file=sys.stderr, flush=True)
    run.eval_fingerprint = fingerprint(run.eval_part.tokens) if run.eval_part is not None else None
    _count_epochs_as_steps(run, sampler.epoch_size)
    _schedule_loss(run)
    if run.world.first:
        run.rundir.event("steps", total_steps=run.total)
    seen = {"data.train": fingerprint(run.train_part.tokens), "data.eval": run.eval_fingerprint, "steps": run.total}
    start.check_ranks_agree(run.world, seen)


def _count_epochs_as_steps(run: Run, records: int) -> None:
    """Settle `checkpoint_every: epoch` and `eval.every: 0.25 epochs`: the records of an epoch are known now."""
    config, batch = run.config, run.config.train.global_batch_size
    saved = steps_between(config.train.checkpoint_every, records, batch)
    measured = config.eval.every
    measured = measured if measured == "auto" else steps_between(measured, records, batch)
    run.config = replace(
        config, train=replace(config.train, checkpoint_every=saved), eval=replace(config.eval, every=measured)
    )


def _schedule_loss(run: Run) -> None:
    """Settle `eval.every: auto`, as the work of the training is known now, and what measurements are compared by."""
    part, numbers, wanted = run.eval_part, run.config.train, run.config.eval
    if part is None:
        return
    if wanted.every == "auto":
        sequences, tokens = len(run.train_part.tokens), float(run.train_part.lengths.sum())
        work = run.total * numbers.global_batch_size * tokens / sequences
        found = loss_schedule(run.total, work, len(part.tokens), float(part.lengths.mean()), wanted=run.config.compares)
        run.loss_records = found.records if found.records < len(part.tokens) else None
        ends = [0] if run.loss_records or not wanted.before else []
        ends += [run.total] if run.loss_records or not wanted.after else []
        run.loss_also_at = tuple(ends) if found.every else ()
        if run.world.first:
            run.rundir.event("loss_schedule", every=found.every, records=found.records, of=len(part.tokens))
        run.config = replace(run.config, eval=replace(wanted, every=found.every))
    if (metric := run.config.best_metric) is not None:
        compared = (run.loss_records if metric == "loss" else wanted.scored_records) or len(part.tokens)
        run.best = Best(metric, min(compared, len(part.tokens)), str(run.eval_fingerprint))
        run.loss_also_at = (*run.loss_also_at, run.total)


def build_strategy(run: Run) -> None:
    """Build what computes gradients and optimizer steps, and what evaluates."""
    config, loaded = run.config, run.loaded
    run.facts = _facts(run)  # before DeepSpeed wraps the parameters
    run.strategy = strategy.build(config, run.world, run.model, loaded.dtype, run.ds_config, run.choice.engine)
    router = getattr(run.strategy.loss, "router", None)
    if router is not None and run.world.first:
        run.rundir.event("router_loss", weight=router.weight)
        print(f"router loss: weight {router.weight:g}; it balances the load of the experts", flush=True)
    run.evaluator = None
    if run.eval_part is not None:

        def stop_requested() -> bool:  # called before each batch
            run.heartbeat.working("evaluation")
            return run.rundir.control("stop").exists()

        run.evaluator = Evaluator(
            config, run.world, run.eval_part, run.strategy, run.model, loaded.tokenizer, stop_requested
        )


_MEANING = ("r", "alpha", "rslora", "init", "rank_pattern", "alpha_pattern", "layers_to_transform")
"""Rank, scale and start of a new adapter: what the weights of a checkpoint mean."""


_MIXING = ("mix", "mix_temperature", "order")
"""Other values than the defaults, which earlier versions had, change which records a step sees."""


def _listed(value: Any) -> Any:
    """A value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _facts(run: Run) -> dict[str, Any]:
    config, parameters = run.config, dict(trainable(run.model))
    return {
        "seed": config.train.seed,
        "train.optimizer": config.train.optimizer,
        "global_batch_size": run.planned_batch,
        "total_steps": run.total,
        **(
            {f"lora.{key}": _listed(getattr(config.lora, key)) for key in _MEANING}
            if config.lora.adapter is None
            else {}
        ),
        "data": {
            "sequences": len(run.train_part.tokens),
            "tokens": int(run.train_part.lengths.sum()),
            **({"train_on_prompt": True} if config.data.train_on_prompt else {}),
            **{name: value for name in _MIXING if (value := getattr(config.data, name)) != getattr(Mixed(), name)},
        },
        "trained_modules": targets.trained_modules(parameters),
        "trained_parameters": sum(parameter.numel() for parameter in parameters.values()),
    }


def resume(run: Run) -> None:
    """Go on from the newest checkpoint, if there is one."""
    wanted = run.config.train.checkpoint_copies
    run.copies = Copies(run.world, run.rundir, 2 if wanted == "auto" else wanted)
    place = start.find_checkpoint(run.config, run.world, run.rundir)
    run.progress = checkpoint.restore(place, run.strategy, run.world, run.facts) or Progress(step=0, measured=0)
    _compare_on(run)
    if not run.world.first:
        return
    # Only now: a start that is refused must not take away the result of the start before.
    run.rundir.result.unlink(missing_ok=True)
    if place is not None and run.progress.step:
        run.rundir.event("resumed", step=run.progress.step)
        print(f"resumed after step {run.progress.step}", flush=True)
        if run.progress.best is not None:  # what a reader saw of steps that happen again is void
            run.rundir.event("best", **(_best(run) or {"step": None}))
        start.report_changes(checkpoint.recorded(place), run.facts, run.rundir)
    start.truncate_metrics(run.rundir, run.progress.step, run.progress.measured)


def _compare_on(run: Run) -> None:
    """Compare with the best measurement of earlier starts, on the same records; forget it where that cannot be."""
    known = run.progress.best
    if run.best is None or run.eval_part is None:
        run.progress = dataclasses.replace(run.progress, best=None)
        return
    if known is None or not known.comparable(run.best):
        if known is not None and known.step is not None:
            _warn(
                run,
                f"the best step so far, {known.step} by {known.metric}, is forgotten: eval.keep_best or data.eval has "
                "changed",
            )
        run.progress = dataclasses.replace(run.progress, best=run.best)
        return
    if known.metric == "loss":  # a longer run would have more records measured
        run.loss_records = known.records if known.records < len(run.eval_part.tokens) else None


def evaluate_and_train(run: Run) -> None:
    """Evaluate, train, evaluate again; or save a checkpoint where a stop is requested during an evaluation."""
    try:
        _evaluate_before(run)
        _train(run)
        _go_back_to_best(run)
        _evaluate_after(run)
    except Interrupted:
        run.stopped = True
        if run.adapter_step in (0, run.progress.step):  # else these are the best step's weights, and the last is saved
            _save_checkpoint(run, run.progress)
        dist.wait(run.world)
        run.rundir.withdraw("stop")


def _evaluate_before(run: Run) -> None:
    """Once per run, however often it is resumed: rank 0 keeps the result on its disk."""
    if not run.config.eval.before or run.evaluator is None:
        return
    run.phase("evaluate_before")
    file = run.rundir.cache / "evaluated-before.json"
    earlier = start.earlier_evaluation(file, run.world, run.eval_fingerprint)
    if earlier is not None:
        run.before = Evaluation(earlier["scores"], earlier["answers"])
    elif run.progress.step == 0:
        run.before = _evaluate(run, "before")
        if run.before is not None:
            content = {"scores": run.before.scores, "answers": run.before.answers, "data": run.eval_fingerprint}
            write_json(file, content)


def _train(run: Run) -> None:
    def first_step_done() -> None:
        run.seconds_to_first_step = round(time.time() - run.started, 3)
        _report_memory(run)

    run.phase("train", total_steps=run.total)
    metric = run.best.metric if run.best is not None else None
    loop = Loop(
        config=run.config,
        world=run.world,
        rundir=run.rundir,
        data=run.train_part,
        strategy=run.strategy,
        pad=run.loaded.tokenizer.pad_token_id,
        total=run.total,
        save=partial(_save_checkpoint, run),
        evaluate=partial(run.evaluator.measure, metric=metric) if run.evaluator else None,
        first_step_done=first_step_done,
        heartbeat=run.heartbeat,
        also_at=run.loss_also_at,
        records=run.loss_records,
    )
    run.progress, stopped = loop.run(run.progress)
    run.ended_early = loop.waited_enough(run.progress) and run.progress.step < run.total
    unmeasured = run.best is not None and run.progress.measured != run.progress.step
    evaluation_left = run.evaluator is not None and (run.config.eval.after or unmeasured)
    # A stop at the last step of a run with no evaluation left stops nothing.
    run.stopped = stopped and (run.progress.step < run.total or evaluation_left)
    if run.ended_early and run.world.first and run.progress.best is not None:
        said = {"patience": run.config.train.early_stopping_patience, "best": run.progress.best.step}
        run.rundir.event("early_stopping", step=run.progress.step, total_steps=run.total, **said)


def _go_back_to_best(run: Run) -> None:
    """Take the weights of the best step, if that is not the last one (a collective). Its checkpoint is kept for that.

    Checkpoints are of the last step still: a resumed run goes on from there.
    """
    run.adapter_step, found = run.progress.step, run.progress.best
    if run.stopped or found is None or found.step in (None, run.progress.step):
        return
    place, reason = run.rundir.checkpoints / f"step-{found.step}", None
    if run.world.first:
        here = place in complete(run.rundir.checkpoints)
        reason = checkpoint.damage_of_training(place) if here else "it is not here"
    reason = dist.share(run.world, reason)
    if reason is not None:
        said = f"the adapter is that of step {run.progress.step}, not of the best step {found.step}: {reason}"
        run.warnings.append(said)
        _warn(run, said)
        return
    checkpoint.restore(place, run.strategy, run.world, run.facts)
    run.adapter_step = found.step or 0
    if run.world.first:
        print(f"the adapter is that of step {found.step}: {found.metric} {found.value:.4f}", flush=True)


def _evaluate_after(run: Run) -> None:
    if run.config.eval.after and run.evaluator is not None and not run.stopped:
        run.phase("evaluate_after")
        run.after = _evaluate(run, "after")


def _evaluate(run: Run, when: str) -> Evaluation | None:
    assert run.evaluator is not None
    counter = Counter(run.rundir, f"evaluate_{when}", "records")
    evaluation = run.evaluator.evaluate(counter.at if run.world.first else lambda done, total: None)
    if evaluation is not None:
        print(f"evaluation  {evaluation}", flush=True)
        known = {key: evaluation.scores.get(key) for key in ("loss", "accuracy")}
        step = run.adapter_step if when == "after" else run.progress.step
        run.rundir.event("evaluation", when=when, step=step, **known)
    return evaluation


def _save_checkpoint(run: Run, progress: Progress) -> None:
    def save_adapter(place: Path, state: State) -> None:
        adapter.save(place, state, run.model, run.loaded.tokenizer, _card(run, progress.step))

    run.heartbeat.working("checkpoint")
    _report_memory(run)
    started, keep = time.perf_counter(), run.config.train.keep_checkpoints
    checkpoint.save(run.rundir.checkpoints, run.strategy, run.world, progress, run.facts, save_adapter, keep)
    run.copies.send(progress.step)
    if run.world.first:
        copies = {"copies": run.copies.hosts} if run.copies.hosts else {}
        run.rundir.event("checkpoint", step=progress.step, seconds=round(time.perf_counter() - started, 3), **copies)


def _report_memory(run: Run) -> None:
    """Record the most memory that this rank has taken, if it has grown: the plan predicts it for each rank."""
    peak = peak_memory(run.world)
    if peak > 1.01 * run.reported_peak:
        run.reported_peak = peak
        run.rundir.event("memory", peak_bytes=peak, capacity_bytes=gpu_memory(run.world))


def _card(run: Run, step: int) -> str:
    mode = template_facts(run.loaded.tokenizer)["thinking"]
    facts: dict[str, Any] = {
        "Steps": step,
        "Trained parameters": f"{run.facts['trained_parameters']:,}",
        "Trained modules": run.facts["trained_modules"],
        "Engine": run.choice.engine,
        **({"Thinking": mode} if mode else {}),
    }
    measured = {"before": run.before, "after": run.after}
    scores = {name: found.scores for name, found in measured.items() if found is not None}
    config = run.loaded.model.config
    sees = config.get_text_config() is not config
    return model_card.card(run.config, run.base.name, run.base.revision, facts, scores, run.warnings, sees=sees)


def save_adapter(run: Run) -> None:
    """Write the adapter of a finished run, and check it if the job asks for that."""
    run.phase("save")
    place, loaded = run.rundir.adapter, run.loaded
    state = run.strategy.gather()  # a collective: also where the run was stopped
    if run.stopped:
        return
    if run.world.first:
        adapter.replace(place, state, run.model, loaded.tokenizer, _card(run, run.adapter_step))
    if run.config.verify_adapter:
        run.adapter_difference = adapter.reload_difference(
            place, run.config, run.world, run.base, run.strategy, run.model, loaded.dtype
        )


def write_result(run: Run) -> None:
    """Write predictions.jsonl and result.json."""
    if not run.world.first:
        return
    if run.after is not None and run.eval_part is not None:
        before = run.before.answers if run.before is not None else None
        write_atomic(run.rundir.predictions, result.prediction_lines(run.eval_part, run.after.answers, before))
    write_json(run.rundir.result, _result(run))


def _reloads(run: Run) -> bool | None:
    difference = run.adapter_difference
    return None if difference is None else difference <= adapter.TOLERANCE[run.loaded.dtype]


def _best(run: Run) -> dict[str, Any] | None:
    """The best measurement, with the step; None: nothing was compared."""
    found = run.progress.best
    if found is None or found.step is None:
        return None
    return {"step": found.step, "metric": found.metric, "value": found.value, "records": found.records}


def _result(run: Run) -> dict[str, Any]:
    progress, before, after = run.progress, run.before, run.after
    return {
        "schema": 1,
        "state": "stopped" if run.stopped else "succeeded",
        "steps": progress.step,
        "adapter_step": None if run.stopped else run.adapter_step,
        "best": _best(run),
        "ended_early": run.ended_early,
        "loss_first": progress.loss_first,
        "loss_last": progress.loss_last,
        "grad_norm_min": progress.grad_norm_min,
        "world_size": run.world.world_size,
        "adapter": None if run.stopped else str(run.rundir.adapter),
        "adapter_reloads": _reloads(run),
        "adapter_difference": run.adapter_difference,
        "seconds": round(time.time() - run.started, 3),
        "seconds_to_first_step": run.seconds_to_first_step,
        "training_seconds": round(progress.seconds, 3),
        "peak_memory_bytes": {"predicted": run.config.predicted_peak_bytes, "measured": peak_memory(run.world)},
        "tokens": progress.tokens,
        "data": run.data.summary,
        "eval": {"before": before and before.scores, "after": after and after.scores},
        "samples": result.sample_answers(run.eval_part, before, after, run.config.eval.samples),
        "engine": run.choice.engine,
        "engine_reason": run.choice.reason,
    }
