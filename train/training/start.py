"""Checks and preparations before the first step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError
from train.model import choose
from train.model.base import family_of_job, with_adapter
from train.rundir.checkpoints import MARKER, complete
from train.rundir.run_files import RunDir, write_atomic
from train.training import checkpoint


def check_config(config: TrainConfig, world: World) -> None:
    """Raise UserError for what is visibly wrong before anything is loaded."""
    numbers = config.train
    if config.world_size != world.world_size:
        raise UserError(
            f"this run was planned for {config.world_size} ranks, but {world.world_size} were started",
            code="ZL-TRAIN-05",
        )
    product = numbers.micro_batch_size * numbers.gradient_accumulation_steps * world.world_size
    if product != numbers.global_batch_size:
        raise UserError(
            f"global_batch_size {numbers.global_batch_size} is not micro_batch_size {numbers.micro_batch_size} x "
            f"gradient_accumulation_steps {numbers.gradient_accumulation_steps} x {world.world_size} ranks = {product}",
            code="ZL-TRAIN-05",
        )
    if not config.data.train:
        raise UserError("data.train names no file of records", code="ZL-TRAIN-05")
    dist.check_device(world)
    choose.check_settings(config, family_of_job(config))


def continue_adapter(config: TrainConfig, world: World, rundir: RunDir) -> TrainConfig:
    """The configuration with the settings of the adapter that lora.adapter names. Raises UserError."""
    found, taken = with_adapter(config)
    if taken and world.first:
        said = f"lora.adapter: its settings are taken: {taken}"
        rundir.event("warning", text=said)
        print(said, flush=True)
    return found


def check_ranks_agree(world: World, seen: dict[str, Any]) -> None:
    """Raise UserError on a rank that sees other records than rank 0 (a collective).

    Such a rank would train on something else; with fewer steps, the other ranks would wait for it forever.
    """
    first = dist.share(world, seen)
    for name, value in seen.items():
        if value != first[name]:
            raise UserError(
                f"node {world.node_rank} has other records than node 0: {name} is {value} here, {first[name]} there",
                "give every node the same files of records and the same model",
                code="ZL-DATA-06",
            )


def find_checkpoint(config: TrainConfig, world: World, rundir: RunDir) -> Path | None:
    """The checkpoint to start from: the run's newest undamaged one, else init_from. Only rank 0 looks.

    Damaged ones are set aside, and the user is told. Raises UserError.
    """
    if not world.first:
        return None
    own = complete(rundir.checkpoints)
    if not config.resume:
        if own:  # a later start would mix them up with this start's, and pruning would remove the wrong ones
            raise UserError(
                f"resume is false, but {rundir.checkpoints} holds checkpoints of an earlier start", code="ZL-TRAIN-05"
            )
        return None
    try:
        place = checkpoint.newest_undamaged(rundir.checkpoints, lambda *found: _report_damage(rundir, *found))
        if place is not None or config.init_from is None:
            return place
        place = Path(config.init_from)
        if not (place / MARKER).is_file():
            raise UserError(f"init_from: {place} is not a complete checkpoint", code="ZL-RUN-09")
        if reason := checkpoint.damage_of_training(place):
            raise UserError(
                f"init_from: the checkpoint {place} is damaged: {reason}", "name another checkpoint", code="ZL-RUN-09"
            )
        return place
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {error.filename}: {error.strerror}", code="ZL-RUN-09") from error


def _report_damage(rundir: RunDir, aside: Path, reason: str) -> None:
    rundir.event("checkpoint_damaged", checkpoint=aside.name, reason=reason)
    print(
        f"warning: the checkpoint {aside.name.removeprefix('damaged-')} is damaged and not used ({reason}); "
        f"it is kept as {aside}",
        file=sys.stderr,
        flush=True,
    )


def report_changes(recorded: dict[str, Any], facts: dict[str, Any], rundir: RunDir) -> None:
    """Tell the user which of the facts that may change are no longer those of the checkpoint."""
    total, planned = facts["total_steps"], recorded.get("total_steps")
    if planned != total:
        rundir.event("length_changed", steps=total, planned=planned)
        print(f"the run now has {total} steps instead of {planned}; the learning rate follows", flush=True)
    now, then = facts["data"], recorded.get("data")
    if then not in (None, now):
        rundir.event("data_changed", now=now, then=then)
        print(
            f"warning: data.train has changed: {now['sequences']} sequences with {now['tokens']} tokens, but "
            f"{then['sequences']} with {then['tokens']} when the checkpoint was made; "
            "the steps from here on see other records than planned",
            file=sys.stderr,
        )


def truncate_metrics(rundir: RunDir, step: int, measured: int | None = None) -> None:
    """Drop the lines of steps after the checkpoint, and of measurements after its own: these happen again."""
    if not rundir.metrics.exists():
        return
    kept = []
    for line in rundir.metrics.read_bytes().splitlines():
        try:
            content = json.loads(line)
            again = measured is not None and "eval_loss" in content and content["step"] > measured
            if content["step"] <= step and not again:
                kept.append(line.decode() + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):  # a line cut off by a crash, or damaged
            continue
    write_atomic(rundir.metrics, "".join(kept))


def earlier_evaluation(file: Path, world: World, data: str | None) -> dict[str, Any] | None:
    """What an earlier start measured before training on the same records; rank 0's file decides (a collective)."""
    kept = json.loads(file.read_text(encoding="utf-8")) if world.first and file.exists() else {}
    found: dict[str, Any] | None = dist.share(world, kept if kept.get("data") == data else None)
    return found
