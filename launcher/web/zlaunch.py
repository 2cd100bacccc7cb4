"""zlaunch commands that the server starts, so that a browser does what a terminal does."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from launcher.machine import trainer
from launcher.machine.process import LineProcess
from launcher.rundir import find


def start(words: Sequence[str], *, errors_apart: bool = False) -> LineProcess:
    """Start `zlaunch WORDS`, with the runs of this server. Raises CommandError.

    It starts where our package is: `python -m` imports from the working directory first, so no path in `words` may be
    relative.
    """
    ours = {"ZLAUNCH_RUNS": str(find.runs_root().absolute()), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    argv = [sys.executable, "-m", "launcher", *words]
    return LineProcess(argv, env={**os.environ, **ours}, cwd=trainer.NEUTRAL, errors_apart=errors_apart)


def shown(words: Sequence[str]) -> str:
    """The same command for a person to copy."""
    return shlex.join(["zlaunch", *words])
