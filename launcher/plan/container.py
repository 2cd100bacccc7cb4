"""What a run needs of a container, and one table of the words each engine has for it. Pure.

The agent runs on the host and starts the engine as its child; the agent inside starts the ranks. So nothing depends
on what an engine does with signals, environment or secrets: requests are files in the run directory, the ranks'
environment stands in plan.json, and secrets come on standard input. Under pyxis the whole task, agent included, is
inside.

docker and Charliecloud are run for real by the tests; the words for podman, Apptainer, enroot and pyxis follow their
documentation and are held by golden files only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from launcher.errors import UsageError
from launcher.job.spec import ContainerSpec

HOST_WORDS = ("{run_dir}", "{node_rank}", "{uid}", "{gid}")
"""What only the agent on the host knows; it fills them in (agent.place_container)."""
VARIABLES = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
"""What the target's scheduler says in the environment and a container must hear; passed where it is set."""
MARGIN = 15
"""Seconds that an engine waits on `stop` beyond the time the agent gives the training for a last checkpoint."""


EngineName = Literal["docker", "podman", "apptainer", "enroot", "charliecloud"]
Runtime = EngineName | Literal["pyxis", "none"]
"""What a run is in: an engine's container, a task of pyxis, or none."""


@dataclass(frozen=True)
class ContainerChoice:
    """The engine and the image of a run, and the hub caches that it mounts. images/choose.py decides them."""

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


class ContainerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent reads of plan.json to run a node's ranks in a container."""

    engine: str
    image: str
    name: str
    argv: tuple[str, ...]
    """The engine's own argv up to and including the image; the agent appends the command. Holds HOST_WORDS."""
    when: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """(kind, subject, arguments): what the agent puts at `{when}`, once for each `{value}` that its host has.

    path: it exists; variable: it is set; rootless: the user is not root; links: what the links in that directory of the
    run directory point at. gpus: the GPUs that the run was given on this host, with commas; each_gpu: one by one;
    all_gpus: nothing says which."""


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
    mounts: tuple[Mount, ...] = (Mount("{run_dir}", "{run_dir}", read_only=False),)
    """The run directory first."""
    args: tuple[str, ...] = ()
    """The user's own further arguments."""
    links: tuple[str, ...] = ("inputs",)
    """Directories of the run directory whose links, two levels below, must lead somewhere inside as well."""
    caches: tuple[tuple[str, str], ...] = ()
    """(variable, directory): what the host's variable names, else the directory where the host has it, if one is given;
    writable, and the variable says inside where it is."""


