"""A hub on this machine: the part of Hugging Face's and ModelScope's HTTP interfaces that their clients use.

HF_ENDPOINT and MODELSCOPE_ENDPOINT lead the clients here. `asked` holds every request, in order.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Models and data sets, `owner/name` -> directory; a context manager."""

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path] | None = None) -> None:
        self.repositories = {"models": models, "datasets": datasets or {}}
        self.asked: list[tuple[str, str]] = []
        """(method, path with query)."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def fetched(self) -> list[str]:
        """The requests for the content of files."""
        return [path for method, path in self.asked if method == "GET" and _FILE.search(path)]

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()


_FILE = re.compile(r"/resolve/|FilePath=")
_ROUTES: tuple[tuple[str, str], ...] = (
    (r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/revision/[^/]+)?", "information"),
    (r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/tree/.+", "tree"),
    (r"/(?P<kind>datasets)/(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)", "content"),
    (r"/(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)", "content"),
    (r"/api/v1/(?P<kind>models)/(?P<name>[^/]+/[^/]+)/repo/files", "modelscope_files"),
    (r"/api/v1/(?P<kind>datasets)/(?P<name>[^/]+/[^/]+)/repo/tree", "modelscope_files"),
    (r"/api/v1/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/repo", "modelscope_content"),
    (r"/api/v1/(?P<kind>models)/(?P<name>[^/]+/[^/]+)/revisions", "modelscope_revisions"),
)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            hub.asked.append((self.command, self.path))
            url = urlsplit(self.path)
            for pattern, name in _ROUTES:
                if match := re.fullmatch(pattern, url.path):
                    found = match.groupdict()
                    place = hub.repositories[found.get("kind") or "models"].get(found["name"])
                    if place is None:
                        break
                    getattr(self, name)(place, found | {k: v[0] for k, v in parse_qs(url.query).items()})
                    return
            self.send(b"{}", status=404, headers={"X-Error-Code": "RepoNotFound"})

        do_GET = do_HEAD = answer

        def send(self, content: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def json(self, content: Any) -> None:
            self.send(json.dumps(content).encode(), headers={"Content-Type": "application/json"})

        def information(self, place: Path, asked: dict[str, str]) -> None:
            files = [{"rfilename": name} for name in _files(place)]
            self.json({"id": asked["name"], "sha": REVISION, "siblings": files, "private": False, "tags": []})

        def tree(self, place: Path, asked: dict[str, str]) -> None:
            self.json([_entry(place, name) for name in _files(place)])

        def content(self, place: Path, asked: dict[str, str]) -> None:
            file = place / asked["file"]
            if not file.is_file():
                self.send(b"", status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})
                return
            self.send(file.read_bytes(), headers={"ETag": f'"{_oid(file)}"', "X-Repo-Commit": REVISION})

        def modelscope_files(self, place: Path, asked: dict[str, str]) -> None:
            files = [
                {"Name": name, "Path": name, "Type": "blob", "Size": (place / name).stat().st_size,
                 "Sha256": hashlib.sha256((place / name).read_bytes()).hexdigest(), "Revision": REVISION}
                for name in _files(place)
            ]  # fmt: skip
            self.json({"Code": 200, "Success": True, "Data": {"Files": files}})

        def modelscope_content(self, place: Path, asked: dict[str, str]) -> None:
            self.send((place / asked["FilePath"]).read_bytes())

        def modelscope_revisions(self, place: Path, asked: dict[str, str]) -> None:
            self.json({"Code": 200, "Success": True, "Data": {"RevisionMap": {"Branches": [], "Tags": []}}})

        log_message: Callable[..., None] = staticmethod(lambda *words: None)

    return Handler


def _files(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(place: Path, name: str) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": (place / name).stat().st_size, "oid": _oid(place / name)}
