"""What happens before the first step: checks, where to start, and what an earlier start left."""

from __future__ import annotations

import json
import sys
from typing import Any

from train import dist
from train.config import TrainConfig
from train.dist import World
from train.errors import UserError
from train.rundir import RunDir, write_atomic


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
    from train.model import choose
    from train.model.base import family

    choose.check(config, family(config))


def clean(config: TrainConfig, world: World, rundir: RunDir) -> None:
    """Leftovers of an earlier start that could be taken for this one's."""
    from train.training import checkpoint

    rundir.error(world.rank).unlink(missing_ok=True)
    if world.first:
        rundir.path.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(rundir.checkpoints)


def where_to_start(config: TrainConfig, world: World, rundir: RunDir) -> Any:
    """The newest complete checkpoint of this run, else the one it was told to start from; rank 0 alone looks."""
    from pathlib import Path

    from train.rundir import MARKER, complete

    if not world.first:
        return None
    own = complete(rundir.checkpoints)
    if not config.resume:
        if own:  # they would be taken for this start's, and its own be pruned for them
            raise UserError(f"resume is false, and {rundir.checkpoints} holds checkpoints of an earlier start")
        return None
    if own:
        return own[-1]
    if config.init_from is None:
        return None
    place = Path(config.init_from)
    if not (place / MARKER).is_file():
        raise UserError(f"init_from: {place} is not a complete checkpoint")
    return place


def tell_changes(place: Any, facts: dict[str, Any], rundir: RunDir) -> None:
    """What a resumed run has otherwise than its checkpoint, and may."""
    from train.training import checkpoint

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


def cut_metrics(rundir: RunDir, step: int) -> None:
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


def agree(world: World, seen: dict[str, Any]) -> None:
    """Raise UserError on a rank that sees other records than rank 0: it would compute something else, or fewer steps,
    and the others wait for it."""
    first = dist.share(world, seen)
    for name, value in seen.items():
        if value != first[name]:
            raise UserError(
                f"node {world.node_rank} has other records than node 0: {name} {value}, and {first[name]} there",
                "every node needs the same files of records, and the same model",
            )


def kept_steps(path: Any, world: World, data: str | None) -> dict[str, Any] | None:
    """What an earlier start measured before training on the same records, by rank 0's disk."""
    kept = json.loads(path.read_text(encoding="utf-8")) if world.first and path.exists() else {}
    found: dict[str, Any] | None = dist.share(world, kept if kept.get("data") == data else None)
    return found
