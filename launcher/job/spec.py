"""JobSpec: what the user asked for.

job.yaml + flags + --set  ->  one mapping  ->  checked keys  ->  JobSpec
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from launcher.job.notify_address import variable_of
from launcher.job.trackers import trackers_of
from train.config import Data, Engine, Epochs, Evaluation, Lora, Model, Optimizer, Packing, Scheduler, Section

Auto = Literal["auto"]
AboutNumber = Annotated[str, msgspec.Meta(pattern=r"^(auto|about [1-9]\d*)$", description="auto, about N")]

TypedCount = Annotated[str, msgspec.Meta(pattern=r"^([\w.+-]+:)?[1-9]\d*$", description="TYPE:COUNT")]


class TrainSpec(Section, frozen=True):
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 2e-4
    learning_rates: dict[str, float] = {}
    scheduler: Scheduler = "cosine"
    min_lr_ratio: float = 0.0
    scheduler_power: float = 1.0
    scheduler_cycles: int = 1
    decay_ratio: float = 0.1
    decay_steps: int | None = None
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    label_smoothing: float = 0.0
    neftune_alpha: float | None = None
    max_grad_norm: float = 1.0
    seed: int = 3407
    global_batch_size: int | AboutNumber = "auto"
    """Records per optimizer step. `about 8`: the number nearest to 8 that the ranks can share; auto: about 64."""
    micro_batch_size: int | Auto = "auto"
    batch_tokens: int | None = None
    zero_stage: Literal[0, 1, 2, 3] | Auto = "auto"
    zero_group: Literal["auto", "host", "all"] = "auto"
    offload: Literal["none", "cpu"] = "none"
    offload_param: Literal["none", "cpu"] = "none"
    reduce_bucket_size: int | None = None
    """Numbers of gradients that DeepSpeed reduces at a time: fewer take less memory. null: 500 million."""
    allgather_bucket_size: int | None = None
    """Numbers of weights that ZeRO-1 and ZeRO-2 gather at a time after a step. null: 500 million."""
    prefetch_bucket_size: int | None = None
    """Numbers of weights that ZeRO-3 gathers ahead of their layer. null: 50 million."""
    sub_group_size: int | None = None
    """Numbers of weights that ZeRO-3 updates at a time. null: one billion."""
    round_robin_gradients: bool = False
    """Let ZeRO-1 and ZeRO-2 share the copying of gradients to host memory among the ranks, for `offload: cpu`."""
    ds_config: str | dict[str, Any] | None = None
    """A DeepSpeed configuration of your own: a JSON file, or its content. It sets the keys of the job that the job
    leaves open. Precision is that of `model.dtype`."""
    engine: Engine = "auto"
    packing: Packing | Auto = "auto"
    gradient_checkpointing: bool | Auto = "auto"
    router_loss: float | Auto = 0.0
    checkpoint_every: int | Epochs = 200
    keep_checkpoints: int = 2
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0
    checkpoint_copies: int | Auto = "auto"
    """Hosts that keep each checkpoint, so that a run can go on when its first host is gone. auto: 2 where the hosts
    share no file system."""
    log_every: int = 1
    hang_timeout: float | Auto = "auto"
    """Seconds without a step after which the stacks of all ranks are taken and the run fails or restarts.

    auto: 20 times the median step, at least 600. Loading, a batch of an evaluation and a save may take six times as
    long."""
    report_to: str | tuple[str, ...] | None = "none"
    """Trackers: tensorboard, wandb, swanlab, mlflow, trackio. Project and account are in their own variables."""
    tensorboard: bool = False
    """The same as `report_to: [tensorboard]`."""

    @property
    def trackers(self) -> tuple[str, ...]:
        return trackers_of(self.report_to, tensorboard=self.tensorboard)


class ContainerSpec(Section, frozen=True):
    runtime: Literal["auto", "docker", "podman", "apptainer", "enroot", "charliecloud", "pyxis", "none"] = "auto"
    """Container engine. auto: none without an image, else the first engine that the target has.
    apptainer, enroot and pyxis are rendered after their documentation and not run by our tests."""
    image: str | None = None
    """Name or file of the image to run in; null: no container."""
    mounts: tuple[str, ...] = ()
    """More mounts, as `host:container`; read-only unless `:rw` follows."""
    args: tuple[str, ...] = ()
    """More arguments for the engine's run command; one of zlaunch's own with the same name gives way."""
    omit: tuple[str, ...] = ()
    """Arguments of zlaunch's own to leave out, by name: `--init`, or `--ulimit=memlock`."""


class LocalSpec(Section, frozen=True):
    gpus: int | None = None
    """Ranks, one per GPU; null: every GPU of the machine."""
    procs: int | None = None
    """Ranks on CPUs; null: 1."""
    python: str | None = None
    """Interpreter of the training environment; null: the one that runs zlaunch."""


class SshSpec(Section, frozen=True):
    hosts: str | tuple[str, ...] | None = None
    """`a,b,user@c:2222`, a list of the same, or a hostfile in DeepSpeed's format."""
    hostfile: str | None = None
    """Hosts and slots in DeepSpeed's format."""
    include: str | None = None
    """Use only these hosts and slots, as in `a@b:0,1`."""
    exclude: str | None = None
    """Leave out these hosts and slots."""
    slots: int | None = None
    """Ranks per host where the hostfile does not say; null: one per GPU of the host (CPU: 1)."""
    workdir: str = "~/zlaunch"
    """Directory of the runs on the hosts."""
    python: str = "python3"
    """Interpreter of the training environment on the hosts."""
    ssh_config: str | None = None
    """SSH configuration instead of ~/.ssh/config."""
    accept_new_host_keys: bool = False
    """Add unknown host keys to known_hosts instead of refusing them."""
    connect_timeout: float = 10.0
    """Seconds to wait for a host."""
    master_addr: str | None = None
    """Address of the first host, as the other hosts reach it; null: its name."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on each host before its Python: module load, conda activate."""


