"""Tokenize with all cores of a node: child processes read chunks from a pipe and answer with arrays.

Processes rather than threads, because reading and rendering are Python. Not multiprocessing, because a fork of a
process with a GPU is not safe and a spawn would import the training program again. The children import numpy,
tokenizers and jinja2, but not torch.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.data.chunked import Chunked
from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.errors import TrainError
from train.records.chunk import Chunk

SMALL_BYTES = 4 << 20
"""Bytes of data below which starting processes takes longer than tokenizing."""
MAX_PROCESSES = 32


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(recipe: Recipe, chunks: Iterable[Chunk], *, share: float = 1.0, processes: int = 1) -> Iterator[Chunked]:
    """Yield every chunk's result in order, with a few chunks in memory at a time. Raises TrainError if a child dies."""
    if processes <= 1:
        tokenizer = Tokenizer(recipe, share)
        yield from map(tokenizer.chunk, chunks)
        return
    with _Children(recipe, share, processes) as children, ThreadPoolExecutor(processes) as threads:
        waiting: deque[Future[Chunked]] = deque()
        for chunk in chunks:
            waiting.append(threads.submit(children.do, chunk))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Children:
    def __init__(self, recipe: Recipe, share: float, count: int) -> None:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        try:
            for _ in range(count):
                child = subprocess.Popen(
                    [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
                )
                self.processes.append(child)
            for child in self.processes:
                _send(child.stdin, (recipe, share))
                self.idle.put(child)
        except BaseException:
            self.stop()
            raise

    def do(self, chunk: Chunk) -> Chunked:
        child = self.idle.get()
        try:
            _send(child.stdin, chunk)
            done: Chunked | BaseException = pickle.load(child.stdout)  # type: ignore[arg-type]  # noqa: S301 - our own child
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            status = child.wait()
            raise TrainError(
                f"a process that tokenized {chunk.shown} died (exit status {status})",
                "a status of -9 usually means that the machine ran out of memory",
                code="ZL-TRAIN-04",
            ) from error
        finally:
            self.idle.put(child)
        if isinstance(done, BaseException):
            raise done
        return done

    def stop(self) -> None:
        for child in self.processes:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(OSError):  # bytes that a dead child never read
                        pipe.close()

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *details: Any) -> None:
        self.stop()


def _send(pipe: Any, content: Any) -> None:
    pickle.dump(content, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def main() -> None:
    """Run a child: read the recipe, then chunks until the pipe closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    given = sys.stdin.buffer
    try:
        tokenizer = Tokenizer(*pickle.load(given))  # noqa: S301 - from our own parent
        while True:
            chunk = pickle.load(given)  # noqa: S301 - likewise
            try:
                answer: Chunked | Exception = tokenizer.chunk(chunk)
            except Exception as error:
                answer = error
            _send(out, answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main()
