"""Servers on loopback that take notices: well, badly, or never."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = "s3cret-T0KEN-x1"


class Hook(ThreadingHTTPServer):
    """Remembers what arrived. `how`: a status, `silent`, the JSON of an answer, or a list of them, one per request."""

    daemon_threads = True

    def __init__(self, how: Any = 200, location: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.how, self.location = how, location
        self.got: list[tuple[str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/{SECRET}?token={SECRET}"

    @property
    def notices(self) -> list[Any]:
        return [body for _, body in self.got]


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.got.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        how = self.server.how
        if isinstance(how, list):
            how = how[min(len(self.server.got), len(how)) - 1]
        if how == "silent":
            time.sleep(60)
        self.send_response(how if isinstance(how, int) else 200)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()
        # A server that shows the address in its answer must not bring it into the events.
        self.wfile.write(f"refused {self.path}".encode() if isinstance(how, int) else json.dumps(how).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(hook: Hook) -> Iterator[Hook]:
    thread = threading.Thread(target=hook.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.shutdown()
        hook.server_close()


def self_signed(folder: Path) -> ssl.SSLContext:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-days",
        "2",
    ]
    subprocess.run([*argv, "-subj", "/CN=127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
