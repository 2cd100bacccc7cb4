"""Damaged checkpoints: what a start loads holds what was written, and the one before a damaged newest one is used.

Two checkpoints of the training program's own writer stand in a run. The newest, or both, or what lies beside them, is
damaged; then the start of the training looks for one, as after a crash.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source
from train.errors import UserError
from train.rundir.checkpoints import MARKER, STATE, complete
from train.training import checkpoint

NAME = "checkpoints"
TRIED = (
    "bits flipped in tensors, headers, JSON and manifests; files cut, emptied, missing, swapped, of other steps, extra"
)
STEPS = (3, 6)
NAMES = tuple(f"{kind}/{layer}.lora_{part}" for kind in ("param", "exp_avg") for layer in "ab" for part in "AB")
Content = dict[str, bytes]


def _state(step: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(step)
    return {name: torch.randn(4, 8, generator=made) for name in NAMES}


def _save_adapter(folder: Path, state: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(
        {
            f"base_model.{name.partition('/')[2]}": tensor.contiguous()
            for name, tensor in state.items()
            if name.startswith("param/")
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))


@functools.cache
def whole() -> dict[int, Content]:
    """The files of the undamaged checkpoints, by step."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            progress = {"step": step, "tokens": step * 100, "loss_first": 2.0, "loss_last": 2.0 / step}
            progress |= {"grad_norm_min": 0.5, "seconds": 1.5 * step}
            place = Path(folder, f"step-{step}")
            content = {"schema": checkpoint.SCHEMA, "progress": progress, "seed": 1, "total_steps": 9}
            checkpoint._write(place, _state(step), content, _save_adapter)
            files = sorted(path for path in place.rglob("*") if path.is_file())
            found[step] = {path.relative_to(place).as_posix(): path.read_bytes() for path in files}
    return found


def damage(rnd: random.Random, content: Content, original: Content, other: Content) -> Content:
    """The files of a checkpoint with one more damage; `other` are those of another step."""
    files = dict(content)
    name = rnd.choice(sorted(files))
    data = bytearray(files[name])
    match rnd.randrange(13) if data else 6:
        case 0 | 1:
            for _ in range(rnd.choice((1, 1, 1, 2, 8, 64))):
                data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
        case 2:  # the header of tensors, the beginning of JSON
            data[rnd.randrange(min(len(data), 16))] ^= 1 << rnd.randrange(8)
        case 3:
            del data[rnd.randrange(len(data)) :]
        case 4:
            data.clear()
        case 5:
            del files[name]
            return files
        case 6:
            data += rnd.choice((b"\0", b"\n", b" ", rnd.randbytes(16), bytes(data)))
        case 7:
            start = rnd.randrange(len(data))
            stop = start + rnd.choice((1, 8, 512, 4096))
            data[start:stop] = bytes(len(data[start:stop]))
        case 8:
            second = rnd.choice(sorted(files))
            files[name], files[second] = files[second], files[name]
            return files
        case 9:
            files[name] = other.get(name, b"")
            return files
        case 10:
            wanted = rnd.sample(sorted(files), rnd.randint(2, len(files)))
            return files | {name: other[name] for name in wanted if name in other}
        case 11:
            extra = ("adapter/adapter_model.bin", "state.safetensors.tmp", "x/y", "adapter/config.json", "rng.pkl")
            return files | {rnd.choice(extra): rnd.randbytes(rnd.choice((0, 10, 1000)))}
        case _:
            return _other_json(rnd, files, original)
    files[name] = bytes(data)
    return files


def _other_json(rnd: random.Random, files: Content, original: Content) -> Content:
    """A marker or state of other types; or one field of it has another value."""
    name = rnd.choice((MARKER, STATE))
    if files.get(name) != original.get(name):
        return files
    odd: tuple[Any, ...] = (None, 0, -1, 1e300, "", "x", [], {}, [1], {"a": 1}, True, 99, "3", {"step": "6"}, "../x")
    content = json.loads(files[name])
    place = content[rnd.choice(sorted(content))] if rnd.random() < 0.5 else content
    if not isinstance(place, dict) or not place:
        place = content
    key = rnd.choice(sorted(place))
    if rnd.random() < 0.3:
        del place[key]
    else:
        place[key] = rnd.choice(odd)
    text = json.dumps(rnd.choice((content, content, content, rnd.choice(odd))))
    return {**files, name: text.encode()}


