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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher.errors import TargetError
from launcher.machine import hub_places, process
from launcher.node import census


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int
    """0: the driver does not report it."""
    compute_capability: float | None
    entry: str = ""
    """What stands for it in CUDA_VISIBLE_DEVICES."""


@dataclass(frozen=True)
class Gpus:
    """What a census (launcher/node/census.py) found on a machine."""

    seen: tuple[Gpu, ...]
    driver: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""
    """Why nobody knows which GPUs there are; empty: `seen` is right."""

    @staticmethod
    def of(found: Mapping[str, Any]) -> Gpus:
        names = ("index", "name", "memory_bytes", "compute_capability", "entry")
        seen = tuple(Gpu(*(gpu[name] for name in names)) for gpu in found["gpus"])
        return Gpus(seen, found["driver"], tuple(found["notes"]), found["error"])


GPU_HINT = "mend the driver (does `nvidia-smi` work there?), or train on the CPU with --device cpu"


def find_gpus(env: Mapping[str, str] | None = None) -> Gpus:
    """The NVIDIA GPUs that a program started here with `env` in its environment would see."""
    return Gpus.of(census.census({**os.environ, **(env or {})}, census.SECONDS))


def require_gpus(env: Mapping[str, str] | None = None) -> Gpus:
    """The same. Raises TargetError if nobody knows which GPUs there are: that is never "none"."""
    found = find_gpus(env)
    if found.error:
        raise TargetError(f"cannot tell which GPUs this machine has: {found.error}", hint=GPU_HINT, code="ZL-GPU-03")
    return found


def local_gpus() -> tuple[Gpu, ...]:
    return require_gpus().seen


def free_ports(count: int) -> tuple[int, ...]:
    """Ports without a listener, outside the range that the kernel uses for outgoing connections.

    They are drawn at random from 20,000, so that two runs that start together hardly ever collide. If another program
    takes the port before the run does, the agent fails with a clear error.
    """
    ports: list[int] = []
    for _ in range(500):
        port = 10_000 + secrets.randbelow(20_000)
        # The agent adds the number of restarts to the master port, so the ports above it must be free too.
        if port not in ports and all(abs(port - other) > 16 for other in ports) and _is_free(port):
            ports.append(port)
            if len(ports) == count:
                return tuple(ports)
    raise TargetError(
        "no free ports on this machine", hint="too many programs listen on this machine", code="ZL-MACHINE-03"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
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
        raise TargetError(f"no interpreter {python} on this machine", hint=hint, code="ZL-MACHINE-02")
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in ('', '.')]; "  # not the user's own torch/ here
        "from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if not find_spec(n)))"
    )
    if python == this_python():
        absent = [name for name in packages if find_spec(name) is None]
        hint = "pip install 'zlaunch[train]', or " + hint
    else:
        absent = process.run([python, "-c", code, *packages]).stdout.split()
    if absent:
        raise TargetError(f"{', '.join(absent)} not installed for {python}", hint=hint, code="ZL-MACHINE-02")


def new_token() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class ModelFiles:
    """What this machine has of a model."""

    directory: Path | None
    """None: a hub id that the local cache does not have."""
    config: dict[str, Any] | None
    """config.json; None: there is none to read."""


def model_files(path: str, env: Mapping[str, str]) -> ModelFiles:
    """The files of a local or cached model. `env` is the job's own environment, which can name another cache."""
    folder = model_directory(path, env)
    try:
        loaded = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError):
        loaded = None
    return ModelFiles(folder, loaded if isinstance(loaded, dict) else None)


def model_directory(path: str, env: Mapping[str, str]) -> Path | None:
    """Where the files of a local or cached model are; None for a hub id that the local cache does not have."""
    if path and Path(path).is_dir():
        return Path(path)
    held = hub_places.model_folder(path, {**os.environ, **env}) if path else Path()
    return next((file.parent for file in sorted(held.glob("snapshots/*/config.json"))), None) if path else None


def adapter_config(path: str | None) -> dict[str, Any] | None:
    """The adapter_config.json of an adapter on this machine; None if there is none to read."""
    try:
        loaded = json.loads((Path(path or "") / "adapter_config.json").expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if path and isinstance(loaded, dict) else None
