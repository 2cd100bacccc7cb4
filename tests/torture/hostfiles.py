"""Hostfiles and --include/--exclude beside DeepSpeed's own parser: the same hosts and slots, or refused by both."""

from __future__ import annotations

import ast
import functools
import importlib.util
import logging
import random
import re
import tempfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from launcher.errors import ZlaunchError
from launcher.remote import hostfile
from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source

NAME = "hostfiles and filters"
TRIED = "hostfiles and --include/--exclude texts, each also read by DeepSpeed's own parser"
_BLANKS = (" ", "  ", "\t", "\u00a0", "\u2003", "\x0b", "\x0c", "\x1c", "\x85", " \t")
_HOSTS = (
    *("worker-0", "worker-1", "w0", "10.0.0.1", "a@b", "#x", "h#", "slots=1", "é", "host.example.com", "::1"),
    *("[::1]:22", "-x", "a,b", "a:b", "user@h", "$(id)"),
)
_NUMBERS = (
    *("1", "2", "8", "0", "-1", "+1", "1.5", "01", "١", "²", "9" * 20, "", "x", "1x", "1 #c", "1 slots=2", "1_0"),
    *("0x8", "9" * 5000),
)
_ENDS = ("\n", "\r\n", "\r", "\n\n", "\x0b", "\x0c", "\x1c", "\u2028", "\x85", "\n#c\n", "\n \n")
_POOL = {"w0": 4, "w1": 4, "w2": 2, "w-3": 1}
_SLOTS = ("", ":0", ":0,1", ":1,0", ":3", ":9", ":", ":0,", ":a", ": 1", ":-1", ":0:1", ":+1", ":0,0", ":٣", ":1_0")


@functools.cache
def deepspeed_parsers() -> tuple[Callable[[list[str]], Any], Callable[..., Any]]:
    """`_parse_hostfile` and `parse_resource_filter` of the installed DeepSpeed, without importing torch."""
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    file = Path(found.origin).parent / "launcher" / "runner.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    wanted = {"_parse_hostfile", "parse_resource_filter", "_stable_remove_duplicates"}
    wanted |= {"parse_node_config", "parse_node_config_list"}
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    names: dict[str, Any] = {"re": re, "collections": __import__("collections"), "deepcopy": deepcopy}
    names |= {"logger": logging.getLogger("silent"), "OrderedDict": OrderedDict, "defaultdict": defaultdict}
    names |= {"Dict": dict, "List": list, "Tuple": tuple}
    names["logger"].disabled = True
    exec(compile(tree, str(file), "exec"), names)
    return names["_parse_hostfile"], names["parse_resource_filter"]


def _line(rnd: random.Random) -> str:
    chance = rnd.random()
    if chance < 0.6:
        return (
            rnd.choice(_HOSTS) + rnd.choice(_BLANKS) + "slots=" + rnd.choice(_NUMBERS[:6] if chance < 0.4 else _NUMBERS)
        )
    if chance < 0.7:
        return rnd.choice(_BLANKS) + rnd.choice(_HOSTS) + rnd.choice(_BLANKS) + "slots=" + rnd.choice(_NUMBERS)
    if chance < 0.8:
        return rnd.choice(_HOSTS)
    if chance < 0.9:
        return "".join(rnd.choice("ab 0=slots#\t@:") for _ in range(rnd.randint(0, 14)))
    words = ("slots =", "slots= ", "SLOTS=", "slot=", "max_slots=")
    return rnd.choice(_HOSTS) + rnd.choice(_BLANKS) + rnd.choice(words) + rnd.choice(_NUMBERS)


def _filter(rnd: random.Random) -> str:
    hosts = ("w0", "w1", "w2", "w-3", "w9", "", " w0")
    return "@".join(rnd.choice(hosts) + rnd.choice(_SLOTS) for _ in range(rnd.randint(1, 3)))


def _judge(folder: Path, seed: int, number: int) -> str:
    rnd = source(seed, NAME, number)
    parse_hostfile, parse_filter = deepspeed_parsers()
    if number % 2:
        include, exclude = (_filter(rnd), "") if rnd.random() < 0.5 else ("", _filter(rnd))
        if rnd.random() < 0.05:
            include = exclude = _filter(rnd)
        shown: Any = (include, exclude)
        pool = OrderedDict((host, list(range(slots))) for host, slots in _POOL.items())
        theirs = _result(lambda: list(parse_filter(pool, include_str=include, exclude_str=exclude).items()))
        ours = _result(lambda: list(hostfile.select(_POOL, include, exclude).items()), ZlaunchError)
    else:
        shown = "".join(
            _line(rnd) + (rnd.choice(_ENDS) if rnd.random() < 0.4 else "\n") for _ in range(rnd.randint(1, 4))
        )
        file = folder / "hostfile"
        file.write_bytes(shown.encode())
        with file.open(encoding="utf-8") as lines:  # as DeepSpeed reads it
            theirs = _result(lambda: list(parse_hostfile(lines.readlines()).items()))
        ours = _result(lambda: list(hostfile.load(file).items()), ZlaunchError)
        if ours:
            _result(lambda: hostfile.select(dict(ours)), ZlaunchError)
            _result(lambda: hostfile.parse_hosts([host for host, _ in ours]), ZlaunchError)
    if ours != theirs:
        raise Wrong(f"otherwise than DeepSpeed: {shown!r}: {ours} instead of {theirs}"[:400])
    return "refused" if ours is None else "read as DeepSpeed reads them"


def _result(parse: Callable[[], Any], refusal: type[Exception] = Exception) -> Any:
    try:
        return parse()
    except refusal:
        return None


def main(count: int, seed: int) -> Outcome:
    """Judge `count` hostfiles and filters."""
    with tempfile.TemporaryDirectory() as folder:
        return outcome(NAME, TRIED, count, seed, judge_all(functools.partial(_judge, Path(folder), seed), range(count)))


if __name__ == "__main__":
    from_command_line(main, 5000)
