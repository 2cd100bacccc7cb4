"""The agent's small parent: waits for it, and cleans up after an agent that was killed."""

from __future__ import annotations

import os
import select
import signal
import time

from ..files import last_lines, read_json, tail
from ..memory_kills import MemoryKills
from ..processes import kill_descendants, kill_quietly, reap_children, split_status
from .causes import failure_of
from .launch import EXIT_OF_STATE
from .recorder import Recorder
from .signals import REQUEST_OF_SIGNAL, Signals

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Optional

    from ..companions.beside import Companions
    from ..files import Json
    from .launch import Names


STATE_OF_EXIT = {code: state for state, code in EXIT_OF_STATE.items()}


def guard(
    launch: Json, names: Names, agent: int, start_time: Optional[int], beside: Optional[Companions] = None
) -> int:
    """Pass signals on, wait for the agent, end what a killed agent left. Returns the exit status.

    The agent's companions, `beside` it, stay: they report the end.
    """
    signals, kills = Signals(), MemoryKills()
    status: Optional[int] = None
    while status is None:
        select.select([signals.reader], [], [])
        for number in signals.read():
            if number in REQUEST_OF_SIGNAL:
                kill_quietly(agent, number)
        for pid, ended in reap_children():
            if pid == agent:
                status = ended
            elif beside is not None:
                beside.ended(pid, ended)
    code, signum = split_status(status)
    for pid, ended in kill_descendants(beside.pids if beside else ()):
        if beside is not None:
            beside.ended(pid, ended)
    record_death(launch, names, agent, start_time, code, signum, kills)
    return code if code is not None else 1


def record_death(
    launch: Json,
    names: Names,
    agent: int,
    start_time: Optional[int],
    code: Optional[int],
    signum: Optional[int],
    kills: Optional[MemoryKills] = None,
) -> None:
    """Write the end that a killed agent could not: only into its own record, and only if that still says running.

    The exit status tells the state of an agent that ended by itself but could not write.
    """
    record = read_json(names.record)
    if record is None or (record["pid"], record["start_time"]) != (agent, start_time) or record["ended"]:
        return
    state = "FAILED" if code is None else STATE_OF_EXIT.get(code, "FAILED")
    how = "killed by signal %s" % signum if signum else "ended with code %s" % code
    node_rank = int(record["node_rank"])
    cause = "killed" if signum else "bug"
    if signum == signal.SIGKILL and kills is not None:
        for_memory, said = kills.verdict([agent])
        cause, how = "out_of_host_memory" if for_memory else cause, "%s: %s" % (how, said)
    failure = failure_of(cause, "the agent on %s was %s" % (os.uname().nodename, how))
    failure.update(node_rank=node_rank, signal=signum, exit_code=code, log_tail=last_lines(tail(names.log)))
    recorder = Recorder(names, launch, node_rank)
    recorder.content = record
    if launch["container"] and not launch["inside"]:
        from .in_container import end_container

        end_container(launch["container"], recorder)
    failed = state == "FAILED"
    recorder.save(state=state, ended=time.time(), exit_code=1 if failed else code, failure=failure if failed else None)
    recorder.event("end", state=state)
