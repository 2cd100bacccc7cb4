"""python -m tests.bench.nodes; see the package's docstring."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tests.bench import nodes
from tests.bench.multi import ROOT
from tests.bench.nodes.containers import containers
from tests.bench.nodes.faults import elastic, faults, preempt, resume, slurm
from tests.bench.nodes.hosts import Hosts, simulated
from tests.bench.nodes.runs import SIZES, OutOfTimeError, RunFailedError, Runner
from tests.bench.nodes.speeds import LARGE, WAYS, large, losses, network, smoke, speed, unsloth
from tests.bench.nodes.tables import Table

PARTS: dict[str, Callable[[Runner], None]] = {
    "smoke": smoke, "losses": losses, "speed": speed, "faults": faults, "resume": resume, "slurm": slurm,
    "containers": containers, "network": network, "unsloth": unsloth, "large": large, "preempt": preempt,
    "elastic": elastic,
}  # fmt: skip
WITH_SLURM = {"slurm", "preempt", "containers"}
ASKED_FOR = {"preempt", "large"}
"""Parts that run only if they are named: a part of `slurm`, and one that takes 141 GB of models."""


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tests.bench.nodes", description=nodes.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"default: all of {' '.join(PARTS)} but {' '.join(ASKED_FOR)}")
    parser.add_argument("--gpus-per-host", type=int, default=1, help="of simulated hosts (default: 1)")
    parser.add_argument("--count", type=int, help="simulated hosts (default: as many as the GPUs allow; CPU: 2)")
    parser.add_argument("--hosts", help="real hosts, separated by commas")
    parser.add_argument("--python", default=sys.executable, help="of the training environment on real hosts")
    parser.add_argument("--shared", type=Path, help="with --hosts: a directory that this machine and all hosts see")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", type=Path, help="where the random models are kept (16 GB for 8B)")
    parser.add_argument("--workloads", default="records,dense", help="of `speed` (default: %(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="of `losses` and `speed` (default: %(default)s)")
    parser.add_argument("--large", default=",".join(LARGE), help="of `large` (default: %(default)s)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the ranks")
    parser.add_argument("--minutes", type=float, default=60, help="for all parts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-nodes"), help="default: %(default)s.jsonl and .md")
    parser.add_argument("--logs", type=Path, help="keep the logs of all runs here")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if unknown := set(options.ways.split(",")) - set(WAYS):
        parser.error(f"no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    if options.hosts and not options.shared:
        parser.error("--hosts needs --shared: the hosts read the random models there")
    if not options.hosts and os.geteuid() != 0:
        parser.error("simulated hosts need root; --hosts names real ones")
    return options


def hosts_of(options: argparse.Namespace) -> AbstractContextManager[Hosts]:
    """The hosts that the options ask for. Raises SystemExit if the machine has too few GPUs."""
    if options.hosts:
        names = options.hosts.split(",")
        return nullcontext(Hosts(names, options.gpus_per_host, options.device, options.shared, options.python))
    count = options.count or 2
    if options.device == "cuda":
        from launcher.machine import facts

        gpus = len(facts.local_gpus())
        count = options.count or gpus // options.gpus_per_host
        if count < 2 or count * options.gpus_per_host > gpus:
            sys.exit(f"two hosts with {options.gpus_per_host} GPUs each are needed; this machine has {gpus} GPUs")
    with_slurm = not options.parts or bool(WITH_SLURM & set(options.parts))
    return simulated(count, options.gpus_per_host, options.device, options.models, with_slurm=with_slurm)


def write_models(runner: Runner, shapes: list[str]) -> None:
    """Write random models in a process of its own, which frees the GPU at its end."""
    command = [sys.executable, "-m", "tests.bench.nodes.models", str(runner.models), *shapes]
    subprocess.run(command, cwd=ROOT, env=runner.environ(), check=True, timeout=runner.time_left(600))


def about(hosts: Hosts) -> str:
    import torch

    gpu = ""
    if hosts.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = f" with {hosts.per_host} x {hosts.run(hosts.names[0], query).splitlines()[0]} each"
    kind = "simulated" if hosts.lab is not None else "real"
    ranks = f"{hosts.per_host} CPU ranks each" if hosts.device == "cpu" else ""
    made = f"{time.strftime('%d %B %Y')}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"{len(hosts.names)} {kind} hosts{gpu or f' with {ranks}'}; {made}."


@contextmanager
def place_of(options: argparse.Namespace, hosts: Hosts) -> Iterator[Path]:
    """A directory for runs and data that all hosts see; its logs are kept if the user asks for them."""
    with tempfile.TemporaryDirectory(prefix="bench-nodes-", dir=hosts.shared, ignore_cleanup_errors=True) as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        try:
            yield place
        finally:
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                for log in [*place.glob("*.log"), *place.glob("runs/*/metrics.jsonl"), *place.glob("runs/*/slurm.log")]:
                    name = log.name if log.parent == place else f"{log.parent.name}-{log.name}"
                    (options.logs / name).write_bytes(log.read_bytes())


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    deadline = time.monotonic() + options.minutes * 60
    chosen = options.parts or [part for part in PARTS if part not in ASKED_FOR]
    with hosts_of(options) as hosts, place_of(options, hosts) as place:
        table = Table(options.out, about(hosts))
        extra = [word for pair in options.env for word in ("--set", f"env.{pair}")]
        runner = Runner(hosts, place, options.models or place / "models", table, deadline, extra)
        size = SIZES[hosts.device]
        shapes = {"speed": size.large, "large": size.huge}
        shapes |= dict.fromkeys(("losses", "faults", "resume", "slurm", "preempt", "unsloth", "elastic"), size.small)
        if wanted := sorted({shapes[part] for part in chosen if part in shapes}):
            write_models(runner, wanted)
        given = {"ways": options.ways}
        parts = {
            **PARTS,
            "losses": partial(losses, **given),
            "large": partial(large, ways=options.large),
            "speed": partial(speed, workloads=options.workloads, **given),
        }
        for part in chosen:
            print(f"== {part}, {len(hosts.names)} hosts with {hosts.per_host} ranks each", flush=True)
            try:
                parts[part](runner)
            except OutOfTimeError:
                table.add(part, "the rest", note="not run: no time was left")
            except (
                RunFailedError,
                OSError,
                RuntimeError,
                subprocess.SubprocessError,
                LookupError,
                ValueError,
            ) as error:
                table.add(part, "the rest", ok=False, note=f"{type(error).__name__}: {error}")
            finally:
                runner.stop_all()
    print(table.markdown())
    print("all as expected" if not table.failed else f"not as expected: {'; '.join(table.failed)}")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
