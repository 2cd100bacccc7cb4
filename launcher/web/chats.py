"""Chat with runs in a browser: `zlaunch chat --json`, one process per model, while a page holds it.

GET /chat?run=ID&with=base|ID   the page: a run, alone or beside its base model or another run
POST /chat/hold                 [{"run": ID, "base": bool}]: start these models, or keep them; their states
POST /chat/leave                the same: the page is gone
POST /chat/answer               {"run", "base", "turns", ...}: the answer, as JSON lines while it comes
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from launcher.errors import UsageError, ZlaunchError
from launcher.machine import trainer
from launcher.machine.process import LineProcess
from launcher.rundir.directory import RunDir
from launcher.show.page import write
from launcher.web import zlaunch
from launcher.web.board import Board
from launcher.web.pages import page

HOLD_SECONDS = 150.0
"""A model ends so long after its last hold. Pages hold every 15 s; a browser lets a hidden one do so once a minute."""
LEAVE_SECONDS = 20.0
"""The same after a page has gone: it may be loaded again, and another page may hold the model."""


class Model(msgspec.Struct, frozen=True):
    run: str
    base: bool = False


class Question(msgspec.Struct):
    run: str
    turns: list[tuple[str, str]]
    base: bool = False
    temperature: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None


class Talk:
    """A model that answers: its process, read by one answer at a time."""

    def __init__(self, run: RunDir, base: bool) -> None:
        words = ["chat", "--json", *(["--base"] if base else []), str(run.path.absolute())]
        self.process: LineProcess = zlaunch.start(words, errors_apart=True)
        self.state = "loading"
        """loading | ready | failed"""
        self.failure: dict[str, Any] = {}
        self.is_reported = False
        """Whether a page knows of the failure."""
        self.until = time.monotonic() + HOLD_SECONDS
        self.answering = threading.Lock()
        self._unread = False
        """Whether an answer that was cut has lines left."""
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        with self.answering:
            if (self._next() or {}).get("ready"):
                self.state = "ready"

    def _next(self) -> dict[str, Any] | None:
        """The next JSON object that the process writes; None: it has ended, and `failure` says why."""
        while (line := self.process.line()) is not None:
            try:
                value = json.loads(line)
            except ValueError:  # a library printed it
                continue
            if isinstance(value, dict):
                return value
        code = self.process.wait()
        told = trainer.told(self.process.errors())
        last = (*told.before[-1:], *told.message[:1])[-1:]
        self.state = "failed"
        self.failure = {"error": "".join(last) or f"the model ended with status {code}", "advice": told.hint}
        return None

    def ask(self, question: Question) -> None:
        """Send a conversation. Raises UsageError while another answer is under way, or for a model that has failed."""
        if not self.answering.acquire(blocking=False):
            raise UsageError(
                "this model is loading, or answers another question", hint="wait until it is ready", code="ZL-WEB-01"
            )
        while self._unread and (left := self._next()) is not None:
            self._unread = "piece" in left
        fields = {
            "turns": question.turns,
            "temperature": question.temperature,
            "max_new_tokens": question.max_new_tokens,
        }
        try:
            self.process.write(json.dumps(fields))
        except OSError:
            self._next()
            self.answering.release()
            raise UsageError(
                str(self.failure.get("error")), hint=self.failure.get("advice"), code="ZL-WEB-01"
            ) from None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The lines of the answer to `ask`. Closing the iterator cuts the answer short."""
        self._unread = True
        try:
            while self._unread:
                value = await run_in_threadpool(self._next)
                self._unread = value is not None and "piece" in value
                yield json.dumps(value or self.failure).encode() + b"\n"
        finally:
            if self._unread:
                self.process.interrupt()
            self.answering.release()


class Chats:
    """The models that pages hold."""

    def __init__(self) -> None:
        self._talks: dict[Model, Talk] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def hold(self, board: Board, models: list[Model]) -> list[dict[str, Any]]:
        """Start models or keep them; {"state", "error", "advice"} of each.

        A failure is reported once; the next hold starts that model again. Raises RunNotFound, CommandError.
        """
        with self._lock:
            if self._closed.is_set():
                raise UsageError("the server is ending", code="ZL-WEB-01")
            for model in models:
                if model in self._talks and self._talks[model].is_reported:
                    self._talks.pop(model).process.end()
                if model not in self._talks:
                    self._talks[model] = Talk(board.find(model.run), model.base)
                talk = self._talks[model]
                talk.until, talk.is_reported = time.monotonic() + HOLD_SECONDS, talk.state == "failed"
            if self._watcher is None and models:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
            return [{"state": talk.state, **talk.failure} for talk in map(self._talks.__getitem__, models)]

    def leave(self, models: list[Model]) -> None:
        with self._lock:
            for model in models:
                if model in self._talks:
                    talk = self._talks[model]
                    talk.until = min(talk.until, time.monotonic() + LEAVE_SECONDS)

    def talk(self, model: Model) -> Talk:
        with self._lock:
            if model not in self._talks:
                raise UsageError("this model has ended", hint="load the page again", code="ZL-WEB-01")
            return self._talks[model]

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            now = time.monotonic()
            with self._lock:
                over = [self._talks.pop(model) for model, talk in list(self._talks.items()) if talk.until < now]
            for talk in over:
                talk.process.end()

    def close(self) -> None:
        """End every model."""
        self._closed.set()
        with self._lock:
            talks = list(self._talks.values())
            self._talks.clear()
        for talk in talks:
            talk.process.end()


def chat_page(request: Request) -> Response:
    board: Board = request.app.state.board
    run = board.find(request.query_params.get("run", ""))
    other = request.query_params.get("with", "")
    beside = board.find(other) if other not in ("", "base") else None
    models = [{"run": run.run_id, "base": False, "name": _name(run)}]
    if other:
        models.append(
            {"run": (beside or run).run_id, "base": beside is None, "name": _name(beside) if beside else None}
        )
    runs = [{"id": one.run_id, "name": _name(one)} for one in reversed(list(board.runs())) if _can_chat(one)]
    return page(write.chat_text(models, runs))


def _name(run: RunDir) -> str:
    try:
        return run.record.name or run.run_id
    except ZlaunchError:
        return run.run_id


def _can_chat(run: RunDir) -> bool:
    try:
        return (run.adapter / "adapter_config.json").exists() or bool(run.checkpoint_steps())
    except (ZlaunchError, OSError):
        return False


async def hold(request: Request) -> Response:
    state = request.app.state
    models = _decoded(await request.body(), list[Model])
    return JSONResponse(await run_in_threadpool(state.chats.hold, state.board, models))


async def leave(request: Request) -> Response:
    request.app.state.chats.leave(_decoded(await request.body(), list[Model]))
    return JSONResponse({})


async def answer(request: Request) -> Response:
    question: Question = _decoded(await request.body(), Question)
    talk: Talk = request.app.state.chats.talk(Model(question.run, question.base))
    await run_in_threadpool(talk.ask, question)
    return StreamingResponse(talk.pieces(), media_type="application/x-ndjson")


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise UsageError(f"not understood: {error}", code="ZL-WEB-01") from error


ROUTES = [
    Route("/chat", chat_page),
    Route("/chat/hold", hold, methods=["POST"]),
    Route("/chat/leave", leave, methods=["POST"]),
    Route("/chat/answer", answer, methods=["POST"]),
]
