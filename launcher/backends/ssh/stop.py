"""Stop a run on its hosts, and what dead agents have left of it; remove its files there."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from launcher.backends.base import Copy
from launcher.backends.ssh.watch import HostWatch, NodePlace
from launcher.errors import HostsError, TargetError

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


def end_agents_elsewhere(watch: HostWatch, former: Sequence[NodePlace]) -> None:
    """Before a run starts again: end agents of its own on hosts where it was not any more at its last start.

    An elastic run leaves out a host that is cut off. The agent there may have gone on alone.
    """
    known = {(place.host, place.run_dir) for place in former}
    elsewhere = [node for node, place in enumerate(watch.places) if (place.host, place.run_dir) not in known]
    if not elsewhere:
        return
    watch.poll(nodes=elsewhere, copy=False)
    alive = [node for node in elsewhere if watch.views[node].alive]
    if alive:
        hosts = ", ".join(watch.places[node].host for node in alive)
        watch.run.event("note", text=f"the run had gone on alone on {hosts}, and is ended there")
        stop_now(watch, alive)


def kill_leftovers(watch: HostWatch, nodes: Sequence[int] | None = None) -> dict[int, TargetError]:
    """Kill processes of the run that have no agent any more; return {node: error} of hosts that did not answer."""
    return watch.call("leftovers", nodes, run_id=watch.run.run_id, kill=True, dead_only=True)[1]


def remove_files(watch: HostWatch, *, dry_run: bool) -> list[Copy]:
    """Remove the run's directory once per file system; `dry_run`: only say what that frees.

    Raises HostsError, with a line per host, unless every host answers and has nothing of the run alive: a host out of
    reach may still run it.
    """
    run_id, places = watch.run.run_id, watch.places
    seen, failures = watch.call("remove_run", run_id=run_id, dry_run=True)
    if not failures and not dry_run:
        leaders = sorted({place.leader for place in places})
        answers, failures = watch.call("remove_run", leaders, run_id=run_id, dry_run=False)
        seen |= answers
    if failures:
        lines = {place.host: str(failures.get(node, "ready")) for node, place in enumerate(places)}
        raise HostsError(
            f"{run_id} is not removed from its hosts", lines,
            hint="when they answer, again; --local removes only what is on this machine",
        )  # fmt: skip
    return [Copy(places[node].host, places[node].run_dir, seen[node]["freed"])
            for node in sorted({place.leader for place in places})]  # fmt: skip
