"""Stop a run on its hosts, and what dead agents have left of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from launcher.backends.ssh.watch import HostWatch
from launcher.errors import TargetError

SECOND_SIGNAL_PAUSE = 0.7
"""Seconds between two signals. An agent takes one that comes sooner as an echo, and a later one as "at once"."""
KILL_SECONDS = 10.0


def stop_with_checkpoint(watch: HostWatch, nodes: Sequence[int]) -> list[int]:
    """Ask the run to save a checkpoint and stop; return the nodes whose agents may still live after their own time."""
    hub = [0] if 0 in nodes else nodes
    watch.call("send_signal", hub, number=int(signal.SIGINT))
    return watch.wait_until_gone(nodes, sum(watch.run.stop_seconds()) + 5.0)


def stop_now(watch: HostWatch, nodes: Sequence[int]) -> dict[int, str]:
    """Stop the agents of these nodes without a checkpoint; return {node: reason} for those that may still live."""
    if not nodes:
        return {}
    for pause in (SECOND_SIGNAL_PAUSE, 0.0):
        watch.call("send_signal", nodes, number=int(signal.SIGTERM))
        time.sleep(pause)
    left = watch.wait_until_gone(nodes, watch.run.stop_seconds()[1] + KILL_SECONDS)
    # Kill the agent first: its warden then stops the ranks. Then kill the warden if it still lives.
    for _ in range(2 if left else 0):
        watch.call("send_signal", left, number=int(signal.SIGKILL))
        left = watch.wait_until_gone(left, KILL_SECONDS / 2)
    return {node: watch.views[node].error or "its agent cannot be stopped" for node in left}


def kill_leftovers(watch: HostWatch, nodes: Sequence[int] | None = None) -> dict[int, TargetError]:
    """Kill processes of the run that have no agent any more; return {node: error} of hosts that did not answer."""
    return watch.call("leftovers", nodes, run_id=watch.run.run_id, kill=True, dead_only=True)[1]
