"""Hosts, login hosts and files of ranks that say what they never say, through the commands that read them.

A host's answers are good ones with seeded damage: wrong types, missing and strange keys, other names, huge numbers,
deep nesting, NaN, invalid UTF-8, lines without an end, payloads cut or too long, `more` for ever. Beside it is a good
host. A command ends with its result or a clear error; nothing is written but files that a host may write.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from launcher import backends
from launcher.backends import machine_report
from launcher.backends.slurm import partitions, query, states
from launcher.backends.ssh import preflight, survey
from launcher.cli import cli
from launcher.errors import TargetError, ZlaunchError
from launcher.job.load import convert
from launcher.node import run_files
from launcher.remote import session as ssh_session
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.foreign_archive import unpack_foreign
from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source

NAME = "hostile answers"
TRIED = "answers of SSH hosts, archives and queue answers of login hosts, and files of ranks, damaged by seed"
RUN = "run-20261127-120000-abcd"
MOST_ENTRIES = 1_000_000
"""Of a list that was made longer three times: this campaign has bounds, too."""
SLOW = 5.0
"""Seconds, after which a host that answers nonsense has held a command up."""
NAMES = (
    "run.json", "job.yaml", "plan.json", "train.json", "node.sh", "code/train/x.py", "before/run.json", ".x.lock",
    "../out", "../../out", "/tmp/zlaunch-out", "adapter/../../out", "adapter/../run.json", "nodes/../run.json",
    "logs/node-0/../../run.json", "logs/node-1/rank-1.log", "logs/node-0/rank-x.log",
    "nodes/node-1.json", "checkpoints/step-1/../../run.json",
    "checkpoints/step-9/COMPLETE", "errors/slurm.json", "errors/rank-0.json/x", "", ".", "..", "adapter", "adapter/",
    "a\0b", "~/x", "adapter/" + "d/" * 300 + "x", "adapter/" + "n" * 5000, ".ssh/config", ".mirror.lock",
    "adapter/\x1b]52;c;eA\x07", "logs/node-0/\u202eabc", "metrics.jsonl/x", "C:\\x", "adapter\\..\\x", "\ud800",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        10**15,
        10**30,
        -(10**30),
        1.5,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "x",
        "RUNNING",
    ),
    *([], [1], {}, {"a": 1}, [[]], "a" * 70_000, "\x1b[2J\x1b]52;c;eA==\x07", "\u202e", "../x", [0] * 3000, {"x": {}}),
)
WORDS = (
    "[" * 60_000,
    '{"a":' * 60_000,
    "9" * 6000,
    "NaN",
    "-Infinity",
    '"\\ud800"',
    "\xff\xfe",
    "",
    "null",
    "{}",
    "[]",
)


def damaged(rnd: random.Random, value: Any, odd: tuple[Any, ...] = (*ODD, *NAMES)) -> Any:
    """A copy of a JSON value with one to three places changed, removed, added or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rnd.randint(1, 3)):
        places: list[tuple[Any, Any]] = []

        def walk(item: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
                places.append((item, key))
                walk(item[key])

        walk(value)
        if not places:
            return copy.deepcopy(rnd.choice(odd))
        holder, key = rnd.choice(places)
        what = rnd.random()
        if what < 0.15:
            del holder[key]
        elif what < 0.25 and isinstance(holder, dict):
            holder["added"] = copy.deepcopy(rnd.choice(odd))
        elif what < 0.35 and isinstance(holder, list):
            times = rnd.choice((1, 5, 400))
            holder += holder * min(times, MOST_ENTRIES // max(1, len(holder)))
        else:
            holder[key] = copy.deepcopy(rnd.choice(odd))
    return value


def broken(rnd: random.Random, line: bytes) -> bytes:
    """A line with damage that is no JSON any more, or hardly."""
    what = rnd.randrange(6)
    if what == 0:
        return line[: rnd.randrange(len(line) + 1)]
    if what == 1:
        place = rnd.randrange(len(line) + 1)
        return line[:place] + rnd.choice(WORDS).encode("latin-1") + line[place:]
    if what == 2:
        return rnd.choice(WORDS).encode("latin-1")
    if what == 3:
        return line + rnd.choice((b"x", b"\0", b"\r", b" {}", b"\xe2\x80"))
    flipped = bytearray(line or b"x")
    for _ in range(rnd.randint(1, 5)):
        flipped[rnd.randrange(len(flipped))] = rnd.randrange(256)
    return bytes(flipped)


def record(node: int, state: str = "RUNNING") -> dict[str, Any]:
    failure = {
        "rank": 0, "node_rank": node, "host": "evil", "exit_code": 1, "signal": None, "cause": "bug",
        "message": "rank 0 on evil exited", "advice": ["look"], "log_tail": ["a", "b"],
    }  # fmt: skip
    return {
        "schema": 1, "run_id": RUN, "node_rank": node, "host": f"h{node}", "pid": 77, "start_time": 5, "boot_id": "b-0",
        "pid_namespace": "pid:[1]", "warden": {"pid": 76, "start_time": 5}, "state": state,
        "ranks": [{"rank": node, "local_rank": 0, "pid": 78, "start_time": 5, "exit_code": None, "signal": None}],
        "started": 1.0, "ended": None if state == "RUNNING" else 9.0, "restarts": 0, "exit_code": None,
        "heartbeat": 2.0, "failure": failure if state == "FAILED" else None,
    }  # fmt: skip


METRICS = b'{"step": 1, "loss": 2.5, "tokens_per_second": 9.5, "time": 3}\n{"step": 2, "loss": 2.0}\n'
EVENTS = (
    b'{"time": 1.0, "event": "agent_started", "node": 0}\n'
    b'{"time": 2.0, "event": "phase", "name": "train", "total_steps": 5}\n'
    b'{"time": 3.0, "event": "restart", "count": 1, "reason": "x"}\n{"time": 4, "event": "end", "state": "FAILED"}\n'
)
RESULT = {
    "schema": 1, "loss_first": 2.5, "loss_last": 2.0, "grad_norm_min": 0.1, "adapter_reloads": True, "samples": [
        {"prompt": "a", "expected": "b", "before": None, "after": "c"}],
    "eval": {"before": {"loss": 2.0, "accuracy": 0.5, "records": 4}, "after": {
        "loss": 1.0, "accuracy": 0.75, "records": 4, "tasks": {"t": {"accuracy": 0.5, "records": 4}}}},
}  # fmt: skip
FACTS = {
    "host": "h", "python": "/env/bin/python", "version": [3, 11, 7], "time": 1.0, "boot_id": "b", "network": "net:[1]",
    "memory_bytes": 1 << 36, "cpus": 8, "packages": {"torch": "2.11", "transformers": "5", "peft": "1", "msgspec": "1"},
    "missing": [], "gpus": {"driver": "550.1", "visible": None, "error": "", "notes": [], "gpus": [
        {"index": 0, "uuid": "GPU-1", "card": "GPU-1", "entry": "0", "name": "NVIDIA H100", "memory_bytes": 1 << 36,
         "compute_capability": 9.0, "mig": False}]},
}  # fmt: skip
QUIET: dict[str, Any] = {"files": [], "more": False, "record": None, "alive": False}


def good_answer(op: str, request: dict[str, Any], node: int, state: str) -> tuple[dict[str, Any], bytes]:
    """(answer, payload) of a host that does what the far end does."""
    if op == "poll_node":
        contents = {"metrics.jsonl": METRICS, "events.jsonl": EVENTS, f"logs/node-{node}": b"a line\nanother\n"}
        new = [
            (name if "." in name else f"{name}/rank-{node}.log", contents[name])
            for name in request.get("tops", ())
            if name in contents and not any(key.startswith(name) for key in request["offsets"])
        ]
        files = [[name, 0, len(data)] for name, data in new]
        return {**QUIET, "record": record(node, state), "alive": state == "RUNNING", "files": files}, b"".join(
            data for _, data in new
        )
    plain: dict[str, dict[str, Any]] = {
        "hello": {**FACTS, "address": "10.0.0.1", "workdir": "/w", "workdir_error": None, "free_bytes": 1 << 40},
        "tree": {"files": [["result.json", 300], ["metrics.jsonl", 5], ["adapter/adapter_config.json", 5]]},
        "image": {"code": 0, "said": "sha256:ab x@sha256:cd"},
        "shared_dir_marks": {"seen": [node]},
        "listen": {"ports": [10000, 10032], "addresses": ["10.0.0.1", "127.0.0.1"]},
        "reach": {"reached": [True] * len(request.get("targets", ()))},
        "probe_peers": {"seen": [node], "reached": [True] * len(request.get("targets", ()))},
        "send_signal": {"sent": True},
        "remove_run": {"freed": 4096},
        "leftovers": {
            "found": [{"pid": 9, "start_time": 1, "run_id": RUN, "run_dir": "/w/r", "command": "python"}],
            "left": [],
        },
    }
    return plain.get(op, {}), json.dumps(RESULT).encode()[:300] if op == "get" else b""


class Channel:
    """The launcher's end of a conversation with a host.

    `damage`: (operation, answer, payload) -> bytes to send, and bytes that follow for ever.
    """

    def __init__(
        self, node: int, state: str, damage: Callable[[str, dict[str, Any], bytes], tuple[bytes, bytes]]
    ) -> None:
        self.node, self.state, self.damage = node, state, damage
        self.out, self.endless, self.sent = b"", b"", 0

    def exec_command(self, line: str) -> None:
        greeting = line.rsplit(" ", 1)[1]
        self.out = f"\n{greeting} 3 11 other\n".encode()

    def sendall(self, data: bytes) -> None:
        self.sent += 1
        if self.sent > 1:  # the first is the far end's program
            request = json.loads(data.partition(b"\n")[0])
            answer, payload = good_answer(request["op"], request, self.node, self.state)
            self.out, self.endless = self.damage(request["op"], answer, payload)

    def recv(self, most: int) -> bytes:
        data, self.out = (self.out or self.endless)[:most], self.out[most:]
        return data

    def settimeout(self, seconds: float) -> None:
        pass

    def recv_stderr_ready(self) -> bool:
        return False


class Connected:
    """An open connection to a host."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.transport = channel, self

    def set_keepalive(self, seconds: int) -> None:
        pass

    def open_session(self, timeout: float) -> Channel:
        return self.channel

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


def framed(answer: dict[str, Any], payload: bytes) -> bytes:
    return json.dumps({"ok": True, "payload": len(payload), **answer}).encode() + b"\n" + payload


def hostile(rnd: random.Random, op: str, answer: dict[str, Any], payload: bytes) -> tuple[bytes, bytes]:
    """(bytes of an answer with damage, bytes that follow for ever)."""
    whole = {"ok": True, "payload": len(payload), **answer}
    what = rnd.random()
    if what < 0.2:
        return framed(answer, payload), b""
    if what < 0.55:
        try:
            return json.dumps(damaged(rnd, whole)).encode() + b"\n" + payload, b""
        except ValueError:
            return b"{}\n", b""
    if what < 0.7 and "files" in answer:
        size = rnd.choice((0, 1, len(payload), 1 << 50, -1))
        names = [
            [rnd.choice(NAMES), *([0] if op == "poll_node" else []), size] for _ in range(rnd.choice((1, 1, 3, 30_000)))
        ]
        body = b"" if size != len(payload) else payload * min(len(names), 3)
        return json.dumps({**whole, "files": names, "payload": len(body)}).encode() + b"\n" + body, b""
    if what < 0.75 and op == "poll_node":
        offset = rnd.choice((1, 10**14, 7))
        files = [["logs/node-0/rank-0.log", offset, 1]]
        return json.dumps({**whole, "files": files, "payload": 1, "more": True}).encode() + b"\nx", b""
    if what < 0.8:
        return framed({**answer, "more": True}, payload), b""
    if what < 0.84:
        return b"", rnd.choice((b"x" * 65536, b"[" * 65536, b" " * 65536))
    if what < 0.88:
        return json.dumps(
            {"ok": False, "payload": rnd.choice((0, 5)), "error": rnd.choice((*ODD[:-1], "no"))}
        ).encode() + b"\n", b""
    if what < 0.92:
        return json.dumps(
            {**whole, "payload": rnd.choice((1 << 62, -1, 1 << 25, "5", 2.0))}
        ).encode() + b"\n", b"x" * 65536
    return broken(rnd, framed(answer, payload)), b""


# ---------------------------------------------------------------------------------------------------------- one case


class Bench:
    """One run directory, made anew for every case, and what may change beside it: nothing."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        self.root = self.folder / "runs"
        os.environ["ZLAUNCH_RUNS"] = str(self.root)

    def run(self, backend: str = "ssh", state: str = "RUNNING") -> RunDir:
        shutil.rmtree(self.folder, ignore_errors=True)
        run = RunDir(self.root / RUN)
        nodes = [{"node_rank": node, "host": f"h{node}", "procs": 1, "first_rank": node} for node in (0, 1)]
        run.write(
            dict.fromkeys(("job.yaml", "train.json"), "{}")
            | {"plan.json": json.dumps({"launch": {"nodes": nodes, "world_size": 2}, "train": {}}), "node.sh": "exit\n"}
        )
        places = [
            {"host": f"h{node}", "run_dir": "/r", "workdir": "/w", "leader": node, "environ": {}} for node in (0, 1)
        ]
        options = {"ssh_config": None, "accept_new_host_keys": False, "connect_timeout": 1.0, "setup": []}
        extra = {"places": places, "options": options, "python": "p"} if backend == "ssh" else {}
        run.save_record(
            RunRecord(
                run_id=RUN, name="x", backend=backend, ids=("1",), created=1.0, submitted=1.0, state=state, extra=extra
            )
        )
        backends.backend_of.cache_clear()
        return run

    def check(self, run: RunDir) -> None:
        """Raise Wrong if anything lies where no host may write."""
        record = json.loads(run.run_json.read_text())
        if (
            not isinstance(record, dict)
            or record["extra"].get("python", "p") != "p"
            or record["backend"] not in ("ssh", "local")
        ):
            raise Wrong("a host wrote run.json")
        if (
            run.job_yaml.read_text() != "{}"
            or run.train_json.read_text() != "{}"
            or run.node_sh.read_text() != "exit\n"
        ):
            raise Wrong("a host wrote a file that steers the launcher")
        allowed = {
            "run.json",
            "job.yaml",
            "train.json",
            "plan.json",
            "node.sh",
            ".run.json.lock",
            ".mirror.lock",
            ".pull.lock",
        }
        allowed |= {
            "events.jsonl",
            "metrics.jsonl",
            "result.json",
            "predictions.jsonl",
            "slurm.log",
            "hostfile",
            run_files.CURVES,
            run_files.REPORT,
        }
        for path in self.folder.rglob("*"):
            inside = path.is_relative_to(run.path)
            name = path.relative_to(run.path).as_posix() if inside else str(path)
            top = name.partition("/")[0]
            fine = name in allowed or top in ("nodes", "logs", "adapter", "checkpoints", "errors")
            fine = fine or (name in (".pull.lock", ".start.lock") and path.stat().st_size == 0)
            if path.is_symlink() or (not path.is_dir() and not (inside and fine)):
                raise Wrong(f"written: {name}")
            if path.is_file() and path.stat().st_size > 64 << 20:
                raise Wrong(f"a file of {path.stat().st_size} bytes: {name}")
        if Path("/tmp/zlaunch-out").exists():
            raise Wrong("written: /tmp/zlaunch-out")

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def connect_to(damage_of: Callable[[int], Callable[..., tuple[bytes, bytes]]], state: str) -> None:
    """From now on sessions reach hosts h0, h1, ... of this module."""

    def connect(session: ssh_session.Session) -> None:
        node = int(session.name[1:])
        session._connection = Connected(Channel(node, state, damage_of(node)))

    ssh_session.Session._connect = connect  # type: ignore[method-assign] # no network in this campaign


def invoke(arguments: list[str]) -> str:
    error = CliRunner().invoke(cli, arguments, standalone_mode=False).exception
    if error is None or (isinstance(error, SystemExit) and error.code in (0, 1, 2)):
        return "accepted"
    if isinstance(error, (ZlaunchError, click.ClickException)):
        str(error).encode(errors="backslashreplace")
        return "refused"
    raise error


def _command(bench: Bench, rnd: random.Random) -> str:
    run = bench.run()
    evil = rnd.choice((0, 0, 1))
    state = rnd.choice(("RUNNING", "FAILED", "SUCCEEDED"))
    bad, good = partial(hostile, rnd), (lambda op, answer, payload: (framed(answer, payload), b""))
    connect_to(lambda node: bad if node == evil else good, state)
    command = rnd.choice(
        (
            *(["status", RUN], ["status", RUN, "--json"], ["list"], ["pull", RUN], ["pull", RUN, "--checkpoints"]),
            *(["report", RUN], ["logs", RUN], ["logs", RUN, "--rank", str(evil)]),
        )
    )
    verdict = invoke(command)
    bench.check(run)
    return verdict


def _questions(bench: Bench, rnd: random.Random) -> str:
    """Survey, preflight and reap: what comes before a run."""
    bad, good = partial(hostile, rnd), (lambda op, answer, payload: (framed(answer, payload), b""))
    evil = rnd.choice((0, 1))
    connect_to(lambda node: bad if node == evil else good, "RUNNING")
    job = convert({"ssh": {"hosts": "h0,h1"}, "device": rnd.choice(("cpu", "auto"))}, where="a test")
    what = rnd.randrange(3)
    try:
        if what == 0:
            found = survey.survey(job)
            survey.target(job, found, {})
            found.fleet.close()
        elif what == 1:
            preflight.examine(job, [])
        else:
            return invoke(["reap", "--hosts", "h0,h1", "--dry-run", *(["--json"] if rnd.random() < 0.5 else [])])
    except ZlaunchError as error:
        if "h0" not in error.text and "h1" not in error.text:
            raise Wrong(f"an error without the host's name: {error.text[:200]}") from error
        return "refused"
    return "accepted"


def _archive(bench: Bench, rnd: random.Random) -> str:
    """An archive of a login host."""
    run, buffer = bench.run(), io.BytesIO()
    types = (tarfile.REGTYPE,) * 6 + (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.BLKTYPE,
    )
    names = ("nodes/node-0.json", "metrics.jsonl", "logs/node-0/rank-0.log", "adapter/a", "checkpoints/step-1/COMPLETE")
    form = rnd.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for _ in range(rnd.choice((1, 3, 8))):
            info = tarfile.TarInfo(
                rnd.choice(names if rnd.random() < 0.7 else NAMES).replace("\ud800", "x").replace("\0", "z")
            )
            info.type, info.linkname = rnd.choice(types), rnd.choice(("/etc/passwd", "../../x", "run.json"))
            data = rnd.choice((b"{}", METRICS, b"x" * 9000))
            info.size = len(data) if info.type == tarfile.REGTYPE else 0
            info.mode = rnd.choice((0o644, 0o4777, 0))
            if form == tarfile.PAX_FORMAT and rnd.random() < 0.2:
                info.pax_headers = {
                    rnd.choice(("path", "size", "GNU.sparse.major", "linkpath")): rnd.choice(("../../x", "9" * 30))
                }
            tar.addfile(info, io.BytesIO(data))
    raw = buffer.getvalue()
    if rnd.random() < 0.3:
        flipped = bytearray(raw)
        for _ in range(rnd.randint(1, 20)):
            flipped[rnd.randrange(min(len(flipped), 3000))] = rnd.randrange(256)
        raw = bytes(flipped)
    packed = gzip.compress(raw, 1)
    if rnd.random() < 0.2:
        packed = broken(rnd, packed)
    try:
        unpack_foreign(io.BytesIO(packed), run.path)
    except (OSError, EOFError, ValueError, tarfile.TarError, __import__("zlib").error):  # login_shell.py makes them one
        bench.check(run)
        return "refused"
    bench.check(run)
    return "accepted"


JOB = {
    "job_id": 5, "job_state": ["RUNNING"], "state_reason": "None", "start_time": {"set": True, "number": 5},
    "array_job_id": {"set": True, "number": 4}, "array_task_string": "1-3", "nodes": "n1",
    "exit_code": {"return_code": {"set": True, "number": 1}},
}  # fmt: skip


def _queue(bench: Bench, rnd: random.Random) -> str:
    """What Slurm's commands print on a login host."""
    texts = (
        "5|RUNNING|2026-01-01T00:00:00|n[1-2]|None",
        "4_[1-3%2]|PENDING|N/A||(Resources)",
        "5|COMPLETED|x|n1|0:0|None",
    )
    text = "\n".join(rnd.choice(texts) for _ in range(3))
    text = broken(rnd, text.encode()).decode("utf-8", "replace") if rnd.random() < 0.8 else text.replace("3", "9" * 30)
    try:
        parsers = (
            lambda: states.parse_json(json.dumps(damaged(rnd, {"jobs": [JOB, JOB]}, ODD))),
            lambda: states.parse_json(broken(rnd, json.dumps({"jobs": [JOB]}).encode()).decode("utf-8", "replace")),
            lambda: states.parse_squeue(text),
            lambda: states.parse_sacct(text),
            lambda: partitions.parse_partitions(
                f"PartitionName=a TotalNodes={text} MaxNodes=²  MaxTime={'9' * 5000}\n{text}"
            ),
            lambda: partitions.gpus_of(f"gpu:h100:{text},gpu:²:5(S:0)"),
            lambda: query.job_of_sbatch(text),
            lambda: machine_report.parse(f"x\n{machine_report.MARK}{json.dumps(damaged(rnd, {**FACTS, 'node': 'n'}))}"),
        )
        found = rnd.choice(parsers)()
    except (ValueError, TargetError):
        return "refused"
    if isinstance(found, dict) and len(found) > 400_000:
        raise Wrong("more jobs than any array has")
    return "accepted"


def _files(bench: Bench, rnd: random.Random) -> str:
    """Files that ranks or hosts wrote, read by commands later."""
    run = bench.run("local", state=rnd.choice(("FAILED", "SUCCEEDED", "RUNNING", "LOST")))
    dumps = partial(json.dumps, allow_nan=True)
    contents = {
        "metrics.jsonl": b"".join(
            dumps(damaged(rnd, json.loads(line))).encode() + b"\n" for line in METRICS.splitlines()
        ),
        "events.jsonl": b"".join(
            dumps(damaged(rnd, json.loads(line))).encode() + b"\n" for line in EVENTS.splitlines()
        ),
        "result.json": dumps(damaged(rnd, RESULT)).encode(),
        "nodes/node-0.json": dumps(damaged(rnd, record(0, rnd.choice(("FAILED", "RUNNING"))))).encode(),
        "errors/slurm.json": dumps(damaged(rnd, record(0, "FAILED")["failure"])).encode(),
    }
    for name, data in contents.items():
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_bytes(broken(rnd, data) if rnd.random() < 0.15 else data)
    return invoke(
        rnd.choice(
            (["status", RUN], ["status", RUN, "--json"], ["list"], ["list", "--json"], ["report", RUN], ["logs", RUN])
        )
    )


KINDS = (_command, _command, _command, _command, _command, _questions, _questions, _archive, _queue, _files)


def _judge(bench: Bench, seed: int, number: int) -> str:
    began = time.process_time()
    verdict = KINDS[number % len(KINDS)](bench, source(seed, NAME, number))
    if time.process_time() - began > SLOW:
        raise Wrong(f"slow: {time.process_time() - began:.1f} s")
    return verdict


def main(count: int, seed: int) -> Outcome:
    bench = Bench()
    try:
        return outcome(NAME, TRIED, count, seed, judge_all(partial(_judge, bench, seed), range(count)))
    finally:
        bench.close()


if __name__ == "__main__":
    from_command_line(main, 20_000)
