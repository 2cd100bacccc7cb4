"""Judge many inputs in a forked process, each with bounds on time and memory; what a campaign came to."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

SECONDS = 5.0
"""CPU time of one input, at most."""
WALL_SECONDS = 200.0
"""After which an input hangs. Much longer than SECONDS, since other work may share the machine."""
MEMORY = 1 << 30
"""Bytes that one input may add."""


class Outcome(NamedTuple):
    """What a campaign came to."""

    summary: str
    row: str
    """Of the table in docs/trust.md."""
    found: tuple[str, ...] = ()
    """One line per kind of finding, with the number of a case that shows it."""


class Wrong(Exception):
    """An input was accepted with another meaning than it has, or something was lost without a word."""


class Tally(NamedTuple):
    verdicts: collections.Counter[str]
    found: dict[str, tuple[int, int, str]]
    """{kind: (how often, number of the first case, what happened)}"""

    @property
    def lines(self) -> tuple[str, ...]:
        ordered = sorted(self.found.items(), key=lambda item: -item[1][0])
        return tuple(f"{count} x {kind} (case {number}): {text}" for kind, (count, number, text) in ordered)


def source(seed: int, campaign: str, number: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random(f"{seed}:{campaign}:{number}")


def outcome(name: str, tried: str, count: int, seed: int, tally: Tally) -> Outcome:
    """The summary and the table row of a campaign that judged `count` inputs."""
    words = ", ".join(f"{number:,} {verdict}" for verdict, number in sorted(tally.verdicts.items()))
    found = sum(count for count, _, _ in tally.found.values())
    row = f"| {name} | {tried} | {count:,} | {seed} | {words} | {found or 'none'} |"
    return Outcome(f"{name}: {count:,} inputs, seed {seed}: {words}; wrong {found}", row, tally.lines)


def judge_all(judge: Callable[[int], str], numbers: Iterable[int]) -> Tally:
    """Judge every case; a case that hangs, crashes or takes too much ends its process only.

    `judge` returns a verdict (`accepted`, `refused`). Wrong, and any other exception, is a finding.
    """
    tally = Tally(collections.Counter(), {})
    left = collections.deque(numbers)
    while left:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _work(judge, list(left), writer)
        os.close(writer)
        try:
            _collect(reader, left, tally)
        finally:
            os.close(reader)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        if left:
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            kind = f"no end within {WALL_SECONDS:g} s" if hung else f"process ended with status {status}"
            _add(tally, "finding", kind, left.popleft(), "")
    return tally


def _collect(reader: int, left: collections.deque[int], tally: Tally) -> None:
    """Take the answers of a process until it ends or hangs; the case that it was at stays in front of `left`."""
    rest = b""
    while left and select.select([reader], [], [], WALL_SECONDS)[0]:
        data = os.read(reader, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            _add(tally, *json.loads(line))
            left.popleft()


def _add(tally: Tally, verdict: str, kind: str, number: int, text: str) -> None:
    if kind:
        count, first, example = tally.found.get(kind, (0, number, text))
        tally.found[kind] = (count + 1, first, example)
    else:
        tally.verdicts[verdict] += 1


def _work(judge: Callable[[int], str], numbers: list[int], writer: int) -> NoReturn:
    """The child: one line of JSON per case."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for number in numbers:
            before = time.process_time()
            verdict, kind, text = _judged(judge, number)
            seconds = time.process_time() - before
            if seconds > SECONDS and not kind:
                kind, text = f"over {SECONDS:g} s", f"{seconds:.1f} s"
            os.write(writer, json.dumps([verdict, kind, number, text]).encode() + b"\n")
    finally:
        os._exit(0)


def _judged(judge: Callable[[int], str], number: int) -> tuple[str, str, str]:
    try:
        return judge(number), "", ""
    except Wrong as wrong:
        kind, _, text = str(wrong).partition(": ")
        return "finding", f"wrong: {kind}", text[:300]
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/launcher/" in frame.filename or "/train/" in frame.filename]
        frame = (own or frames)[-1]
        place = "/".join(Path(frame.filename).parts[-2:])
        return "finding", f"{type(error).__name__} at {place}:{frame.lineno}", str(error)[:300]


def from_command_line(main: Callable[[int, int], Outcome], count: int) -> None:
    """`python -m tests.torture.MODULE [COUNT [SEED]]`: run one campaign and print what it found."""
    words = [int(word) for word in sys.argv[1:]]
    found = main(words[0] if words else count, words[1] if len(words) > 1 else 1)
    print(found.summary, *found.found, sep="\n  ")
    sys.exit(1 if found.found else 0)
