"""What planning reads and returns: Target, RunPlan and their parts."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from train.config import Device, TrainConfig

BackendName = Literal["local", "ssh", "slurm"]


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Node(Frozen, frozen=True, kw_only=True):
    node_rank: int
    host: str
    procs: int
    first_rank: int


class ContainerPlan(Frozen, frozen=True, kw_only=True):
    """What the agent reads of plan.json to run the ranks of a node in a container."""

    engine: str
    image: str
    name: str
    argv: tuple[str, ...]
    """The engine's own argv up to and including the image; the agent appends the command. It replaces {run_dir},
    {node_rank}, {uid} and {gid} (in_container.place_container)."""
    when: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """(kind, subject, arguments): the arguments replace `{when}` in argv, once for each `{value}` that the host has.

    path: the path exists. variable: the variable is set. rootless: the user is not root. links: what the links in that
    directory of the run directory point at. gpus: the GPUs of the run on this host, with commas. each_gpu: one by one.
    all_gpus: nothing says which GPUs."""


class Notify(Frozen, frozen=True, kw_only=True):
    """What the agent reads of plan.json to send notices."""

    name: str
    """Of the job."""
    url: str | None
    """The variable that holds the address; among the secrets, like that of `sign`."""
    sign: str | None
    format: str
    command: str | tuple[str, ...] | None
    on: tuple[str, ...]


class Launch(Frozen, frozen=True, kw_only=True):
    """Everything that the agent reads of plan.json."""

    run_id: str
    backend: BackendName
    nodes: tuple[Node, ...]
    world_size: int
    device: Device
    master_addr: str
    master_port: int
    control_port: int
    token: str
    """Shared secret of the control channel between the agents of the run."""
    python: str
    """Interpreter of the agent and of the training environment."""
    argv: tuple[str, ...]
    cwd: str | None
    """Working directory of the ranks; null: the run directory."""
    env: dict[str, str]
    secrets: tuple[str, ...]
    defaults: dict[str, str] = {}
    """Variables of the ranks where neither `env` nor the host's own environment or nccl.conf sets them."""
    cooperative: bool
    """The program watches control/. false: a stop is SIGTERM at once."""
    stop_deadline: float
    kill_after: float
    heartbeat_timeout: float
    max_restarts: int
    elastic: bool
    container: ContainerPlan | None = None
    trackers: tuple[str, ...] = ()
    notify: Notify | None = None


class Reason(Frozen, frozen=True, kw_only=True):
    """Why a setting that the job left open has its value."""

    setting: str
    value: Any
    reason: str


class Target(Frozen, frozen=True, kw_only=True):
    """Facts about where the run goes."""

    backend: BackendName
    device: Device
    hosts: tuple[tuple[str, int], ...]
    """(host, ranks on it), in node order."""
    python: str
    master_addr: str = "127.0.0.1"
    master_port: int
    control_port: int
    token: str
    cwd: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_name: str | None = None
    compute_capability: float | None = None
    """Of the oldest GPU; bfloat16 needs 8.0."""
    network: float | None = None
    """Bytes per second between two hosts, where `zlaunch doctor net` has measured it."""
    paths: dict[str, str] = {}
    """{path of an input here: its path on the target, relative to the run directory}, where they differ."""
    notes: tuple[str, ...] = ()
    """What the user should know of the place, for people."""
    cpus_per_task: int | None = None
    """Slurm: the CPUs that go with the GPUs of a node, where the job leaves them open."""
    reasons: tuple[Reason, ...] = ()
    """Where the facts above come from."""
    forwarded: dict[str, tuple[str, str]] = {}
    """{variable for the ranks that the job does not set: (value, where it comes from)}."""

    @property
    def world_size(self) -> int:
        return sum(procs for _, procs in self.hosts)


class RunPlan(Frozen, frozen=True, kw_only=True):
    schema: int = 1
    run_id: str
    name: str
    backend: BackendName
    launch: Launch
    train: TrainConfig | None
    """None: the user's own program runs instead."""
    deepspeed: dict[str, Any] = {}
    """What ds_config.json holds beside the settings of `train`: of the job's own keys and of train.ds_config."""
    reasons: tuple[Reason, ...] = ()
    """Why each setting that the job left open has its value."""
    notes: tuple[str, ...] = ()
    """What the user should know before the run starts."""
    setup: tuple[str, ...] = ()
    """Shell lines that node.sh runs before the agent."""
    node_template: str | None = None
    """The user's own template of node.sh, on the machine that starts the run."""
    slurm: dict[str, Any] | None = None
    """What train.sbatch needs (batch_job.section)."""
