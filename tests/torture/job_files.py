"""Damaged job files and `--set` texts: each is refused with its place, or means what it says.

The meaning is taken from PyYAML's BaseLoader, which gives every scalar as text: a key whose text is that of the
undamaged file has the undamaged value, and a changed key the value that its new text says.
"""

from __future__ import annotations

import functools
import json
import math
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from launcher.errors import ZlaunchError
from launcher.job.explain import known_keys
from launcher.job.load import dump_job, read_job
from tests.beds.places import ROOT
from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source

NAME = "job files and --set"
TRIED = "values of wrong types, YAML syntax and bytes put into two job files; `--set` texts"
_TEXTS = tuple(
    (ROOT / name).read_text(encoding="utf-8") for name in ("templates/demo/job.yaml", "templates/smoke.yaml")
)
_KEYS = tuple(known_keys())

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, math.inf, -math.inf, math.nan),
    *("", " ", "\u202e", "\x00", "é中文", "a" * 100_000, "\U0001f600", "\n", "a\nb", "-1", "1e5", "0x10", "0o17", "08"),
    *("1_000", "1:30", "yes", "no", "null", "~", "../x", "/", "~nobody/x", "$(touch x)", "`id`", "';id;'", "{{7*7}}"),
    *("%s%n", "hub:", "hub:x", "http://x", "file:///etc/passwd", "a,b", "auto", "none", "{% for %}", "~nosuchuser/x"),
    *([], [[]], [None], [1, "a", None], {}, {"a": {}}, {"a": 1}, {1: 2}, {None: None}, {True: 1}, {"path": "x"}),
    *([{"path": "x"}], [{"path": "x", "weight": 0}], [{"weight": 1}], [{"path": None}], [{"path": ["x"]}]),
    *([{"path": {"path": "x"}}], {"path": ["a"], "x": 1}, [{"path": "x", "weight": math.nan}], {"path": {"a": "b"}}),
)
_SYNTAX = (
    *("&a ", "*a ", "!!python/object/apply:os.system ['id']", "!!binary x", "!!set {a}", "!!omap", "<<: *a", "? "),
    *("!!timestamp 2001-01-01", "<<: {a: 1}", "- ", "[", "{", "\t", "--- \n", "...\n", "%YAML 9.9\n", "!!int x"),
    *("!!float x", "!!null x", "!!bool maybe", '"\\x00"', '"\\ud800"', "1" * 5000, "0x" + "f" * 5000, "1e" + "9" * 50),
    *('!!int ""', "!!str", "!!map [a]", "!!seq {a: b}", "!<tag:yaml.org,2002:int> 5x", "---", "!!int 0b1", "!!int 1:2"),
    *("!!null ''", "!!float 0x1", "&a [*a]", "{a: &b {c: *b}}", "[" * 60, "{a: " * 60),
)
_SETS = (
    *("", "1", "nan", ".nan", ".inf", "-1", "1e999", "[", "{a: b}", "[a, b]", "*a", "&a [*a]", "!!int x", "null", "~"),
    *("true", "9" * 5000, "\x00", "é", "a: b", "- a", "|", "> x", "'", '"', "!!python/name:os.system", "0x", "0o9"),
    *("[[[]]]", "{path: x}", "{path: {a: 1}}", "[{path: x, weight: .nan}]", "@x", "`x`", "%x", "\udc80", "~nobody/x"),
)
_ODD = "\0\t\n\r \"':[]{}&*!|>%@\x85\u2028\ufeff\x7f\ud7ff\U0010ffff"


def damaged_text(rnd: random.Random, text: str) -> str:
    chars = list(text)
    for _ in range(rnd.randint(1, 6)):
        place = rnd.randrange(len(chars) + 1)
        match rnd.randrange(6) if chars else 1:
            case 0:
                chars[place % len(chars)] = rnd.choice(_ODD)
            case 1:
                chars.insert(place, rnd.choice(_SYNTAX))
            case 2:
                start = place % len(chars)
                del chars[start : start + rnd.randint(1, 20)]
            case 3:
                start = rnd.randrange(len(chars))
                chars[place:place] = chars[start : start + rnd.randint(1, 40)]
            case 4:
                chars = chars[:place]
            case _:
                chars.insert(place, chr(rnd.randrange(1, 0x300)))
    return "".join(chars)


def with_values(rnd: random.Random, text: str) -> str:
    tree = yaml.safe_load(text)
    for _ in range(rnd.randint(1, 4)):
        *sections, last = rnd.choice(_KEYS).split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[last] = rnd.choice(VALUES)
    return str(yaml.safe_dump(tree, allow_unicode=True))


def with_bytes(rnd: random.Random, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rnd.randint(1, 8)):
        data[rnd.randrange(len(data))] = rnd.randrange(256)
    return bytes(data)


