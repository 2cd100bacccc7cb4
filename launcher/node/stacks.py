"""Take the stacks of the ranks of this node, in a process of its own: any part may block.

Sources: faulthandler in the rank, py-spy if it is installed, and /proc for a rank that does not answer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import suppress

from .files import read_text, write_new
from .hangs import MOST_FRAMES, SIGN_BYTES, Pulse, shown

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .files import Json

ANSWER_SECONDS = 3.0
"""How long a rank may take to write its stacks."""
PY_SPY_SECONDS = 10.0
MOST_BYTES = 1 << 20
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waits for a device (not interruptible)",
          "Z": "ended, not collected"}  # fmt: skip
"""States of a process in which it cannot go on, by the letter in /proc/PID/status."""


def take(pulses: Dict[int, Pulse], files: Dict[int, str], python: str, now: float) -> List[Json]:
    """Write the stacks of each rank into its file, and return a row of each for node 0 (hangs.row_of)."""
    dumps = ask_ranks(pulses)
    seen_by_spy = ask_py_spy({rank: pulse.pid for rank, pulse in pulses.items()}, python)
    rows = []
    for rank, pulse in sorted(pulses.items()):
        state = state_of(pulse.pid)
        dump, spied = dumps[rank], seen_by_spy.get(rank, "")
        frames = frames_of(dump) or frames_of_py_spy(spied)
        quiet = now - pulse.seen
        head = "rank %d, pid %d on %s, %s: no sign of progress for %.1f s, with a limit of %g s (%s)\n" % (
            rank, pulse.pid, os.uname().nodename, time.strftime("%Y-%m-%d %H:%M:%S"), quiet, pulse.sign["limit"],
            pulse.sign["doing"],
        )  # fmt: skip
        parts = [head, kernel_view(pulse.pid)]
        parts.append("Python (faulthandler)\n" + (dump or "  no answer to SIGQUIT\n"))
        parts += ["py-spy\n" + spied] if spied else []
        with suppress(OSError):  # a full disk: the rows still go to node 0
            write_new(files[rank], "\n".join(parts))
        rows.append(
            {"rank": rank, "host": os.uname().nodename, "state": state, "doing": pulse.sign["doing"], "quiet": quiet,
             "frames": frames or [unanswered(pulse.pid)]}
        )  # fmt: skip
    return rows


def row_of_ended(rank: int, exit_code: Optional[int], signum: Optional[int]) -> Json:
    """The row of a rank that has ended while others wait."""
    how = "ended by signal %s" % signum if signum else "ended with exit code %s" % exit_code
    return {"rank": rank, "host": os.uname().nodename, "state": how, "doing": "nothing", "quiet": 0.0, "frames": []}


def ask_ranks(pulses: Dict[int, Pulse]) -> Dict[int, str]:
    """Have each rank write the stacks of its threads into its file in memory; empty: it did not answer."""
    for pulse in pulses.values():
        with suppress(OSError):
            os.ftruncate(pulse.fd, SIGN_BYTES)
            os.lseek(pulse.fd, SIGN_BYTES, os.SEEK_SET)  # faulthandler writes where the shared offset is
            if catches(pulse.pid, signal.SIGQUIT):
                os.kill(pulse.pid, signal.SIGQUIT)
    sizes: Dict[int, int] = {}
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        time.sleep(0.2)
        before, sizes = sizes, {rank: os.fstat(pulse.fd).st_size for rank, pulse in pulses.items()}
        if sizes == before and min(sizes.values()) > SIGN_BYTES:
            break
    return {
        rank: os.pread(pulse.fd, MOST_BYTES, SIGN_BYTES).decode("utf-8", "replace") for rank, pulse in pulses.items()
    }


def catches(pid: int, signum: int) -> bool:
    """Whether a process handles a signal, so that it does not die of it."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", read_text("/proc/%d/status" % pid), re.MULTILINE)
    return found is not None and bool(int(found.group(1), 16) >> (signum - 1) & 1)


