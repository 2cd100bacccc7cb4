"""The server: an address with a token in it, uvicorn behind it, and its end."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterable

import uvicorn

from launcher.rundir.directory import RunDir
from launcher.web.app import application, close
from launcher.web.asked_states import StateOf
from launcher.web.board import Board

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognized, not bound here
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENDING_SECONDS = 3
"""For answers under way when the server ends."""


class Site:
    """Serves the runs that `runs` lists; `state_of` asks for the state of one. Raises OSError if the port is taken."""

    def __init__(self, host: str, port: int, runs: Callable[[], Iterable[RunDir]], state_of: StateOf) -> None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self._socket = socket.create_server((host, port), family=family)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self.token = secrets.token_urlsafe(24)
        self.cookie = f"zlaunch-{self.port}"  # cookies know no port
        self.board = Board(runs, state_of)
        self.app = application(
            self.board, self._is_ending, token=self.token, cookie=self.cookie,
            names=[f"{_in_url(name)}:{self.port}" for name in (*LOOPBACK, host)],
        )  # fmt: skip
        config = uvicorn.Config(
            self.app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none"
        )
        config.timeout_graceful_shutdown = ENDING_SECONDS
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        return (
            f"http://{_in_url('127.0.0.1' if self.host in _EVERYWHERE else self.host)}:{self.port}/?token={self.token}"
        )

    def serve(self) -> None:
        """Answer until Ctrl-C, SIGTERM or `end`."""
        try:
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn sends itself the signal again when it has ended
                self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            close(self.app)

    def end(self) -> None:
        """Have `serve` return, from another thread; open streams end by themselves."""
        self._server.should_exit = True

    def _is_ending(self) -> bool:
        return bool(self._server.should_exit)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
