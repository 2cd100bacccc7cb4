"""Where runs go. A plain table: the name in run.json -> the class, imported only when used."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from launcher.errors import UsageError

if TYPE_CHECKING:
    from launcher.backends.base import Backend

BACKENDS = {
    "local": "launcher.backends.local:LocalBackend",
    "ssh": "launcher.backends.ssh:SshBackend",
    "slurm": "launcher.backends.slurm:SlurmBackend",
}


@functools.cache
def backend_of(name: str) -> Backend:
    """A backend by the name in run.json; one for all questions of a command, which remembers what it has fetched.

    Raises UsageError naming the known ones.
    """
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}; known: {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
