"""JobSpec: what the user asked for. Errors name the field, the value and what is accepted.

job.yaml + flags + --set  ->  one mapping  ->  checked keys  ->  JobSpec
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from train.config import Data, Engine, Evaluation, Lora, Model, Packing, Section

Auto = Literal["auto"]


class TrainSpec(Section, frozen=True):
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 2e-4
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 3407
    global_batch_size: int = 64
    micro_batch_size: int | Auto = "auto"
    zero_stage: Literal[0, 1, 2, 3] | Auto = "auto"
    offload: Literal["none", "cpu"] = "none"
    engine: Engine = "auto"
    packing: Packing | Auto = "auto"
    gradient_checkpointing: bool | Auto = "auto"
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 1
    tensorboard: bool = False


class ContainerSpec(Section, frozen=True):
    runtime: Literal["auto", "docker", "podman", "apptainer", "enroot", "charliecloud", "pyxis", "none"] = "auto"
    """auto: none without an image; with one, the first engine that the target has."""
    image: str | None = None
    mounts: tuple[str, ...] = ()
    """Further mounts, `host:container` each; read-only unless `:rw` follows."""
    args: tuple[str, ...] = ()
    """Further arguments for the engine's run command."""


class LocalSpec(Section, frozen=True):
    gpus: int | None = None
    """Ranks, one a GPU; null: every GPU of the machine."""
    procs: int | None = None
    """Ranks on a machine without GPUs, or with `device: cpu`; null: 1."""
    python: str | None = None
    """Interpreter of the training environment; null: the one zlaunch runs in."""


class SshSpec(Section, frozen=True):
    hosts: str | tuple[str, ...] | None = None
    """`a,b,user@c:2222`, a list of the same, or a hostfile in DeepSpeed's format."""
    hostfile: str | None = None
    include: str | None = None
    exclude: str | None = None
    slots: int | None = None
    """Ranks a host where the hostfile does not say; null: as many as the host has GPUs (CPU: 1)."""
    workdir: str = "~/zlaunch"
    python: str = "python3"
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    connect_timeout: float = 10.0
    master_addr: str | None = None


class SlurmSpec(Section, frozen=True):
    nodes: int = 1
    gpus_per_node: int | None = None
    """null: 8 on GPUs; on a CPU the number of ranks a node is procs_per_node."""
    procs_per_node: int = 1
    cpus_per_task: int | None = None
    gpu: str | None = None
    """GPU of the nodes, as `zlaunch plan` takes it (h100), or its memory (24GiB): it cannot be looked at before."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    mem: str | None = None
    array_limit: int | None = None
    """Sweep points that run at once (`%N` of --array)."""
    signal_before: int = 120
    """Seconds before the end of the time limit at which Slurm asks for the last checkpoint."""
    max_requeues: int = 20
    """Times a job is queued again after a preemption, a time limit or a lost node, unless `max_restarts` is given,
    which bounds it then; 0: never."""
    sbatch: dict[str, str | None] = {}
    """Any further option of sbatch, without dashes."""
    setup: tuple[str, ...] = ()
    """Shell lines run on every node before the agent: module load, conda activate."""
    python: str | None = None
    login: str | None = None
    workdir: str | None = None
    template: str | None = None


class JobSpec(Section, frozen=True):
    name: str = "run"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    train: TrainSpec = TrainSpec()
    eval: Evaluation = Evaluation()
    container: ContainerSpec = ContainerSpec()
    local: LocalSpec = LocalSpec()
    ssh: SshSpec = SshSpec()
    slurm: SlurmSpec = SlurmSpec()
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    """Names of environment variables that the ranks get; zlaunch writes their values to no file and command line."""
    verify_adapter: bool = False
    """Load the saved adapter into a fresh base model at the end and compare its logits."""
    max_restarts: int = 0
    elastic: bool = False
    heartbeat_timeout: float = 60.0
    stop_deadline: float = 25.0
    """Seconds a requested stop may take before processes are ended."""
    program: tuple[str, ...] = ()
    """A program of the user's own instead of the training program (what stands after `--`)."""

    def with_values(self, values: Mapping[str, Any]) -> JobSpec:
        """The job with other values of some dotted keys, as in `{"train.zero_stage": 2}`."""
        sections: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            sections.setdefault(section, {})[name] = value
        changed = sections.pop("", {})
        changed |= {name: msgspec.structs.replace(getattr(self, name), **new) for name, new in sections.items()}
        return msgspec.structs.replace(self, **changed)


@dataclass(frozen=True)
class Job:
    """A job as it was asked for."""

    spec: JobSpec
    tree: dict[str, Any]
    """The file and the flags merged, paths absolute; what job.yaml of the run directory holds."""
    origin: str