@dataclass(frozen=True)
class Engine:
    """One engine's words. `{...}` are Needs, Mount and HOST_WORDS; an empty entry says that no word is wanted."""

    start: tuple[str, ...]
    """Program, subcommand, and what makes it batch work on standard input."""
    mount: tuple[str, ...]
    read_only: str
    """What `{ro}` in `mount` becomes for a read-only mount; for others `read_write`."""
    read_write: str = ""
    refused: str = ""
    """Characters that the engine's mount grammar cannot express in a path."""
    makes_places: bool = True
    """It makes a mount's place where the image has none."""
    name: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    """NCCL and gloo want the host's addresses."""
    shared_memory: tuple[str, ...] = ()
    """The host's /dev/shm: 64 MB, docker's default, is too little for NCCL and data loaders."""
    limits: tuple[str, ...] = ()
    """Locked memory for RDMA, and a stack for large graphs. With GPUs only: a machine may refuse to raise them."""
    stop: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    """Results belong to the user who started the run."""
    rootless: tuple[str, ...] = ()
    workdir: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    """All GPUs that the process can see, or that CUDA_VISIBLE_DEVICES leaves."""
    gpus_when: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(kind, arguments) instead of `gpus`: a daemon sees every GPU of the host, so it must be told the run's own, by
    their numbers on the host. Those are 0, 1, ... inside, so CUDA_VISIBLE_DEVICES stays outside."""
    infiniband: tuple[str, ...] = ()
    variable: tuple[str, ...] = ()
    image: tuple[str, ...] = ("{image}",)


_CSV = 'type=bind,"source={source}","target={target}"{ro}'  # quoted: a path may hold commas
_DOCKER = Engine(
    start=("docker", "run", "--rm", "--interactive"),
    name=("--name={name}",),
    init=("--init",),
    network=("--network=host",),
    shared_memory=("--ipc=host",),
    limits=("--ulimit=memlock=-1", "--ulimit=stack=67108864"),
    stop=("--stop-timeout={stop_timeout}",),
    user=("--user={uid}:{gid}",),
    workdir=("--workdir={run_dir}",),
    gpus_when=(("gpus", ('--gpus="device={value}"',)), ("all_gpus", ("--gpus=all",))),  # the quotes are CSV's
    infiniband=("--device=/dev/infiniband",),
    variable=("--env={subject}",),
    mount=("--mount=" + _CSV,),
    read_only=",readonly",
    refused='"\n',
)
ENGINES: dict[EngineName, Engine] = {
    "docker": _DOCKER,
    "podman": Engine(
        start=("podman", "run", "--rm", "--interactive"),
        name=_DOCKER.name,
        init=_DOCKER.init,
        network=_DOCKER.network,
        shared_memory=_DOCKER.shared_memory,
        limits=_DOCKER.limits,
        stop=_DOCKER.stop,
        user=_DOCKER.user,
        rootless=("--userns=keep-id",),  # an error for root
        workdir=_DOCKER.workdir,
        gpus=("--security-opt=label=disable",),
        gpus_when=(  # CDI, from nvidia-ctk
            ("each_gpu", ("--device=nvidia.com/gpu={value}",)),
            ("all_gpus", ("--device=nvidia.com/gpu=all",)),
        ),
        infiniband=_DOCKER.infiniband,
        variable=_DOCKER.variable,
        mount=_DOCKER.mount,
        read_only=_DOCKER.read_only,
        refused=_DOCKER.refused,
    ),
    # Network, IPC, processes, limits and the user are the host's own in the engines below.
    "apptainer": Engine(
        start=("apptainer", "exec", "--cleanenv", "--no-home", "--writable-tmpfs"),
        workdir=("--pwd={run_dir}",),
        gpus=("--nv",),
        variable=("--env={subject}={value}",),
        mount=("--mount=" + _CSV,),
        read_only=",ro",
        refused='"\n',
    ),
    "enroot": Engine(
        start=("enroot", "start", "--rw"),
        gpus=("--env=NVIDIA_VISIBLE_DEVICES=all", "--env=NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        variable=("--env={subject}",),
        mount=("--mount={source}:{target}:none:x-create=auto,bind,{ro}",),
        read_only="ro",
        read_write="rw",
        refused=': ,\t"\n',  # a line of fstab, with colons
    ),
    "charliecloud": Engine(
        start=("ch-run", "--unset-env=*", "--set-env", "--set-env=HOME=/tmp"),
        workdir=("--cd={run_dir}",),
        variable=("--set-env={subject}={value}",),
        mount=("--bind={source}:{target}",),  # has no read-only mounts
        read_only="",
        refused=":\n",
        makes_places=False,  # 0.31: "can't mkdir ...: Read-only file system"; --write would change a shared image
        image=("{image}", "--"),
    ),
}
PYXIS = Engine(
    start=("--no-container-mount-home", "--container-writable"),
    mount=("{source}:{target}{ro}",),
    read_only=":ro",
    refused=':,"\n',
    image=("--container-image={image}",),
)
"""No program but flags of srun: see `pyxis_flags`."""

PROGRAMS: dict[EngineName, str] = {name: engine.start[0] for name, engine in ENGINES.items()}
"""Engine -> the program that must be on the host's PATH; the order is that in which `auto` looks for them."""


def container_plan(engine: EngineName, needs: Needs) -> ContainerPlan:
    """The plan of one node's container. Raises UsageError for a path that the engine's grammar cannot express."""
    words = ENGINES[engine]
    values = {"name": needs.name, "stop_timeout": str(needs.stop_timeout), "image": needs.image}
    options = (
        *words.start, *words.name, *words.init, *words.network, *words.shared_memory,
        *(words.limits if needs.gpus else ()), *words.stop, *words.user, *words.workdir,
        *(words.gpus if needs.gpus else ()), "{when}",
    )  # fmt: skip
    mounts = (word for mount in needs.mounts for word in _mount(engine, words, mount))
    argv = (*_fill(options, values), *mounts, *needs.args, *_fill(words.image, values))
    caches = needs.caches if words.makes_places else ()
    when = [
        *[("rootless", "", words.rootless)] * bool(words.rootless),
        *[("path", "/dev/infiniband", words.infiniband)] * bool(words.infiniband),
        *((kind, "", arguments) for kind, arguments in words.gpus_when if needs.gpus),
        *(
            ("variable", name, _fill(words.variable, {"subject": name}))
            for name in VARIABLES
            if words.variable and not (name == "CUDA_VISIBLE_DEVICES" and words.gpus_when)
        ),
        *(("links", folder, _mount(engine, words, Mount("{value}", "{value}"))) for folder in needs.links),
        *(entry for variable, place in caches for entry in _cache(engine, words, variable, place)),
    ]
    return ContainerPlan(engine=engine, image=needs.image, name=needs.name, argv=argv, when=tuple(when))


