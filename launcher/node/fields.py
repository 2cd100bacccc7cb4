"""What may stand in JSON from another process or machine, checked with the standard library alone.

A shape is a function: whether a value fits. With it an agent checks the messages of the control channel, and the
launcher checks the node records that a host sends (remote/host_answers.py).
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional

    Shape = Callable[[Any], bool]

LARGEST = 1 << 53
"""Integers up to here are exact in every JSON."""
INFINITY = float("inf")


def integer(low: int = 0, high: int = LARGEST) -> Shape:
    return lambda value: type(value) is int and low <= value <= high


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return (type(value) is int and abs(value) <= LARGEST) or (type(value) is float and -INFINITY < value < INFINITY)


def boolean(value: Any) -> bool:
    return value is True or value is False


def text(most: int = 65536) -> Shape:
    return lambda value: type(value) is str and len(value) <= most and _is_unicode(value)


def _is_unicode(value: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON can hold and no file can."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_of(*words: str) -> Shape:
    return lambda value: type(value) is str and value in words


def maybe(shape: Shape) -> Shape:
    return lambda value: value is None or shape(value)


def list_of(shape: Shape, most: int) -> Shape:
    return lambda value: type(value) is list and len(value) <= most and all(map(shape, value))


def shallow(value: Any, depth: int = 16) -> bool:
    """Whether objects and lists lie in each other at most so deep."""
    if type(value) not in (dict, list):
        return True
    return depth > 0 and all(shallow(item, depth - 1) for item in (value.values() if type(value) is dict else value))


class Fields:
    """The shape of an object: keys that it must have, and keys that it may have. Others do not matter."""

    def __init__(self, needed: Dict[str, Shape], also: Optional[Dict[str, Shape]] = None) -> None:
        self.needed = needed
        self.known = {**needed, **(also or {})}

    def misfit(self, value: Any) -> Optional[str]:
        """The key that is missing or wrong; empty: it is no object. None: the value fits."""
        if type(value) is not dict:
            return ""
        for key, shape in self.known.items():
            if not (shape(value[key]) if key in value else key not in self.needed):
                return key
        return None

    def __call__(self, value: Any) -> bool:
        return self.misfit(value) is None


RANK = integer(0, 1 << 20)
LINES = list_of(text(65536), 100)
STACKS = list_of(
    Fields(
        {"ranks": list_of(RANK, 1 << 16), "odd": boolean},
        {
            "hosts": list_of(text(256), 1 << 16), "state": maybe(text(4096)), "doing": maybe(text(4096)),
            "quiet": number, "frames": list_of(text(4096), 1000),
        },
    ),
    1000,
)  # fmt: skip
"""Ranks by the place where they hang (hangs.py)."""
FAILURE = Fields(
    {"cause": text(64)},
    {
        "message": text(),
        "rank": maybe(RANK), "node_rank": maybe(RANK), "host": maybe(text(256)), "exit_code": maybe(integer(-LARGEST)),
        "signal": maybe(integer(0, 128)), "advice": LINES, "log_tail": LINES, "stacks": STACKS,
    },
)  # fmt: skip
"""Why a run failed (agent/causes.py)."""
NODE = Fields({"node_rank": RANK, "host": text(256), "procs": RANK, "first_rank": RANK})
"""A node in the table of an attempt (agent/launch.py)."""
PROCESS = Fields({"pid": integer(1), "start_time": maybe(integer())})
RANK_ROW = Fields(
    {"rank": RANK},
    {
        "pid": maybe(integer(1)), "local_rank": RANK, "start_time": maybe(integer()),
        "exit_code": maybe(integer(-LARGEST)), "signal": maybe(integer(0, 128)),
    },
)  # fmt: skip
GPU_ROW = Fields(
    {"local_rank": RANK, "used_bytes": integer(), "total_bytes": integer()}, {"use": maybe(integer(0, 100))}
)
"""The GPU of a rank (gpu_load.py)."""
STATES = ("RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "CANCELLED")
RECORD = Fields(
    {
        "node_rank": RANK, "state": one_of(*STATES), "host": text(256), "boot_id": text(64), "pid": integer(1),
        "start_time": maybe(integer()), "heartbeat": number,
    },
    {
        "schema": integer(), "run_id": text(256), "pid_namespace": maybe(text(256)), "warden": maybe(PROCESS),
        "ranks": list_of(RANK_ROW, 4096), "started": number, "ended": maybe(number), "restarts": integer(),
        "exit_code": maybe(integer(-LARGEST)), "failure": maybe(FAILURE), "gpus": list_of(GPU_ROW, 4096),
        "gpu_trouble": maybe(text(4096)),
    },
)  # fmt: skip
"""The record of a node (agent/recorder.py)."""
