"""The agent's JSON is the standard library's, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.node import lightjson

VALUES = [None, True, 0, -1.5, 1e300, float("inf"), "", "中文 \"quoted\" \\ \n \ud83d", [], {}, [1, [2, {"a": None}]],
          {"key": "value", "nested": {"list": [1, 2, 3]}, "ü": "ß"}]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_written_and_read_is_what_json_writes_and_reads(value: object) -> None:
    assert lightjson.dumps(value) == json.dumps(value)
    assert lightjson.loads(f" {json.dumps(value)}\n") == value
    assert json.loads(lightjson.dumps(value, between=",\n ")) == value


@pytest.mark.parametrize("text", ["", "{", "[1,", "nul", "{} {}", '{"a" 1}', '"\x01"', "'a'"])
def test_what_json_refuses_is_refused_also_before_json_was_loaded(text: str) -> None:
    with pytest.raises(ValueError):
        lightjson.loads(text)
    code = "import sys, lightjson\nassert 'json' not in sys.modules\nlightjson.loads(sys.argv[1])"
    place = Path(lightjson.__file__).parent
    done = subprocess.run([sys.executable, "-S", "-c", code, text], cwd=place, capture_output=True, text=True)
    assert "JSONDecodeError" in done.stderr.splitlines()[-1]


def test_what_is_no_json_value_is_not_written() -> None:
    with pytest.raises(TypeError):
        lightjson.dumps({"a": object()})
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(ValueError):
        lightjson.dumps(cycle)
