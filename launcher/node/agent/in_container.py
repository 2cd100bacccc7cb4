"""Supervise a node whose ranks run in a container: the agent outside starts the engine and the agent inside."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from contextlib import suppress

from ..engine_refusals import start_instead
from ..files import append_line, last_lines, read_json, remove, tail
from ..memory_kills import MemoryKills
from ..processes import descendants, kill_descendants, kill_quietly, reap_children, split_status
from .causes import failure_of
from .launch import EXIT_OF_STATE, OVERRIDES
from .signals import REQUEST_OF_SIGNAL, Signals

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, List, Mapping, Optional, Tuple

    from ..files import File, Json
    from .launch import Names
    from .recorder import Recorder

ENGINE_ENDS = {
    "docker": (("stop", "-t", "5"), ("rm", "--force")),
    "podman": (("stop", "-t", "5"), ("rm", "--force")),
}
"""How to end a container by its exact name. Without a daemon it runs below the agent and ends with its processes."""


def gpus_of_host(environ: Mapping[str, str]) -> List[str]:
    """Return the GPUs of this node's part of the run, as the whole host numbers them; empty: nothing says which.

    Slurm's own variables come first: with ConstrainDevices its CUDA_VISIBLE_DEVICES counts from 0 within the job
    (slurm.schedmd.com/gres.html), and means other GPUs to a container engine's daemon outside of it.
    """
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        found = [word.strip() for word in environ.get(name, "").split(",") if word.strip()]
        if found:
            return found
    return []


def place_container(container: Json, run_dir: File, node_rank: int) -> Json:
    """Return the plan's container with what only this host knows filled in (launcher/plan/container.py)."""
    gpus = gpus_of_host(os.environ)
    values: Dict[str, Callable[[str], Iterable[str]]] = {
        "gpus": lambda _: [",".join(gpus)] if gpus else [],
        "each_gpu": lambda _: gpus,
        "all_gpus": lambda _: [] if gpus else ["all"],
        "path": lambda path: [path] if os.path.exists(path) else [],
        "variable": lambda name: [os.environ[name]] if name in os.environ else [],
        "rootless": lambda _: [str(os.getuid())] if os.getuid() else [],
        "limit": lambda name: [name],
        # Inputs elsewhere on this host: a link's target must exist inside as well.
        "links": lambda folder: links_of(os.path.join(run_dir, folder)),
    }
    extra: List[str] = []
    limits: Dict[str, List[str]] = {}
    for kind, subject, words in container.get("when", ()):
        filled = [word.replace("{value}", value) for value in values[kind](subject) for word in words]
        # Two variables may name one directory, and engines refuse to mount it twice. No word depends on its neighbor.
        extra += [word for word in filled if word not in extra]
        if kind == "limit":
            limits[subject] = filled
    known = {
        "{run_dir}": str(run_dir), "{node_rank}": str(node_rank), "{uid}": str(os.getuid()), "{gid}": str(os.getgid()),
    }  # fmt: skip

    def fill(word: str) -> str:
        return re.sub(r"\{(?:run_dir|node_rank|uid|gid)\}", lambda match: known[match.group()], word)

    argv = [filled for word in container["argv"] for filled in (extra if word == "{when}" else [fill(word)])]
    return {**container, "name": fill(container["name"]), "argv": argv, "limits": limits}


def links_of(folder: str) -> List[str]:
    """Return the targets of the links two levels below a folder."""
    from glob import escape, glob

    return [os.readlink(path) for path in sorted(glob(escape(folder) + "/*/*")) if os.path.islink(path)]


def end_container(container: Json, recorder: Recorder, steps: slice = slice(None)) -> None:
    for words in ENGINE_ENDS.get(container["engine"], ())[steps]:
        argv = [container["engine"], *words, container["name"]]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
            recorder.log("%s: %s" % (" ".join(argv), done.returncode))
        except (OSError, subprocess.SubprocessError) as error:
            recorder.log("%s: %s" % (" ".join(argv), error))


