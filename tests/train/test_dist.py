"""When the ranks form their group: before or after the model is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from train.dist import from_environment, starts_early, wake_gpu


@pytest.mark.parametrize(
    ("kind", "engine", "zero_stage", "early"),
    [
        ("cpu", "unsloth", 0, True),  # gloo is there without a device
        ("cuda", "peft", 3, True),  # zero.Init shares parameters over the group while they are loaded
        ("cuda", "fused", 3, True),
        ("cuda", "unsloth", 3, False),  # loads whole, and before there is a group
        ("cuda", "fused", 2, False),
        ("cuda", "peft", 0, False),
    ],
)
def test_the_group_is_there_before_the_model_where_the_model_is_loaded_in_parts(
    kind: str, engine: str, zero_stage: int, early: bool
) -> None:
    world = from_environment(kind, {"WORLD_SIZE": "2", "RANK": "0"})
    assert starts_early(world, engine=engine, zero_stage=zero_stage) is early


class Driver:
    """Stands for libcuda: what was called."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[tuple[str, int]] = []
        self.status = status

    def cuInit(self, flags: int) -> int:
        self.calls.append(("init", flags))
        return self.status

    def cuDevicePrimaryCtxRetain(self, context: object, device: int) -> int:
        self.calls.append(("context", device))
        return 0


@pytest.mark.parametrize(("status", "calls"), [(0, [("init", 0), ("context", 1)]), (100, [("init", 0)])])
def test_the_context_of_the_ranks_own_gpu_is_created_meanwhile(
    monkeypatch: pytest.MonkeyPatch, status: int, calls: list[tuple[str, int]]
) -> None:
    driver = Driver(status)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    thread = wake_gpu(from_environment("cuda", {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}))
    assert thread is not None
    thread.join()
    assert driver.calls == calls


def test_a_missing_driver_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    thread = wake_gpu(from_environment("cuda", {}))
    assert thread is not None
    thread.join()
    assert wake_gpu(from_environment("cpu", {})) is None


LEAVES = """
import atexit, threading, time
from pathlib import Path
from train import dist

class Held:
    def __del__(self):
        Path("taken-down").touch()

held = Held()
atexit.register(lambda: Path("handled").touch())
atexit.register(lambda: 1 / 0)
threading.Thread(target=lambda: (time.sleep(0.3), Path("joined").touch())).start()
print("reported", end="")
dist.leave(75)
"""


def test_a_rank_leaves_with_all_done_and_without_taking_the_interpreter_down(tmp_path: Path) -> None:
    """Threads of gloo that wait for a Python that is being taken down abort the process."""
    root = Path(__file__).parents[2]
    left = subprocess.run(
        [sys.executable, "-c", LEAVES], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, check=False
    )
    assert (left.returncode, left.stdout) == (75, b"reported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["handled", "joined"]


FAILS = """
import threading, time
from train import dist

threading.Thread(target=time.sleep, args=(60,)).start()  # it makes tokens for an hour, say
dist.leave(2)
"""


def test_a_rank_that_failed_leaves_at_once_whatever_its_threads_are_at(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    left = subprocess.run([sys.executable, "-c", FAILS], env={"PYTHONPATH": str(root)}, check=False, timeout=30)
    assert left.returncode == 2
