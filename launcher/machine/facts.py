"""Facts about this machine, gathered without torch: GPUs, free ports, interpreters, the model's config.json."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import TargetError
from launcher.machine import hub_places, process


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int
    compute_capability: float | None


def local_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that a program started here would see: those of nvidia-smi and CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = ["--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        output = process.run([tool, *query], timeout=30).stdout
    except process.CommandError:
        return ()  # there is nvidia-smi, but no driver
    return _narrow(parse_nvidia_smi(output), visible)


def parse_nvidia_smi(output: str) -> tuple[tuple[str, Gpu], ...]:
    """(uuid, Gpu) of each CSV line of nvidia-smi."""
    found = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[0].isdigit():
            capability = float(fields[4]) if fields[4].replace(".", "", 1).isdigit() else None
            memory = int(float(fields[3])) * 2**20 if fields[3].replace(".", "", 1).isdigit() else 0
            found.append((fields[1], Gpu(int(fields[0]), fields[2], memory, capability)))
    return tuple(found)


def _narrow(gpus: tuple[tuple[str, Gpu], ...], visible: str | None) -> tuple[Gpu, ...]:
    """CUDA reads the list up to its first invalid entry: `0,` is one GPU, and so is `0,-1,1`."""
    if visible is None:
        return tuple(gpu for _, gpu in gpus)
    found: list[Gpu] = []
    for item in map(str.strip, visible.split(",")):
        named = [gpu for uuid, gpu in gpus if item and (item == str(gpu.index) or uuid.startswith(item))]
        if not named:
            break
        found += named
    return tuple(found)


def free_ports(count: int = 2, host: str = "127.0.0.1") -> tuple[int, ...]:
    """Ports without a listener, outside the range that the kernel uses for outgoing connections.

    They are drawn at random from 20,000, so that two runs that start together hardly ever collide. If another program
    takes the port before the run does, the agent fails with a clear error.
    """
    ports: list[int] = []
    for _ in range(500):
        port = 10_000 + secrets.randbelow(20_000)
        # The agent adds the number of restarts to the master port, so the ports above it must be free too.
        if port not in ports and all(abs(port - other) > 16 for other in ports) and _is_free(port, host):
            ports.append(port)
            if len(ports) == count:
                return tuple(ports)
    raise TargetError(f"no free ports on {host}", hint="too many programs listen on this machine")


def _is_free(port: int, host: str) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def this_python() -> str:
    """The interpreter that runs zlaunch, which in the project's environment can train as well."""
    return sys.executable


def check_python(python: str, packages: Sequence[str]) -> None:
    """Raise TargetError if the interpreter does not exist here or lacks one of the packages."""
    hint = "name the interpreter of the training environment, for example --python .venv/bin/python"
    if shutil.which(python) is None:
        raise TargetError(f"no interpreter {python} on this machine", hint=hint)
    code = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if not find_spec(n)))"
    absent = process.run([python, "-c", code, *packages]).stdout.split()
    if absent:
        raise TargetError(f"{', '.join(absent)} not installed for {python}", hint=hint)


def new_token() -> str:
    return secrets.token_hex(16)


def model_config(path: str, env: Mapping[str, str]) -> dict[str, Any] | None:
    """The config.json of a local model; None for a hub id that the local cache does not have.

    `env` is the job's own environment, which can name another cache.
    """
    local, held = Path(path) / "config.json", hub_places.model_folder(path, {**os.environ, **env})
    candidates = [local] if local.is_file() else sorted(held.glob("snapshots/*/config.json"))
    for file in candidates:
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(loaded, dict):
            return loaded
    return None
