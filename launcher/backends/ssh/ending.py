"""Stop a run on its hosts: at once, and what is left of it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from launcher.backends.ssh.watch import Following, wait_gone
from launcher.errors import TargetError
from launcher.remote.fleet import Json, Session

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDir


FORCE_PAUSE = 0.7
"""Between two signals, so that the agent takes the second as `at once` and not as an echo of the first."""


KILL_SECONDS = 10.0


def end_now(conversation: Following, running: list[int]) -> dict[int, str]:
    """End these nodes' agents without asking for a checkpoint; {node: what could not be ended, and why}."""
    if not running:
        return {}
    launch = (conversation.run.read_json(conversation.run.plan_json) or {}).get("launch", {})
    for pause in (FORCE_PAUSE, 0.0):
        conversation.ask("send_signal", running, number=int(signal.SIGTERM))
        time.sleep(pause)
    running = wait_gone(conversation, running, float(launch.get("kill_after", 5.0)) + KILL_SECONDS)
    if running:
        # First the agent, whose warden then ends what is left of the node, then the warden if it still lives.
        for _ in range(2):
            conversation.ask("send_signal", running, number=int(signal.SIGKILL))
            running = wait_gone(conversation, running, KILL_SECONDS / 2)
    return {node: conversation.seen[node].why or "its agent cannot be ended" for node in running}


def end_strays(
    conversation: Following, among: list[int] | None = None
) -> tuple[dict[int, Json], dict[int, TargetError]]:
    """End what carries the run's id and has no agent any more."""
    run_id = conversation.run.run_id

    def one(node: int, session: Session) -> Json:
        conversation.connect(node, session)
        return session.call("leftovers", run_id=run_id, kill=True, dead_only=True)

    return conversation.fleet.each(one, among)


def orderly_seconds(run: RunDir) -> float:
    launch = (run.read_json(run.plan_json) or {}).get("launch", {})
    return float(launch.get("stop_deadline", 25.0)) + float(launch.get("kill_after", 5.0)) + 5.0
