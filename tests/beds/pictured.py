"""A run directory as a run writes it, bit by bit: for what people are shown of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from launcher.rundir.directory import RunDir, RunRecord

BEGIN = 1_700_000_000.0


class Recorded:
    """Writes the files of one run with times of its own: `clock` is the time of the next line."""

    def __init__(self, root: Path, run_id: str = "tiny-20260101-000000-aaaa", *, backend: str = "local") -> None:
        self.run = RunDir(root / run_id)
        self.clock = BEGIN
        self.backend = backend

    def plan(self, *, ranks: int = 1, speed: float | None = None, memory: int | None = None, **train: Any) -> Recorded:
        content = {
            "name": "tiny", "backend": self.backend,
            "launch": {"world_size": ranks, "device": "cpu"},
            "train": {
                "predicted_peak_bytes": memory, "predicted_tokens_per_second": speed,
                "train": train, "eval": {"after": True}, "data": {},
            },
        }  # fmt: skip
        self.run.write({"plan.json": json.dumps(content)})
        return self

    def submit(self, *ids: str) -> Recorded:
        known = {"run_id": self.run.run_id, "name": "tiny", "backend": self.backend, "created": BEGIN}
        self.run.save_record(RunRecord(**known, ids=ids or ("123",), submitted=self.clock, state="RUNNING"))
        return self.event("submitted", backend=self.backend, ids=list(ids or ("123",)))

    def event(self, name: str, after: float = 0.0, /, **fields: Any) -> Recorded:
        self.clock += after
        self._append("events.jsonl", {"time": self.clock, "event": name, **fields})
        return self

    def ranks(self, *hosts: str, each: int = 1) -> Recorded:
        """The agents of these hosts start their ranks."""
        for node, host in enumerate(hosts or ("here",)):
            rows = [{"rank": node * each + place, "pid": 1000 + node * each + place} for place in range(each)]
            self.node(node, host, rows)
            self.event("agent_started", node=node, host=host, pid=1)
            self.event("ranks_started", node=node, ranks=[row["rank"] for row in rows], attempt=0)
        return self

    def node(self, node: int, host: str, ranks: list[dict[str, Any]], **fields: Any) -> Recorded:
        record = {"node_rank": node, "host": host, "state": "RUNNING", "heartbeat": self.clock, "ranks": ranks}
        record |= {"pid": 1, "start_time": 1, "boot_id": "another"}
        self.run.write({f"nodes/node-{node}.json": json.dumps({**record, "restarts": 0, "failure": None, **fields})})
        return self

    def phase(self, name: str, after: float = 1.0, **fields: Any) -> Recorded:
        return self.event("phase", after, name=name, node=0, rank=0, **fields)

    def steps(self, first: int, last: int, *, seconds: float = 1.0, loss: Any = None, **fields: Any) -> Recorded:
        """Steps first..last; `loss`: a function of the step."""
        for step in range(first, last + 1):
            self.clock += seconds
            value = loss(step) if loss else 1.0 + 3.0 * math.exp(-step / 20)
            line = {"step": step, "epoch": step / 10, "loss": value, "grad_norm": 0.5, "learning_rate": 1e-3}
            line |= {"tokens": step * 100, "tokens_per_second": 100.0, "peak_memory_bytes": 2 << 30}
            self._append("metrics.jsonl", {**line, "time": self.clock, **fields})
        return self

    def held_out(self, step: int, loss: float) -> Recorded:
        self._append("metrics.jsonl", {"step": step, "eval_loss": loss, "time": self.clock})
        return self

    def result(self, **fields: Any) -> Recorded:
        self.run.write({"result.json": json.dumps({"schema": 1, "state": "succeeded", **fields})})
        return self

    def end(self, state: str = "SUCCEEDED", after: float = 1.0) -> Recorded:
        return self.event("end", after, node=0, state=state)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        self.run.path.mkdir(parents=True, exist_ok=True)
        with (self.run.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
