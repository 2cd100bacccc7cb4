"""What a run needs of its container, and the plan that starts it. Pure.

The agent runs on the host and starts the engine as its child; a second agent inside starts the ranks. So nothing
depends on what an engine does with signals, environment or secrets. Requests are files in the run directory, the
environment of the ranks is in plan.json, and secrets come on standard input. Under pyxis the whole task, agent
included, is inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.engines.own_words import OwnWords, check
from launcher.plan.engines.table import ENGINES, PYXIS, Engine, EngineName, Runtime
from launcher.plan.types import ContainerPlan, Target

VARIABLES = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
"""Variables of the target's scheduler that a container needs; passed on where they are set."""
MARGIN = 15
"""Seconds that an engine waits on `stop`, beyond the time that the agent gives the training for a last checkpoint."""
RUN_DIR = "{run_dir}"


@dataclass(frozen=True)
class ContainerChoice:
    """The engine and the image of a run, and the hub caches that it mounts. Decided in backends/container_choice.py."""

    runtime: Runtime = "none"
    image: str = ""
    reason: str = ""
    """Why `auto` became this runtime. Empty: the job named it."""
    cache_mounts: tuple[str, ...] = ()
    """Hub caches to mount beside the job's own mounts, in the grammar of container.mounts."""
    cache_variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that tell the hubs' libraries where the mounted caches are."""
    host_caches: tuple[tuple[str, str], ...] = ()
    """(variable, directory or nothing) of caches that each host looks for itself."""


NO_CONTAINER = ContainerChoice()


@dataclass(frozen=True)
class Mount:
    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Needs:
    """What a run needs, in no engine's words."""

    image: str
    name: str
    gpus: bool
    stop_timeout: int
    """Seconds: longer than a checkpoint takes."""
    mounts: tuple[Mount, ...] = (Mount(RUN_DIR, RUN_DIR, read_only=False),)
    """The run directory first."""
    own: OwnWords = field(default_factory=OwnWords)
    """What the job adds to the engine's arguments, and leaves out."""
    secrets: tuple[str, ...] = ()
    hosts: int = 1
    links: tuple[str, ...] = ("inputs",)
    """Directories of the run directory. The files that links in them point at must be mounted as well."""
    caches: tuple[tuple[str, str], ...] = ()
    """(variable, directory) of hub caches on a host: what the host's own variable names, else the directory if the host
    has it. Writable; inside, the variable says where the cache is."""


def contain(
    choice: ContainerChoice, spec: JobSpec, target: Target, run_id: str, stop_deadline: float
) -> tuple[ContainerPlan | None, dict[str, list[str]] | None]:
    """The container of a run: the plan for the agent, and the arguments of srun under pyxis. Raises UsageError."""
    if choice.runtime == "none":
        return None, None
    needs = needs_of(choice, spec, target, run_id, stop_deadline)
    if choice.runtime == "pyxis":
        return None, pyxis_flags(needs)
    return container_plan(choice.runtime, needs), None


def needs_of(choice: ContainerChoice, spec: JobSpec, target: Target, run_id: str, stop_deadline: float) -> Needs:
    """The needs of a job whose files have their names on the target. Raises UsageError."""
    reads: list[str] = []
    if not spec.program:
        adapter = [spec.lora.adapter] if spec.lora.adapter else []
        reads = [spec.model.path, *(path for _, path in spec.data.paths), *adapter]
    # The links to the files of a directory are one level deeper than the link to a single file.
    folders = {path.rpartition("/")[0] for path in reads if path.startswith("inputs/")}
    writes = [target.cwd] if spec.program and target.cwd else []
    return Needs(
        image=choice.image,
        name=f"zlaunch-{_container_name(run_id)}-{{node_rank}}",
        gpus=target.device == "cuda",
        stop_timeout=int(stop_deadline) + MARGIN,
        mounts=(*mounts_of(reads, writes), *map(parse_mount, (*spec.container.mounts, *choice.cache_mounts))),
        own=OwnWords(spec.container.args, spec.container.omit),
        secrets=spec.secret_names,
        hosts=len(target.hosts),
        links=("inputs", *sorted(folders)),
        caches=choice.host_caches,
    )


def _container_name(run_id: str) -> str:
    """The id without what engines refuse in a name: they take ASCII only. Time and number at its end stay."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "", run_id).lstrip("-.")


def mounts_of(reads: Iterable[str], writes: Iterable[str]) -> tuple[Mount, ...]:
    """The run directory, and what a run reads and writes, each under the same path as outside.

    Relative paths are inside the run directory and need no mount, like paths below a mounted directory.
    """
    mounts = [Mount(RUN_DIR, RUN_DIR, read_only=False)]
    for path, read_only in [(path, False) for path in writes] + [(path, True) for path in sorted(set(reads))]:
        covered = any(path == mount.source or path.startswith(mount.source + "/") for mount in mounts)
        if path.startswith("/") and not covered:
            mounts.append(Mount(path, path, read_only))
    return tuple(mounts)


def parse_mount(text: str) -> Mount:
    """`host:container`, `host` (the same path in both) or `host:container:rw`. Raises UsageError."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) > 1 and parts[-1] in ("ro", "rw") else "ro"
    if len(parts) > 2 or not all(part.startswith("/") for part in parts):
        raise UsageError(
            f"container.mounts: expected two absolute paths `host:container`, got {text!r}",
            hint="for example /data/models:/models; read-only unless :rw follows",
            code="ZL-IMAGE-04",
        )
    return Mount(parts[0], parts[-1], read_only=mode == "ro")


