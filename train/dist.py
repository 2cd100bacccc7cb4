"""This rank's place among the ranks, and the few collectives that the program needs.

The environment is torchrun's (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); without it
the world has one rank. On a CPU the process group must exist before DeepSpeed loads the model; on a GPU Unsloth must
load before it. `starts_early` holds that rule.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from train.config import EXIT_STOPPED
from train.errors import UserError

if TYPE_CHECKING:
    import torch

JOIN_TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other at the start and in any collective. Rank 0 may be saving or downloading."""
WATCHED_TIMEOUT = timedelta(days=30)
"""The same where an agent looks for hangs: it knows what each rank is doing, and takes stacks before it ends them."""
timeouts = {"collectives": JOIN_TIMEOUT}
"""Of the process group that `start` formed. Groups of some of the ranks would otherwise have torch's default."""

FINISHED = (0, EXIT_STOPPED)
"""Exit statuses of a rank that finished its work."""


@dataclass(frozen=True)
class World:
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    device: str
    """`cpu` or `cuda:<index>`."""
    backend: str
    """`gloo` or `nccl`."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def many(self) -> bool:
        return self.world_size > 1


def from_environment(kind: str, environ: dict[str, str] | None = None) -> World:
    """The world that the environment describes, on devices of `kind` (`cpu` or `cuda`).

    ZLAUNCH_SHARE_GPU=1 puts every rank of the node on GPU 0, to check several ranks on a machine with one GPU. It uses
    gloo, because NCCL refuses that.
    """
    env = os.environ if environ is None else environ
    number = {
        name: int(env.get(name, default))
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1))
    }
    node = int(env.get("GROUP_RANK", env.get("NODE_RANK", 0)))
    shared = env.get("ZLAUNCH_SHARE_GPU") == "1"
    local = 0 if shared and kind == "cuda" else number["LOCAL_RANK"]
    return World(
        rank=number["RANK"],
        local_rank=local,
        world_size=number["WORLD_SIZE"],
        local_world_size=number["LOCAL_WORLD_SIZE"],
        node_rank=node,
        device="cpu" if kind == "cpu" else f"cuda:{local}",
        backend="gloo" if kind == "cpu" or shared else "nccl",
    )


def prepare(world: World) -> None:
    """Set the environment variables that torch, transformers, deepspeed and unsloth read when imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if world.local_world_size == 1 else "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["DS_ACCELERATOR"] = "cpu" if world.device == "cpu" else "cuda"  # else DeepSpeed guesses and warns
    os.environ["LOCAL_RANK"] = str(world.local_rank)  # Unsloth and DeepSpeed read it
    if os.environ.get("TORCH_CUDA_ARCH_LIST") == "9.0a":  # some CUDA images; DeepSpeed cannot parse it
        os.environ["TORCH_CUDA_ARCH_LIST"] = "9.0"


def wake_gpu(world: World) -> threading.Thread | None:
    """Create the context of this rank's GPU in a thread, while Python imports torch.

    That takes the driver about a second. It needs neither torch nor Python's lock: torch uses the same context, the
    primary one of the device.
    """
    if world.device == "cpu":
        return None

    def create() -> None:
        with contextlib.suppress(OSError, AttributeError):  # no driver: torch says so
            driver = ctypes.CDLL("libcuda.so.1")
            context = ctypes.c_void_p()
            if driver.cuInit(0) == 0:
                driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), world.local_rank)

    thread = threading.Thread(target=create, name="wake-gpu", daemon=True)
    thread.start()
    return thread


def check_device(world: World) -> None:
    """Raise UserError if this rank has no GPU."""
    if world.device == "cpu":
        return
    import torch

    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise UserError(
            f"rank {world.rank} needs GPU {world.local_rank}, but this node has {count} visible GPUs",
            "request fewer GPUs, or check CUDA_VISIBLE_DEVICES and nvidia-smi",
            code="ZL-GPU-02",
        )
    torch.cuda.set_device(world.local_rank)


def starts_early(world: World, *, engine: str, zero_stage: int) -> bool:
    """Whether the ranks form their process group before the model is loaded.

    They do with gloo, and if ZeRO-3 partitions parameters while loading. Unsloth must load first, so its parameters are
    partitioned afterwards.
    """
    return world.backend == "gloo" or (zero_stage == 3 and engine != "unsloth")


