"""Saves that are cut off at random moments. There is no model, so many moments fit into one test."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

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

    from train.rundir import complete

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
    from train import rundir
    from train.training import checkpoint

    for name in (".step-4.123.tmp", "step-4", "step-3", "step-3-a-copy-of-mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-3" / "COMPLETE").touch()
    assert [path.name for path in rundir.complete(tmp_path)] == ["step-3"]
    checkpoint.remove_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-3-a-copy-of-mine"]
