"""Ranks save together; one is killed at some moment, and the next group resumes from what is left.

`make long` tries twenty moments at each ZeRO stage, the suite six: its stages together try all that are WITHIN a save.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.beds.campaigns import WHOLE
from tests.beds.forked import Forkserver
from tests.beds.ranks import events, result

pytestmark = [pytest.mark.train, pytest.mark.long]

WORLD = 2
KINDS = ("param/", "exp_avg/", "exp_avg_sq/")
WITHIN: dict[str, dict[str, Any]] = {  # what rank 0 is about to do when it is killed
    "make the temporary directory": {"call": "os.mkdir", "path": r"/\.step-\d+\.\d+\.tmp$"},
    "name state.json": {"call": "os.rename", "path": r"\.tmp/state\.json$"},
    "write the adapter's configuration": {"call": "open", "path": r"\.tmp/adapter/adapter_config\.json$"},
    "sync the weights": {"call": "open", "path": r"\.tmp/state\.safetensors$"},
    "sync the temporary directory": {"call": "open", "path": r"\.tmp$"},
    "rename the directory": {"call": "os.rename", "path": r"/step-\d+$"},
    "write the marker": {"call": "open", "path": r"/step-\d+/\.COMPLETE\.\d+\.[0-9a-f]+\.tmp$"},
    "name the marker": {"call": "os.rename", "path": r"/step-\d+/COMPLETE$"},
    "take the marker of the older one": {"call": "os.remove", "path": r"/step-\d+/COMPLETE$"},
    "remove the older one's first file": {"call": "os.remove", "path": r"^[^/]+$"},
}
BY_THE_CLOCK = 10 if WHOLE else 2
"""Further kills: of any rank, at a random time within two saves."""


def announced(run: Path) -> list[int]:
    """The steps of the checkpoints that events.jsonl reports as saved."""
    return [event["step"] for event in events(run, "checkpoint")] if (run / "events.jsonl").exists() else []


def kill_a_rank(server: Forkserver, run: Path, before: dict[str, Any] | None, rng: random.Random) -> list[int]:
    """Start a group, kill one rank in or between saves, and wait for the end of the group."""
    count = len(announced(run))
    if before is not None:
        server.start(run, WORLD, before={**before, "times": rng.randint(2, 3)}, grace=rng.uniform(0, 0.2))
        return server.wait()
    pids, times = server.start(run, WORLD, grace=rng.uniform(0, 0.2)), []
    limit = time.monotonic() + 120
    while len(times) < 2:  # measures how long one save takes on this machine
        assert time.monotonic() < limit, (run / "ranks.log").read_text()
        time.sleep(0.001)
        if len(announced(run)) > count + len(times):
            times.append(time.monotonic())
    time.sleep(rng.uniform(0, 2 * (times[1] - times[0])))
    os.kill(rng.choice(pids), signal.SIGKILL)
    return server.wait()


def newest(run: Path) -> tuple[int, dict[str, Any]]:
    """(step, state) of the newest complete checkpoint; asserts that all its files are of one step."""
    from safetensors.torch import load_file

    from train.rundir.checkpoints import complete

    place = complete(run / "checkpoints")[-1]
    step = int(place.name.removeprefix("step-"))
    assert json.loads((place / "state.json").read_text())["progress"]["step"] == step
    state, adapter = load_file(place / "state.safetensors"), load_file(place / "adapter" / "adapter_model.safetensors")
    kinds = {kind: {name.partition("/")[2] for name in state if name.startswith(kind)} for kind in KINDS}
    assert kinds[KINDS[0]] == kinds[KINDS[1]] == kinds[KINDS[2]] != set()
    assert len(adapter) == len(kinds["param/"])
    for name in kinds["param/"]:
        assert adapter[name.replace(".default.", ".")].equal(state[f"param/{name}"])
    return step, state


@pytest.mark.parametrize(("part", "stage"), [(0, 0), (1, 2), (2, 3)])
def test_killing_any_rank_at_any_moment_never_loses_the_previous_checkpoint(
    part: int, stage: int, forkserver: Forkserver, configure: Any
) -> None:
    """What the killed groups saved equals, to the bit, what an undisturbed group saves at the same steps."""
    from safetensors.torch import load_file

    settings = {
        "train.zero_stage": stage, "train.checkpoint_every": 1, "train.scheduler": "constant",
        "train.warmup_ratio": 0.0, "data.eval": None, "lora.target_modules": ["q_proj", "down_proj"],
    }  # fmt: skip
    run = configure("killed", WORLD, **settings, **{"train.max_steps": 500, "train.keep_checkpoints": 1})
    rng = random.Random(f"stage {stage}")
    within = list(WITHIN.items()) if WHOLE else list(WITHIN.items())[part::3]
    moments: list[tuple[str, dict[str, Any] | None]] = [*within, *[("by the clock", None)] * BY_THE_CLOCK]
    rng.shuffle(moments)
    kept: dict[int, dict[str, Any]] = {}
    reached = 0
    for moment, before in moments:
        statuses = kill_a_rank(forkserver, run, before, rng)
        log = (run / "ranks.log").read_text()
        assert -signal.SIGKILL in statuses, (moment, log)
        assert 0 not in statuses, (moment, log)
        step, state = newest(run)
        assert step >= max([reached, *announced(run)]), moment
        assert [event["step"] for event in events(run, "resumed")][-1:] == ([reached] if reached else []), moment
        kept[step], reached = state, step

    # the last group runs to the end; an undisturbed one runs from the start
    configure("killed", WORLD, run=run, **settings, **{"train.max_steps": reached + 2, "train.keep_checkpoints": 1})
    whole = configure("whole", WORLD, **settings, **{"train.max_steps": reached + 2, "train.keep_checkpoints": 1000})
    for place in (run, whole):
        forkserver.start(place, WORLD)
        assert forkserver.wait() == [0] * WORLD, (place / "ranks.log").read_text()
        assert result(place)["steps"] == reached + 2
    kept[reached + 2] = newest(run)[1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{reached + 2}"]
    for step, state in kept.items():
        undisturbed = load_file(whole / "checkpoints" / f"step-{step}" / "state.safetensors")
        assert undisturbed.keys() == state.keys()
        assert all(undisturbed[name].equal(state[name]) for name in state), step
