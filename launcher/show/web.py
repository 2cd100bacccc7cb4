"""The runs in a browser: a small server for this machine's user, which only reads.

    GET /?token=...         sets the cookie and leads to /
    GET /                   the runs; /stream sends them again whenever they change
    GET /run/ID             the report page of a run; /run/ID/stream sends what changes while it lasts
    GET /run/ID/log/N/R     the end of a rank's log
    GET /compare?run=ID...  the page of several runs

Without the token every answer is 403, and so is a request that another site's page sends (Origin), or that reaches the
server under another name (Host: DNS rebinding). The standard library's server is enough for one user.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from launcher.errors import RunNotFound, ZlaunchError
from launcher.rundir import curve, reading
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture
from launcher.rundir.state import RunState
from launcher.show.page import gather, write

StateOf = Callable[[RunDir], RunState]
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognized, not bound here
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
POLL_SECONDS = 0.5
ALIVE_SECONDS = 10.0
"""A stream without news sends a comment this often, which shows that its browser is gone."""
LOG_LINES = 500


class Site(ThreadingHTTPServer):
    """Serves the runs that `runs` lists; `state_of` asks for the state of one. Raises OSError if the port is taken."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, runs: Callable[[], Iterable[RunDir]], state_of: StateOf) -> None:
        super().__init__((host, port), _Handler)
        self.runs, self.state_of = runs, state_of
        self.token = secrets.token_urlsafe(24)
        self.port = int(self.server_address[1])
        self.cookie = f"zlaunch-{self.port}"  # cookies know no port
        self.names = {f"{name}:{self.port}" for name in (*LOOPBACK, host)}
        self.ending = threading.Event()

    @property
    def url(self) -> str:
        host = str(self.server_address[0])
        return f"http://{'127.0.0.1' if host in _EVERYWHERE else host}:{self.port}/?token={self.token}"

    def end(self) -> None:
        """Stop serving; open streams end by themselves."""
        self.ending.set()
        self.shutdown()
        self.server_close()

    def find(self, run_id: str) -> RunDir:
        """The run of the list with this id; a path or a prefix is none. Raises RunNotFound."""
        for run in self.runs():
            if run.run_id == run_id:
                return run
        raise RunNotFound(f"no run {run_id}")

    def rows(self) -> list[dict[str, Any]]:
        """A row per run, newest first."""
        return [self.row(run) for run in reversed(list(self.runs()))]

    def row(self, run: RunDir) -> dict[str, Any]:
        try:
            record, (last, _) = run.record, curve.last_metric(run.metrics)
            found = {"id": run.run_id, "name": record.name, "backend": record.backend, "started": record.submitted}
            step, loss = (last.step, last.loss) if last else (None, None)
            return {**found, "state": self.state_of(run).value, "step": step, "loss": loss, "error": None}
        except ZlaunchError as error:  # one damaged run must not hide the others
            return {**dict.fromkeys(("name", "backend", "started", "state", "step", "loss")), "id": run.run_id,
                    "error": str(error)}  # fmt: skip


def live(seen: Picture) -> dict[str, Any]:
    """What changes on the page of a run while it lasts. If `whole` changes, the page is loaded again."""
    shown = [event for event in seen.events if event.event not in ("progress", "memory")]
    count = seen.count
    return {
        "whole": [seen.state, seen.phase, len(shown), bool(seen.curve), bool(seen.held_out), seen.is_program],
        "final": RunState(seen.state).is_final,
        "phase": seen.phase,
        "done": count.done if count else None,
        "total": count.total if count else None,
        "seconds_left": seen.seconds_left,
        "loss": seen.loss,
        "tokens_per_second": seen.tokens_per_second,
        "curves": gather.curves(seen),
    }


