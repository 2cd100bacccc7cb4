"""The pages, and the streams that keep them up to date. They only read.

GET /                     the runs; /stream sends them again whenever they change
GET /run/ID               the report page of a run; /run/ID/stream sends what changes while it lasts
GET /run/ID/log/N/R       the end of a rank's log
GET /compare?run=ID...    the page of several runs
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from launcher.errors import RunNotFound
from launcher.rundir import reading
from launcher.show.page import gather, write
from launcher.web.board import Board, live
from launcher.web.streams import stream

LOG_LINES = 500


def page(text: str) -> Response:
    """An answer of HTML; what UTF-8 cannot hold, such as half of a character in a file's name, becomes `?`."""
    return HTMLResponse(text.encode("utf-8", "replace"))


def runs(request: Request) -> Response:
    return page(write.runs_text())


def runs_stream(request: Request) -> Response:
    return stream(request, _board(request).rows)


def run(request: Request) -> Response:
    board = _board(request)
    found = board.find(request.path_params["run"])
    state = board.state_of(found)
    whole = live(reading.read(found, state))["whole"]  # first: what changes meanwhile loads the page again
    return page(write.run_text(gather.run_page(found, state), live=whole))


def run_stream(request: Request) -> Response:
    board = _board(request)
    found = board.find(request.path_params["run"])
    reader = reading.Reader(found)
    actions = request.app.state.actions
    return stream(request, lambda: {**live(reader.read(board.state_of(found))), "actions": actions.of(found.run_id)})


def log(request: Request) -> Response:
    values = request.path_params
    lines = _board(request).find(values["run"]).rank_log_end(values["node"], values["rank"], LOG_LINES)
    return PlainTextResponse(("\n".join(lines) + "\n").encode("utf-8", "replace"))


def compare(request: Request) -> Response:
    board = _board(request)
    pages = [
        gather.run_page(found, board.state_of(found)) for found in map(board.find, request.query_params.getlist("run"))
    ]
    if len(pages) < 2:
        raise RunNotFound("tick at least two runs", code="ZL-WEB-01")
    title = ", ".join(one["name"] for one in pages)
    return page(write.comparison_text(title, pages, [{}] * len(pages), [], live=True))


def _board(request: Request) -> Board:
    board: Board = request.app.state.board
    return board


ROUTES = [
    Route("/", runs),
    Route("/stream", runs_stream),
    Route("/run/{run}", run),
    Route("/run/{run}/stream", run_stream),
    Route("/run/{run}/log/{node:int}/{rank:int}", log),
    Route("/compare", compare),
]
