"""Hub caches of a run in a container: which caches the run reads, and how each of them gets inside.

Hugging Face has two directories. HF_HOME holds the token, data sets and xet's chunks. The models are in `hub` below it,
unless HF_HUB_CACHE names another directory (huggingface_hub/constants.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from launcher.job.spec import JobSpec
from launcher.machine.hub_places import HOME, HUB, MODELSCOPE, expand, hf_home, hub_override, model_folder
from launcher.plan.container import ContainerChoice
from launcher.plan.engines.table import Runtime

Where = Literal["here", "hosts", "cluster"]
"""here: this machine, or nodes that share its home directory.
hosts: machines whose agent looks for a cache before it starts the container.
cluster: nodes behind a login host, under pyxis, where nothing looks first."""

ACTIONS: Mapping[tuple[Where, bool], Literal["mount", "ask host", "skip"]] = {
    # (where the run is, whether the job's own `env` names the cache)
    ("here", True): "mount",
    ("here", False): "mount",
    ("hosts", True): "mount",
    ("hosts", False): "ask host",
    ("cluster", True): "mount",
    ("cluster", False): "skip",
}


@dataclass(frozen=True)
class Cache:
    """A directory that a training reads from, and may write to."""

    variable: str
    """The variable that tells the hub's library where the directory is."""
    path: str
    """Empty: nothing here names one, but a host may."""
    by_job: bool
    """The job's own `env` names it."""
    read_only: bool = False
    """It holds the model, and the run needs nothing else from it."""


def with_caches(choice: ContainerChoice, job: JobSpec, backend: str) -> ContainerChoice:
    """The choice with the user's hub caches: mounted, or left to each host to find. Makes the directories here."""
    where = _where(backend, choice.runtime, job)
    mounts: dict[Path, str] = {}
    variables: dict[str, str] = {}
    host_caches: list[tuple[str, str]] = []
    mounted_by_job = {text.split(":")[0] for text in job.container.mounts}
    for cache in caches(job, os.environ, here=where == "here"):
        if cache.path in mounted_by_job or (cache.path and not Path(cache.path).is_absolute()):
            continue
        action = ACTIONS[where, cache.by_job]
        if action == "ask host":
            host_caches.append((cache.variable, cache.path))
        elif action == "mount" and cache.path:
            place = Path(cache.path)
            if where == "here":
                with contextlib.suppress(OSError):  # the engine says what is wrong with the directory
                    place.mkdir(parents=True, exist_ok=True)
            if not any(place.is_relative_to(outer) for outer in mounts):
                mounts[place] = f"{place}:{place}:{'ro' if where == 'here' and cache.read_only else 'rw'}"
            variables[cache.variable] = str(place)
    return replace(
        choice, cache_mounts=tuple(mounts.values()), cache_variables=variables, host_caches=tuple(host_caches)
    )


def _where(backend: str, runtime: Runtime, job: JobSpec) -> Where:
    if backend == "local":
        return "here"
    if runtime != "pyxis":
        return "hosts"
    # Under pyxis the agent is inside the container, so the nodes are taken to share this home directory.
    return "cluster" if job.slurm.login else "here"


def caches(job: JobSpec, environ: Mapping[str, str], *, here: bool) -> Iterator[Cache]:
    """The hub caches that a training reads: those of the job's `env`, else those of `environ`.

    A run that is not `here` sees the job's HF_HOME without the HF_HUB_CACHE of this machine.
    """
    if job.program:
        return
    hub_data = any(path.startswith("hub:") for _, path in job.data.paths)
    hub_model = job.model.path and not job.model.path.startswith(("/", ".", "~"))
    defaults: dict[str, str] = {}
    read_only = False
    if hub_data or (hub_model and job.model.source == "huggingface"):
        hub = hub_override(environ) if here or HOME not in job.env else ""
        defaults = {HOME: str(hf_home(environ)), HUB: str(expand(hub)) if hub else ""}
        # `datasets` locks and converts in its cache, so that one must be writable.
        read_only = not hub_data and (model_folder(job.model.path, {**environ, **job.env}) / "snapshots").is_dir()
    if (hub_model and job.model.source == "modelscope") or any(path.startswith("ms:") for _, path in job.data.paths):
        defaults[MODELSCOPE] = environ.get(MODELSCOPE) or str(Path.home() / ".cache/modelscope")
    for variable, default in defaults.items():
        yield Cache(
            variable, job.env.get(variable) or default, variable in job.env, read_only and variable != MODELSCOPE
        )