class _Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "zlaunch", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal shows the address."""

    def do_GET(self) -> None:
        try:
            self._respond()
        except (BrokenPipeError, ConnectionResetError):  # the browser has gone on
            self.close_connection = True

    def _respond(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        try:
            if not self._is_ours():
                self._send(403, "text/plain", "403: this server answers only its own pages\n")
            elif "token" in query and self._is_token(query["token"][0]):
                self._welcome()
            elif not self._is_token(self._cookie()):
                self._send(403, "text/plain", "403: open the address that `zlaunch ui` printed\n")
            else:
                self._answer([unquote(part) for part in url.path.strip("/").split("/")], query)
        except RunNotFound as error:
            self._send(404, "text/plain", f"404: {error}\n")
        except ZlaunchError as error:
            self._send(500, "text/plain", f"500: {error}\n")

    def _is_ours(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        return host in self.server.names and origin in (None, f"http://{host}")

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.server.token.encode())

    def _cookie(self) -> str:
        for part in self.headers.get("Cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.server.cookie:
                return value
        return ""

    def _welcome(self) -> None:
        """A page that leads on, and no redirect: a strict cookie would not follow one from another site's link."""
        cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
        text = '<!doctype html><meta http-equiv="refresh" content="0;url=/"><link rel="icon" href="data:,">'
        self._send(200, "text/html", text, {"Set-Cookie": cookie})

    def _answer(self, parts: list[str], query: dict[str, list[str]]) -> None:
        site = self.server
        if parts == [""]:
            self._send(200, "text/html", write.runs_text())
        elif parts == ["stream"]:
            self._stream(site.rows)
        elif parts == ["compare"]:
            pages = [gather.run_page(run, site.state_of(run)) for run in map(site.find, query.get("run", []))]
            if len(pages) < 2:
                raise RunNotFound("tick at least two runs")
            title = ", ".join(page["name"] for page in pages)
            self._send(200, "text/html", write.comparison_text(title, pages, [{}] * len(pages), [], live=True))
        elif len(parts) == 2 and parts[0] == "run":
            run = site.find(parts[1])
            state = site.state_of(run)
            whole = live(reading.read(run, state))["whole"]  # first: what changes meanwhile loads the page again
            self._send(200, "text/html", write.run_text(gather.run_page(run, state), live=whole))
        elif len(parts) == 3 and parts[0] == "run" and parts[2] == "stream":
            run = site.find(parts[1])
            reader = reading.Reader(run)
            self._stream(lambda: live(reader.read(site.state_of(run))))
        elif len(parts) == 5 and parts[0] == "run" and parts[2] == "log" and all(p.isdecimal() for p in parts[3:]):
            lines = site.find(parts[1]).rank_log_end(int(parts[3]), int(parts[4]), LOG_LINES)
            self._send(200, "text/plain", "\n".join(lines) + "\n")
        else:
            raise RunNotFound(f"no page {self.path}")

    def _send(self, status: int, kind: str, text: str, headers: dict[str, str] | None = None) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        self._common(f"{kind}; charset=utf-8", headers)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _common(self, kind: str, headers: dict[str, str] | None = None) -> None:
        ours = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        for name, value in {"Content-Type": kind, "Referrer-Policy": "no-referrer", **ours, **(headers or {})}.items():
            self.send_header(name, value)

    def _stream(self, make: Callable[[], Any]) -> None:
        """Send a value as server-sent events whenever it has changed, until the browser is gone."""
        self.send_response(200)
        self._common("text/event-stream")
        self.end_headers()
        self.close_connection = True
        sent, when = "", 0.0
        while not self.server.ending.wait(POLL_SECONDS if sent else 0):
            text = json.dumps(make(), ensure_ascii=False)
            if text != sent:
                self.wfile.write(f"data: {text}\n\n".encode("utf-8", "replace"))
            elif time.monotonic() - when > ALIVE_SECONDS:
                self.wfile.write(b": \n\n")
            else:
                continue
            self.wfile.flush()
            sent, when = text, time.monotonic()