class ContainerAgent:
    """The agent outside: starts the engine, which starts the agent inside. Forwards signals, copies the record."""

    def __init__(self, launch: Json, names: Names, node_rank: int, secrets: Dict[str, str], recorder: Recorder) -> None:
        self.launch, self.names, self.node_rank, self.recorder = launch, names, node_rank, recorder
        self.secrets = secrets
        self.container: Json = launch["container"]
        self.signals = Signals()
        self.deadline: Optional[float] = None
        self.kills = MemoryKills()
        self.begin = 0
        """Where the output of the newest start begins in the agent's log."""

    def _start(self) -> int:
        run_dir = str(self.container.get("run_dir") or self.names.root)
        python = [self.container.get("python", "python3"), "-X", "utf8", "-S"]
        program = [*python, run_dir + "/code/node/agent", "--run-dir", run_dir]
        argv = [*self.container["argv"], *program, "--node-rank", str(self.node_rank), "--inside", "--secrets-stdin"]
        remove(self.names.inside_record)
        if (
            self.launch["backend"] != "slurm"
        ):  # Slurm's batch script has removed it, and may have written a request since
            remove(self.names.signals)
        with open(self.names.log, "ab") as output:
            self.begin = output.tell()
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, cwd=self.names.root
            )
        child.returncode = 0
        told = {"secrets": self.secrets, "environ": {name: str(self.launch[key]) for name, key, _ in OVERRIDES}}
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin as pipe:
            pipe.write(json.dumps(told).encode())
        return child.pid

    def run(self) -> Tuple[str, Optional[Json]]:
        while True:
            end_container(self.container, self.recorder, slice(-1, None))  # left by an earlier attempt of this run
            try:
                engine = self._start()
            except OSError as error:
                message = "cannot start %s: %s" % (self.container["argv"][:1], error)
                return "FAILED", failure_of("engine", message, node_rank=self.node_rank)
            status = self._wait(engine)
            end_container(self.container, self.recorder)
            kill_descendants()
            if not self._starts_instead():
                return self._verdict(status)

    def _starts_instead(self) -> bool:
        """Whether the engine started nothing for an argument that it can start without."""
        if self.deadline is not None or read_json(self.names.inside_record):
            return False
        with open(self.names.log, "rb") as file:
            file.seek(self.begin)
            changed = start_instead(self.container, file.read().decode(errors="replace"))
        if changed is None:
            return False
        self.container, text = changed
        self.recorder.event("note", text="node %d: %s" % (self.node_rank, text))
        return True

    def _wait(self, engine: int) -> int:
        while True:
            select.select([self.signals.reader], [], [], 0.5)
            for number in self.signals.read():
                self._forward(number)
            for pid, status in reap_children():
                if pid == engine:
                    return status
            inside = read_json(self.names.inside_record)
            if inside and inside.get("run_id") == self.launch["run_id"]:
                gpus = {"gpus": inside.get("gpus", []), "gpu_trouble": inside.get("gpu_trouble")}
                self.recorder.content.update(ranks=inside["ranks"], restarts=inside["restarts"], **gpus)
            self.recorder.tick(time.monotonic())
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.deadline = time.monotonic() + 15
                end_container(self.container, self.recorder)
                for pid in descendants(os.getpid()) if self.container["engine"] not in ENGINE_ENDS else ():
                    kill_quietly(pid, signal.SIGKILL)

    def _forward(self, number: int) -> None:
        request = REQUEST_OF_SIGNAL.get(number)
        if request is None:
            return
        append_line(self.names.signals, str(int(number)))
        if request == "stop" and self.deadline is None:
            wait = self.launch["stop_deadline"] if self.launch["cooperative"] else 0.0
            self.deadline = time.monotonic() + wait + self.launch["kill_after"] + 2

    def _verdict(self, status: int) -> Tuple[str, Optional[Json]]:
        inside = read_json(self.names.inside_record) or {}
        self.recorder.content.update(ranks=inside.get("ranks", []), restarts=inside.get("restarts", 0))
        if inside.get("state") in EXIT_OF_STATE:
            return inside["state"], inside["failure"]
        if self.deadline is not None:
            return "CANCELLED", None
        code, signum = split_status(status)
        if signum == signal.SIGKILL or code == 128 + signal.SIGKILL:
            _, said = self.kills.verdict([])  # pids inside are not those of the kernel's log
            message = "the container on %s was ended by signal 9: %s" % (os.uname().nodename, said)
            return "FAILED", failure_of(
                "killed", message, node_rank=self.node_rank, exit_code=code, signum=signum,
                log_tail=last_lines(tail(self.names.log)),
            )  # fmt: skip
        lines = last_lines(tail(self.names.log))
        message = "the container ended (code %s, signal %s) before its agent wrote a record" % (code, signum)
        output = [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d ", line) and "--help" not in line]
        message += ": " + output[-1] if output else ""
        return "FAILED", failure_of(
            "engine", message, node_rank=self.node_rank, exit_code=code, signum=signum, log_tail=lines
        )
