"""A conversation with one host: one connection, one channel, and the far end (launcher/node/farend) that answers."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import shlex
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import TargetError
from launcher.node.farend.payload import BOOT, build_payload
from launcher.remote import connect
from launcher.remote.connect import Options

Json = dict[str, Any]

CALL_TIMEOUT = 60.0
"""Seconds for one answer of a host, unless an operation has its own."""
SEND_TIMEOUT = 600.0
GREETING_LIMIT = 65536
"""Bytes that a host's login files may print before the far end greets."""
BUSY_PAUSES = (0.5, 1.5)
"""Seconds to wait, give or take half, before asking an overloaded server again."""
BLOCK = 1 << 18


class HostError(TargetError):
    """One host cannot be reached or refuses. The text does not name the host: the table of results does."""


class Session:
    """A conversation with one host; open it before the first call."""

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
        self._connect()
        try:
            self._start_far_end()
        except Exception:
            self.close()
            raise
        self.login_seconds = time.monotonic() - started

    def _connect(self) -> None:
        for pause in (*BUSY_PAUSES, None):
            self._connection = connect.prepare(self.name, self.options)
            began = time.monotonic()
            try:
                self._connection.open()
                return
            except Exception as error:
                message = connect.explain(error, self._connection, self.options.connect_timeout)
                self.close()
                if pause is None or not connect.is_overloaded(error, time.monotonic() - began):
                    raise HostError(message) from error
            time.sleep(pause * random.uniform(0.5, 1.5))

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
            raise HostError(self._startup_error() or f"the session broke: {error or type(error).__name__}") from error
        except Exception as error:  # paramiko.SSHException: the server refuses sessions or commands
            raise HostError(f"the session was refused: {error}") from error

    def _wait_for(self, greeting: bytes) -> None:
        """Skip what login files print, up to GREETING_LIMIT bytes."""
        read = 0
        while read < GREETING_LIMIT:
            line = self._reader.readline(GREETING_LIMIT)
            if line == greeting:
                return
            if not line:
                raise EOFError
            read += len(line)
        raise HostError("the login files of this host print too much; a non-interactive login must be silent")

    def _startup_error(self) -> str:
        """Return what the host printed instead of starting the far end, in one sentence; empty: nothing."""
        try:
            status = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
            lines = self._channel.recv_stderr(4096).decode(errors="replace").strip().splitlines()
        except Exception:  # the channel itself is gone: there is nothing more to learn
            return ""
        last = lines[-1] if lines else ""
        if "Python 3.8 or newer is needed" in last or last.startswith("SyntaxError"):
            return f"{self.python} is too old: 3.8 or newer, see --python"
        if status == 127 or "not found" in last or "No such file" in last:
            return f"no Python there: {last or self.python}; name the environment's interpreter with --python"
        return f"{self.python} did not start: {last}" if last else ""

    def call(self, operation: str, payload: bytes = b"", *, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Json:
        """Call one operation of the far end. Bytes come back under `payload`. Raises HostError."""
        return self._request({"op": operation, "payload": len(payload), **arguments}, [payload], timeout)

    def send_file(self, item: Mapping[str, Any], path: Path, workdir: str) -> Json:
        """Put one file into the host's store. Raises HostError."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise HostError(f"cannot read {path} here: {error.strerror}") from error

        def blocks() -> Iterable[bytes]:
            left = int(item["size"])
            while left:
                # Zeros replace what a file has lost meanwhile; its hash then does not match.
                block = file.read(min(BLOCK, left)) or b"\0" * min(BLOCK, left)
                left -= len(block)
                yield block

        with file:
            return self._request({"op": "store_input", "item": dict(item), "workdir": workdir}, blocks(), SEND_TIMEOUT)

    def _request(self, request: Json, payload: Iterable[bytes], timeout: float) -> Json:
        with self._lock:
            channel, reader = self._channel, self._reader  # Ctrl-C may close the session meanwhile
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
            with contextlib.suppress(Exception):  # it is being thrown away; why closing failed does not matter
                connection.close()


def shell_path(path: str) -> str:
    """Quote a program's path for the host's shell; a leading ~/ stands for the home there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
