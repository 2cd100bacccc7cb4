"""Large logs: first byte, rate and memory of `zlaunch logs` of 2 GB, `logs --tail` and `logs -f` while a rank writes.

    python -m tests.bench.log_files [--gigabytes 2] [--rate 50] [--seconds 20]

The output goes into a pipe that this program empties, as a pager or `grep` would. `-f` follows a run whose rank
writes RATE megabytes per second and ends after SECONDS. What it is behind is measured by times in its lines.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.large import ROOT, write_run

LINE = b"%012d " + b"x" * 86 + b"\n"
WRITER = """
import sys, time
rate, seconds = int(sys.argv[1]), float(sys.argv[2])
text = ("x" * 86 + "\\n") * 999
begin, sent = time.time(), 0
while time.time() - begin < seconds:
    line = "%.6f" % time.time()
    block = line + "\\n" + text
    sys.stdout.write(block)
    sent += len(block)
    ahead = sent / (rate * 1e6) - (time.time() - begin)
    if ahead > 0:
        time.sleep(ahead)
print("sent %d" % sent)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rate", type=int, default=50, help="megabytes per second that a rank writes")
    parser.add_argument("--seconds", type=float, default=20.0)
    chosen, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = write_run(root / "runs", 0, 10)
        log = run / "logs" / "node-0" / "rank-0.log"
        log.parent.mkdir(parents=True)
        with log.open("wb") as file:
            for first in range(0, int(chosen.gigabytes * 1e7), 10_000):
                file.write(b"".join(LINE % number for number in range(first, first + 10_000)))
        print(f"{'command':<44} {'first s':>8} {'wall s':>7} {'CPU s':>6} {'MB/s':>6} {'MB':>5}")
        for words in (["logs"], ["logs", "--rank", "0"], ["logs", "--tail", "10"], ["logs", "--tail", "1000000"]):
            read(f"zlaunch {' '.join(words)}, {chosen.gigabytes:g} GB", [*words, "last"], root / "runs")
        log.unlink()
        follow(root, chosen.rate, chosen.seconds)


def start(words: list[str], runs: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "ZLAUNCH_RUNS": str(runs), "PYTHONPATH": str(ROOT), "HOME": str(runs)}
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *words], env=environ, cwd=runs, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def read(name: str, words: list[str], runs: Path) -> None:
    begin, first, size = time.perf_counter(), 0.0, 0
    process = start(words, runs)
    assert process.stdout is not None
    while data := os.read(process.stdout.fileno(), 1 << 20):
        first = first or time.perf_counter() - begin
        size += len(data)
    wall = time.perf_counter() - begin
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name}: exit {process.returncode}")
    used = usage.ru_utime + usage.ru_stime
    print(
        f"{name:<44} {first:>8.2f} {wall:>7.2f} {used:>6.2f} {size / 1e6 / wall:>6.0f} {usage.ru_maxrss >> 10:>5}",
        flush=True,
    )


def follow(root: Path, rate: int, seconds: float) -> None:
    """Start a run whose rank writes, follow it, and print by how much what comes is late."""
    runs = root / "live"
    runs.mkdir()
    program = [sys.executable, "-c", WRITER, str(rate), str(seconds)]
    launch = start(["local", "--device", "cpu", "--detach", "--", *program], runs)
    launch.communicate()
    following, late, size = start(["logs", "-f", "--rank", "0", "last"], runs), [], 0
    killer = threading.Timer(10 * seconds + 60, os.killpg, (following.pid, signal.SIGKILL))
    killer.start()
    assert following.stdout is not None
    sent = b""
    for line in following.stdout:
        size += len(line)
        if line[:1].isdigit():
            late.append(time.time() - float(line))
        elif line.startswith(b"sent"):
            sent = line.split()[1]
    killer.cancel()
    _, _, usage = os.wait4(following.pid, 0)
    following.returncode = 0
    if not sent or int(sent) + len(sent) + 6 != size:
        raise RuntimeError(f"{size} bytes came of {sent!r}")
    late.sort()
    print(
        f"zlaunch logs -f, {size / 1e6 / seconds:.0f} MB/s for {seconds:g} s: lines come {late[len(late) // 2]:.2f} s "
        f"late (median), {late[-1]:.2f} s at most; {usage.ru_utime + usage.ru_stime:.1f} s of processor, "
        f"{usage.ru_maxrss >> 10} MB"
    )


if __name__ == "__main__":
    main()
