"""Saves that are cut off at random moments. There is no model, so many moments fit into one test."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import ROOT

pytestmark = pytest.mark.train

SAVER = """
import os, sys, torch
from pathlib import Path
from train.training import checkpoint
from train.training.checkpoint import Progress
from train.dist import from_environment

class Strategy:
    def gather(self):
        return {"param/a": torch.full((300_000,), float(step))}

place, world = Path(sys.argv[1]), from_environment("cpu", {})
checkpoint.remove_incomplete(place)
found = checkpoint.complete(place)
step = int(found[-1].name[5:]) if found else 0
os.write(1, b"ready\\n")  # in one piece: two processes write to this pipe
while True:
    step += 1
    checkpoint.save(place, Strategy(), world, Progress(step=step), {}, lambda where, state: where.mkdir(), keep=1)
"""


def test_a_kill_at_any_of_twenty_random_moments_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from train.rundir.checkpoints import complete

    place, rng, reached, usual = tmp_path / "checkpoints", random.Random(7), 0, 0.0
    pythonpath = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Each moment is a fork of one warm process, so torch is imported once.
    forker = f"""
import os, signal, sys
import torch, safetensors.torch, train.training.checkpoint
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        exec({SAVER!r})
    os.write(1, b"%d\\n" % child)
    os.waitpid(child, 0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", forker, str(place)],
        env=pythonpath,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(20):
            process.stdin.write("go\n")
            process.stdin.flush()
            lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
            child = int(next(line for line in lines if line != "ready"))
            ready = time.monotonic()
            while reached == 0 and not complete(place):
                assert time.monotonic() < ready + 60
                time.sleep(0.001)
            usual = usual or time.monotonic() - ready  # seconds that one save takes on this disk
            time.sleep(rng.uniform(0, max(0.05, 3 * usual)))
            os.kill(child, 9)
            time.sleep(0.01)
            found = complete(place)
            assert found
            step = int(found[-1].name[5:])
            assert step >= reached
            assert load_file(found[-1] / "state.safetensors")["param/a"][-1] == step
            reached = step
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
    assert reached > 3


def test_leftovers_of_a_cut_off_save_are_removed(tmp_path: Path) -> None:
    from train.rundir import checkpoints
    from train.training import checkpoint

    for name in (".step-4.123.tmp", "step-4", "step-3", "step-3-a-copy-of-mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-3" / "COMPLETE").touch()
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-3"]
    checkpoint.remove_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-3-a-copy-of-mine"]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Three checkpoints as a run saves them, of steps 2, 4 and 6."""
    import torch

    from train import dist
    from train.training import checkpoint

    class Strategy:
        def __init__(self, step: int) -> None:
            self.step = step

        def gather(self) -> dict[str, torch.Tensor]:
            return {f"{kind}/a": torch.full((300,), float(self.step)) for kind in ("param", "exp_avg", "exp_avg_sq")}

    def save_adapter(place: Path, state: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        place.mkdir()
        save_file({"a": state["param/a"]}, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text('{"r": 8}')

    world, place = dist.from_environment("cpu", {}), tmp_path / "checkpoints"
    for step in (2, 4, 6):
        strategy: Any = Strategy(step)
        checkpoint.save(place, strategy, world, checkpoint.Progress(step=step), {"seed": 1}, save_adapter, keep=3)
    return place


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def empty(path: Path, rng: random.Random) -> None:
    os.truncate(path, 0)


def grow(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 50)))


def zero_out(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap_with_earlier(path: Path, rng: random.Random) -> None:
    other = Path(str(path).replace("step-6", "step-4"))
    if path.read_bytes() == other.read_bytes():  # adapter_config.json is the same in both
        return flip(path, rng)
    shutil.copy(other, path)


def lose(path: Path, rng: random.Random) -> None:
    path.unlink()


def become_directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def newest(checkpoints: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest undamaged checkpoint, and {name: reason} of those that were set aside."""
    from train.training import checkpoint

    set_aside: dict[str, str] = {}
    found = checkpoint.newest_undamaged(checkpoints, lambda aside, reason: set_aside.update({aside.name: reason}))
    return found, set_aside


DAMAGES = [flip, truncate, empty, grow, zero_out, swap_with_earlier, lose, become_directory]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(
    damage: Callable[[Path, random.Random], None], checkpoints: Path
) -> None:
    from train.rundir.checkpoints import complete

    rng = random.Random(5)
    whole = checkpoints.with_name("whole")
    shutil.copytree(checkpoints, whole)
    for path in files_of(whole / "step-6"):
        for _ in range(40 if damage in (flip, truncate) else 1):
            shutil.rmtree(checkpoints)
            shutil.copytree(whole, checkpoints)
            name = path.relative_to(whole)
            damage(checkpoints / name, rng)
            found, set_aside = newest(checkpoints)
            assert found == checkpoints / "step-4", name
            if (whole / name).name == "COMPLETE" and damage in (lose, become_directory):
                continue  # was never complete
            assert list(set_aside) == ["damaged-step-6"]
            assert ": " in set_aside["damaged-step-6"]
            assert [place.name for place in complete(checkpoints)] == ["step-2", "step-4"]


def test_a_checkpoint_under_another_step_is_damaged(checkpoints: Path) -> None:
    from train.rundir.checkpoints import damage

    shutil.copytree(checkpoints / "step-2", checkpoints / "step-8")
    assert damage(checkpoints / "step-8") == "state.json: is of step 2"
    assert damage(checkpoints / "step-2") is None


def test_a_checkpoint_without_a_manifest_is_checked_for_its_structure(checkpoints: Path) -> None:
    """As version 0.1 wrote them."""
    from train.rundir.checkpoints import damage

    place = checkpoints / "step-4"
    state = json.loads((place / "state.json").read_text())
    (place / "COMPLETE").write_text("")
    assert damage(place) == "COMPLETE: is empty"
    (place / "state.json").write_text(json.dumps({**state, "schema": 1}))
    assert damage(place) is None
    os.truncate(place / "state.safetensors", 1000)
    assert str(damage(place)).startswith("state.safetensors: ")
    (place / "state.json").write_text("{")
    assert str(damage(place)).startswith("state.json: ")


def test_a_program_has_checkpoints_of_its_own_form(tmp_path: Path) -> None:
    from train.rundir.checkpoints import damage

    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-3" / "weights").write_text("mine")
    (tmp_path / "step-3" / "COMPLETE").touch()
    assert damage(tmp_path / "step-3") is None
