"""Many hosts at once: one connection, one channel and one far end (launcher/node/farend) for each.

Every host's result is kept, the good ones too; a host that fails never hides what the others said.
"""

from __future__ import annotations

import json
import random
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import HostsError, TargetError
from launcher.node.farend.payload import BOOT, build_payload
from launcher.remote import connect
from launcher.remote.connect import Options

Value = TypeVar("Value")
Json = dict[str, Any]

CALL_TIMEOUT = 60.0
"""Seconds for one answer of a host, unless an operation has its own."""
GREETING_LIMIT = 65536
"""Bytes that a host's login files may print before the far end speaks."""
BUSY_PAUSES = (0.5, 1.5)
"""Seconds, more or less, after which a server that turned us away at its door is asked again."""
BLOCK = 1 << 18


class HostError(TargetError):
    """One host could not be reached or refused; the text does not name it, the table does."""


class Session:
    """A conversation with one host."""

    def __init__(self, name: str, options: Options, python: str) -> None:
        self.name, self.options, self.python = name, options, python
        self.login_seconds = 0.0
        self._connection: Any = None
        self._channel: Any = None
        self._reader: Any = None
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._channel is not None

    def open(self) -> None:
        """Connect, log in and start the far end. Raises HostError, HostfileError."""
        started = time.monotonic()
        for pause in (*BUSY_PAUSES, None):
            self._connection = connect.prepare(self.name, self.options)
            began = time.monotonic()
            try:
                self._connection.open()
                break
            except Exception as error:
                message = connect.explain(error, self._connection, self.options.connect_timeout)
                self.close()
                if pause is None or not connect.is_turned_away(error, time.monotonic() - began):
                    raise HostError(message) from error
            time.sleep(pause * random.uniform(0.5, 1.5))
        try:
            self._start_far_end()
        except Exception:
            self.close()
            raise
        self.login_seconds = time.monotonic() - started

    def _start_far_end(self) -> None:
        transport = self._connection.transport
        transport.set_keepalive(connect.KEEPALIVE)
        try:
            self._channel = transport.open_session(timeout=CALL_TIMEOUT)
            self._channel.settimeout(CALL_TIMEOUT)
            self._reader = self._channel.makefile("rb", BLOCK)
            self._channel.exec_command(f"exec {shell_path(self.python)} -S -c {shlex.quote(BOOT)}")
            greeting = secrets.token_hex(8)
            self._channel.sendall(build_payload(greeting))
            self._wait_for(greeting.encode() + b"\n")
        except (OSError, EOFError) as error:
            raise HostError(self._last_words() or f"the session broke: {error or type(error).__name__}") from error
        except Exception as error:  # paramiko.SSHException: the server refuses sessions or commands
            raise HostError(f"the session was refused: {error}") from error

    def _wait_for(self, greeting: bytes) -> None:
        read = 0
        while read < GREETING_LIMIT:
            line = self._reader.readline(GREETING_LIMIT)
            if line == greeting:
                return
            if not line:
                raise EOFError
            read += len(line)
        raise HostError("the login files of this host print too much; a non-interactive login must be silent")

    def _last_words(self) -> str:
        """What the host said instead of starting the far end."""
        try:
            status = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
            words = self._channel.recv_stderr(4096).decode(errors="replace").strip()
        except Exception:  # the channel itself is gone: there is nothing more to learn
            return ""
        last = words.splitlines()[-1] if words else ""
        if "Python 3.8 or newer is needed" in last or last.startswith("SyntaxError"):
            return f"{self.python} is too old: 3.8 or newer, see --python"
        if status == 127 or "not found" in last or "No such file" in last:
            return f"no Python there: {last or self.python}; name the environment's interpreter with --python"
        return f"{self.python} did not start: {last}" if last else ""

    def call(self, operation: str, payload: bytes = b"", *, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Json:
        """One question and its answer; bytes come back under `payload`. Raises HostError."""
        return self._converse({"op": operation, "payload": len(payload), **arguments}, [payload], timeout)

    def send_file(self, item: Mapping[str, Any], path: Path, workdir: str) -> Json:
        """Put one file into the host's store. Raises HostError."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise HostError(f"cannot read {path} here: {error.strerror}") from error

        def blocks() -> Iterable[bytes]:
            left = int(item["size"])
            while left:
                block = file.read(min(BLOCK, left)) or b"\0" * min(BLOCK, left)  # shrank: the hash will tell
                left -= len(block)
                yield block

        with file:
            return self._converse({"op": "store_input", "item": dict(item), "workdir": workdir}, blocks(), 600.0)

    def _converse(self, request: Json, payload: Iterable[bytes], timeout: float) -> Json:
        with self._lock:
            channel, reader = self._channel, self._reader  # a Ctrl-C may close the session meanwhile
            if channel is None or reader is None:
                raise HostError("not connected")
            try:
                channel.settimeout(timeout)
                head = json.dumps(request).encode() + b"\n"
                for block in payload:
                    channel.sendall(head + block)
                    head = b""
                if head:
                    channel.sendall(head)
                answer: Json = json.loads(reader.readline() or b"{}")
                if not answer:
                    raise EOFError
                data = reader.read(answer["payload"]) if answer["payload"] else b""
            except (OSError, EOFError, ValueError) as error:
                why = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else "the connection broke"
                self.close()
                raise HostError(why) from error
        if not answer.pop("ok"):
            raise HostError(answer["error"])
        return {**answer, "payload": data}

    def close(self) -> None:
        connection, self._connection, self._channel, self._reader = self._connection, None, None, None
        if connection is not None:
            try:
                connection.close()
            except Exception:  # it is being thrown away; why it could not say good-bye is of no interest
                pass


def shell_path(path: str) -> str:
    """A program's path for the host's shell; a leading ~/ means the home there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


class Fleet:
    """The hosts of a run, in node order."""

    def __init__(self, hosts: Sequence[str], options: Options, python: str) -> None:
        self.sessions = [Session(name, options, python) for name in hosts]

    def __len__(self) -> int:
        return len(self.sessions)

    def each(
        self, ask: Callable[[int, Session], Value], among: Iterable[int] | None = None, *, to_the_end: bool = False
    ) -> tuple[dict[int, Value], dict[int, TargetError]]:
        """Ask hosts in parallel: ({node rank: answer}, {node rank: why there is none}).

        A Ctrl-C hangs up on all of them, or, `to_the_end`, takes effect when all have answered. It never cuts a
        conversation in the middle: threads hold those, also the only one, and it comes to the main thread.
        """
        ranks = list(range(len(self)) if among is None else among)
        answers: dict[int, Value] = {}
        failures: dict[int, TargetError] = {}

        def one(rank: int) -> None:
            try:
                answers[rank] = ask(rank, self.sessions[rank])
            except TargetError as error:
                failures[rank] = error

        if ranks:
            with ThreadPoolExecutor(max_workers=min(len(ranks), 128)) as pool:
                try:
                    list(pool.map(one, ranks))
                except KeyboardInterrupt:
                    for rank in () if to_the_end else ranks:
                        self.sessions[rank].close()
                    raise
        return answers, failures

    def all(
        self, what: str, ask: Callable[[int, Session], Value], among: Iterable[int] | None = None
    ) -> dict[int, Value]:
        """The answers of all hosts asked. Raises HostsError with every host's result if one has none."""
        answers, failures = self.each(ask, among)
        if failures:
            results = {
                self.sessions[rank].name: str(failures.get(rank, "ok")) for rank in sorted({*answers, *failures})
            }
            raise HostsError(f"{what}: {len(failures)} of {len(results)} hosts failed", results)
        return answers

    def open(self) -> None:
        """Connect to every host. Raises HostsError."""
        self.all("cannot connect", lambda _, session: session.open())

    def close(self) -> None:
        for session in self.sessions:  # no threads: this also runs while the interpreter ends
            session.close()
