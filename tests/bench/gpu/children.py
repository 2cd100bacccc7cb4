"""Run cases in separate processes.

Importing Unsloth or DeepSpeed takes as long as measuring a case. So the next process starts while the previous one
works. It reports the end of its imports and touches no GPU before it receives a case. Both ways: one line of JSON per
case.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.gpu.cases import Case
from train.rundir import bytecode

PLAIN = ("liger", "torchao")
"""Engines of tests/bench/gpu/plain.py."""
IMPORTS = 120.0
"""Seconds that a process may take for its imports."""


class Child:
    """One process that measures case by case, with `ask`."""

    def __init__(self, cases: list[Case], out: Path, scratch: Path, number: int) -> None:
        kind = "ours" if cases[0].ours else cases[0].engine
        kind = f"zero-{kind}" if cases[0].zero else kind
        self.log = (out / f"{number:02d}-{kind}.log").open("w", encoding="utf-8")
        command = [sys.executable, "-m", "tests.bench.gpu", "child", kind, "--out", str(out), "--scratch", str(scratch)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready = False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _line(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.process.kill()
            return {"failed": f"no answer within {timeout:.0f} s"}
        if line is None:
            return {"failed": f"the process ended with exit code {self.process.wait()}; see {self.log.name}"}
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, case: Case, timeout: float) -> dict[str, Any]:
        """A result, {"out_of_memory": true} or {"failed": reason}. Never raises because of the case."""
        assert self.process.stdin is not None
        if not self._ready:
            first = self._line(IMPORTS)
            if "failed" in first:
                return first
            self._ready = True
        with contextlib.suppress(BrokenPipeError):  # the answer reports that the process has ended
            self.process.stdin.write(json.dumps(asdict(case)) + "\n")
            self.process.stdin.flush()
        return self._line(timeout)

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def answers(jobs: list[list[Case]], out: Path, scratch: Path, timeout: float) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Each case with its result; at most `timeout` seconds per case."""
    waiting: Child | None = None
    try:
        for number, cases in enumerate(jobs):
            child = waiting or Child(cases, out, scratch, number)
            waiting = Child(jobs[number + 1], out, scratch, number + 1) if number + 1 < len(jobs) else None
            try:
                for case in cases:
                    yield case, child.ask(case, timeout)
            finally:
                child.close()
    finally:
        if waiting is not None:
            waiting.close()


def serve(kind: str, out: Path, scratch: Path) -> None:
    """The child's side: import, then print one line of results per case from standard input."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries goes to the log
    bytecode.keep()
    preload(kind)
    print(json.dumps({"ready": kind}), file=wire, flush=True)
    measure = _measure(out, scratch)
    for line in sys.stdin:
        print(json.dumps(measure(Case(**json.loads(line)))), file=wire, flush=True)


def preload(kind: str) -> None:
    """Import everything heavy that cases of this kind need."""
    if kind in ("unsloth", "trl"):
        import unsloth  # noqa: F401  (before transformers)
    if kind == "trl":
        import trl  # noqa: F401
    if kind.startswith("zero"):
        import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401


def _measure(out: Path, scratch: Path) -> Any:
    from tests.bench.gpu.others import Loaded, run_unsloth
    from tests.bench.gpu.ours import Held, run_case
    from tests.bench.gpu.plain import run_plain
    from tests.bench.gpu.rate import heading

    held, loaded, about = Held(), Loaded(), {}

    def measure(case: Case) -> dict[str, Any]:
        import torch

        if not about:  # the first use of the GPU: not before a case arrives
            about.update(heading())
        try:
            if case.ours:
                line = run_case(case, held, out)
            else:
                line = run_plain(case, scratch) if case.engine in PLAIN else run_unsloth(case, loaded, scratch)
        except torch.cuda.OutOfMemoryError:
            line = {"out_of_memory": True}
            traceback.clear_frames(sys.exc_info()[2])  # their tensors
        except Exception as error:
            traceback.print_exc()
            line = {"failed": f"{type(error).__name__}: {error}"[:600]}
        return {**about, **line}

    return measure
