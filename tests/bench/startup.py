"""Cost of the launcher: start-up compared with bare imports, and the first step compared with a run by hand."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BARE = [sys.executable, "-c", "import click, jinja2"]
ZLAUNCH = [sys.executable, "-m", "launcher"]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place)
        compare_commands(runs)
        compare_first_steps(runs)


def compare_commands(runs: Path, rounds: int = 15) -> None:
    """Measure wall seconds of whole commands in turn. The ratio is the median of the ratios of all rounds."""
    commands: dict[str, list[str]] = {
        "python -c 'import click, jinja2'": BARE,
        "zlaunch --help": [*ZLAUNCH, "--help"],
        "zlaunch local --dry-run": [*ZLAUNCH, "local", "--smoke", "--dry-run", "--device", "cpu"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, argv in commands.items():
            took = run(argv, runs)
            if number:  # the first round warms the file cache and does not count
                seconds[name].append(took)
    bare = seconds["python -c 'import click, jinja2'"]
    print(f"{'command':<36} {'median s':>9} {'ratio':>7}")
    for name, times in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(times, bare, strict=True))
        print(f"{name:<36} {statistics.median(times):>9.3f} {ratio:>7.2f}")


def compare_first_steps(runs: Path, rounds: int = 3) -> None:
    """Seconds from the start of the command to the first line of metrics.jsonl."""
    by_hand, launched = [], []
    for _ in range(rounds):
        by_hand.append(until_first_step(start_by_hand, runs))
        launched.append(until_first_step(start_launched, runs))
    difference = statistics.median(one - other for one, other in zip(launched, by_hand, strict=True))
    print(f"first optimizer step, by hand     {statistics.median(by_hand):.2f} s")
    print(f"first optimizer step, zlaunch     {statistics.median(launched):.2f} s   (difference {difference:+.2f} s)")


def start_by_hand(runs: Path) -> tuple[subprocess.Popen[bytes], float, Path]:
    done = subprocess.run(
        [*ZLAUNCH, "local", "--smoke", "--dry-run", "--json", "--device", "cpu"],
        env=environment(runs), check=True, capture_output=True, text=True,
    )  # fmt: skip
    directory = Path(json.loads(done.stdout)["directory"])
    argv = [sys.executable, "-m", "train", "--config", "train.json"]
    begin = time.monotonic()
    return start(argv, {**environment(runs), "PYTHONPATH": str(directory / "code")}, directory), begin, directory


def start_launched(runs: Path) -> tuple[subprocess.Popen[bytes], float, Path]:
    before = set(runs.iterdir())
    begin = time.monotonic()
    process = start([*ZLAUNCH, "local", "--smoke", "--device", "cpu", "--name", "launched"], environment(runs), ROOT)
    while not (new := set(runs.iterdir()) - before):
        time.sleep(0.005)
    return process, begin, new.pop()


def until_first_step(starter: Callable[[Path], tuple[subprocess.Popen[bytes], float, Path]], runs: Path) -> float:
    process, begin, directory = starter(runs)
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(f"the run in {directory} ended before its first step")
        time.sleep(0.01)
    took = time.monotonic() - begin
    process.wait()
    return took


def run(argv: Sequence[str], runs: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment(runs))
    return time.perf_counter() - begin


def start(argv: Sequence[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def environment(runs: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_RUNS": str(runs)}
