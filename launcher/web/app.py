"""The application: its routes behind the guard, and what an error looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from launcher.errors import RunNotFound, UsageError, ZlaunchError
from launcher.machine.language.bilingual import both
from launcher.web import actions, chats, pages
from launcher.web.board import Board
from launcher.web.new_run import new_run_routes
from launcher.web.security import Guard

ROUTES = [*pages.ROUTES, *actions.ROUTES, *chats.ROUTES, *new_run_routes.ROUTES]


def application(
    board: Board, is_ending: Callable[[], bool], *, names: Iterable[str], cookie: str, token: str
) -> Starlette:
    """The ASGI application. `is_ending`: whether open streams should end; the rest is for the guard."""
    made = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Guard, names=names, cookie=cookie, token=token)],
        exception_handlers={ZlaunchError: _refuse, HTTPException: _no_page},
    )
    made.state.board, made.state.is_ending = board, is_ending
    made.state.actions, made.state.chats = actions.Actions(), chats.Chats()
    return made


def close(app: Starlette) -> None:
    """End the processes that pages have started."""
    app.state.chats.close()
    app.state.actions.close()


def _refuse(request: Request, error: Any) -> Response:
    """An error of the user: text for a page, JSON for a script of a page."""
    status = 404 if isinstance(error, RunNotFound) else 400 if isinstance(error, UsageError) else 500
    if request.method == "POST":
        (text, text_zh), (hint, hint_zh) = both(str(error)), both(error.hint or "")
        return JSONResponse({"error": text, "error_zh": text_zh, "hint": hint, "hint_zh": hint_zh}, status)
    return PlainTextResponse(f"{status}: {error.text}\n", status)


def _no_page(request: Request, error: Any) -> Response:
    text = f"no page {request.url.path}" if error.status_code == 404 else error.detail
    return PlainTextResponse(f"{error.status_code}: {text}\n", error.status_code, headers=error.headers)
