"""Whom the server answers: who knows the token, from its own pages, under its own name.

Without the token every answer is 403, and so is a request that a page of another site sends (Origin), or that reaches
the server under another name (Host: DNS rebinding). A request that changes something must name its origin.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

_HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}  # fmt: skip
_READING = ("GET", "HEAD")


class Guard:
    """An ASGI middleware that refuses all requests but those of the user's own browser."""

    def __init__(self, app: Any, *, names: Iterable[str], cookie: str, token: str) -> None:
        """`names`: what Host may say, with the port."""
        self.app, self.names, self.cookie, self.token = app, frozenset(names), cookie, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # there is no websocket; a lifespan is the application's
            await self.app(scope, receive, send)
            return

        async def sealed(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        request = Request(scope)
        answer = self._answer(request) or self.app
        await answer(scope, receive, sealed)

    def _answer(self, request: Request) -> Response | None:
        """A refusal or a welcome; None: the application answers."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        ours = (f"http://{host}",) if request.method not in _READING else (None, f"http://{host}")
        if host not in self.names or origin not in ours:
            return PlainTextResponse("403: this server answers only its own pages\n", 403)
        if request.method == "GET" and self._is_token(request.query_params.get("token", "")):
            return self._welcome()
        if not self._is_token(request.cookies.get(self.cookie, "")):
            return PlainTextResponse("403: open the address that `zlaunch ui` printed\n", 403)
        return None

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    def _welcome(self) -> Response:
        """A page that leads on, and no redirect: a strict cookie would not follow one from another site's link."""
        text = '<!doctype html><meta http-equiv="refresh" content="0;url=/"><link rel="icon" href="data:,">'
        answer = HTMLResponse(text)
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer
