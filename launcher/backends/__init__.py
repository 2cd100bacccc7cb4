"""Where runs go. A plain table: the name in run.json -> the class, imported only when used."""

from __future__ import annotations

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


def backend_of(name: str) -> Backend:
    """A backend by the name in run.json. Raises UsageError naming the known ones."""
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}; known: {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
