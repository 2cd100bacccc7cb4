"""Checkpoints for any number of ranks and any ZeRO stage.

checkpoints/step-<n>/
├── state.safetensors     float32 masters and moments by parameter name (`State` in train/training/optimizer.py)
├── state.json            progress: step, losses so far, counts; and facts that a resumed run must match
├── adapter/              the adapter in PEFT's format, ready to use
└── COMPLETE              renamed into place last, with the hashes of all files; a directory without it does not count

Rank 0 writes and reads, and sends the others what they need. Hosts that do not see its disk keep copies (copies.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch

from train import dist
from train.dist import World
from train.errors import UserError
from train.rundir.best import Best
from train.rundir.checkpoints import MARKER, SCHEMA, STATE, STEP_NAME, complete, damage, manifest, set_aside, undamaged
from train.rundir.run_files import sync_directory, write_atomic, write_json
from train.training.optimizer import State
from train.training.strategy import Strategy

MAY_CHANGE = ("total_steps", "data")
"""Facts that a resumed run may change.

It may train longer or shorter, because its records depend on the step only, not on the last step. It may have
corrected or added records; steps then see other records than planned, and the run says so.
"""


@dataclass(frozen=True)
class Progress:
    """The state of a run after `step` optimizer steps."""

    step: int
    tokens: int = 0
    """Tokens seen, padding not counted."""
    loss_first: float | None = None
    loss_last: float | None = None
    grad_norm_min: float | None = None
    seconds: float = 0.0
    """Training time of all starts so far."""
    measured: int | None = None
    """The last step that was measured on data.eval. None: none was, or an earlier version did not record it."""
    best: Best | None = None
    """The best measurement so far; None: none is compared."""


def save(
    checkpoints: Path,
    strategy: Strategy,
    world: World,
    progress: Progress,
    facts: dict[str, Any],
    save_adapter: Callable[[Path, State], None],
    keep: int,
) -> None:
    """Write a checkpoint, and remove all but the `keep` newest and the best one (a collective).

    `facts` go beside the progress.
    """
    state = strategy.gather()
    if world.first:
        checkpoints.mkdir(parents=True, exist_ok=True)
        place = checkpoints / f"step-{progress.step}"
        if not (place / MARKER).is_file():
            _write(place, state, {"schema": SCHEMA, "progress": asdict(progress), **facts}, save_adapter)
        best = progress.best and checkpoints / f"step-{progress.best.step}"
        for old in complete(checkpoints)[:-keep]:
            if old != best:
                remove(old)


def _write(place: Path, state: State, content: dict[str, Any], save_adapter: Callable[[Path, State], None]) -> None:
    from safetensors.torch import save_file

    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)  # has no marker: a save was cut off
    try:
        temporary.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary / "state.safetensors")
        write_json(temporary / STATE, content)
        save_adapter(temporary / "adapter", state)
        sync_tree(temporary)
        temporary.rename(place)
        sync_directory(place.parent)
        write_atomic(place / MARKER, manifest(place))
        sync_directory(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove(place: Path) -> None:
    """Remove a checkpoint, its marker first: half-removed, it does not count."""
    (place / MARKER).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def remove_incomplete(checkpoints: Path) -> None:
    """Remove what cut-off saves left behind. Rank 0 calls it at the start of a run."""
    own = (path for path in checkpoints.glob("step-*") if STEP_NAME.fullmatch(path.name))
    for path in [*checkpoints.glob(".step-*.tmp"), *own]:
        if not (path / MARKER).is_file():
            shutil.rmtree(path, ignore_errors=True)


def restore(place: Path | None, strategy: Strategy, world: World, facts: dict[str, Any]) -> Progress | None:
    """Load rank 0's checkpoint into every rank's strategy (a collective); None if rank 0 has none.

    Raises UserError if `facts` differ from the checkpoint's, except those that MAY_CHANGE.
    """
    content: dict[str, Any] | None = None
    state: State = {}
    if world.first and place is not None:
        content = recorded(place)
    content = dist.share(world, content)
    if content is None:
        return None
    content.setdefault("train.optimizer", "adamw")  # an older version had no other
    for name, value in facts.items():
        if content.get(name, value) != value and name not in MAY_CHANGE:
            raise UserError(
                f"the checkpoint {place or ''} was made with {name} {content.get(name)}, but this run has {value}",
                "resume with the settings of the checkpoint, or start a new run",
                code="ZL-RUN-08",
            )
    if world.first and place is not None:
        from safetensors.torch import load_file

        state = load_file(place / "state.safetensors")
    state = _share_state(state, world)
    progress = msgspec.convert(content["progress"], Progress)
    strategy.restore(state, progress.step)
    return progress


def recorded(place: Path) -> dict[str, Any]:
    """The progress of a checkpoint and the facts beside it; an older version recorded fewer of them."""
    content: dict[str, Any] = json.loads((place / STATE).read_text(encoding="utf-8"))
    if content["schema"] > SCHEMA:
        raise UserError(f"the checkpoint {place} was made by a newer version of zlaunch", code="ZL-RUN-09")
    return content


def newest_undamaged(checkpoints: Path, on_damage: Callable[[Path, str], None]) -> Path | None:
    """The newest complete checkpoint that holds what was written; None if there is none.

    Newer damaged ones are renamed to `damaged-step-<n>`, and `on_damage` gets the new name and the reason. Raises
    OSError where a checkpoint cannot be read or renamed.
    """

    def set_it_aside(place: Path, reason: str) -> None:
        on_damage(set_aside(place), reason)

    return next(undamaged(checkpoints, set_it_aside, damage_of_training), None)


def damage_of_training(place: Path) -> str | None:
    """What is wrong with a complete checkpoint that this program must have made; None if it can be restored.

    `damage` knows nothing of the content where version 0.1 or a program of the user left no hashes.
    """
    if reason := damage(place):
        return reason
    from safetensors import SafetensorError, safe_open

    try:
        progress = recorded(place)["progress"]
        msgspec.convert(progress, Progress)
        if unknown := progress.keys() - {field.name for field in fields(Progress)}:
            return f"{STATE}: unknown progress {', '.join(sorted(unknown))}"
        with safe_open(place / "state.safetensors", "pt") as tensors:  # reads the header only
            if not any(name.startswith("param/") for name in tensors.keys()):  # noqa: SIM118 - it is no mapping
                return "state.safetensors: no parameters"
    except SafetensorError as error:
        return f"state.safetensors: {error}"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename or 'state.safetensors')).name}: missing"
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{STATE}: holds no progress"
    return None


def _share_state(state: State, world: World) -> State:
    """Rank 0's tensors on every rank; sent one at a time, to save memory."""
    if not world.many:
        return state
    shared: State = {}
    told = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()]
    for name, shape, dtype in dist.share(world, told):
        empty = torch.empty(shape, dtype=dtype, device=world.device)
        tensor = state[name].to(world.device) if world.first else empty
        dist.share_tensor(world, tensor)
        shared[name] = tensor.cpu()
    return shared


def sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(directory)
