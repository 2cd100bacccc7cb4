"""`zlaunch ui`: the runs in a browser."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import defaultdict

import click

from launcher.backends import current_state
from launcher.errors import UsageError
from launcher.rundir import find
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

FRESH_SECONDS = {"local": 0.5}
"""How long a state counts as new; a state of other machines (10 s) costs a connection."""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on (default: any free one).")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def ui(port: int, host: str, no_browser: bool) -> None:
    """Show the runs under $ZLAUNCH_RUNS in a browser, live: state, curves, answers, logs, comparison.

    Pages also start, stop, resume and export runs, and chat. The address that is printed holds a token; without it
    nothing is shown. From another machine, forward the port: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    try:
        from launcher.web.server import LOOPBACK, Site
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio", "h11"):
            raise
        missing = f"zlaunch ui needs Starlette and uvicorn, and this Python has no {error.name}"
        raise UsageError(
            missing, hint=f"{sys.executable} -m pip install starlette uvicorn", code="ZL-MACHINE-02"
        ) from error
    try:
        site = Site(host, port, _runs, States())
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="name another --port", code="ZL-MACHINE-03"
        ) from error
    if host not in LOOPBACK:
        click.echo(f"warning: everyone who reaches {host} and learns the token sees the runs, unencrypted", err=True)
    click.echo(site.url)
    if not no_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        import webbrowser

        webbrowser.open(site.url)
    site.serve()


def _runs() -> list[RunDir]:
    return [run for run in find.list_runs(find.runs_root()) if not find.is_dry_run(run)]


class States:
    """The state of a run, asked for by several threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, RunState]] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def __call__(self, run: RunDir) -> RunState:
        """The state, or the last recorded one if the run's target does not answer. Raises RunNotFound."""
        fresh = FRESH_SECONDS.get(run.record.backend, 10.0)
        with self._locks[run.run_id]:  # a host that does not answer holds up its own run only
            when, state = self._known.get(run.run_id, (0.0, RunState.PENDING))
            if time.monotonic() - when > fresh:
                state, _ = current_state.last_seen(run)
                self._known[run.run_id] = time.monotonic(), state
            return state
