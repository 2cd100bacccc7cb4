"""Start runs as a user does, follow them and measure them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.multi import ROOT, write_workload
from tests.bench.multi import Bench as OneHost
from tests.bench.nodes.hosts import Hosts
from tests.bench.nodes.tables import Table

SETTLED = 3
"""Steps that do not count for speed, because the first ones compile."""


@dataclass(frozen=True)
class Sizes:
    """What a device trains."""

    small: str
    large: str
    huge: str
    """Of the part `large`: more than one GPU holds."""
    records: int
    """Records per step and rank."""
    dense: tuple[int, int]
    """Rows per step and rank, tokens of each."""
    steps: int
    tokens: int | None = None
    """Of a record; None: lognormal with median 150."""
    seconds: float = 150
    """Time limit of a run."""


SIZES = {
    "cuda": Sizes("llama3.2-1b", "llama3-8b", "llama3-70b", 96, (4, 2048), 12),
    "cpu": Sizes("tiny", "tiny", "tiny", 4, (2, 64), 5, tokens=48, seconds=300),
}


class OutOfTimeError(Exception):
    """The time limit of the bench is over."""


class RunFailedError(Exception):
    """A run did not end as it should; the message is its last output."""


@dataclass
class Runner:
    hosts: Hosts
    place: Path
    """Runs, logs and data; on simulated hosts all of them see it."""
    models: Path
    table: Table
    deadline: float
    extra: list[str] = field(default_factory=list)
    """Arguments of every run."""
    sizes: Sizes = field(init=False)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.sizes = SIZES[self.hosts.device]

    @property
    def runs(self) -> Path:
        return self.place / "runs"

    def time_left(self, wanted: float, least: float = 20) -> float:
        """`wanted` seconds, or what is left. Raises OutOfTimeError if that is too little."""
        left = self.deadline - time.monotonic()
        if left < least:
            raise OutOfTimeError
        return min(wanted, left)

    @property
    def _ours(self) -> dict[str, str]:
        return {"ZLAUNCH_RUNS": str(self.runs), "ZLAUNCH_CACHE": str(self.place / "cache"), "PYTHONUNBUFFERED": "1"}

    def _variables(self) -> list[str]:
        """For a program on a host, whose environment is empty."""
        return ["env", *(f"{name}={value}" for name, value in {**self._ours, "PYTHONPATH": str(ROOT)}.items())]

    def environ(self) -> dict[str, str]:
        slurm = self.hosts.slurm.environment if self.hosts.slurm else {}
        return {**os.environ, **self._ours, **slurm, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}

    def start(
        self, words: list[str], host: str | None = None, **variables: str
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """(zlaunch, its log); `host`: it runs on that simulated host. `variables`: more of its environment."""
        with self._lock:
            self._count += 1
            log = self.place / f"{self._count:02d}-{words[0]}.log"
        with log.open("wb") as output:
            output.write((" ".join(words) + "\n").encode())
            output.flush()
            console = [*self.hosts.lab.console(host), *self._variables()] if host and self.hosts.lab else []
            process = subprocess.Popen(
                [*console, sys.executable, "-m", "launcher", *words], env={**self.environ(), **variables},
                cwd=self.place, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process, log

    def stop_all(self) -> None:
        """End what a part that failed has left running."""
        for process in self._started:
            if process.poll() is None:
                self._interrupt(process)

    @staticmethod
    def _interrupt(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ended(self, process: subprocess.Popen[bytes], seconds: float) -> int:
        """The exit status. A run that takes longer is interrupted as a user would, then killed."""
        try:
            return process.wait(self.time_left(seconds))
        except subprocess.TimeoutExpired:
            self._interrupt(process)
            return 124

    def zlaunch(
        self, *words: str, seconds: float | None = None, host: str | None = None, **variables: str
    ) -> dict[str, Any]:
        """Run to the end and return the JSON of its last line. Raises RunFailedError unless it succeeds."""
        seconds = self.time_left(seconds or self.sizes.seconds)
        process, log = self.start([*words, "--json"], host, **variables)
        code = self.ended(process, seconds)
        if code:
            why = f"longer than {seconds:.0f} s" if code == 124 else f"exit status {code}"
            raise RunFailedError(f"{why}; {log.name}: {tail(log)}")
        answer: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        return answer

    def job(self, shape: str, batch: int, steps: int, tokens: int | None, **sets: object) -> list[str]:
        """Arguments that train a random model of a shape and do nothing else."""
        from tests.bench.gpu.cases import checkpoint_place

        file = write_workload(self.place, batch * min(steps + 1, 20), tokens or self.sizes.tokens)
        length = tokens or self.sizes.tokens or 512
        model = checkpoint_place(shape, self.models, "none")
        more = {"eval.after": "false", "lora.r": 16, **sets}
        if self.hosts.device == "cpu":
            more = {"train.engine": "peft", "model.dtype": "float32", **more}
        words = OneHost.job(model, file, steps, batch, length)
        return [*words, *(word for key, value in more.items() for word in ("--set", f"{key}={value}")), *self.extra]

    def long_job(self) -> list[str]:
        """A run that ends only if something ends it."""
        ranks = self.hosts.ranks
        sets = {"train.zero_stage": 2, "heartbeat_timeout": 5}
        return self.job(self.sizes.small, self.sizes.records * ranks, 100_000, None, **sets)

    def training(self, words: list[str], steps: int = 3) -> tuple[subprocess.Popen[bytes], Path]:
        """(zlaunch, run directory) of a run that has made some steps."""
        before = set(self.runs.glob("*"))
        process, log = self.start(words)

        def new() -> Path | None:
            found = [run for run in set(self.runs.glob("*")) - before if len(losses(run)) >= steps]
            return found[0] if found else None

        run = self.wait(lambda: new() or process.poll() is not None, self.sizes.seconds)
        if not isinstance(run, Path):
            self.ended(process, 0.1)
            raise RunFailedError(f"it did not begin to train; {log.name}: {tail(log)}")
        return process, run

    def wait(self, ask: Callable[[], Any], seconds: float) -> Any:
        """The first true answer, or the last one when the time is over."""
        end = time.monotonic() + self.time_left(seconds)
        while not (answer := ask()) and time.monotonic() < end:
            time.sleep(0.1)
        return answer

    def left(self, run: str) -> str:
        """What still runs of a run; empty if nothing does."""
        self.wait(lambda: not self.hosts.processes(f"ZLAUNCH_RUN_ID={run}") and not self.hosts.on_gpus(), 20)
        processes, gpus = self.hosts.processes(f"ZLAUNCH_RUN_ID={run}"), self.hosts.on_gpus()
        return " ".join([str(processes)] * bool(processes) + [f"on GPUs: {gpus}"] * bool(gpus))


def tail(log: Path, characters: int = 1500) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


def losses(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics with a loss, also of a file whose last line is being written."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if "loss" in line]


def measured(run: Path) -> dict[str, Any]:
    """Rate after the first steps, memory, losses, and how the step was cut."""
    lines = losses(run)
    counted = lines[SETTLED - 1 :]
    rate = (counted[-1]["tokens"] - counted[0]["tokens"]) / (counted[-1]["time"] - counted[0]["time"])
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    peak = result.get("peak_memory_bytes") or {}
    train = json.loads((run / "train.json").read_text(encoding="utf-8"))["train"]
    cut = (
        f"{train.get('gradient_accumulation_steps')} passes" if train.get("gradient_accumulation_steps", 1) > 1 else ""
    )
    return {
        "tokens_per_second": rate,
        "peak_gib": (peak.get("measured") or 0) / 2**30 or None,
        "predicted_gib": (peak.get("predicted") or 0) / 2**30 or None,
        "note": ", ".join(filter(None, [cut, "checkpointing" if train.get("gradient_checkpointing") else ""])) or None,
        "losses": [line["loss"] for line in lines],
    }