def _cache(engine: str, words: Engine, variable: str, place: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """What the agent adds for a hub cache. The host's own variable comes last, so that it wins; the two have different
    places inside, because a host may have both in one directory and engines refuse to mount one place twice."""
    inside = f"/mnt/{variable.lower()}"

    def both(source: str, target: str) -> tuple[str, ...]:
        mount = _mount(engine, words, Mount(source, target, read_only=False))
        return (*mount, *_variable(words, variable, target))

    own = ("variable", variable, both("{value}", "{value}"))
    return (("path", place, both(place, inside)), own) if place else (own,)


def _variable(words: Engine, name: str, value: str) -> tuple[str, ...]:
    """The words that set a variable inside; some engines have one slot for name and value."""
    one_slot = not any("{value}" in word for word in words.variable)
    return _fill(words.variable, {"subject": f"{name}={value}" if one_slot else name, "value": value})


def engines_for(image: str) -> tuple[tuple[EngineName, ...], str]:
    """The engines that `auto` takes for an image, the likeliest first, and what the image looks like. Pure: no engine
    and no file is asked. Raises UsageError for what no engine runs."""
    if image.endswith((".tar", ".tar.gz", ".tgz")):
        raise UsageError(
            f"container.image: {image} is an archive, which no engine runs",
            hint=f"load it on every host (zlaunch image load {image}) and name the image that is in it",
        )
    if image.endswith(".sif"):
        return ("apptainer",), "a .sif file"
    if image.endswith((".sqsh", ".squashfs")):
        return ("enroot",), "a squash file"
    if "://" in image:
        return ("apptainer",), "an address with a scheme"
    if image.startswith(("/", "./", "../", "~")):
        return ("charliecloud",), "a directory"
    return ("docker", "podman"), "a name in a registry or in an engine's store"


def pyxis_flags(needs: Needs) -> dict[str, list[str]]:
    """What makes srun run a whole task in the image: `flags`, and `mounts` that the batch script joins with commas.

    The run directory is known only there, so it is not in `mounts`.
    """
    mounts = [word for mount in needs.mounts[1:] for word in _mount("pyxis", PYXIS, mount)]
    flags = _fill((*PYXIS.image, *PYXIS.start), {"image": pyxis_image(needs.image)})
    return {"flags": [*flags, *needs.args], "mounts": mounts}


def pyxis_image(image: str) -> str:
    """`registry.example.com/team/image:tag` as enroot's `registry.example.com#team/image:tag`."""
    first, slash, rest = image.partition("/")
    is_registry = slash and first and ("." in first or ":" in first or first == "localhost")
    return f"{first}#{rest}" if is_registry and "#" not in image else image


def needs_of(
    spec: ContainerSpec,
    choice: ContainerChoice,
    *,
    run_id: str,
    gpus: bool,
    stop_deadline: float,
    reads: Iterable[str],
    writes: Iterable[str],
    links: Iterable[str] = ("inputs",),
) -> Needs:
    """The needs of a run: its directory, what it reads and writes under the same paths, and the job's own mounts.

    `reads` and `writes` are paths on the target; relative ones lie in the run directory. Raises UsageError.
    """
    mounts = [Mount("{run_dir}", "{run_dir}", read_only=False)]
    asked = [(path, False) for path in writes] + [(path, True) for path in sorted(set(reads))]
    for path, read_only in asked:
        covered = any(path == mount.source or path.startswith(mount.source + "/") for mount in mounts)
        if path.startswith("/") and not covered:
            mounts.append(Mount(path, path, read_only))
    return Needs(
        image=choice.image,
        name=f"zlaunch-{run_id}-{{node_rank}}",
        gpus=gpus,
        stop_timeout=int(stop_deadline) + MARGIN,
        mounts=(*mounts, *map(parse_mount, (*spec.mounts, *choice.cache_mounts))),
        args=spec.args,
        links=tuple(links),
        caches=choice.host_caches,
    )


def parse_mount(text: str) -> Mount:
    """`host:container`, `host` (the same path in both) or `host:container:rw`. Raises UsageError."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) > 1 and parts[-1] in ("ro", "rw") else "ro"
    if len(parts) > 2 or not all(part.startswith("/") for part in parts):
        raise UsageError(
            f"container.mounts: {text!r} is no pair of absolute paths `host:container`",
            hint="for example /data/models:/models; read-only unless :rw follows",
        )
    return Mount(parts[0], parts[-1], read_only=mode == "ro")


def _mount(engine: str, words: Engine, mount: Mount) -> tuple[str, ...]:
    for path in (mount.source, mount.target):
        bad = sorted(set(path) & set(words.refused))
        if bad:
            listed = " ".join(map(repr, bad))
            raise UsageError(f"{engine} cannot mount {path!r}: its mount grammar has no way to write {listed}")
    ro = words.read_only if mount.read_only else words.read_write
    return _fill(words.mount, {"source": mount.source, "target": mount.target, "ro": ro})


def _fill(words: Iterable[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Replace `{key}`s; others stay for the agent. In one pass, so that a value is never read as a template."""
    filled = []
    for word in words:
        parts = word.split("{")
        for index, part in enumerate(parts[1:], 1):
            key, brace, rest = part.partition("}")
            parts[index] = values[key] + rest if brace and key in values else "{" + part
        filled.append("".join(parts))
    return tuple(filled)
