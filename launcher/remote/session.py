"""A conversation with one host: one connection, one channel, and the far end (launcher/node/farend) that answers."""

from __future__ import annotations

import contextlib
import json
import random
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import paramiko

from launcher.errors import HostfileError, TargetError
from launcher.node.farend.payload import HELLO, OLDEST, build_payload
from launcher.node.files import last_lines
from launcher.remote import host_answers
from launcher.remote.connect import KEEPALIVE, ConnectError, Connection, Options

Json = dict[str, Any]

CALL_TIMEOUT = 60.0
"""Seconds for one answer of a host, unless an operation has its own."""
SEND_TIMEOUT = 600.0
HELLO_SECONDS = 30.0
"""Seconds for a host's login files and the start of its Python; twice as many with setup lines."""
DOUBT_SECONDS = 6.0
"""Seconds of silence after which a second shell is asked what the matter is."""
PROBE_SECONDS = 5.0
GREETING_LIMIT = 65536
"""Bytes that a host's login files may print before the far end greets."""
UTF8 = "PYTHONUTF8=1"
"""Names of runs are UTF-8 in any locale of a host. No option -X: a Python that is too old must still say hello."""
HELLO_LINE = re.compile(rb"^(\w{16}) (\d{1,4}) (\d{1,4}) (\S{1,64})\r?\n", re.MULTILINE)
"""Greeting, version and tag of a host's Python."""
SETUP = (
    'zl_python=$1 zl_hello=$2 zl_greeting=$3; shift 3; printf -v zl_lines "%s\\n" "$@"; exec 3<&0 </dev/null; '
    'set -eo pipefail; eval "$zl_lines"; set +eo pipefail; exec <&3 3<&-; '
    f'{UTF8} exec "$zl_python" -S -c "$zl_hello" "$zl_greeting"'
)
"""bash: run the lines after the first three arguments, without the launcher's input, then start the far end."""
BUSY_PAUSES = (0.5, 1.5)
"""Seconds to wait, give or take half, before asking an overloaded server again."""
BLOCK = 1 << 18


class HostError(TargetError):
    """One host cannot be reached or refuses. The text does not name the host: the table of results does."""

    code = "ZL-SSH-05"


class AnswerRefused(HostError):
    """A host answered what no host answers. It is not trusted: nothing of the answer was used."""

    code = "ZL-SSH-06"


Moved = Callable[[int], None]


