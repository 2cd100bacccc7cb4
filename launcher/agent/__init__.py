"""The node supervisor: starts the ranks of one node, passes requests on, ends everything, proves that nothing is left.

    python code/agent --run-dir D --node-rank R [--secrets-stdin | --secrets-file F] [--detach]

It reads plan.json["launch"] and nothing else, uses the standard library only (Python 3.8 or newer) and is copied to
hosts where zlaunch is not installed. Three processes take part on a node:

    warden ── agent ── ranks (each in a session of its own) ── whatever they start

The warden does nothing but wait. Warden and agent are child subreapers, so every descendant comes back to one of
them: an agent killed with -9 leaves its tree to the warden, which ends it and writes the record; ranks die with their
agent in any case (PR_SET_PDEATHSIG). The ranks' environment carries ZLAUNCH_RUN_ID, by which `find_run_processes`
finds what survived even the loss of both.

On several nodes, node 0's agent is the hub: the `Coordinator` in it alone decides when an attempt starts, when it is
over and whether there is another one; the other agents report and obey over one authenticated TCP connection each.
A run on one node uses the same coordinator without a socket.

Exit status: 0 succeeded, 1 failed, 75 stopped with a checkpoint, 130 cancelled without one.
"""

from __future__ import annotations

if __name__ != "agent":  # in the launcher: its other files take these names from here; a host imports what it runs
    from .batch import BatchError, resize_batch, resized_files
    from .causes import CAUSES, cause_of_exit, cause_of_text, failure_of, first_cause
    from .container import place_container
    from .coordinator import Coordinator
    from .files import last_lines, read_json, tail
    from .launch import DEFAULTS, EOF_GRACE, Names, port_of_attempt, table_without
    from .proc import (
        Process,
        boot_id,
        descendants,
        find_run_processes,
        is_alive,
        kill_quietly,
        pid_namespace,
        process_of,
        start_time_of,
    )
    from .records import Recorder
    from .signals import SAME_SIGNAL

    __all__ = [
        "CAUSES", "DEFAULTS", "EOF_GRACE", "SAME_SIGNAL", "BatchError", "Coordinator", "Names", "Process", "Recorder",
        "boot_id", "cause_of_exit", "cause_of_text", "descendants", "failure_of", "find_run_processes", "first_cause",
        "is_alive", "kill_quietly", "last_lines", "pid_namespace", "place_container", "port_of_attempt", "process_of",
        "read_json", "resize_batch", "resized_files", "start_time_of", "table_without", "tail",
    ]  # fmt: skip