def a_set(rnd: random.Random) -> str:
    key = rnd.choice([*_KEYS, "", "a", "env.X", "slurm.sbatch.x", "env", "data.train.0", "...", "train..epochs", "."])
    value = rnd.choice([*_SETS, str(rnd.choice(VALUES))[:200]])
    text = key + rnd.choice(["=", "=", "=", "==", "", ":", "= "]) + value
    return damaged_text(rnd, text) if rnd.random() < 0.3 else text


def _judge(folder: Path, seed: int, number: int) -> str:
    rnd = source(seed, NAME, number)
    base = rnd.choice(_TEXTS)
    sets: list[str] = []
    match number % 4:
        case 0:
            data = with_values(rnd, base).encode()
        case 1:
            data = damaged_text(rnd, base).encode("utf-8", "surrogatepass")
        case 2:
            data, sets = base.encode(), [a_set(rnd) for _ in range(rnd.choice((1, 1, 2)))]
        case _:
            data = with_bytes(rnd, base)
    file = folder / "job.yaml"
    file.write_bytes(data)
    try:
        job = read_job(file, sets)
    except ZlaunchError as error:
        if not str(error).strip() or "\n\n" in str(error):
            raise Wrong(f"refusal without a place: {error!r}") from None
        return "refused"
    _compare(file, base, data, sets, msgspec.to_builtins(job.spec))
    again = folder / "again.yaml"
    again.write_text(dump_job(job), encoding="utf-8")
    if not _alike(msgspec.to_builtins(read_job(again).spec), msgspec.to_builtins(job.spec)):
        raise Wrong(f"job.yaml of the run reads otherwise: {data!r}")
    return "accepted"


def _compare(file: Path, base: str, data: bytes, sets: list[str], spec: dict[str, Any]) -> None:
    """Every key of an accepted job has the value that its text says."""
    before, now = _leaves(_plain(base)), _leaves(_plain(data.decode("utf-8-sig")))
    for text in sets:
        key, _, value = text.partition("=")
        key = key.strip()
        now = {name: old for name, old in now.items() if name != key and not name.startswith(f"{key}.")}
        now |= _leaves(_plain(value) if value else "", f"{key}.")
    undamaged = _flat(_undamaged(base, file))
    accepted = _flat(spec)
    for key in accepted:
        said = now.get(key)
        if said is None and key not in now:
            continue  # inside of a list or of a mapping with free names, or a default
        if before.get(key) == said and key in undamaged:
            if not _alike(accepted[key], undamaged[key]):
                raise Wrong(f"an untouched key changed: {key}: {undamaged[key]!r} became {accepted[key]!r}")
        elif isinstance(said, str) and not _means(said, accepted[key]):
            raise Wrong(f"a key has another value than its text: {key}: {said[:80]!r} became {accepted[key]!r}"[:400])


@functools.cache
def _undamaged(base: str, file: Path) -> dict[str, Any]:
    whole = file.with_name("whole.yaml")
    whole.write_text(base, encoding="utf-8")
    found: dict[str, Any] = msgspec.to_builtins(read_job(whole).spec)
    return found


def _plain(text: str) -> Any:
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise Wrong(f"accepted a text that is no YAML: {error}") from None


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: text, or the list} of a tree of texts."""
    if not isinstance(tree, Mapping):
        return {prefix.rstrip("."): tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of a job, for the keys that have one."""
    found = _leaves(spec)
    return {key: value for key, value in found.items() if not isinstance(value, Mapping)}


def _means(said: str, value: Any) -> bool:
    """Whether the text of a scalar can stand for an accepted value; paths have become absolute."""
    text = said.strip()
    if value is None:
        return text in ("", "~", "null", "Null", "NULL")
    if isinstance(value, bool):
        return text.lower() == str(value).lower() or text in ("0", "1")
    if isinstance(value, (int, float)):
        try:
            number = int(text, 0) if text.lower().lstrip("+-").startswith(("0x", "0o")) else float(text)
        except (ValueError, OverflowError):
            return False
        return number == value or (math.isnan(number) and math.isnan(value)) or math.isclose(number, value)
    if isinstance(value, str):
        return value == said or value.endswith(text.lstrip("./~")) or value == _as_text(text) or "/" in value
    return True


def _as_text(text: str) -> str | None:
    """A number or true as the string that a key for texts has: `name: 0x10` is named 16."""
    try:
        value = yaml.safe_load(text)
        value = int(text, 0) if text.startswith(("0x", "0o")) else value
        value = float(text) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return None
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _alike(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)  # NaN is not itself


def main(count: int, seed: int) -> Outcome:
    """Judge `count` damaged jobs."""
    with tempfile.TemporaryDirectory() as folder:
        return outcome(NAME, TRIED, count, seed, judge_all(functools.partial(_judge, Path(folder), seed), range(count)))


if __name__ == "__main__":
    from_command_line(main, 8000)