def _nothing(size: int) -> None:
    """Count no bytes."""


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
        """Raises HostError, HostfileError."""
        try:
            connection = Connection(self.name, self.options)  # before the tries: it asks `ssh -G`
        except HostfileError:
            raise
        except TargetError as error:
            raise HostError(str(error)) from error
        for pause in (*BUSY_PAUSES, None):
            self._connection = connection
            try:
                connection.open()
                return
            except TargetError as error:
                self.close()
                if pause is None or not (isinstance(error, ConnectError) and error.overloaded):
                    raise HostError(str(error)) from error
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads attempts; nothing secret

    def _start_far_end(self) -> None:
        transport = self._connection.transport
        transport.set_keepalive(KEEPALIVE)
        greeting = secrets.token_hex(8)
        try:
            self._channel = self._start_python(greeting)
            version, tag = self._await_hello(greeting)
            if version < OLDEST:
                found = ".".join(map(str, version))
                raise HostError(f"{self.python} is too old ({found}): 3.8 or newer, see --python")
            self._channel.settimeout(CALL_TIMEOUT)
            self._reader = _Reader(self._channel)
            self._channel.sendall(build_payload(tag))
        except (OSError, EOFError) as error:
            raise HostError(f"the session broke: {error or type(error).__name__}") from error
        except paramiko.SSHException as error:  # the server refuses sessions or commands
            raise HostError(f"the session was refused: {error}") from error

    def _start_python(self, greeting: str) -> Any:
        """Open a channel on which this host's login shell starts Python, which then says hello."""
        channel = self._connection.transport.open_session(timeout=CALL_TIMEOUT)
        channel.settimeout(CALL_TIMEOUT)
        python, hello = shell_path(self.python), shlex.quote(HELLO)
        if self.options.setup:
            lines = " ".join(shlex.quote(line) for text in self.options.setup for line in text.split("\n"))
            line = f"exec bash -c {shlex.quote(SETUP)} bash {python} {hello} {greeting} {lines}"
        else:
            line = f"exec env {UTF8} {python} -S -c {hello} {greeting}"
        channel.exec_command(for_any_shell(line))
        return channel

    def _await_hello(self, greeting: str) -> tuple[tuple[int, int], str]:
        """Return version and tag of the host's Python once it says hello. Nothing is sent to a shell that has not.

        What login files print before is skipped, up to GREETING_LIMIT bytes. Raises HostError that says what the matter
        is with the login files.
        """
        started, printed, verdict = time.monotonic(), b"", ""
        ends = [started + HELLO_SECONDS * (2 if self.options.setup else 1), started + DOUBT_SECONDS]
        while len(printed) < GREETING_LIMIT:
            try:
                data = _receive(self._channel, GREETING_LIMIT, ends[-1])
            except TimeoutError:
                if verdict or len(ends) == 1:
                    seconds = time.monotonic() - started
                    why = verdict or "its login files do not end, or Python hangs there: try `ssh HOST true`"
                    raise HostError(f"no Python within {seconds:.0f} s: {why}") from None
                ends.pop()
                verdict = self._probe_shell()
                if verdict:  # unless the first shell was only slow
                    ends.append(min(ends[0], time.monotonic() + PROBE_SECONDS))
                continue
            printed += data
            for found in HELLO_LINE.finditer(printed):
                if found[1] == greeting.encode():
                    return (int(found[2]), int(found[3])), found[4].decode(errors="replace")
            if not data:
                raise HostError(self._explain_end(printed))
        raise HostError("the login files of this host print too much; a non-interactive login must be silent")

    def _probe_shell(self) -> str:
        """Start another shell without any input; return what that shows about the silence of the first, or nothing."""
        greeting, printed = secrets.token_hex(8), b""
        only = "let it do so in interactive shells only: `case $- in *i*) ... ;; esac`"
        try:
            channel = self._start_python(greeting)
            channel.shutdown_write()
            end = time.monotonic() + PROBE_SECONDS
            with contextlib.closing(channel):
                while len(printed) < GREETING_LIMIT and (data := _receive(channel, GREETING_LIMIT, end)):
                    printed += data
                    if f"\n{greeting} ".encode() in printed:
                        return f"a login file of this host reads standard input (~/.bashrc, ~/.zshenv): {only}"
        except (OSError, EOFError, paramiko.SSHException):
            return ""  # slow, or allowed one session only: no verdict
        return f"a login file of this host replaces the shell (`exec fish` or the like in ~/.bashrc): {only}"

    def _explain_end(self, printed: bytes) -> str:
        """Say why the shell ended before Python said hello, by its exit status and last words."""
        self._channel.status_event.wait(2)
        status = self._channel.exit_status if self._channel.exit_status_ready() else None
        with contextlib.suppress(Exception):  # the channel itself may be gone
            errors = self._channel.recv_stderr(GREETING_LIMIT) if self._channel.recv_stderr_ready() else b""
            printed = errors if errors.strip() else printed
        last = " ".join(last_lines(printed.decode(errors="replace"), 1))
        if status == 127 or "not found" in last or "No such file" in last:
            return f"no Python there: {last or self.python}; name the environment's interpreter with --python"
        before = "a line of ssh.setup or the login files" if self.options.setup else "the login files"
        if last and status:
            return f"{self.python} did not start: {last} (status {status}; {before} may have said so)"
        said = f", saying {last!r}," if last else " without a word"
        return (
            f"the login shell ended{said} before {self.python} started (status {status}): "
            f"{before} of this host must not exit or exec something else (~/.bashrc, ForceCommand)"
        )

    def call(
        self, operation: str, payload: bytes = b"", *, timeout: float = CALL_TIMEOUT, moved: Moved = _nothing,
        **arguments: Any,
    ) -> Json:  # fmt: skip
        """Call one operation of the far end. Bytes come back under `payload`. Raises HostError.

        `moved` gets the size of each block of the payload that is sent.
        """

        def blocks() -> Iterable[bytes]:
            for at in range(0, len(payload), BLOCK):
                yield payload[at : at + BLOCK]
                moved(min(BLOCK, len(payload) - at))

        return self._request({"op": operation, "payload": len(payload), **arguments}, blocks(), timeout)

    def send_file(self, item: Mapping[str, Any], path: Path, workdir: str, moved: Moved = _nothing) -> Json:
        """Put one file into the host's store; `moved` gets the size of each block. Raises HostError."""
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
                moved(len(block))

        with file:
            return self._request({"op": "store_input", "item": dict(item), "workdir": workdir}, blocks(), SEND_TIMEOUT)

    def _request(self, request: Json, payload: Iterable[bytes], timeout: float) -> Json:
        operation = request["op"]
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
                end = time.monotonic() + timeout
                line = reader.line(host_answers.MOST_HEAD, end)
                answer: Json = host_answers.decode(operation, line)
                return {**answer, "payload": reader.exactly(answer["payload"], end)}
            except host_answers.Refusal as refusal:
                raise HostError(str(refusal)) from refusal
            except host_answers.AnswerError as error:
                self.close()  # nobody knows where its next answer would begin
                raise AnswerRefused(
                    f"{self.name} answered `{operation}` with what it never returns: {error}"
                ) from error
            except (OSError, EOFError) as error:
                why = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else "the connection broke"
                self.close()
                raise HostError(why) from error

    def close(self) -> None:
        connection, self._connection, self._channel, self._reader = self._connection, None, None, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it is being thrown away; why closing failed does not matter
                connection.close()