def container_plan(engine: EngineName, needs: Needs) -> ContainerPlan:
    """The plan of one node's container. Raises UsageError for a path that the engine's grammar cannot express."""
    words = ENGINES[engine]
    values = {"name": needs.name, "stop_timeout": str(needs.stop_timeout), "image": needs.image}
    options = (
        *words.start, *words.name, *words.init, *words.network, *words.shared_memory,
        *words.stop, *words.user, *words.workdir, *(words.gpus if needs.gpus else ()),
    )  # fmt: skip
    mounts = [word for mount in needs.mounts for word in _mount(engine, words, mount)]
    plans = (*_fill(options, values), *mounts)
    when = tuple(_conditions(engine, words, needs))
    check(needs.own, engine, (*plans, *(word for *_, extra in when for word in extra)), needs.secrets, needs.hosts)
    kept = tuple((kind, subject, found) for kind, subject, extra in when if (found := needs.own.kept(extra)))
    argv = (*needs.own.kept(plans[: len(options)]), "{when}", *mounts, *needs.own.args, *_fill(words.image, values))
    return ContainerPlan(engine=engine, image=needs.image, name=needs.name, argv=argv, when=kept)


def _conditions(engine: str, words: Engine, needs: Needs) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The entries of ContainerPlan.when: arguments that depend on what only the host knows."""
    if words.rootless:
        yield "rootless", "", words.rootless
    if words.infiniband:
        yield "path", "/dev/infiniband", words.infiniband
    if needs.gpus:
        yield from (("limit", name, _fill(words.limit, {"subject": name, "value": top})) for name, top in words.limits)
        yield from ((kind, "", arguments) for kind, arguments in words.gpus_when)
    for name in VARIABLES:
        if words.variable and not (name == "CUDA_VISIBLE_DEVICES" and words.gpus_when):
            yield "variable", name, _fill(words.variable, {"subject": name})
    for folder in needs.links:
        yield "links", folder, _mount(engine, words, Mount("{value}", "{value}"))
    for variable, place in needs.caches if words.makes_places else ():
        yield from _cache(engine, words, variable, place)


def _cache(engine: str, words: Engine, variable: str, place: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The entries for a hub cache. The host's own variable comes last, so that it wins.

    The two have different places inside: a host may have both in one directory, and engines refuse to mount one place
    twice.
    """
    for kind, subject, source, inside in (
        ("path", place, place, f"/mnt/{variable.lower()}"),
        ("variable", variable, "{value}", "{value}"),
    ):
        if subject:
            mount = _mount(engine, words, Mount(source, inside, read_only=False))
            yield kind, subject, (*mount, *_variable(words, variable, inside))


def _variable(words: Engine, name: str, value: str) -> tuple[str, ...]:
    """The words that set a variable inside. Some engines have one slot for name and value."""
    one_slot = not any("{value}" in word for word in words.variable)
    return _fill(words.variable, {"subject": f"{name}={value}" if one_slot else name, "value": value})


def pyxis_flags(needs: Needs) -> dict[str, list[str]]:
    """What makes srun run a whole task in the image: `flags`, and `mounts` that the batch script joins with commas.

    Only the batch script knows the run directory, so that is not in `mounts`. Raises UsageError.
    """
    mounts = [word for mount in needs.mounts[1:] for word in _mount("pyxis", PYXIS, mount)]
    flags = _fill((*PYXIS.image, *PYXIS.start), {"image": pyxis_image(needs.image)})
    check(needs.own, "pyxis", flags, needs.secrets)
    return {"flags": [*needs.own.kept(flags), *needs.own.args], "mounts": mounts}


def pyxis_image(image: str) -> str:
    """`registry.example.com/team/image:tag` as enroot's `registry.example.com#team/image:tag`."""
    first, slash, rest = image.partition("/")
    is_registry = slash and first and ("." in first or ":" in first or first == "localhost")
    return f"{first}#{rest}" if is_registry and "#" not in image else image


def _mount(engine: str, words: Engine, mount: Mount) -> tuple[str, ...]:
    for path in (mount.source, mount.target):
        bad = sorted(set(path) & set(words.refused))
        if bad:
            listed = " ".join(map(repr, bad))
            raise UsageError(
                f"{engine} cannot mount {path!r}: its mount grammar cannot express {listed}", code="ZL-IMAGE-04"
            )
    ro = words.read_only if mount.read_only else words.read_write
    return _fill(words.mount, {"source": mount.source, "target": mount.target, "ro": ro})


def _fill(words: Iterable[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Replace each `{key}` that has a value; the agent replaces the others. In one pass, so that no value is read as a
    template."""
    filled = []
    for word in words:
        parts = word.split("{")
        for index, part in enumerate(parts[1:], 1):
            key, brace, rest = part.partition("}")
            parts[index] = values[key] + rest if brace and key in values else "{" + part
        filled.append("".join(parts))
    return tuple(filled)
