"""A run on this host: its files unpacked, its agent polled and signalled, its leftover processes ended."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress

from ..files import REMOVING, disk_usage, put_aside, read_json, read_text, remove_tree, write_atomic, write_new
from ..processes import (
    boot_id,
    is_alive,
    kill_quietly,
    namespace,
    pid_namespace,
    reap_children,
    run_processes,
    wake,
)
from ..run_files import CODE, NODES, node_record
from .common import Refused
from .store import added_since

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

    from ..files import Json

KILL_SECONDS = 10
"""How long leftover processes are killed again and again."""
SHOWN = 200
"""Characters of a leftover process's command line, and of its run id, in the answer."""
PATH = 4096


def unpack(run_dir: str, links: Dict[str, str], payload: Any, **_: Any) -> Json:
    """Write a bundle into the run directory. `links`: {name: path of an input} to be made there. Raises Refused."""
    import zlib

    try:
        index, _newline, contents = zlib.decompress(payload).partition(b"\n")  # zlib checks a sum of its own
    except zlib.error as error:
        raise Refused("the bundle arrived damaged") from error
    refuse_if_running(run_dir)
    os.makedirs(run_dir, exist_ok=True)
    os.chmod(run_dir, 0o700)
    remove_stale(run_dir)
    write_files(run_dir, json.loads(index.decode()), contents)
    make_links(run_dir, links)
    return {}


def refuse_if_running(run_dir: str) -> None:
    """Another launcher may have started this run a moment ago, and its ranks need their files. Raises Refused."""
    names: List[str] = []
    with suppress(OSError):
        names = os.listdir(os.path.join(run_dir, NODES))
    for name in names:
        rank = name[len("node-") : -len(".json")] if name.startswith("node-") else ""
        record = read_record(run_dir, int(rank)) if rank.isdigit() else None
        if record and not record.get("ended") and living_supervisors(record):
            raise Refused("an agent of this run is running here already, pid %d" % record["pid"])


def remove_stale(run_dir: str) -> None:
    """Remove files of an earlier submission: records, maybe of other hosts, and modules that no longer exist."""
    for name in (NODES, CODE):
        if os.path.exists(os.path.join(run_dir, name)):
            import shutil

            shutil.rmtree(os.path.join(run_dir, name), ignore_errors=True)


def write_files(run_dir: str, index: List[Any], contents: bytes) -> None:
    """Write the files of a bundle: `index` has [name, size] of each, in the order of `contents`. Raises OSError."""
    start, made = 0, set()
    for name, size in index:
        path = os.path.join(run_dir, name)
        if os.path.dirname(path) not in made:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            made.add(os.path.dirname(path))
        # Renaming costs time, and a new file has no reader yet.
        (write_atomic if os.path.exists(path) else write_new)(path, contents[start : start + size])
        start += size


def make_links(run_dir: str, links: Dict[str, str]) -> None:
    for name, target in links.items():
        path = os.path.join(run_dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)


def read_record(run_dir: str, node_rank: int) -> Optional[Json]:
    return read_json(os.path.join(run_dir, node_record(node_rank)))


def living_supervisors(record: Optional[Json]) -> List[int]:
    """Pids of the agent and the warden of a record, if they live on this host: of this boot, in our pid namespace."""
    if record is None or record["boot_id"] != boot_id():
        return []
    if record.get("pid_namespace") not in (None, "", pid_namespace()):
        return []
    both = [record, record.get("warden") or record]
    return [item["pid"] for item in both if is_alive(item["pid"], item["start_time"])]


def poll_node(run_dir: str, node_rank: int, offsets: Dict[str, int], tops: List[str], **_: Any) -> Json:
    """The node's record, whether its agent lives, and what was added to the files below `tops` since `offsets`."""
    reap_children()  # an agent that `start` forked from this process
    record = read_record(run_dir, node_rank)
    alive = bool(living_supervisors(record))
    if not alive:
        record = read_record(run_dir, node_rank)  # the agent may have written its last state between the two looks
    return {"record": record, "alive": alive, **added_since(run_dir, tops, offsets)}


def send_signal(run_dir: str, node_rank: int, number: int, **_: Any) -> Json:
    """Signal this node's agent, or its warden if only that is left; `sent`: whether there was one.

    A stopped one (SIGSTOP) would not heed it, and the warden's end would not clean up, so let both go on.
    """
    living = living_supervisors(read_record(run_dir, node_rank))
    for pid in living[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            wake(living[-1])
            return {"sent": True}
    return {"sent": False}


def leftovers(run_id: Optional[str] = None, kill: bool = False, dead_only: bool = False, **_: Any) -> Json:
    """This user's processes that ranks of a run (None: of any run) left, found by the run id in their environment.

    `dead_only` leaves out processes whose run has a living agent. `kill` ends them; `left` proves it.
    """
    deadline = time.monotonic() + KILL_SECONDS
    found = left = list(scan(run_id, dead_only))
    while kill and left and time.monotonic() < deadline:
        for item in left:
            if is_alive(item["pid"], item["start_time"]):
                kill_quietly(item["pid"], signal.SIGKILL)
        time.sleep(0.05)
        left = list(scan(run_id, dead_only))
    return {"found": found, "left": left}


def scan(run_id: Optional[str], dead_only: bool) -> Iterator[Json]:
    for pid, process, environ in run_processes():
        run = environ[b"ZLAUNCH_RUN_ID"].decode("utf-8", "replace")
        if run_id not in (None, run) or not is_own(pid):
            continue
        folder = os.fsdecode(environ.get(b"ZLAUNCH_RUN_DIR", b""))
        rank = environ.get(b"ZLAUNCH_NODE_RANK", b"0").decode()
        record = read_record(folder, int(rank)) if rank.isdigit() else None
        if dead_only and (living_supervisors(record) or is_in_container(pid, record)):
            continue
        command = read_text("/proc/%d/cmdline" % pid).replace("\0", " ").strip()[:SHOWN]
        run_dir = folder.encode("utf-8", "replace").decode()[:PATH]
        yield {
            "pid": pid, "start_time": process.start_time, "run_id": run[:SHOWN], "run_dir": run_dir, "command": command,
        }  # fmt: skip


def remove_run(run_dir: str, run_id: str, dry_run: bool, **_: Any) -> Json:
    """Remove a run that is over from this host; `dry_run`: only say how many bytes that frees. Raises Refused, OSError.

    Only a directory `runs/RUN_ID`, and no link to one.
    """
    folder, name = os.path.split(run_dir)
    if name != run_id or os.path.basename(folder) != "runs" or name in ("", ".", ".."):
        raise Refused("%s is no directory of the run %s" % (run_dir, run_id))
    if os.path.islink(run_dir):
        raise Refused("%s is a symbolic link: remove it and what it leads to yourself" % run_dir)
    refuse_if_running(run_dir)
    if left := [item["pid"] for item in scan(run_id, False)]:
        raise Refused("processes of the run live here: %s" % ", ".join(map(str, left)))
    freed = disk_usage(run_dir) + disk_usage(os.path.join(folder, REMOVING + name))
    if not dry_run:
        remove_tree(put_aside(run_dir))
    return {"freed": freed}


def is_own(pid: int) -> bool:
    """Whether the process is this user's; root can read everybody's environment."""
    with suppress(OSError):
        return os.stat("/proc/%d" % pid).st_uid == os.getuid()
    return False


def is_in_container(pid: int, record: Optional[Json]) -> bool:
    """Whether the process is in a container with its own agent, whose state is not visible from here."""
    here = pid_namespace()
    return namespace("pid", pid) != here and (record is None or record.get("pid_namespace") != here)
