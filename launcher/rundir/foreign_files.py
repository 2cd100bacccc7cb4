"""Which files of a run may come from another machine, by their names.

A host is not trusted. What comes from it is a result, or lies below a directory of that node. No name leads to a file
that steers the launcher: run.json, job.yaml, plan.json, train.json, node.sh, code/, locks.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from launcher.node import run_files as names

PART = r"(?!\.\.?(?:/|\Z))[^/\\\x00-\x1f\x7f-\x9f]{1,200}"
"""One part of a path, which is not `.` or `..`."""
BELOW = rf"{PART}(?:/{PART}){{0,15}}"
RESULTS = (
    *map(re.escape, (names.RESULT, names.METRICS, names.PREDICTIONS)),
    rf"{names.ADAPTER}/{BELOW}",
    rf"{names.ERRORS}/rank-[0-9]{{1,7}}\.json",
)
SHAPES = {
    "below": BELOW,
    "result": "|".join(RESULTS),
    "checkpoint": rf"{names.CHECKPOINTS}/step-[0-9]{{1,12}}/{BELOW}",
    "cluster": "|".join(
        (
            *map(re.escape, (names.EVENTS, names.SLURM_LOG, names.HOSTFILE)),
            rf"{names.NODES}/(?:(?:node|inside|events)-[0-9]{{1,7}}\.jsonl?|before-[0-9A-Za-z.-]{{1,40}}/{PART})",
            rf"{names.LOGS}/node-[0-9]{{1,7}}/{BELOW}",
        )
    ),
}
_SHAPES = {kind: re.compile(shape) for kind, shape in SHAPES.items()}


def stays_below(name: str, tops: Collection[str]) -> bool:
    """Whether a name is one of `tops` or leads below one: it is not absolute and does not climb."""
    first, *rest = name.split("/")
    return first in tops and not {"", ".", ".."} & set(rest)


def is_result(name: str) -> bool:
    """Whether the training program writes a file of this name when it is over."""
    return _SHAPES["result"].fullmatch(name) is not None


def is_checkpoint(name: str) -> bool:
    return _SHAPES["checkpoint"].fullmatch(name) is not None


def is_of_node(name: str, node: int) -> bool:
    """Whether a growing file of this name is one that the node's host writes."""
    if name == names.METRICS:
        return node == 0
    below = f"{names.node_logs(node)}/"
    return name == names.EVENTS or (name.startswith(below) and bool(_SHAPES["below"].fullmatch(name, len(below))))


def is_of_cluster(name: str) -> bool:
    """Whether a cluster's run directory has results, records or logs under this name."""
    return is_result(name) or is_checkpoint(name) or _SHAPES["cluster"].fullmatch(name) is not None
