"""Where a hub's downloads lie, by the rules of the hub's own library, and how a run in a container comes by them.

Hugging Face has two places: HF_HOME, where also the token, data sets and xet's chunks lie, and that of the models,
`hub` below it unless HF_HUB_CACHE says otherwise (huggingface_hub/constants.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.job.paths import source_paths
from launcher.job.spec import JobSpec
from launcher.machine.hub_places import HOME, HUB, MODELSCOPE, expanded, hf_home, hub_named, model_folder
from launcher.plan.container import SettledJob


@dataclass(frozen=True)
class Cache:
    """A directory that a training reads from, and may write to."""

    variable: str
    """By which its library is told the directory."""
    path: str
    """Empty: nothing names one here, but a host may."""
    by_job: bool
    """The job's own `env` names it."""
    held: bool = False
    """The model is in it and nothing else is wanted of it, so that it can be read without writing."""


def caches(job: JobSpec, environ: Mapping[str, str], *, here: bool) -> list[Cache]:
    """The caches of the hubs that a training reads from, as the job's `env` says, else `environ`: what their libraries
    would see without a container. A run that is not `here` would see the job's HF_HOME without our HF_HUB_CACHE."""
    if job.program:
        return []
    own, path, source = job.env, job.model.path, job.model.source
    by_id = bool(path) and not path.startswith(("/", ".", "~"))
    # `datasets` locks and converts in its cache
    data = any(text.startswith("hub:") for part in (job.data.train, job.data.eval) for text in source_paths(part))
    found = []
    if data or (by_id and source == "huggingface"):
        held = not data and (model_folder(path, {**environ, **own}) / "snapshots").is_dir()
        found.append(Cache(HOME, own.get(HOME) or str(hf_home(environ)), HOME in own, held))
        ours = hub_named(environ) if here or HOME not in own else ""
        found.append(Cache(HUB, own.get(HUB) or (str(expanded(ours)) if ours else ""), HUB in own, held))
    if by_id and source == "modelscope":
        default = environ.get(MODELSCOPE) or str(Path.home() / ".cache/modelscope")
        found.append(Cache(MODELSCOPE, own.get(MODELSCOPE) or default, MODELSCOPE in own))
    return found


def with_caches(spec: SettledJob, backend: str) -> SettledJob:
    """Downloads come from the user's caches: read-only here if the model is in them, else to be filled.

    A place that the job's own `env` names is mounted on every backend. Else it is this user's cache here; hosts that
    nobody has looked at mount what they have (container.Needs.caches).
    """
    env, mounts, elsewhere = dict(spec.env), list(spec.container.mounts), list[tuple[str, str]]()
    pyxis = spec.container.runtime == "pyxis"
    # Under pyxis no agent is there to look first, so the home directory is taken to be the nodes' as well.
    here = backend == "local" or (pyxis and not spec.slurm.login)
    ours: list[Path] = []
    for cache in caches(spec, os.environ, here=here):
        place = Path(cache.path)
        known = any(text.split(":")[0] == cache.path for text in spec.container.mounts)
        if known or (cache.path and not place.is_absolute()):
            continue
        if not cache.by_job and not here:
            elsewhere += [] if pyxis else [(cache.variable, cache.path)]
            continue
        if not cache.path:
            continue
        if here:
            with contextlib.suppress(OSError):  # the engine says what is wrong with it
                place.mkdir(parents=True, exist_ok=True)
        if not any(place.is_relative_to(outer) for outer in ours):
            mounts.append(f"{place}:{place}:{'ro' if here and cache.held else 'rw'}")
            ours.append(place)
        env[cache.variable] = str(place)
    container = msgspec.structs.replace(spec.container, mounts=tuple(mounts))
    return msgspec.structs.replace(spec, env=env, container=container, caches=tuple(elsewhere))
