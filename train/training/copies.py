"""Copies of checkpoints on further hosts, for ranks whose hosts share no file system.

Rank 0 writes checkpoints to its own host. Where another host does not see them there, its first rank gets the same
bytes and keeps the same ones, with the metrics up to there. So a run can go on when the first host is gone: a resume
takes the newest checkpoint of all hosts. A copy that fails is reported and never ends the training.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from train import dist
from train.dist import World
from train.rundir.checkpoints import MARKER, complete
from train.rundir.run_files import RunDir, sync_directory
from train.training import checkpoint

CHUNK = 64 << 20
"""Bytes that are sent at a time."""


class Copies:
    """Every rank makes one after the process group has formed (a collective)."""

    def __init__(self, world: World, rundir: RunDir, wanted: int) -> None:
        """`wanted`: checkpoints of a step, the original included."""
        self.world, self.rundir = world, rundir
        self.group: Any = None
        self.members: list[int] = []
        """Ranks that hold a checkpoint: 0 and those that copy."""
        self._sent = 0
        """Bytes of metrics.jsonl that the others have. A resumed run has cut the file, so its start sends it anew."""
        if not world.many or wanted < 2:
            return
        self.members = [0, *_apart(world, rundir.checkpoints)[: wanted - 1]]
        if len(self.members) == 1:
            return
        import torch.distributed as group

        self.group = group.new_group(self.members, timeout=dist.timeouts["collectives"])
        if world.rank in self.members[1:]:
            checkpoint.remove_incomplete(rundir.checkpoints)

    @property
    def hosts(self) -> int:
        return len(self.members) - 1 if self.group is not None else 0

    def send(self, step: int) -> None:
        """Copy the checkpoint of a step from rank 0 (a collective of the ranks that hold one)."""
        if self.group is None or self.world.rank not in self.members:
            return
        import torch.distributed as group

        place = self.rundir.checkpoints / f"step-{step}"
        kept = [path.name for path in complete(place.parent)]
        box: list[Any] = [(_files_of(place), kept, _size(self.rundir.metrics)) if self.world.first else None]
        group.broadcast_object_list(box, src=0, group=self.group, device=_device(self.world))
        files, kept, lines = box[0]
        failed = None
        if self.world.first:
            for name, size in files:
                self._send(place / name, size)
            self._send(self.rundir.metrics, lines - self._sent, self._sent)
        else:
            failed = self._copy(place, files, kept)
            failed = self._receive(self.rundir.metrics, lines - self._sent, self._sent) or failed
        self._sent = lines
        answers: list[Any] = [None] * len(self.members)
        group.all_gather_object(answers, failed and f"{os.uname().nodename}: {failed}", group=self.group)
        if self.world.first:
            for told in filter(None, answers):
                self.rundir.event("warning", text=f"the checkpoint of step {step} was not copied to {told}")

    def _send(self, source: Path, size: int, start: int = 0) -> None:
        if not size:
            return
        with source.open("rb") as file:
            file.seek(start)
            for at in range(0, size, CHUNK):
                self._exchange(min(CHUNK, size - at), file.read(min(CHUNK, size - at)))

    def _copy(self, place: Path, files: list[tuple[str, int]], kept: list[str]) -> str | None:
        """Returns why the copy failed. Everything is received anyway: the other ranks take part in each exchange."""
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        there = (place / MARKER).is_file()
        failed: str | None = None
        for name, size in files:
            target = None if there or failed else temporary / name
            failed = self._receive(target, size) or failed
        if failed or there:
            shutil.rmtree(temporary, ignore_errors=True)
            return failed
        try:
            marker = (temporary / MARKER).rename(temporary.with_suffix(".marker"))
            checkpoint.sync_tree(temporary)
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)
            sync_directory(place.parent)
            marker.rename(place / MARKER)
            sync_directory(place)
            for old in complete(place.parent):
                if old.name not in kept:
                    checkpoint.remove(old)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            return str(error)
        return None

    def _receive(self, target: Path | None, size: int, start: int = 0) -> str | None:
        """Write what rank 0 sends, from a place in the file on. Returns why that failed."""
        failed, file = None, None
        if target is not None:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                file = target.open("r+b" if start else "wb")
                file.seek(start)
                file.truncate()
            except OSError as error:
                failed = str(error)
        for at in range(0, size, CHUNK):
            content = self._exchange(min(CHUNK, size - at), None)
            if file is not None and failed is None:
                try:
                    file.write(content)
                except OSError as error:
                    failed = str(error)
        if file is not None:
            try:
                file.close()
            except OSError as error:
                failed = failed or str(error)
        return failed

    def _exchange(self, size: int, content: bytes | None) -> memoryview:
        """Rank 0's bytes, on every member."""
        import torch
        import torch.distributed as group

        if content is None:
            part = torch.empty(size, dtype=torch.uint8, device=_device(self.world))
        else:
            part = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(_device(self.world))
        group.broadcast(part, src=0, group=self.group)
        return memoryview(part.cpu().numpy())


def _device(world: World) -> Any:
    import torch

    return torch.device(world.device)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _files_of(place: Path) -> list[tuple[str, int]]:
    """Names and sizes, the marker last."""
    files = sorted((path for path in place.rglob("*") if path.is_file()), key=lambda path: (path.name == MARKER, path))
    return [(path.relative_to(place).as_posix(), path.stat().st_size) for path in files]


def _apart(world: World, checkpoints: Path) -> list[int]:
    """The first rank of each host that sees neither rank 0's checkpoints nor those of a host before it (a collective).

    Each of them leaves a file of a new name, and looks for the others'. A name that was never asked for is in no cache
    of a network file system.
    """
    firsts = dist.share(world, dist.collect(world, (world.node_rank, world.rank)))
    by_node: dict[int, int] = {}
    for node, rank in firsts:
        by_node.setdefault(node, rank)
    token = dist.share(world, secrets.token_hex(8))
    own = checkpoints / f".seen-{token}-{world.rank}"
    leaves = world.rank in by_node.values()
    if leaves:
        _touch(own)
    dist.wait(world)
    seen = {rank for rank in by_node.values() if leaves and (checkpoints / f".seen-{token}-{rank}").exists()}
    found = dist.share(world, dist.collect(world, (world.rank, seen)))
    if leaves:
        own.unlink(missing_ok=True)
    sees = {rank: ranks for rank, ranks in found if rank in by_node.values()}
    apart: list[int] = []
    for rank in sorted(by_node.values()):
        # who could not leave a file sees nothing, not even its own: no copy goes there
        if rank and rank in sees[rank] and not sees[rank] & {0, *apart} and rank not in sees[0]:
            apart.append(rank)
    return apart


def _touch(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError:
        pass
