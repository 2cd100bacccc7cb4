"""The facts of a run: its files, plan.json["launch"], the rank table and the ranks' environment."""

from __future__ import annotations

import os

from .. import run_files
from ..files import read_json, read_text

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Set

    from ..files import File, Json

EXIT_STOPPED = 75
EXIT_OF_STATE = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": EXIT_STOPPED, "CANCELLED": 130}
HEARTBEAT_EVERY = 5.0
"""Seconds between refreshes of the node's record, and between heartbeats on the control channel."""
EOF_GRACE = 5.0
"""Seconds that an agent has to return after its connection closed. The close shows that its host is alive, so a living
agent reconnects at once; only a silent connection needs the whole heartbeat time-out."""
REQUEST_GRACE = 2.0
"""Seconds that a stop request may come after ranks died of its signal: a scheduler signals ranks and agents in any
order, and a batch script's request comes through a file."""


class Names:
    """The files of a run directory that the agent of one node touches."""

    def __init__(self, run_dir: File, node_rank: int, inside: bool = False) -> None:
        self.root = os.fspath(run_dir)
        self.plan = self._below(run_files.PLAN)
        self.events = self._below(run_files.EVENTS)
        self.nodes = self._below(run_files.NODES)
        self.inside_record = os.path.join(self.nodes, "inside-%d.json" % node_rank)
        self.record = self.inside_record if inside else self._below(run_files.node_record(node_rank))
        self.control = self._below(run_files.CONTROL)
        self.stop = os.path.join(self.control, run_files.STOP)
        self.checkpoint = os.path.join(self.control, run_files.CHECKPOINT)
        self.signals = self._below(run_files.signals(node_rank))
        self.logs = self._below(run_files.node_logs(node_rank))
        self.log = os.path.join(self.logs, "agent-inside.log" if inside else run_files.AGENT_LOG)
        self.errors = self._below(run_files.ERRORS)
        self._node_rank = node_rank

    def _below(self, name: str) -> str:
        return os.path.join(self.root, name)

    def rank_log(self, rank: int) -> str:
        return self._below(run_files.rank_log(self._node_rank, rank))

    def rank_stack(self, rank: int) -> str:
        return self._below(run_files.rank_stack(self._node_rank, rank))

    def rank_error(self, rank: int) -> str:
        return self._below(run_files.rank_error(rank))

    def make(self) -> None:
        for folder in (self.nodes, self.control, self.logs, self.errors):
            os.makedirs(folder, exist_ok=True)


DEFAULTS: Json = {
    "backend": "local",
    "device": "cpu",
    "master_addr": "127.0.0.1",
    "cwd": None,
    "env": {},
    "cooperative": True,
    "stop_deadline": 25.0,
    "kill_after": 5.0,
    "heartbeat_timeout": 60.0,
    "start_timeout": 300.0,
    "max_restarts": 0,
    "elastic": False,
    "container": None,
    "token": "",
    "trackers": [],
    "notify": None,
}
OVERRIDES = (
    ("ZLAUNCH_MASTER_ADDR", "master_addr", str),
    ("ZLAUNCH_MASTER_PORT", "master_port", int),
    ("ZLAUNCH_CONTROL_PORT", "control_port", int),
    ("ZLAUNCH_TOKEN", "token", str),
)


class StartError(Exception):
    """The agent cannot start; the text says why."""


def load_launch(plan: str, environ: Dict[str, str]) -> Json:
    """Return plan.json["launch"] with defaults and the addresses from the environment. Raises StartError."""
    content = read_json(plan)
    if content is None or not isinstance(content.get("launch"), dict):
        raise StartError("%s is missing or holds no object `launch`" % plan)
    launch: Json = {**DEFAULTS, **content["launch"]}
    for name, key, convert in OVERRIDES:
        if environ.get(name):
            launch[key] = convert(environ[name])
    alone = len(launch.get("nodes", ())) < 2
    if launch["backend"] == "slurm" and not alone and not environ.get("ZLAUNCH_MASTER_ADDR"):
        # The plan has a placeholder: only the batch script knows the first node.
        raise StartError(
            "the plan's address of the first node is only a placeholder, and ZLAUNCH_MASTER_ADDR did not come: "
            "srun must pass it on (srun --export=ALL)"
        )
    launch.setdefault("control_port", int(launch["master_port"]) + 1)
    return launch


