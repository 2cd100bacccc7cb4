"""Run directories of this version and of 0.1.0, damaged: what a command prints is true, or it says what is damaged.

The values that a command prints are compared with those that it prints for the undamaged run. A value that differs must
stand in the damaged file, with a type that such a value has; a value that is missing must be explained by a message
that names the file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from launcher.cli import cli
from launcher.errors import ZlaunchError
from launcher.rundir.shapes import EVENTS
from tests.beds.places import ROOT
from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source

NAME = "run directories"
TRIED = "runs of this version and of 0.1.0: files cut, bits flipped, values of other types and versions, files missing"
FILES = (
    *("run.json", "plan.json", "metrics.jsonl", "events.jsonl", "nodes/node-0.json", "result.json", "job.yaml"),
    *("logs/node-0/rank-0.log", "hostfile", "train.json"),
)
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e300, 10**30, "", "x", "RUNNING", "FAILED", "LOST", "SUCCEEDED", "PENDING", "ssh"),
    *("local", "nope", [], [1], ["a"], {}, {"a": 1}, [[]], [{}], [None], "\u202e", "\x1b[31m", "é" * 50, math.nan),
    *(math.inf, "a" * 3000, "\x1b]0;title\x07", "../../x", -(10**9), 2**63),
)
COMMANDS = (
    *(["status"], ["status", "--json"], ["list"], ["list", "--json"], ["report"], ["report", "--json"], ["logs"]),
    *(["logs", "--rank", "0"], ["resume", "--dry-run"], ["pull"], ["cancel"], ["cancel", "--now"]),
    ["resume", "--dry-run", "--set", "train.epochs=9"],
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Bed:
    """A folder of runs that is made whole before each case."""

    def __init__(self, folder: Path) -> None:
        self.whole, self.runs = folder / "whole", folder / "runs"
        self.whole.mkdir()
        os.environ["ZLAUNCH_RUNS"] = str(self.runs)
        self._make_current()
        self._make_old()
        self.names = sorted(path.name for path in self.whole.iterdir())
        self.printed: dict[tuple[str, tuple[str, ...]], tuple[int, str, str]] = {}
        for name in self.names:
            for words in COMMANDS:
                self.restore(name)
                code, out, err, error = zlaunch(words, name)
                if error is not None:
                    raise error
                self.printed[name, tuple(words)] = code, out, err

    def _make_current(self) -> None:
        program = Path(__file__).with_name("imitation.py")
        argv = [sys.executable, "-m", "launcher", "local", "--device", "cpu", "--procs", "2", "--name", "current", "--"]
        environment = {**os.environ, "ZLAUNCH_RUNS": str(self.whole), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*argv, sys.executable, str(program), "4", "0.01"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _make_old(self) -> None:
        fixture = ROOT / "tests" / "fixtures" / "run-0.1.0"
        name = json.loads((fixture / "run.json").read_text(encoding="utf-8"))["run_id"]
        shutil.copytree(fixture, self.whole / name, ignore=shutil.ignore_patterns("base_model", "code.tar.xz", "cache"))

    def restore(self, name: str) -> Path:
        shutil.rmtree(self.runs, ignore_errors=True)
        shutil.copytree(self.whole / name, self.runs / name, ignore=shutil.ignore_patterns("code"))
        (self.runs / name / "code").mkdir()
        return self.runs / name


def zlaunch(words: list[str], name: str) -> tuple[int, str, str, BaseException | None]:
    """(exit code, standard output, standard error, exception that is a bug) of a command, in this process."""
    argv = [words[0], *([name] if words[0] != "list" else []), *words[1:]]
    done = CliRunner().invoke(cli, argv, standalone_mode=False)
    error = done.exception
    if isinstance(error, ZlaunchError):
        return error.exit_code, done.stdout, done.stderr + error.text, None
    if isinstance(error, click.ClickException):
        return error.exit_code, done.stdout, done.stderr + error.format_message(), None
    if isinstance(error, (SystemExit, type(None))):
        return done.exit_code, done.stdout, done.stderr, None
    return 1, done.stdout, done.stderr, error


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _paths(entry, (*path, key))


def _other_values(rnd: random.Random, value: Any) -> Any:
    for _ in range(rnd.choice((1, 1, 1, 2, 3))):
        path = rnd.choice(list(_paths(value)))
        new = copy.deepcopy(rnd.choice(ODD))
        if not path:
            value = new
            continue
        place = value
        with contextlib.suppress(TypeError, KeyError, IndexError):
            for key in path[:-1]:
                place = place[key]
            if rnd.random() < 0.25 and isinstance(place, dict):
                del place[path[-1]]
            else:
                place[path[-1]] = new
    if rnd.random() < 0.1 and isinstance(value, dict):
        value["schema"], value["new_field"] = 99, [1]
    return value


def _other_event(rnd: random.Random, line: Any) -> Any:
    """The line with another name: of no event, of another event, or with a letter changed."""
    if not isinstance(line, dict) or not isinstance(name := line.get("event"), str) or not name:
        return line
    place = rnd.randrange(len(name))
    changed = name[:place] + chr(ord(name[place]) ^ 1 << rnd.randrange(5)) + name[place + 1 :]
    return {**line, "event": rnd.choice((changed, name[:place], name.upper(), "later", rnd.choice(sorted(EVENTS))))}


def damaged(rnd: random.Random, name: str, content: bytes) -> bytes:
    chance = rnd.random()
    if chance < 0.1:
        return content[: rnd.randrange(len(content) + 1)]
    if chance < 0.2 and content:
        data = bytearray(content)
        for _ in range(rnd.randint(1, 10)):
            data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
        return bytes(data)
    if chance < 0.3:
        return rnd.choice((b"", rnd.randbytes(200), b"[" * 100_000, b"null", b"{}", b'{"a": ' * 5000, b"\0" * 4096))
    if name.endswith(".json"):
        return json.dumps(_other_values(rnd, json.loads(content))).encode()
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in content.splitlines()]
        for _ in range(rnd.randint(1, 3)):
            place = rnd.randrange(len(lines))
            lines[place] = _other_event(rnd, lines[place]) if rnd.random() < 0.3 else _other_values(rnd, lines[place])
        if name == "events.jsonl" and rnd.random() < 0.15:
            del lines[rnd.randrange(len(lines))]
        return b"\n".join(json.dumps(line).encode() for line in lines) + b"\n" * (rnd.random() < 0.8)
    data = bytearray(content)
    for _ in range(rnd.randint(1, 10) if data else 0):
        data[rnd.randrange(len(data))] = rnd.randrange(256)
    return bytes(data)


def _judge(bed: Bed, seed: int, number: int) -> str:
    rnd = source(seed, NAME, number)
    name, words = rnd.choice(bed.names), rnd.choice(COMMANDS)
    run = bed.restore(name)
    there = [file for file in FILES if (run / file).is_file()]
    broken: dict[str, bytes | None] = {}
    for file in rnd.sample(there, rnd.choice((1, 1, 1, 2))):
        data = damaged(rnd, file, (run / file).read_bytes())
        (run / file).unlink()
        match rnd.randrange(40):
            case 0:
                broken[file] = None
                (run / file).mkdir()
            case 1:
                broken[file] = None
            case _:
                broken[file] = data
                (run / file).write_bytes(data)
    with _no_signals():
        code, out, err, error = zlaunch(words, name)
    if error is not None:
        raise error
    _, whole, whole_err = bed.printed[name, tuple(words)]
    shown = f"{' '.join(words)} with {', '.join(broken)}: "
    if found := _CONTROL.search(out + err) if words[0] != "logs" else None:
        raise Wrong(f"control characters: {shown}{found[0]!r}")
    if (
        code == 0
        and (_timeless(out), err) != (_timeless(whole), whole_err)
        and words[0] in ("status", "list", "report")
    ):
        _compare(shown, words, whole, out, err, broken)
    if code != 0 and not (out + err).strip():
        raise Wrong(f"an exit without a word: {shown}{code}")
    return "refused" if code else "same values" if _timeless(out) == _timeless(whole) else "other values, explained"


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Damaged records must not lead to signals for processes of others."""
    kill, killpg = os.kill, os.killpg

    def refuse(pid: int, signum: int) -> None:
        if signum:
            raise Wrong(f"signal to a process that a damaged record names: {pid}")
        kill(pid, 0)

    os.kill, os.killpg = refuse, refuse
    try:
        yield
    finally:
        os.kill, os.killpg = kill, killpg


