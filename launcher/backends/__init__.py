"""Where runs go: a plain table from the name in run.json to the class, imported only when used.

Offers: backend_of(name) and backend_of_run(run) -> Backend, target_of(name, job) and target_to_resume(name, job) ->
Target; the protocols and their fakes in base.py; container_choice.choose_container(), the engine and image of a run.
May import: errors, node, machine, job, remote, plan, rundir, images.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from launcher.errors import UsageError

if TYPE_CHECKING:
    from launcher.backends.base import Backend
    from launcher.job.spec import JobSpec
    from launcher.plan.types import Target
    from launcher.rundir.directory import RunDir

BACKENDS = {
    "local": "launcher.backends.local.single_node:LocalBackend",
    "ssh": "launcher.backends.ssh.hosts:SshBackend",
    "slurm": "launcher.backends.slurm.jobs:SlurmBackend",
}


@functools.cache
def backend_of(name: str) -> Backend:
    """Return the backend by its name in run.json. Raises UsageError that names the known ones.

    All questions of a command go to one object, which keeps its connections and what it has fetched.
    """
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}; known: {', '.join(BACKENDS)}", code="ZL-OPT-03")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def backend_of_run(run: RunDir) -> Backend:
    """Return the backend that a run's record names. Raises UsageError, and RunNotFound for a damaged record."""
    name = run.record.backend
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise UsageError(f"{run.run_json}: no backend {name!r}; known: {known}", code="ZL-RUN-02")
    return backend_of(name)


def target_of(name: str, job: JobSpec) -> Target:
    """Return the facts that planning needs about the place where backend `name` would run the job.

    The backend keeps what else it learned, such as open connections, for the submission that follows. Raises
    UsageError, and TargetError for a place that lacks what the job asks for.
    """
    return backend_of(name).target(job)


def target_to_resume(name: str, job: JobSpec) -> Target:
    """The same for a run that started before: an elastic one leaves out hosts that do not answer."""
    from launcher.backends.base import Shrinks

    backend = backend_of(name)
    return backend.target_of_living(job) if job.elastic and isinstance(backend, Shrinks) else backend.target(job)