def ask_py_spy(pids: Dict[int, int], python: str) -> Dict[int, str]:
    """What py-spy reads in the memory of each rank, if it is installed and the kernel allows it."""
    import shutil
    import subprocess

    beside = os.path.join(os.path.dirname(python), "py-spy")
    program = beside if os.path.isabs(python) and os.access(beside, os.X_OK) else shutil.which("py-spy")
    if program is None:
        return {}
    asked = {}
    for rank, pid in pids.items():
        with suppress(OSError):
            asked[rank] = subprocess.Popen(
                [program, "dump", "--nonblocking", "--pid", str(pid)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
    end, found = time.monotonic() + PY_SPY_SECONDS, {}
    for rank, process in asked.items():
        try:
            output = process.communicate(timeout=max(0.1, end - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            continue
        found[rank] = output[:MOST_BYTES].decode("utf-8", "replace")
    return found


def state_of(pid: int) -> str:
    """Why the process cannot go on, by its main thread; empty: it runs, or sleeps in a call."""
    found = re.search(r"^State:\s*(\S)", read_text("/proc/%d/status" % pid), re.MULTILINE)
    return STATES.get(found.group(1), "") if found else "gone"


def unanswered(pid: int) -> str:
    place = read_text("/proc/%d/wchan" % pid).strip("0\n ")
    return "in the kernel: %s" % place if place else "no stack"


def kernel_view(pid: int) -> str:
    """State, waiting place and, for root, the kernel's stack of each thread."""
    lines = ["kernel"]
    with suppress(OSError):
        for thread in sorted(os.listdir("/proc/%d/task" % pid), key=int)[:200]:
            base = "/proc/%d/task/%s/" % (pid, thread)
            found = re.search(r"^State:\s*(.*)$", read_text(base + "status"), re.MULTILINE)
            parts = [read_text(base + "comm").strip(), found.group(1) if found else "?"]
            parts.append(read_text(base + "wchan").strip("0\n "))
            lines.append("  thread %s %s" % (thread, "  ".join(shown(part) for part in parts if part)))
            lines += ["    " + shown(line) for line in read_text(base + "stack").splitlines()[:20]]
    return "\n".join(lines) + "\n"


_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


def frames_of(dump: str) -> List[str]:
    """The innermost calls, as `function (file:line)`: of the main thread, then of other threads that run our program.

    The main thread, the oldest, comes last in a dump.
    """
    threads: List[List[str]] = []
    for line in dump.splitlines():
        found = _FRAME.match(line)
        if line.startswith(("Thread ", "Current thread ", "Stack ")):
            threads.append([])
        elif found and threads:
            threads[-1].append("%s (%s:%s)" % (found.group(3), short(found.group(1)), found.group(2)))
    if not threads:
        return []
    main, *others = reversed(threads)
    ours = [thread for thread in others if any("(train/" in frame for frame in thread)]
    found_frames = main[: MOST_FRAMES if not ours else MOST_FRAMES // 2]
    for thread in ours[:1]:
        found_frames += ["another thread:", *thread[: MOST_FRAMES - len(found_frames) - 1]]
    return found_frames


def frames_of_py_spy(dump: str) -> List[str]:
    """The same of the thread that py-spy names MainThread."""
    block = re.search(r"^Thread [^\n]*MainThread[^\n]*\n((?:    [^\n]*\n?)+)", dump, re.MULTILINE)
    found = re.findall(r"^    (.+) \((.+):(\d+)\)$", block.group(1) if block else "", re.MULTILINE)
    return ["%s (%s:%s)" % (name, short(file), line) for name, file, line in found[:MOST_FRAMES]]


def short(path: str) -> str:
    """A path below the folder of packages or code, which are the same for every rank."""
    for mark in ("/site-packages/", "/dist-packages/", "/code/"):
        if mark in path:
            return path.rpartition(mark)[2]
    return re.sub(r"^.*/lib/python3\.\d+/", "", path)


def main(pulses: Dict[int, Pulse], files: Dict[int, str], python: str, now: float, result: int) -> None:
    """Take the stacks in the forked child of an agent; the rows go into the file `result`."""
    rows: Any = take(pulses, files, python, now)
    os.pwrite(result, json.dumps(rows).encode(), 0)


def read_rows(result: int) -> Optional[List[Json]]:
    """What `main` left; None: it was killed, or failed."""
    try:
        value = json.loads(os.pread(result, 1 << 24, 0).decode("utf-8", "replace"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, list) else None
