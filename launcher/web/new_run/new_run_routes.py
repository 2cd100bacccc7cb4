"""The routes of the form.

GET /new                  the page; ?from=RUN fills it in as that run, ?example=demo|smoke as a job of zlaunch's own
POST /new/check           {values, backend, gpu}    the job, its plan, and every problem at its field
POST /new/work            {values, backend, gpu}    its steps and hours
POST /new/records         {values, backend, first}  the first records as training sees them
POST /new/start           {values, backend}         start the run: its id

`values` is {key of the job: text of its field}. Relative paths are relative to the directory where the server started.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from launcher.errors import RunNotFound, UsageError, ZlaunchError
from launcher.job.load import read_tree
from launcher.lifecycle import job_file
from launcher.machine import installation
from launcher.rundir.directory import RunDir
from launcher.web import pages
from launcher.web.new_run import form_answers, new_run_page
from launcher.web.new_run.form_values import values_of
from launcher.web.new_run.known_models import suggestions

MOST_BYTES = 4 << 20
"""Of a form that is sent."""


class Sent(msgspec.Struct, frozen=True):
    values: dict[str, str]
    backend: str = "local"
    gpu: str = ""
    first: Annotated[int, msgspec.Meta(ge=1, le=20)] = 3


def page(request: Request) -> Response:
    values: dict[str, str] = {}
    backend, source, problem = "local", "", ""
    try:
        if run := request.query_params.get("from"):
            found: RunDir = request.app.state.board.find(run)
            source, backend = run, found.record.backend
            values = values_of(read_tree(found.job_yaml))
        elif example := request.query_params.get("example"):
            files = {"demo": job_file.demo_job(), "smoke": installation.path("templates") / "smoke.yaml"}
            if example not in files:
                raise RunNotFound(f"no example {example}", code="ZL-WEB-01")
            source = files[example].name if example == "smoke" else "demo/job.yaml"
            tree = read_tree(files[example])
            values = values_of({key: value for key, value in tree.items() if value != []})
    except RunNotFound:
        raise
    except ZlaunchError as error:  # a job that the form cannot hold
        problem, source = error.text, ""
    known = suggestions(request.app.state.board.runs())
    text = new_run_page.text(values, backend, source=source, problem=problem, suggestions=known)
    return pages.page(text)


def _answer(make: Callable[[Sent, Path], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """An answer in JSON to a form in JSON, made in a thread."""

    async def answer(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise UsageError(f"the form holds more than {MOST_BYTES:,} bytes", code="ZL-WEB-01")
        try:
            sent = msgspec.json.decode(body, type=Sent)
        except msgspec.MsgspecError as error:
            raise UsageError(f"not a form: {error}", code="ZL-WEB-01") from error
        return JSONResponse(await run_in_threadpool(make, sent, Path.cwd()))

    return answer


ROUTES = [
    Route("/new", page),
    Route(
        "/new/check",
        _answer(lambda sent, base: form_answers.check(sent.values, sent.backend, sent.gpu, base)),
        methods=["POST"],
    ),
    Route(
        "/new/work",
        _answer(lambda sent, base: form_answers.work(sent.values, sent.backend, sent.gpu, base)),
        methods=["POST"],
    ),
    Route(
        "/new/records",
        _answer(lambda sent, base: form_answers.records(sent.values, sent.first, base)),
        methods=["POST"],
    ),
    Route(
        "/new/start", _answer(lambda sent, base: form_answers.start(sent.values, sent.backend, base)), methods=["POST"]
    ),
]
