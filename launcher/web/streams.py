"""Values that are sent to a browser whenever they change: server-sent events.

A browser has six connections to a server, over all its tabs. live.js therefore closes the stream of a hidden page.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from launcher.errors import ZlaunchError

POLL_SECONDS = 0.5
ALIVE_SECONDS = 10.0
"""A stream without news sends a comment this often, so that no proxy takes it for dead."""


def stream(request: Request, make: Callable[[], Any]) -> Response:
    """Send the value of `make` at once and whenever it has changed, until the browser or the server goes.

    `make` is called in a thread. An error of it is sent as {"error": text}; the stream goes on.
    """
    return StreamingResponse(_events(request.app.state.is_ending, make), media_type="text/event-stream")


async def _events(is_ending: Callable[[], bool], make: Callable[[], Any]) -> AsyncIterator[bytes]:
    def text_of() -> str:
        try:
            return json.dumps(make(), ensure_ascii=False)
        except ZlaunchError as error:
            return json.dumps({"error": error.text}, ensure_ascii=False)

    sent, when = "", 0.0
    while not is_ending():
        text = await run_in_threadpool(text_of)
        if text != sent:
            yield f"data: {text}\n\n".encode("utf-8", "replace")
            sent, when = text, time.monotonic()
        elif time.monotonic() - when > ALIVE_SECONDS:
            yield b": \n\n"
            when = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)