def _compare(shown: str, words: list[str], whole: str, out: str, err: str, broken: dict[str, bytes | None]) -> None:
    named = any(file in out + err or Path(file).name in out + err for file in broken)
    # Nothing else in the run says that a file or an optional field existed, or how many lines a growing file had.
    unseen = any(
        data is None or file in ("plan.json", "result.json") or (file.endswith(".jsonl") and not data.strip())
        for file, data in broken.items()
    )
    gone_is_explained = (
        named or unseen or any(file.endswith(".jsonl") and _is_shorter(file, data) for file, data in broken.items())
    )
    written = set()
    for data in broken.values():
        written |= {_scalar(value) for value in _scalars(data or b"")}
    if "--json" not in words:
        used = {file: data for file, data in broken.items() if not (words[0] == "list" and file == "result.json")}
        if not named and any(_unreadable(file, data) for file, data in used.items()):
            raise Wrong(f"a damaged file that nobody reports: {shown}{out[-300:]!r} instead of {whole[-300:]!r}")
        return
    for before, now in zip(_rows(whole), _rows(out), strict=broken.get("run.json", b"") is not None):
        for key in {*before, *now}:
            old, new = before.get(key), now.get(key)
            if old == new or key in ("error", "directory", "read_at"):
                continue
            if new is None:
                if not gone_is_explained:
                    raise Wrong(f"a value is gone without a word: {shown}{key} was {old!r}")
            elif old is not None and not _same_type(old, new):
                raise Wrong(f"a value of another type: {shown}{key}: {new!r} instead of {old!r}"[:300])
            elif key not in ("seconds", "state") and not named:
                strange = [leaf for leaf in _leaves(new) if not _is_known(leaf, old, written)]
                if strange and not (
                    key in _MEANS and all(_is_between(leaf, _MEANS[key], old, broken) for leaf in strange)
                ):
                    raise Wrong(f"a value from nowhere: {shown}{key}: {strange[0]!r}"[:300])


