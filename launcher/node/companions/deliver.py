"""Send a notice: over HTTP, or to a command. Each has a process of its own, which a deadline ends."""

from __future__ import annotations

import json
import os
import signal
import time

from ..processes import split_status, wait_for_child

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple, Union

    from ..files import Json

SECONDS = 25.0
"""For one notice in all: look-up, connection, tries, answer."""
ANSWER_SECONDS = 10.0
PAUSES = (0.0, 1.0, 4.0)
"""Before each try. Only what certainly did not arrive is tried again, so that nothing arrives twice."""
TRY_AGAIN = (429, 503)
SHOWN = 200
"""Characters of a foreign text in a reason."""


def in_time(work: Callable[[], Optional[str]], seconds: float = SECONDS) -> Optional[str]:
    """Do something that returns why it failed (None: done) in a process that is killed after `seconds`."""
    result = os.memfd_create("zlaunch-notice")
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            reason = work()
        except Exception as error:
            reason = type(error).__name__  # the text may show the address
        os.pwrite(result, (reason or "").encode("utf-8", "replace"), 0)
        os._exit(1 if reason else 0)
    status = wait_for_child(pid, seconds)
    try:
        os.killpg(pid, signal.SIGKILL)  # also what a command has left
    except OSError:
        pass
    if status is None:
        os.waitpid(pid, 0)
        return "no answer within %g s" % seconds
    reason = os.pread(result, 4096, 0).decode("utf-8", "replace")
    os.close(result)
    code, signum = split_status(status)
    return reason or (None if code == 0 else "its process was ended by signal %s" % signum)


def post(address: str, added: Dict[str, str], body: Json, refused: Callable[[object], Optional[str]]) -> Optional[str]:
    """POST JSON; return why it did not arrive. A redirect is not followed: the address is meant for its host alone."""
    reason: Optional[str] = None
    for pause in PAUSES:
        time.sleep(pause)
        reason, again = try_once(with_parameters(address, added), json.dumps(body).encode(), refused)
        if not again:
            break
    return None if reason is None else shown(reason, address)


def with_parameters(address: str, added: Dict[str, str]) -> str:
    from urllib.parse import urlencode

    return address + ("&" if "?" in address else "?") + urlencode(added) if added else address


def try_once(address: str, data: bytes, refused: Callable[[object], Optional[str]]) -> Tuple[Optional[str], bool]:
    """Return (why it failed, whether it certainly did not arrive and may be tried again)."""
    import http.client
    import socket
    from urllib import error as failures
    from urllib import request

    class Stay(request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "zlaunch"}
    asked = request.Request(address, data=data, headers=headers, method="POST")  # noqa: S310 - the launcher has checked the scheme
    try:
        with request.build_opener(Stay).open(asked, timeout=ANSWER_SECONDS) as answer:
            text = answer.read(65536).decode("utf-8", "replace")
    except failures.HTTPError as error:
        if 300 <= error.code < 400:
            return "the server redirects to another address (HTTP %d)" % error.code, False
        text = error.read(4096).decode("utf-8", "replace") if error.fp else ""
        return "HTTP %d %s%s" % (error.code, error.reason, ": " + text if text.strip() else ""), error.code in TRY_AGAIN
    except failures.URLError as error:
        # urllib wraps what fails before the request is sent. A certificate will not get better.
        late = isinstance(error.reason, (socket.timeout, TimeoutError))
        again = isinstance(error.reason, (ConnectionRefusedError, socket.gaierror))
        return "no connection within %g s" % ANSWER_SECONDS if late else "no connection: %s" % error.reason, again
    except (socket.timeout, TimeoutError):
        return "no answer within %g s; it may have arrived" % ANSWER_SECONDS, False
    except (OSError, http.client.HTTPException) as error:
        return "the connection broke: %s" % (error or type(error).__name__), False
    try:
        return refused(json.loads(text)), False
    except ValueError:
        return None, False


def run_command(command: Union[str, List[str]], notice: Json, environ: Dict[str, str], cwd: str) -> Optional[str]:
    """Run a command with the notice as JSON on its standard input and as text in ZLAUNCH_NOTICE."""
    import subprocess

    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    try:
        done = subprocess.run(
            argv, input=json.dumps(notice).encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd,
            env={**environ, "ZLAUNCH_NOTICE": str(notice["text"]), "ZLAUNCH_NOTICE_KIND": str(notice["kind"])},
        )  # fmt: skip
    except OSError as error:
        return "cannot start %s: %s" % (argv[0], error.strerror)
    if done.returncode == 0:
        return None
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return shown("exit status %d%s" % (done.returncode, ": " + lines[-1] if lines else ""), "")


def shown(text: str, address: str) -> str:
    """Return a foreign text as a reason: short, on one line, and without any part of the address that may be secret."""
    for part in secret_parts(address):
        text = text.replace(part, "***")
    plain = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(plain.split())[:SHOWN]


def secret_parts(address: str) -> List[str]:
    """Return what must not be shown of an address, longest first: everything behind the host."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    if not address:
        return []
    split = urlsplit(address)
    found = {address, split.path, split.query, *split.path.split("/"), *(value for _, value in parse_qsl(split.query))}
    found |= {unquote(part) for part in found}
    return sorted((part for part in found if len(part) >= 4), key=len, reverse=True)
