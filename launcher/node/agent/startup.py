"""Start an agent: check what may refuse it, detach it, and fork its two processes."""

from __future__ import annotations

import gc
import getopt
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress

from ..files import read_json
from ..processes import (
    PR_SET_CHILD_SUBREAPER,
    call_process,
    die_with_parent,
    kill_descendants,
    prctl,
    start_time_of,
)  # fmt: skip
from ..proofs import proof
from ..write_errors import explain
from .causes import failure_of
from .launch import EXIT_OF_STATE, Names, StartError, load_launch
from .recorder import Recorder
from .signals import SIGNALS
from .warden import guard

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Tuple, Type, Union

    from ..companions.beside import Companions
    from ..files import Json
    from .in_container import ContainerAgent
    from .supervisor import Agent


def claim(launch: Json, names: Names, node_rank: int, inside: bool) -> socket.socket:
    """Become the only agent of this run and node on this host. Raises StartError.

    An abstract socket name is atomic, needs no file system and vanishes with its holders (agent and warden). It is made
    from the run's token, because any user of the host could hold a name that can be guessed.
    """
    place = os.stat(names.root)
    text = "%s/%d/%d.%d%s" % (launch["run_id"], node_rank, place.st_dev, place.st_ino, "/in" if inside else "")
    name = "\0zlaunch/" + proof(str(launch["token"]), "claim", text)
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(name)
    except OSError as error:
        lock.close()
        raise StartError(
            "an agent of run %s, node %d is running here already" % (launch["run_id"], node_rank)
        ) from error
    record = read_json(names.record)
    if record is not None and record.get("state") == "RUNNING" and runs_elsewhere(launch, record):
        lock.close()
        raise StartError("node %d of run %s is running on %s" % (node_rank, launch["run_id"], record["host"]))
    return lock


def runs_elsewhere(launch: Json, record: Json) -> bool:
    """Whether another host's record has a fresh heartbeat (shared file system). Slurm itself runs a node once."""
    fresh = time.time() - float(record["heartbeat"]) < float(launch["heartbeat_timeout"])
    return bool(fresh and record["host"] != os.uname().nodename and launch["backend"] != "slurm")


def read_secrets(options: Options) -> Tuple[Dict[str, str], Dict[str, str]]:
    """Return (secrets, environment overrides). Deletes a secrets file once read. Raises StartError."""
    try:
        if options.secrets_stdin:
            content = json.loads(sys.stdin.buffer.read().decode() or "{}")
        elif options.secrets_file:
            with open(options.secrets_file, "rb") as file:
                content = json.loads(file.read().decode())
            os.unlink(options.secrets_file)
        else:
            content = {}
    except (OSError, ValueError) as error:
        raise StartError("cannot read the secrets: %s" % type(error).__name__) from None  # the text may show one
    if options.inside:
        return content.get("secrets", {}), content.get("environ", {})
    return content, {}


def supervise(launch: Json, names: Names, node_rank: int, secrets: Dict[str, str], warden: int, ready: int) -> int:
    """Run the agent in the warden's child. Returns the exit status."""
    call_process("zlaunch-agent")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    die_with_parent(signal.SIGTERM, warden)
    recorder = Recorder(names, launch, node_rank)
    recorder.content["warden"] = {"pid": warden, "start_time": start_time_of(warden)}
    recorder.save()
    recorder.event("agent_started", host=recorder.content["host"], pid=os.getpid())
    state = "FAILED"
    failure: Optional[Json] = None
    try:
        agent = kind_of(launch)(launch, names, node_rank, secrets, recorder)
        gc.enable()
        tell(ready, "ok")
        state, failure = agent.run()
    except StartError as error:
        failure = failure_of("port_taken", str(error), node_rank=node_rank)
    except Exception as error:  # a bug of ours; the ranks must not outlive the agent
        import traceback

        recorder.log(traceback.format_exc())
        failure = failure_of("bug", "the agent failed: %r (see agent.log)" % error, node_rank=node_rank)
    kill_descendants()
    code = EXIT_OF_STATE[state]
    recorder.save(state=state, failure=failure, ended=time.time(), exit_code=code)
    recorder.event("end", state=state, **({"reason": failure["message"]} if failure else {}))
    return code


def kind_of(launch: Json) -> Union[Type[Agent], Type[ContainerAgent]]:
    """Return what supervises this node: the ranks, or a container with another agent in it."""
    if launch["container"] and not launch["inside"]:
        from .in_container import ContainerAgent

        return ContainerAgent
    from .supervisor import Agent

    return Agent


def tell(pipe: int, text: str) -> None:
    """Report the start of a detached agent, or why it failed, to the process that waits for it."""
    if pipe >= 0:
        with suppress(OSError):
            os.write(pipe, text.encode())
            os.close(pipe)


