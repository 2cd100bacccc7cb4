"""Run directories in states that only failures cause."""

from __future__ import annotations

from dataclasses import asdict

from launcher.backends.ssh.watch import NodePlace
from launcher.remote.connect import Options
from launcher.rundir.directory import RunDir


def out_of_reach(run: RunDir) -> RunDir:
    """Record that the run was sent to a host where nothing listens."""
    place = NodePlace("127.0.0.1:1", f"/w/runs/{run.run_id}", "/w", 0, {})
    run.update_record(extra={"places": [asdict(place)], "options": asdict(Options()), "python": "python3"})
    return run
