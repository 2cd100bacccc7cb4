"""A run that seems to live: `python -m tests.beds.growing ROOT [SECONDS]` is its agent and writes its files.

It goes through every phase in about SECONDS, waits at step 31 of 63 until a file `go` lies in the run directory, and
removes itself as agent at the end. With `stop` in control/ it ends as CANCELLED, like a training that was asked to.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from launcher.node import processes
from tests.beds.pictured import Recorded

ADVICE = "学习率在前三步里上升;训练集里有两条记录重复,评估集里没有重复的记录,请检查数据来源。"


class Living(Recorded):
    """Writes with the times of now, and is alive as far as the records say."""

    def __init__(self, root: Path, pace: float) -> None:
        super().__init__(root, "demo-20260101-120000-beef")
        self.pace, self.clock = pace, time.time()

    def agent(self, state: str = "RUNNING") -> None:
        pid = os.getpid()
        known = {
            "pid": pid, "start_time": processes.start_time_of(pid), "boot_id": processes.boot_id(),
            "pid_namespace": processes.pid_namespace(), "state": state, "heartbeat": time.time(),
        }  # fmt: skip
        self.node(0, os.uname().nodename, [{"rank": rank, "pid": pid + rank} for rank in (0, 1)], **known)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds * self.pace)
        self.clock = time.time()
        self.agent()

    def until(self, name: str) -> bool:
        """Wait for a file of the run; False: a stop was asked for."""
        while not (self.run.path / name).exists():
            if (self.run.control_dir / "stop").exists():
                return False
            self.pause(0.2)
        return True


def main(root: Path, pace: float) -> None:
    living = Living(root, pace)
    signal.signal(signal.SIGINT, lambda *_: living.run.write({"control/stop": "{}"}))
    living.plan(ranks=2, speed=1480.0, memory=3 << 30, epochs=1.0).agent()
    living.submit(str(os.getpid()))
    living.event("agent_started", node=0, host=os.uname().nodename)
    living.event("ranks_started", node=0, ranks=[0, 1], attempt=0)
    living.phase("model", 0.0).pause(1)
    living.event("engine", engine="peft", reason="plain transformers and PEFT: no faster engine covers a CPU")
    for done in (1.2e9, 2.9e9):
        living.event("progress", name="model", unit="bytes", done=done, total=3.1e9)
        living.pause(1)
    living.phase("adapter", 0.0).pause(0.5)
    living.phase("data", 0.0)
    living.event("data", part="eval", records=64, measured=64, in_training=0)
    living.event("warning", text=ADVICE)
    living.event("steps", total_steps=63)
    living.phase("evaluate_before", 0.0).pause(1)
    living.event("progress", name="evaluate_before", unit="records", done=32, total=64)
    living.pause(1)
    living.event("evaluation", when="before", step=0, loss=4.72, accuracy=0.05)
    living.phase("train", 0.0, total_steps=63)
    state = "SUCCEEDED" if train(living) else "STOPPED"
    living.event("end", node=0, state=state)
    living.agent(state)


def train(living: Living) -> bool:
    for step in range(1, 64):
        living.pause(0.05)
        living.steps(step, step, seconds=0.0, loss=lambda at: 1.5 + 3.2 * 0.95**at + 0.3 * (at * 7 % 5 - 2) / 5)
        if step == 1:
            living.event("memory", node=0, rank=1, peak_bytes=int(2.1 * 2**30))
        if step % 13 == 0:
            living.held_out(step, 1.6 + 3.1 * 0.96**step)
        if step == 25:
            living.event("checkpoint", step=25, seconds=0.4)
        if step == 31 and not living.until("go"):
            living.event("request", request="stop", by=None)
            return False
    living.phase("evaluate_after", 0.0).pause(0.5)
    scores = {"loss": 1.83, "records": 64, "accuracy": 0.66, "tasks": {"情感": {"records": 64, "exact_match": 0.66}}}
    living.event("evaluation", when="after", step=63, loss=1.83, accuracy=0.66)
    living.phase("save", 0.0)
    sample = {"prompt": "这部电影的情感是什么?" * 6, "expected": "正面", "before": "电影" * 40, "after": "正面"}
    living.result(steps=63, eval={"before": {"loss": 4.72, "accuracy": 0.05}, "after": scores}, samples=[sample])
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