def _receive(channel: Any, most: int, end: float) -> bytes:
    """Return what the host has sent, empty at the end of the stream. Raises TimeoutError at `end` (monotonic)."""
    left = end - time.monotonic()
    if left <= 0:  # also for a host that sends a byte now and then
        raise TimeoutError
    channel.settimeout(left)
    return bytes(channel.recv(most))


class _Reader:
    """Lines and blocks of a channel, each within its size and its time."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._held = bytearray()

    def line(self, most: int, end: float) -> bytes:
        """Raises host_answers.AnswerError for a line longer than `most`, EOFError, TimeoutError."""
        seen = 0
        while (cut := self._held.find(b"\n", seen)) < 0:
            if (seen := len(self._held)) > most:
                raise host_answers.AnswerError(f"more than {most} bytes")
            self._more(end)
        return self._take(cut + 1)

    def exactly(self, size: int, end: float) -> bytes:
        """Raises EOFError, TimeoutError."""
        while len(self._held) < size:
            self._more(end)
        return self._take(size)

    def _more(self, end: float) -> None:
        data = _receive(self._channel, BLOCK, end)
        if not data:
            raise EOFError
        self._held += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


def for_any_shell(line: str) -> str:
    """A line for sh as one that every login shell passes to sh unchanged.

    csh replaces `!` and fish some backslashes in single quotes too; a newline ends a command of csh there.
    """
    if not re.search(r"[!\n]|\\[\\']", line):
        return line
    octal = re.sub(rb"[^\w /.,:=@%+-]", lambda found: b"\\0%03o" % found[0][0], line.encode())
    return f'exec sh -c \'eval "$(printf %b "{octal.decode()}")"\''


def shell_path(path: str) -> str:
    """Quote a program's path for the host's shell; a leading ~/ stands for the home there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