def start(world: World, *, deepspeed: bool, watched: bool = False) -> None:
    """Form the process group, unless it exists already. `watched`: an agent looks for hangs."""
    import torch.distributed as group

    if group.is_initialized():
        pass
    elif world.many:
        timeouts["collectives"] = WATCHED_TIMEOUT if watched else JOIN_TIMEOUT
        group.init_process_group(world.backend, timeout=timeouts["collectives"])
    elif deepspeed:  # DeepSpeed needs a group even for one rank; a store in memory needs no port
        group.init_process_group(world.backend, store=group.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("RANK", "0")
        os.environ.setdefault("WORLD_SIZE", "1")
    if deepspeed:
        start_deepspeed(world)


def start_deepspeed(world: World) -> None:
    """Let DeepSpeed take over the process group, quietly and without a compiler."""
    import logging

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that newer versions of torch warn about, at every step.
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    # With gloo, DeepSpeed would compile `deepspeed_shm_comm`, which takes g++ and a minute and only speeds up
    # collectives inside one host. Its table of compatible operators decides, so we disable it there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=world.backend, verbose=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what a library prints to standard output, unless it fails."""
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter):
            yield
    except BaseException:
        print(chatter.getvalue(), end="")
        raise


def stop() -> None:
    """Destroy the process group, if there is one."""
    import torch.distributed as group

    if group.is_initialized():
        group.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End the process like sys.exit, but without finalizing the interpreter.

    A worker thread of gloo drops the tensors of the last collective at any time, and waits for the interpreter's lock
    to do so. A finalizing interpreter ends threads that wait for this lock, here in a C++ destructor, which aborts the
    process after all its work is done ("terminate called without an active exception", seen once in about a hundred
    exits of a loaded machine). `stop` does not end those threads: DeepSpeed's engine, its optimizer and the parameters
    hold the group as well.

    A rank that failed does not wait for its threads: other ranks wait for it, and tokenizing in the background may take
    long.
    """
    for thread in threading.enumerate() if status in FINISHED else ():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def sum_over_ranks(world: World, values: list[float]) -> list[float]:
    """Element-wise sum over all ranks, in float64 (a collective: every rank calls it)."""
    if not world.many:
        return values
    import torch
    import torch.distributed as group

    tensor = torch.tensor(values, dtype=torch.float64, device=world.device)
    group.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def sum_tensors(world: World, tensors: list[torch.Tensor]) -> None:
    """Sum over all ranks in place, in one flat message per dtype."""
    if not world.many:
        return
    import torch
    import torch.distributed as group

    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        group.all_reduce(flat)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


@dataclass(frozen=True)
class Sharers:
    """Ranks that share something between them, and this rank's place among them."""

    count: int
    index: int
    group: Any = None
    """Of torch.distributed; None: all ranks."""


def everyone(world: World) -> Sharers:
    return Sharers(world.world_size, world.rank)


def on_my_host(world: World) -> Sharers:
    """The ranks of this rank's host (a collective: every rank calls it)."""
    import torch.distributed as group

    nodes: list[int] = [0] * world.world_size
    group.all_gather_object(nodes, world.node_rank)
    ranks = {node: [rank for rank, other in enumerate(nodes) if other == node] for node in sorted(set(nodes))}
    mine, _ = group.new_subgroups_by_enumeration(list(ranks.values()), timeout=timeouts["collectives"])
    return Sharers(len(ranks[world.node_rank]), ranks[world.node_rank].index(world.rank), mine)


def share(world: World, value: Any) -> Any:
    """Return rank 0's `value` on every rank. It may be any picklable object."""
    if not world.many:
        return value
    import torch
    import torch.distributed as group

    box = [value]
    group.broadcast_object_list(box, src=0, device=torch.device(world.device))
    return box[0]


def share_tensor(world: World, tensor: torch.Tensor) -> None:
    """Copy rank 0's content into `tensor` on every rank. The tensor must be on the world's device."""
    if world.many:
        import torch.distributed as group

        group.broadcast(tensor, src=0)


def collect(world: World, value: Any) -> list[Any] | None:
    """Return every rank's `value` in rank order on rank 0, and None elsewhere."""
    if not world.many:
        return [value]
    import torch.distributed as group

    boxes: list[Any] | None = [None] * world.world_size if world.first else None
    group.gather_object(value, boxes, dst=0)
    return boxes


def wait(world: World) -> None:
    """Wait until every rank calls this."""
    if world.many:
        sum_over_ranks(world, [0.0])