class SlurmSpec(Section, frozen=True):
    nodes: int = 1
    """Nodes of the job, with one task each."""
    gpus_per_node: int | TypedCount | None = None
    """GPUs of each node, also with a type of the site's GRES, as in `h200:2`. null: 8. Without GPUs, procs_per_node
    counts the ranks."""
    procs_per_node: int = 1
    """Ranks per node on CPUs."""
    cpus_per_task: int | None = None
    """Cores for all ranks of a node together; null: the share of a node's cores that goes with its GPUs."""
    gpu: str | None = None
    """The GPU of the nodes by name (h100) or memory (24GiB); null: what Slurm reports of the partition."""
    cluster: str | None = None
    """Another cluster than this machine's own (`-M` of Slurm's commands), or several from which sbatch chooses."""
    partition: str | None = None
    """Partition to submit to; null: the default of the cluster."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    time: str | None = None
    """Time limit of one start, as in 1-12:00:00; a longer training is requeued."""
    constraint: str | None = None
    """Features that the nodes must have."""
    reservation: str | None = None
    """Reservation to run in."""
    nodelist: str | None = None
    """Nodes that the job must include."""
    exclude: str | None = None
    """Nodes to leave out."""
    mem: str | None = None
    """Memory per node, as in 64G; 0: all of it."""
    array_limit: int | None = None
    """Sweep points that run at once (`%N` of --array)."""
    signal_before: int = 120
    """Seconds before the end of the time limit when Slurm asks for the last checkpoint."""
    max_requeues: int = 20
    """How often a job is queued again after a preemption, a time limit or a lost node. 0: never. `max_restarts`, if
    given, is the limit instead."""
    sbatch: dict[str, str | None] = {}
    """Any other option of sbatch, without dashes."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on each node before the agent: module load, conda activate."""
    python: str | None = None
    """Interpreter of the training environment on the nodes; null: the one that runs zlaunch, or on a login host
    python3."""
    login: str | None = None
    """Submit over SSH through this host, as in user@login."""
    workdir: str | None = None
    """Directory of the runs on the login host; null: ~/zlaunch."""
    template: str | None = None
    """A batch script of your own; see `zlaunch templates`."""


Occurrence = Literal["end", "failure", "preemption", "hang"]


class NotifySpec(Section, frozen=True):
    url: str | None = None
    """`$NAME`: the variable that holds the address. An address itself is taken out of the job when it is read."""
    format: Literal["auto", "json", "slack", "dingtalk", "feishu", "wecom"] = "auto"
    """Form of the notice. auto: by the host of the address; json for an unknown service."""
    sign: str | None = None
    """`$NAME`: the variable that holds the signing key of a DingTalk or Feishu robot."""
    command: str | tuple[str, ...] | None = None
    """Runs on the first node, with the notice as JSON on its standard input and as text in ZLAUNCH_NOTICE."""
    on: Occurrence | tuple[Occurrence, ...] = ("end", "failure", "preemption", "hang")
    """When to send a notice."""


class JobSpec(Section, frozen=True):
    name: str = "run"
    """Name of the run; its id begins with it."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to train. auto: on the GPUs, or on the CPU of a machine without any."""
    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    train: TrainSpec = TrainSpec()
    eval: Evaluation = Evaluation()
    container: ContainerSpec = ContainerSpec()
    local: LocalSpec = LocalSpec()
    ssh: SshSpec = SshSpec()
    slurm: SlurmSpec = SlurmSpec()
    network: str = "auto"
    """Rate between hosts that the plan reckons with, as in `25Gb` (bits) or `3.1GB` (bytes). auto: what
    `zlaunch doctor net` has measured between them, else 25 Gb/s."""
    env: dict[str, str] = {}
    """Environment variables of the ranks."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables to pass to the ranks. No file of the run holds their values."""
    notify: NotifySpec = NotifySpec()
    verify_adapter: bool = False
    """At the end, load the saved adapter into a fresh base model and compare the logits."""
    max_restarts: int = 0
    """Restarts from the newest checkpoint after a failure."""
    elastic: bool = False
    """Restart with the nodes that are left if a node is lost."""
    heartbeat_timeout: float = 60.0
    """Seconds without a heartbeat after which a node is lost."""
    stop_deadline: float = 25.0
    """Seconds that a requested stop may take before zlaunch ends the processes."""
    node_template: str | None = None
    """A node.sh of your own, for every backend; see `zlaunch templates`."""
    program: tuple[str, ...] = ()
    """The user's own program instead of the training program: the words after `--`."""

    @property
    def secret_names(self) -> tuple[str, ...]:
        """The variables that must be set here, and whose values no file of the run holds."""
        named = [variable_of(value) for value in (self.notify.url, self.notify.sign) if value]
        return tuple(dict.fromkeys([*self.secrets, *filter(None, named)]))

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
    """A job as the user asked for it."""

    spec: JobSpec
    tree: dict[str, Any]
    """File and flags merged, with absolute paths: the content of job.yaml in the run directory."""
    origin: str
    held: dict[str, str] = field(default_factory=dict, repr=False)
    """{variable: secret} of secrets that the job file itself held (notify_address.py)."""
