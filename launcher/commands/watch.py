"""`zlaunch watch [RUN]`: the live view of a run, from any terminal."""

from __future__ import annotations

import click

from launcher.backends import backend_of_run, current_state
from launcher.backends.slurm.jobs import SlurmBackend
from launcher.commands.run_argument import find_run
from launcher.lifecycle.attach import conclude, leave
from launcher.lifecycle.interrupted import stop
from launcher.machine.language import spoken
from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState

EXIT_INTERRUPTED = 130


@click.command()
@click.argument("run", default="last")
def watch(run: str) -> int:
    """Show RUN live until it ends: phase, progress, losses, speed, memory, nodes and events.

    RUN is the run that was started last unless named. Leaving the view with q leaves the run alone; Ctrl-C asks whether
    to stop it. In a pipe it prints a line every ten seconds, and a Ctrl-C only ends the command.
    """
    from launcher.show.live import Left, StopRequested
    from launcher.show.live import watch as show
    from launcher.show.terminal import Console

    found = find_run(run)
    if current_state.recorded_state(found.record).is_final:
        return conclude(found, current_state.current(found))
    backend = backend_of_run(found)
    if isinstance(backend, SlurmBackend):
        backend.announce = True  # why the job waits
    seen = Seen(found)
    try:
        state = show(found, seen.now, Console(), notice=seen.problem)
    except Left:
        leave(found)
        return 0
    except StopRequested:
        click.echo(spoken.said("stopping after a checkpoint (Ctrl-C again: stop now) ..."))
        return conclude(found, stop(found, backend))
    except KeyboardInterrupt:  # the terminal is gone, or there is nobody to ask
        leave(found)
        return EXIT_INTERRUPTED
    return conclude(found, state)


class Seen:
    """The state of a run again and again; a target that does not answer for a while ends nothing."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.error = run, ""

    def now(self) -> RunState:
        state, error = current_state.last_seen(self.run)
        self.error = error.splitlines()[0] if error else ""
        return state if not error or not state.is_final else RunState.RUNNING

    def problem(self) -> str:
        """Why the state is only the last known one; empty: it is not."""
        return self.error