def _is_known(leaf: Any, old: Any, written: set[str]) -> bool:
    """Whether a value is one of the undamaged run, one that the damage wrote, or a text that holds such a one."""
    held = any(len(value) > 3 and value in str(leaf) for value in written)
    return leaf is None or leaf in [*_leaves(old)] or _scalar(leaf) in written or held or "not recorded" in str(leaf)


_MEANS = {"tokens_per_second": "tokens_per_second", "loss_smoothed": "loss", "curve": "loss"}
"""What is printed -> what of the lines it is a median or a moving mean of."""


def _is_between(new: Any, name: str, old: Any, broken: dict[str, bytes | None]) -> bool:
    """Whether a mean of the values in the lines may be this: it is none of them."""
    known = [value for value in _leaves(old) if isinstance(value, (int, float))]
    known += _values(name, broken.get("metrics.jsonl") or b"")
    return isinstance(new, (int, float)) and min(known) <= new <= max(known)


def _values(name: str, data: bytes) -> Iterator[float]:
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            value = row.get(name) if isinstance(row, dict) else None
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield value


def _timeless(text: str) -> str:
    return re.sub(r'"read_at": [0-9.]+', "", text)


def _is_shorter(file: str, data: bytes | None) -> bool:
    """Whether every line is sound by itself."""
    try:
        lines = [json.loads(line) for line in (data or b"").split(b"\n") if line.strip()]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(line, dict) and "step" not in line and file != "events.jsonl" for line in lines)


def _rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _same_type(old: Any, new: Any) -> bool:
    numbers = (int, float)
    if isinstance(old, numbers) and not isinstance(old, bool):
        return isinstance(new, numbers) and not isinstance(new, bool) and math.isfinite(new)
    return isinstance(new, type(old))


def _unreadable(file: str, data: bytes | None) -> bool:
    """Whether the file can no longer be what it was, by Python's own reader."""
    if data is None or not file.endswith(".json") or file == "train.json":
        return False
    try:
        return not isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return True


def _scalars(data: bytes) -> Iterator[Any]:
    for line in [data, *data.split(b"\n")]:
        try:
            yield from _leaves(json.loads(line))
        except (ValueError, RecursionError):
            continue


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry)
    else:
        yield value


def _scalar(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def main(count: int, seed: int) -> Outcome:
    """Judge `count` damaged run directories."""
    before = os.environ.get("ZLAUNCH_RUNS")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        bed = Bed(Path(folder))
        try:
            return outcome(NAME, TRIED, count, seed, judge_all(functools.partial(_judge, bed, seed), range(count)))
        finally:
            os.environ.pop("ZLAUNCH_RUNS")
            if before is not None:
                os.environ["ZLAUNCH_RUNS"] = before


if __name__ == "__main__":
    from_command_line(main, 4000)