def put(place: Path, files: Content) -> None:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


class _Strategy:
    """Takes what a restore hands over."""

    state: dict[str, torch.Tensor] | None = None
    step = 0

    def restore(self, state: dict[str, torch.Tensor], step: int) -> None:
        self.state, self.step = state, step


def _judge(folder: Path, seed: int, number: int) -> str:
    rnd = source(seed, NAME, number)
    place = folder / "checkpoints"
    shutil.rmtree(place, ignore_errors=True)
    found = {step: dict(whole()[step]) for step in STEPS}
    old = rnd.random() < 0.1  # as 0.1.0 left them: an empty marker, and no hashes
    if old:
        found = {step: _of_version_0_1(files) for step, files in found.items()}
    hit = [STEPS[-1]] if rnd.random() < 0.85 else list(STEPS)
    for step in hit:
        for _ in range(rnd.choice((1, 1, 1, 2, 3))):
            other = whole()[STEPS[0] if step == STEPS[-1] else STEPS[-1]]
            damaged = damage(rnd, found[step], whole()[step], other)
            found[step] = damaged or found[step]
    for step, files in found.items():
        put(place / f"step-{step}", files)
    if rnd.random() < 0.05:  # a copy under another name
        shutil.copytree(place / "step-3", place / rnd.choice(("step-9", "step-03", "step-x", "step-7.tmp")))
    counted = {path.name for path in complete(place)}
    aside: dict[str, str] = {}
    try:
        newest = checkpoint.newest_undamaged(place, lambda path, reason: aside.update({path.name: reason}))
    except UserError:
        return "refused"
    if any(not reason.strip() or "\n" in reason for reason in aside.values()):
        raise Wrong(f"set aside without a reason: {aside}")
    if newest is None:
        if not old and any(found[step] == whole()[step] for step in STEPS):
            raise Wrong(f"a sound checkpoint was not used: {aside}")
        return "none used"
    if old and (step := int(newest.name.removeprefix("step-"))) in STEPS:
        checkpoint.restore(newest, _Strategy(), _World(), {"seed": 1})  # type: ignore[arg-type]
        if not _same(found[step], step) and not aside:
            return "0.1.0: used unhashed"
    if old:
        return "0.1.0: set aside" if aside else "0.1.0: used, the structure is right"
    return _load(newest, found, counted, aside)


def _of_version_0_1(files: Content) -> Content:
    state = {**json.loads(files[STATE]), "schema": 1}
    return {**files, MARKER: b"", STATE: json.dumps(state).encode()}


def _load(newest: Path, found: dict[int, Content], counted: set[str], aside: dict[str, str]) -> str:
    """Restore the checkpoint as a start does, and compare everything in it with what was written."""
    strategy = _Strategy()
    world = _World()
    progress = checkpoint.restore(newest, strategy, world, {"seed": 1, "total_steps": 9})  # type: ignore[arg-type]
    step = int(newest.name.removeprefix("step-"))
    if (
        progress is None
        or strategy.state is None
        or progress.step != step
        or strategy.step != step
        or step not in STEPS
    ):
        raise Wrong(f"progress of another step: {newest.name}: {progress}")
    if not _equal(strategy.state, _state(step)):
        raise Wrong(f"other tensors than were written: {newest.name}")
    if not _same(found[step], step):
        raise Wrong(f"other files than were written: {newest.name}")
    if step == STEPS[0] and f"step-{STEPS[-1]}" in counted:
        if not any(name.startswith(f"damaged-step-{STEPS[-1]}") for name in aside):
            raise Wrong(f"the newest was passed over without a word: {aside}")
        return "the one before used, the damaged set aside"
    return "newest used, as written" if step == STEPS[-1] else "the one before used"


def _same(files: Content, step: int) -> bool:
    """Whether all files are there as written; others may lie beside them, and blanks stand in the marker."""
    return all(files.get(name) == data for name, data in whole()[step].items() if name != MARKER)


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


class _World:
    """One rank."""

    first, many = True, False


def main(count: int, seed: int) -> Outcome:
    """Judge `count` damaged checkpoints."""
    torch.set_num_threads(1)
    whole()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        return outcome(NAME, TRIED, count, seed, judge_all(functools.partial(_judge, Path(folder), seed), range(count)))


if __name__ == "__main__":
    from_command_line(main, 2500)