def port_of_attempt(launch: Json, attempt: int) -> int:
    """Return the rendezvous port of an attempt: a new one each time (the last may linger), never the control port."""
    first, control = int(launch["master_port"]), int(launch["control_port"])
    port = first + attempt
    return port + 1 if first < control <= port else port


def table_without(nodes: List[Json], lost: Set[int]) -> List[Json]:
    """Return the rank table of the remaining nodes, with ranks renumbered in the old order."""
    table, first = [], 0
    for node in nodes:
        if node["node_rank"] not in lost:
            table.append({**node, "first_rank": first})
            first += int(node["procs"])
    return table


def world_size_of(table: List[Json]) -> int:
    return sum(int(node["procs"]) for node in table)


def rank_environment(launch: Json, table: List[Json], node_rank: int, local_rank: int, attempt: int) -> Dict[str, str]:
    """Return the environment that torchrun sets for this rank, with static rendezvous."""
    index = next(i for i, node in enumerate(table) if node["node_rank"] == node_rank)
    node = table[index]
    procs = int(node["procs"])
    return {
        "RANK": str(int(node["first_rank"]) + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size_of(table)),
        "LOCAL_WORLD_SIZE": str(procs),
        "GROUP_RANK": str(index),
        "NODE_RANK": str(index),
        "GROUP_WORLD_SIZE": str(len(table)),
        "MASTER_ADDR": str(launch["master_addr"]),
        "MASTER_PORT": str(port_of_attempt(launch, attempt)),
        "ZLAUNCH_RUN_ID": str(launch["run_id"]),
        "ZLAUNCH_NODE_RANK": str(node_rank),
        "ZLAUNCH_RESTART_COUNT": str(attempt),
        "PYTHONUNBUFFERED": "1",
    }


def base_environment(launch: Json, names: Names, procs: int, secrets: Dict[str, str]) -> Dict[str, str]:
    """Return the environment that all ranks of this node share. Secrets are in it and nowhere else."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    environ.pop("ZLAUNCH_TOKEN", None)
    environ.update({name: str(value) for name, value in launch["env"].items()})
    environ.update(secrets)
    # nvidia-smi and slots count by PCI address; CUDA by speed, unless told.
    environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    of_host = nccl_conf(environ)
    for name, value in launch.get("defaults", {}).items():
        if name not in of_host:
            environ.setdefault(name, value)
    environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // max(1, procs))))
    if launch["cooperative"]:  # a program of the user's imports what it would import without zlaunch
        path = [os.path.join(names.root, run_files.CODE), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        environ["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # in the locale of a host, a character may be an error
    environ["ZLAUNCH_RUN_DIR"] = names.root
    return environ


def nccl_conf(environ: Dict[str, str]) -> List[str]:
    """Names of the variables that this host's files for NCCL set. A variable of the environment would win over them."""
    home = os.path.expanduser("~/.nccl.conf")
    text = read_text(environ.get("NCCL_CONF_FILE") or home) + "\n" + read_text("/etc/nccl.conf")
    return [line.partition("=")[0].strip() for line in text.splitlines() if "=" in line and line.strip()[:1] != "#"]


def eof_grace(launch: Json) -> float:
    return min(EOF_GRACE, float(launch["heartbeat_timeout"]))


def beat_of(launch: Json) -> float:
    return min(HEARTBEAT_EVERY, float(launch["heartbeat_timeout"]) / 4)
