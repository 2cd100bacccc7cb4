"""What a page has zlaunch do with a run: stop, resume, export, pull. Each is a zlaunch command, followed to its end.

    POST /run/ID/do/stop      {"now": bool}                           zlaunch cancel
    POST /run/ID/do/resume    {"epochs": N} or {"max_steps": N} or {}  zlaunch resume --detach
    POST /run/ID/do/export    {"to": "adapter" | "merged" | "ollama", "out": DIR}  zlaunch export
    POST /run/ID/do/pull      {}                                       zlaunch pull
    GET /run/ID/report        the report page as a file to keep

Their output is part of the stream of the run's page, so that a page that is loaded again shows it still.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from launcher.errors import RunNotFound, UsageError
from launcher.machine.language.bilingual import both
from launcher.machine.process import LineProcess
from launcher.rundir.directory import RunDir
from launcher.show.page import gather, write
from launcher.web import zlaunch

LINES = 200
"""Kept of the output of a command."""
KEPT = 5
"""Commands of a run that its page shows."""
ENDING_SECONDS = 5.0
"""For each command that is at work when the server ends, to take back what is half done."""


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    command: ClassVar[str] = "cancel"
    now: bool = False

    def options(self) -> list[str]:
        return ["--now"] if self.now else []


class Resume(msgspec.Struct, forbid_unknown_fields=True):
    command: ClassVar[str] = "resume"
    epochs: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_steps: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def options(self) -> list[str]:
        changed = {"train.epochs": self.epochs, "train.max_steps": self.max_steps}
        sets = [f"--set={key}={value:.10g}" for key, value in changed.items() if value is not None]
        return ["--detach", *sets]


class Export(msgspec.Struct, forbid_unknown_fields=True):
    command: ClassVar[str] = "export"
    to: Literal["adapter", "merged", "ollama"] = "merged"
    out: str = ""

    def options(self) -> list[str]:
        if self.out and not Path(self.out).is_absolute():
            raise UsageError(
                f"the directory {self.out!r} is relative, and a page has no place",
                hint="begin with /",
                code="ZL-WEB-01",
            )
        return ["--to", self.to, *([f"--out={self.out}"] if self.out else [])]


class Pull(msgspec.Struct, forbid_unknown_fields=True):
    command: ClassVar[str] = "pull"

    def options(self) -> list[str]:
        return []


KINDS: dict[str, type[Stop] | type[Resume] | type[Export] | type[Pull]] = {
    "stop": Stop, "resume": Resume, "export": Export, "pull": Pull,
}  # fmt: skip


class Action:
    """A command at work, or what it came to."""

    def __init__(self, name: str, words: Sequence[str], shown: Sequence[str]) -> None:
        self.name, self.shown, self.started = name, zlaunch.shown(shown), time.time()
        self.ended: float | None = None
        self.code: int | None = None
        """Exit status, once it has ended."""
        self.lines: deque[str] = deque(maxlen=LINES)
        self.process: LineProcess = zlaunch.start(words)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while (line := self.process.line()) is not None:
            self.lines.append(line)
        self.code, self.ended = self.process.wait(), time.time()

    def as_dict(self) -> dict[str, Any]:
        lines = [both(line) for line in self.lines.copy()]
        return {"name": self.name, "command": self.shown, "started": self.started, "ended": self.ended,
                "code": self.code, "lines": lines}  # fmt: skip


class Actions:
    """The commands that were started here, by run."""

    def __init__(self) -> None:
        self._by_run: dict[str, deque[Action]] = {}
        self._lock = threading.Lock()

    def start(self, key: str, name: str, words: Sequence[str], shown: Sequence[str] | None = None) -> Action:
        """Start `zlaunch WORDS` for the run (or else) `key`; `shown`: the words as a person would type them.

        Raises UsageError while the same is at work, CommandError.
        """
        with self._lock:
            known = self._by_run.setdefault(key, deque())
            if any(action.code is None and action.name == name for action in known):
                raise UsageError(f"{name} is at work on {key} already", code="ZL-WEB-01")
            action = Action(name, words, shown or words)
            known.append(action)
            while len(known) > KEPT and known[0].code is not None:
                known.popleft()
            return action

    def of(self, key: str) -> list[dict[str, Any]]:
        """The commands of a run, the last one first."""
        with self._lock:
            return [action.as_dict() for action in reversed(self._by_run.get(key, ()))]

    def close(self) -> None:
        """End what is at work, as Ctrl-C in a terminal would."""
        working = [action for known in self._by_run.values() for action in known if action.code is None]
        for action in working:
            action.process.interrupt()
        for action in working:
            action.process.end(ENDING_SECONDS)


async def act(request: Request) -> Response:
    body = await request.body()
    return await run_in_threadpool(_act, request, body)


def _act(request: Request, body: bytes) -> Response:
    run: RunDir = request.app.state.board.find(request.path_params["run"])
    name = request.path_params["action"]
    if name not in KINDS:
        raise RunNotFound(f"no action {name}", code="ZL-WEB-01")
    try:
        wanted = msgspec.json.decode(body or b"{}", type=KINDS[name])
    except msgspec.MsgspecError as error:
        raise UsageError(f"{name}: {error}", code="ZL-WEB-01") from error
    options = wanted.options()
    actions: Actions = request.app.state.actions
    path = str(run.path.absolute())  # an id may be one of another directory of runs by then
    actions.start(run.run_id, name, [wanted.command, *options, path], [wanted.command, run.run_id, *options])
    return JSONResponse({"started": name})


def report(request: Request) -> Response:
    """The page that `zlaunch report RUN --html FILE` writes."""
    board = request.app.state.board
    run: RunDir = board.find(request.path_params["run"])
    text = write.run_text(gather.run_page(run, board.state_of(run))).encode("utf-8", "replace")
    name = f"filename*=UTF-8''{quote(run.run_id, safe='')}.html"  # RFC 6266: a run may have a name in any script
    return Response(text, media_type="text/html", headers={"Content-Disposition": f"attachment; {name}"})


ROUTES = [
    Route("/run/{run}/do/{action}", act, methods=["POST"]),
    Route("/run/{run}/report", report),
]
