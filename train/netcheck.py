"""Measure the network between the ranks of a run, with the collectives that training uses. `zlaunch doctor net` sends
the text of this file to the hosts, so it needs torch and nothing of ours.

    python -m train.netcheck     # under RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or as tasks of srun

Rank 0 prints one line: `ZLAUNCH_NET` and a JSON object. Rates are bytes per second over one link: of an all-reduce of n
ranks each rank sends 2 (n - 1) / n of the size.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "ZLAUNCH_NET "
SIZES = (1 << 20, 16 << 20, 168 << 20)
"""Bytes of an all-reduce: the gradients of small and large adapters."""
PAIR_BYTES = 32 << 20
MOST_ROUNDS = 15
"""Rounds of pairs: each host meets as many others."""
BUDGET = 6.0
"""Seconds that the measurement of one size may take."""


def environment() -> None:
    """Under srun, set what torchrun would: a task is a rank."""
    if "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    for name, given in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        os.environ[name] = os.environ[given]


def route_to(address: str, port: int) -> str:
    """The interface by which this host reaches an address; empty: not found, or its own loopback."""
    import fcntl
    import struct

    with suppress(OSError):
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)
            own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == own and name != "lo":
                    return name
    return ""


def counters() -> dict[str, int]:
    """{interface: bytes that it sent and received so far}."""
    found = {}
    for folder in Path("/sys/class/net").iterdir():
        with suppress(OSError, ValueError):
            found[folder.name] = sum(int((folder / f"statistics/{way}_bytes").read_text()) for way in ("tx", "rx"))
    return found


def facts_of(interface: str) -> dict[str, Any]:
    """MTU, and the line rate in bits per second where the driver knows it."""
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found["mtu"] = int(Path(f"/sys/class/net/{interface}/mtu").read_text())
    with suppress(OSError, ValueError):
        speed = int(Path(f"/sys/class/net/{interface}/speed").read_text())
        found["line_bits_per_second"] = speed * 10**6 if speed > 0 else None
    return found


def timed(work: Callable[[], None], budget: float, most: int = 20) -> float:
    """Seconds of one call, the median of as many as the budget allows. Every rank makes the same number."""
    import torch
    import torch.distributed as dist

    taken: list[float] = []
    left = torch.ones(1)
    if dist.get_backend() == "nccl":
        left = left.cuda()
    work()  # connections are made here
    begun = time.monotonic()
    while float(left) > 0:
        start = time.monotonic()
        work()
        taken.append(time.monotonic() - start)
        left.fill_(float(len(taken) < most and time.monotonic() - begun < budget))
        dist.all_reduce(left, op=dist.ReduceOp.MIN)
    return statistics.median(taken)


def measure(device: str) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    world, on_gpu = dist.get_world_size(), device != "cpu"

    def settle() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def reduce_of(size: int) -> Callable[[], None]:
        tensor = torch.ones(max(1, size // 4), device=device)

        def work() -> None:
            dist.all_reduce(tensor)
            settle()

        return work

    found: dict[str, Any] = {"latency_seconds": timed(reduce_of(4), 1.0), "all_reduce": {}}
    before = counters()
    for size in SIZES:
        sent = size * 2 * (world - 1) / world
        seconds = timed(reduce_of(size), BUDGET / 3)
        found["all_reduce"][size] = sent / seconds
        if seconds > BUDGET / 30:
            break  # a slow network: a larger size takes long and tells nothing new
    after = counters()
    found["moved"] = {name: after[name] - before.get(name, 0) for name in after if name != "lo"}
    return found


def pairs_of(count: int) -> list[list[tuple[int, int]]]:
    """Rounds in which each of `count` hosts meets each other one once, in pairs that do not share a host."""
    places = [*range(count), *([-1] if count % 2 else [])]
    rounds = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        rounds.append([tuple(sorted(pair)) for pair in zip(places[:half], reversed(places[half:]), strict=True)])
        places = [places[0], places[-1], *places[1:-1]]
    return [[(a, b) for a, b in pairs if a >= 0] for pairs in rounds]


def pair_bytes(found: dict[str, Any]) -> int:
    """What takes a fifth of a second at the measured rate; the same on every rank."""
    import torch.distributed as dist

    size = [min(PAIR_BYTES, max(1 << 20, int(max(found["all_reduce"].values()) / 5)))]
    dist.broadcast_object_list(size)
    return size[0]


def measure_pairs(device: str, firsts: list[int], size: int) -> list[tuple[int, int, float]]:
    """(sender, receiver, bytes per second) of the first ranks of all hosts, numbered as hosts, sending `size` bytes."""
    import torch
    import torch.distributed as dist

    rank, found = dist.get_rank(), []
    tensor = torch.ones(size // 4, device=device)
    for pairs in pairs_of(len(firsts))[:MOST_ROUNDS]:
        dist.barrier()
        for a, b in pairs:
            for sender, receiver in ((a, b), (b, a)):
                if rank not in (firsts[a], firsts[b]):
                    continue
                taken = []
                for _ in range(3):
                    begun = time.monotonic()
                    if rank == firsts[sender]:
                        dist.send(tensor, firsts[receiver])
                        dist.recv(tensor[:1], firsts[receiver])
                    else:
                        dist.recv(tensor, firsts[sender])
                        dist.send(tensor[:1], firsts[sender])
                    if device != "cpu":
                        torch.cuda.synchronize()
                    taken.append(time.monotonic() - begun)
                if rank == firsts[sender]:
                    found.append((sender, receiver, size / min(taken)))
    return found


def transport_of(debug: Path) -> str:
    """What NCCL says that it uses, from its own log; empty: it said nothing."""
    with suppress(OSError):
        text = debug.read_text(errors="replace")
        for pattern in (r"NET/IB : Using (.+)", r"NET/Socket : Using (.+)", r"Using network (\w+)"):
            if found := re.search(pattern, text):
                return found.group().strip()
    return ""


def main() -> None:
    environment()
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available() and os.environ.get("ZLAUNCH_NET_DEVICE") != "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu"
    route = route_to(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    debug = Path(tempfile.mkdtemp()) / "nccl"
    if on_gpu:
        torch.cuda.set_device(device)
        os.environ.setdefault("NCCL_DEBUG", "INFO")
        os.environ.setdefault("NCCL_DEBUG_FILE", str(debug))
    elif route:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", route)  # else gloo takes what the host's name says
    dist.init_process_group("nccl" if on_gpu else "gloo")
    found = measure(device)
    chosen = os.environ.get("NCCL_SOCKET_IFNAME" if on_gpu else "GLOO_SOCKET_IFNAME", route)
    own = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "node": os.environ.get("GROUP_RANK"),
        "interface": chosen, "moved": found.pop("moved"), "transport": transport_of(debug) if on_gpu else "",
        **facts_of(chosen.lstrip("=^").split(",")[0]),
    }  # fmt: skip
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, own)
    names = [row["node"] or row["host"] for row in rows]
    firsts = [rank for rank, name in enumerate(names) if name not in names[:rank]]
    pairs: list[Any] = [None] * len(rows)
    dist.all_gather_object(pairs, measure_pairs(device, firsts, pair_bytes(found)) if len(firsts) > 2 else [])
    if dist.get_rank() == 0:
        told = {"backend": dist.get_backend(), **found, "hosts": [rows[rank] for rank in firsts]}
        print(MARK + json.dumps({**told, "pairs": [one for part in pairs for one in part]}), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
