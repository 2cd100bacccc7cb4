"""A rank of test_copies.py: copies of checkpoints between ranks that see one run directory or several.

usage: python -m tests.beds.copying_ranks PLACE      three ranks, each a node of its own; prints "right" at the end
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from train import dist
from train.rundir.checkpoints import MARKER, complete, damage, manifest
from train.rundir.run_files import RunDir
from train.training.checkpoint import remove
from train.training.copies import Copies


def written(rundir: RunDir, step: int) -> None:
    """A checkpoint of several files, one of them empty."""
    place = rundir.checkpoints / f"step-{step}"
    (place / "adapter").mkdir(parents=True)
    (place / "state.safetensors").write_bytes(bytes([step]) * 300_000)
    (place / "adapter/weights").write_bytes(os.urandom(70_001))
    (place / "adapter/empty").write_bytes(b"")
    (place / "state.json").write_text(f'{{"schema": 2, "progress": {{"step": {step}}}}}')
    (place / MARKER).write_text(manifest(place))


def steps(rundir: RunDir) -> list[str]:
    return [path.name for path in complete(rundir.checkpoints)]


def main(place: Path) -> None:
    world = dist.from_environment("cpu")
    world = replace(world, node_rank=world.rank)
    dist.start(world, deepspeed=False)
    rank = world.rank

    # 1 shares with 0, 2 is apart
    own = RunDir(place / ("shared" if rank < 2 else "apart"))
    copies = Copies(world, own, 2)
    assert copies.members == [0, 2], copies.members
    dist.wait(world)  # each rank removes its own
    assert not list(own.checkpoints.glob(".seen-*"))
    for step in (1, 2, 3):
        if rank == 0:
            written(own, step)
            with own.metrics.open("a") as file:
                file.write(f'{{"step": {step}}}\n' * (1 if step == 2 else 50_000))
        if rank == 0 and step == 3:
            remove(own.checkpoints / "step-2")  # step 1 is the best one
        dist.wait(world)
        copies.send(step)
    dist.wait(world)
    assert steps(own) == ["step-1", "step-3"]
    assert own.metrics.read_bytes() == (place / "shared" / "metrics.jsonl").read_bytes()
    dist.wait(world)
    if rank == 0:  # a resumed run has cut the file
        own.metrics.write_text('{"step": 1}\n')
        written(own, 4)
    dist.wait(world)
    Copies(world, own, 2).send(4)
    dist.wait(world)
    assert own.metrics.read_text() == '{"step": 1}\n'
    dist.wait(world)
    if rank == 0:
        remove(own.checkpoints / "step-4")
    dist.wait(world)
    assert [damage(path) for path in complete(own.checkpoints)] == [None] * len(steps(own))
    assert not list(own.checkpoints.glob(".*")), "something is left"

    # all are apart; one copy, two copies, none
    far = RunDir(place / f"far-{rank}")
    assert [Copies(world, far, wanted).hosts for wanted in (1, 2, 3, 9)] == [0, 1, 2, 2]
    # all see one directory
    assert Copies(world, RunDir(place / "one"), 2).hosts == 0

    # a host that cannot write: told, and the other copy is whole
    copies = Copies(world, far, 3)
    if rank == 1:
        (far.checkpoints / f".step-5.{os.getpid()}.tmp").write_text("in the way")
    if rank == 0:
        written(far, 5)
    copies.send(5)
    assert steps(far) == ([] if rank == 1 else ["step-5"])
    if rank == 0:
        text = far.events.read_text()
        assert "the checkpoint of step 5 was not copied to" in text
        assert "Not a directory" in text or "File exists" in text, text
    dist.wait(world)
    dist.stop()
    print("right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.leave(0)
