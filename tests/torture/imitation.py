"""A program that imitates the training program's files without torch: metrics, checkpoints, adapter, result.

    imitation.py STEPS SECONDS_PER_STEP [CHECKPOINT_EVERY]

The loss of a step follows from the state after the step before, so a run that lost or repeated a step ends elsewhere.
Rank 0 writes; every rank steps. It uses the standard library and train/rundir only.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train.rundir.checkpoints import MARKER, SCHEMA, STATE, complete, manifest, set_aside, undamaged
from train.rundir.run_files import append_line

EXIT_STOPPED = 75
CHECKPOINTS = Path("checkpoints")


def next_state(state: str) -> tuple[str, float]:
    """The state after one more step, and its loss."""
    state = hashlib.sha256(state.encode()).hexdigest()
    return state, int(state[:8], 16) / 2**32


def newest() -> tuple[int, str, float]:
    """(step, state, loss) of the newest checkpoint that holds what was written; damaged ones are set aside."""
    for place in undamaged(CHECKPOINTS, lambda damaged, _: set_aside(damaged)):
        content = json.loads((place / STATE).read_text(encoding="utf-8"))
        return content["progress"]["step"], content["state"], content["loss"]
    return 0, "start", 0.0


def write(path: Path, text: str | bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = text.encode() if isinstance(text, str) else text
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save(step: int, state: str, loss: float) -> None:
    place = CHECKPOINTS / f"step-{step}"
    if (place / MARKER).is_file():
        return
    temporary = CHECKPOINTS / f".step-{step}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    temporary.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
    write(temporary / "state.safetensors", struct.pack("<Q", len(header)) + header + state.ljust(64).encode()[:64])
    write(temporary / STATE, json.dumps({"schema": SCHEMA, "progress": {"step": step}, "state": state, "loss": loss}))
    temporary.rename(place)
    write(place / MARKER, manifest(place))
    for old in complete(CHECKPOINTS)[:-2]:
        (old / MARKER).unlink()
        shutil.rmtree(old)


def append(name: str, content: dict[str, Any]) -> None:
    append_line(Path(name), {**content, "time": time.time()})


def finish(loss: float, steps: int) -> None:
    adapter = Path("adapter")
    adapter.mkdir(exist_ok=True)
    write(adapter / "adapter_config.json", json.dumps({"peft_type": "LORA", "r": 1}))
    scores = {"loss": loss, "records": 4, "accuracy": 0.5, "tasks": {}}
    result = {
        "schema": 1,
        "state": "succeeded",
        "steps": steps,
        "loss_first": next_state("start")[1],
        "loss_last": loss,
    }
    result |= {"grad_norm_min": 0.5, "adapter_reloads": True, "eval": {"before": scores, "after": scores}}
    write(Path("result.json"), json.dumps({**result, "samples": [], "tokens": steps * 10}))


def main(steps: int, seconds: float, every: int = 2) -> int:
    os.chdir(os.environ["ZLAUNCH_RUN_DIR"])
    first = os.environ["RANK"] == "0"
    step, state, loss = newest() if first else (0, "start", 0.0)
    while step < steps:
        select.select([], [], [], seconds)  # libfaketime breaks time.sleep
        step += 1
        state, loss = next_state(state)
        print(f"step {step} of {steps}: loss {loss:.4f}", flush=True)
        if first:
            append("metrics.jsonl", {"step": step, "loss": loss, "tokens": step * 10, "tokens_per_second": 10.0})
        stopping = Path("control/stop").exists()
        if first and (step % every == 0 or stopping):
            save(step, state, loss)
            append("events.jsonl", {"event": "checkpoint", "step": step, "node": 0})
        if stopping:
            return EXIT_STOPPED
    if first:
        finish(loss, steps)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:])))
