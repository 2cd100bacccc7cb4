"""Write the node's record, the agent's log and the run's events."""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress

from ..files import append_line, write_atomic
from ..processes import boot_id, pid_namespace, start_time_of
from .launch import HEARTBEAT_EVERY

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Optional

    from ..files import Json
    from ..gpu_load import GpuLoad
    from .launch import Names


class Recorder:
    """Writes record, log and events. A full disk must not keep the agent from ending processes."""

    def __init__(self, names: Names, launch: Json, node_rank: int) -> None:
        self.names, self.node_rank = names, node_rank
        self.beat_at = 0.0
        self.gpu_load: Optional[GpuLoad] = None
        self.vanished = False
        """Whether the run directory is gone."""
        self.content: Json = {
            "schema": 1,
            "run_id": launch["run_id"],
            "node_rank": node_rank,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "start_time": start_time_of(os.getpid()),
            "boot_id": boot_id(),
            "pid_namespace": pid_namespace(),
            "warden": None,
            "state": "RUNNING",
            "ranks": [],
            "started": time.time(),
            "ended": None,
            "restarts": 0,
            "exit_code": None,
            "heartbeat": time.time(),
            "failure": None,
        }

    def save(self, **changes: Any) -> None:
        if self.gpu_load is not None:
            changes.update(self.gpu_load.fields())
        self.content.update(changes, heartbeat=time.time())
        self.beat_at = time.monotonic() + HEARTBEAT_EVERY
        try:
            write_atomic(self.names.record, json.dumps(self.content, separators=(",\n ", ": ")))
        except OSError as error:
            self.vanished = error.errno == errno.ENOENT and not os.path.isdir(self.names.root)
            self.log("cannot write %s: %s" % (self.names.record, error))
            if self.content["ended"]:
                self._save_in_place()

    def _save_in_place(self) -> None:
        """Record the end on a full disk: into the blocks that the record has already, as much as they hold."""
        failure = self.content["failure"]
        small = failure and {**failure, "log_tail": [], "stacks": []}
        smaller = small and {**small, "message": small["message"][:200]}
        whole = [{**self.content, "failure": small}, {**self.content, "failure": smaller}]
        with suppress(OSError), open(self.names.record, "r+b") as file:
            room = max(os.fstat(file.fileno()).st_blocks * 512, os.fstat(file.fileno()).st_size)
            texts = [json.dumps(content).encode() for content in (*whole, {**whole[1], "ranks": []})]
            file.write(next((text for text in texts if len(text) <= room), texts[-1]))
            file.truncate()

    def tick(self, now: float) -> None:
        """Refresh the heartbeat when it is due."""
        if now >= self.beat_at:
            self.save()

    def event(self, name: str, **fields: Any) -> None:
        line = json.dumps({"time": time.time(), "event": name, "node": self.node_rank, **fields})
        with suppress(OSError):
            append_line(self.names.events, line)
        self.log("%s %s" % (name, json.dumps(fields) if fields else ""))

    def log(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):
            append_line(self.names.log, "%s %s" % (stamp, text.rstrip()))