def detach() -> int:
    """Continue in a session of our own. The original process waits for `tell`; returns the pipe to it."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        word = os.read(reader, 65536).decode()
        if word != "ok":
            sys.stderr.write((word or "the agent ended before it could start") + "\n")
        sys.stderr.flush()
        os._exit(0 if word == "ok" else 1)
    os.close(reader)
    os.setsid()
    return writer


def redirect(log: str) -> None:
    """Point the standard streams of a detached agent to /dev/null and its log, to release terminal and pipes."""
    with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


USAGE = "usage: agent --run-dir DIR --node-rank N [--secrets-stdin | --secrets-file FILE] [--detach | --ready-fd FD]"


class Options:
    """The command line of an agent. Raises StartError."""

    def __init__(self, argv: List[str]) -> None:
        flags = ["run-dir=", "node-rank=", "secrets-file=", "secrets-stdin", "detach", "ready-fd=", "inside"]
        try:
            pairs, rest = getopt.getopt(argv, "", flags)  # argparse imports shutil: 10 ms per host
            given = dict(pairs)
            self.run_dir, self.node_rank = given["--run-dir"], int(given["--node-rank"])
            self.ready_fd = int(given.get("--ready-fd", -1))
            """Already detached: where to say that the record is written, or why not."""
        except (getopt.GetoptError, KeyError, ValueError) as error:
            raise StartError("%s; %s" % (error, USAGE)) from None
        if rest:
            raise StartError(USAGE)
        self.secrets_file: str = given.get("--secrets-file", "")
        """A JSON object {NAME: value}, deleted once read."""
        self.secrets_stdin = "--secrets-stdin" in given
        self.detach = "--detach" in given
        """Return once the agent has written its record."""
        self.inside = "--inside" in given
        """This agent runs in a container, below another agent."""


def prepare(options: Options) -> Tuple[Json, Names, Dict[str, str], socket.socket]:
    """Check everything that can be refused before a process starts. Raises StartError."""
    names = Names(os.path.abspath(options.run_dir), options.node_rank, options.inside)
    secrets, environ = read_secrets(options)
    launch = load_launch(names.plan, {**os.environ, **environ})
    launch["inside"] = options.inside
    if launch["container"]:
        if not options.inside:  # the engine reads variables of the job: DOCKER_HOST, APPTAINER_CACHEDIR
            os.environ.update(launch["env"])
            os.environ.setdefault("USER", user_name())  # ch-run refuses to start without
        from .in_container import place_container

        launch["container"] = place_container(launch["container"], names.root, options.node_rank)
    if options.node_rank not in [node["node_rank"] for node in launch["nodes"]]:
        raise StartError("the plan has no node %d" % options.node_rank)
    if len(launch["nodes"]) > 1 and not launch["token"]:
        raise StartError("a run on several nodes needs launch.token in plan.json or ZLAUNCH_TOKEN")
    try:
        names.make()
    except OSError as error:
        found = explain(error)
        why = "%s; %s" % found if found else str(error)
        raise StartError("cannot write into the run directory: %s" % why) from error
    return launch, names, secrets, claim(launch, names, options.node_rank, options.inside)


def user_name() -> str:
    """Return the user's name, by which rootless podman finds its ranges of ids; the number of one without a name."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def main(argv: List[str]) -> int:
    try:
        options = Options(argv)
    except StartError as error:
        sys.stderr.write("agent: %s\n" % error)
        return 2
    ready = detach() if options.detach else options.ready_fd
    try:
        launch, names, secrets, lock = prepare(options)
    except StartError as error:
        tell(ready, "agent: %s" % error)
        if ready < 0:
            sys.stderr.write("agent: %s\n" % error)
        return 1
    if ready >= 0:
        os.set_inheritable(ready, False)
        redirect(names.log)
    call_process("zlaunch-warden")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    beside = companions_of(launch, names, options.node_rank, secrets)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    gc.freeze()  # no collection visits what was imported, which would copy its pages
    warden, agent = os.getpid(), os.fork()
    if agent == 0:
        return in_child(launch, names, options.node_rank, secrets, warden, ready)
    with suppress(OSError):
        os.close(ready)
    secrets.clear()
    start_time = start_time_of(agent)
    code = guard(launch, names, agent, start_time, beside)
    lock.close()  # the run may be resumed while the companions finish
    if beside is not None:
        beside.finish()
    return code


def companions_of(launch: Json, names: Names, node_rank: int, secrets: Dict[str, str]) -> Optional[Companions]:
    """Start what sends notices and feeds trackers. Few runs have it, so few hosts import it."""
    if not launch["notify"] and not launch["trackers"]:
        return None
    from ..companions import beside

    return beside.start(launch, names, node_rank, secrets)


def in_child(launch: Json, names: Names, node_rank: int, secrets: Dict[str, str], warden: int, ready: int) -> int:
    """Run the agent after the fork. Leave by _exit, or the warden's stack would unwind a second time."""
    code = 1
    try:
        code = supervise(launch, names, node_rank, secrets, warden, ready)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)
