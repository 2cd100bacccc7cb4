"""One table: what a container needs -> the words that each engine has for it.

The tests run docker, podman (as root, and as a user in a user namespace) and Charliecloud for real. The words for
Apptainer, enroot and pyxis follow their documentation and are held by golden files only: RENDERED_ONLY.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from launcher.errors import UsageError

EngineName = Literal["docker", "podman", "apptainer", "enroot", "charliecloud"]
Runtime = EngineName | Literal["pyxis", "none"]
"""What a run is in: an engine's container, a task of pyxis, or none."""


@dataclass(frozen=True)
class Engine:
    """The words of one engine. `{...}` stand for fields of Needs and Mount, or are the agent's; empty: no words."""

    start: tuple[str, ...]
    """Program and subcommand, and what makes them read standard input."""
    mount: tuple[str, ...]
    read_only: str
    """What `{ro}` in `mount` becomes for a read-only mount."""
    read_write: str = ""
    """What it becomes for any other mount."""
    refused: str = ""
    """Characters of a path that the engine's mount grammar cannot express."""
    makes_places: bool = True
    """The engine creates the directory of a mount that the image does not have."""
    name: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    """The host's own: NCCL and gloo use its addresses."""
    shared_memory: tuple[str, ...] = ()
    """The host's own /dev/shm: docker's default of 64 MB is too little for NCCL and data loaders."""
    limits: tuple[tuple[str, str], ...] = ()
    """(name, value): locked memory for RDMA, and a stack for large graphs. Only with GPUs. Where the engine may not
    raise one, the agent starts the container without it (node/engine_refusals.py)."""
    limit: tuple[str, ...] = ("--ulimit={subject}={value}",)
    stop: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    """Results belong to the user who started the run."""
    rootless: tuple[str, ...] = ()
    workdir: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    """All GPUs that the process can see, or that CUDA_VISIBLE_DEVICES leaves."""
    gpus_when: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(kind, arguments) instead of `gpus`. A daemon sees every GPU of the host, so it gets the run's own GPUs by their
    numbers on the host. Inside, these are 0, 1, ..., so CUDA_VISIBLE_DEVICES is not passed on."""
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
    limits=(("memlock", "-1"), ("stack", "67108864")),
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
    "podman": replace(
        _DOCKER,
        start=("podman", "run", "--rm", "--interactive"),
        rootless=("--userns=keep-id",),  # an error for root
        gpus=("--security-opt=label=disable",),
        gpus_when=(  # CDI, from nvidia-ctk
            ("each_gpu", ("--device=nvidia.com/gpu={value}",)),
            ("all_gpus", ("--device=nvidia.com/gpu=all",)),
        ),
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
"""Flags of srun instead of a program."""

RENDERED_ONLY: tuple[Runtime, ...] = ("apptainer", "enroot", "pyxis")
"""Never run for this project: none of them could be installed from a package index. Their help and docs say so."""

PROGRAMS: dict[EngineName, str] = {name: engine.start[0] for name, engine in ENGINES.items()}
"""Engine -> the program that must be on the host's PATH, in the order in which `auto` looks for them."""


def engines_for(image: str) -> tuple[tuple[EngineName, ...], str]:
    """The engines that `auto` takes for an image, the likeliest first, and what form the image has.

    Only the text decides: no engine and no file is asked. Raises UsageError for a form that no engine runs.
    """
    if image.endswith((".tar", ".tar.gz", ".tgz")):
        raise UsageError(
            f"container.image: {image} is an archive, which no engine runs",
            hint=f"load it on every host (zlaunch image load {image}), then name the image that is in it",
            code="ZL-IMAGE-02",
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
