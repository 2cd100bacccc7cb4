"""Follow a run on its node, and send a notice of each occurrence: a restart, and the end.

A hang or a failure is reported once, when it is known what became of it: a restart or the end of the run.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from contextlib import suppress

from .. import run_files
from ..agent.recorder import Recorder
from ..files import read_json, tail
from . import deliver, notice

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from ..agent.launch import Names
    from ..files import Json

POLL = 1.0
"""Seconds between looks at the events."""
PROBE_SECONDS = 5.0
MOST_SCORES = 6
MOST_LINKS, MOST_LINK = 5, 300


class Notifier:
    """The notices of one start of a run, from one node."""

    def __init__(self, launch: Json, names: Names, node_rank: int, secrets: Dict[str, str]) -> None:
        self.launch, self.names, self.node_rank, self.secrets = launch, names, node_rank, secrets
        self.notify: Json = launch["notify"]
        self.recorder = Recorder(names, launch, node_rank)
        self.started = time.time()
        self.offset = _size(names.events)
        self.partial = b""
        self.total_steps: Optional[int] = None
        self.stopped_by: Optional[str] = None
        """Who or what asked the run to stop first: the name of a signal, or of a command."""
        self.links: List[str] = []
        """Where trackers show the run."""

    def follow(self) -> None:
        """Work until standard input ends, which is after the agent; then report the end."""
        done = False
        while not done:
            done = bool(select.select([0], [], [], POLL)[0])
            for event in self.new_events():
                self.take(event)
        self.end()

    def new_events(self) -> List[Json]:
        try:
            with open(self.names.events, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        self.offset += len(data)
        *lines, self.partial = (self.partial + data).split(b"\n")
        found = []
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line.decode("utf-8", "replace"))
                if isinstance(event, dict):
                    found.append(event)
        return found

    def take(self, event: Json) -> None:
        name = event.get("event")
        if name == "steps" and isinstance(event.get("total_steps"), int):
            self.total_steps = event["total_steps"]
        elif name == "tracker" and str(event.get("url")).startswith(("http://", "https://")):
            self.links.append(notice.cut(str(event["url"]), MOST_LINK))
        elif name == "request" and event.get("request") == "stop" and self.stopped_by is None:
            self.stopped_by = str(event.get("by"))
        elif name == "restart" and self.node_rank == 0:
            cause = str(event.get("cause"))
            failure = {"cause": cause, "message": str(event.get("reason"))}
            kind = "hang" if cause == "hang" else "failure"
            self.send(self.about(kind, "RUNNING", failure, restart=event.get("count")))

    def end(self) -> None:
        """Report how the run ended, by the record that the agent or its warden has written."""
        record = read_json(self.names.record) or {}
        state, failure = str(record.get("state")), record.get("failure") or None
        if self.node_rank != 0 and not self.first_is_lost(failure or {}):
            return
        if state not in ("SUCCEEDED", "FAILED", "STOPPED", "CANCELLED"):
            state, failure = "FAILED", {"cause": "killed", "message": "the agent was killed with its warden"}
        cancelled = os.path.exists(os.path.join(self.names.control, run_files.CANCELLED))
        kind = "end"
        if state == "FAILED":
            kind = "hang" if failure and failure.get("cause") == "hang" else "failure"
        elif state != "SUCCEEDED" and self.stopped_by in ("SIGUSR2", "SIGTERM") and not cancelled:
            kind = "preemption"
        if claim_end(self.launch, self.names.root):
            self.send(self.about(kind, state, failure, final=True))

    def first_is_lost(self, failure: Json) -> bool:
        """Whether the run failed for the host of node 0. If that host answers, its own notifier reports."""
        if (failure.get("cause"), failure.get("node_rank")) != ("lost_host", 0):
            return False
        place = (str(self.launch["master_addr"]), int(self.launch["control_port"]))
        try:
            socket.create_connection(place, PROBE_SECONDS).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return False

    def about(
        self, kind: str, state: str, failure: Optional[Json], *, final: bool = False, restart: Any = None
    ) -> Json:
        """Return the notice, from what the files of the run say now."""
        failure = failure or {}
        said: Json = {
            "schema": 1, "kind": kind, "run": self.launch["run_id"], "name": self.notify["name"], "state": state,
            "final": final, "backend": self.launch["backend"], "host": failure.get("host") or os.uname().nodename,
            "time": round(time.time(), 3), "seconds": round(time.time() - self.started, 1),
            "cause": failure.get("cause"), "message": notice.cut(str(failure.get("message") or "")) or None,
            "advice": failure.get("advice") or [], "signal": self.stopped_by if kind == "preemption" else None,
            "restart": restart, "max_restarts": self.launch["max_restarts"] if restart else None,
            "total_steps": self.total_steps, **self.last_metrics(), "links": self.links[:MOST_LINKS],
        }  # fmt: skip
        said["scores"] = self.scores() if state == "SUCCEEDED" else None
        return {**said, "text": notice.text_of(said)}

    def last_metrics(self) -> Json:
        found: Json = {"step": None, "loss": None, "eval_loss": None}
        for line in reversed(tail(os.path.join(self.names.root, run_files.METRICS)).splitlines()):
            with suppress(ValueError):
                values = json.loads(line)
                for key in found:
                    if found[key] is None and isinstance(values, dict) and type(values.get(key)) in (int, float):
                        found[key] = values[key]
            if None not in found.values():
                break
        return found

    def scores(self) -> Optional[Json]:
        """Return the scores on the held-out records after training, if this start has measured them."""
        file = os.path.join(self.names.root, run_files.RESULT)
        try:
            if os.stat(file).st_mtime < self.started - 1:
                return None
        except OSError:
            return None
        after = ((read_json(file) or {}).get("eval") or {}).get("after") or {}
        known = [(key, value) for key, value in after.items() if type(value) in (int, float)]
        return dict(known[:MOST_SCORES]) or None

    def send(self, said: Json) -> None:
        """Send a notice to everything that the job names, and record what became of it."""
        if said["kind"] not in self.notify["on"]:
            return
        if self.notify["url"]:
            address = self.secrets.get(self.notify["url"], "")
            key = self.secrets.get(self.notify["sign"] or "")
            form = notice.form_of(address) if self.notify["format"] == "auto" else self.notify["format"]
            added, body = notice.body_of(form, said, key, time.time())
            self.report(
                said, notice.TITLES[form],
                deliver.in_time(lambda: deliver.post(address, added, body, lambda got: notice.refusal_of(form, got))),
            )  # fmt: skip
        if self.notify["command"]:
            hidden = [self.notify["url"], self.notify["sign"]]
            environ = {**os.environ, **self.launch["env"], **self.secrets}
            environ = {name: value for name, value in environ.items() if name not in hidden}
            command, cwd = self.notify["command"], self.names.root
            self.report(said, "the command", deliver.in_time(lambda: deliver.run_command(command, said, environ, cwd)))

    def report(self, said: Json, to: str, reason: Optional[str]) -> None:
        self.recorder.event("notice", kind=said["kind"], to=to, sent=reason is None, reason=reason)


def claim_end(launch: Json, root: str) -> bool:
    """Whether this process is to report the end of a start on Slurm, where batch script, node 0 and node 1 can."""
    job = os.environ.get("SLURM_JOB_ID")
    if launch["backend"] != "slurm" or not job:
        return True
    mark = run_files.noticed("%s-%s" % (job, os.environ.get("SLURM_RESTART_COUNT") or 0))
    try:
        os.close(os.open(os.path.join(root, mark), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:
        pass  # a full disk: rather twice than never
    return True


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
