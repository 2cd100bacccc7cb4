"""Texts that no job file should be: each is an error with its place, and a quick one."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.job import yamlfile
from launcher.job.load import read_job

NAMES = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(NAMES)
)

HOSTILE = {
    "deep-flow": ("env: " + "[" * 5000, "nested more than 50 levels deep"),
    "deep-closed": ("env: " + "{a: " * 2000 + "1" + "}" * 2000, "nested more than 50 levels deep"),
    "deep-block": ("".join(" " * depth + "a:\n" for depth in range(300)), "nested more than 50 levels deep"),
    "bomb": (BOMB, "line 5, column 4: not valid YAML: expands to more than 20,000 values"),
    "bomb-of-merges": (BOMB.replace("[", "{k: ").replace("]", "}").replace(", ", ", k2: "), "not valid YAML"),
    "within-itself": ("env: &a {x: *a}", "line 1, column 13: not valid YAML: *a stands inside of &a"),
    "within-a-list": ("data: {train: &a [x, [*a]]}", "*a stands inside of &a"),
    "long-number": ("train: {epochs: " + "9" * 5000 + "}", "a number of 5,000 characters"),
    "long-hex": ("train: {max_steps: 0x" + "f" * 5000 + "}", "a number of 5,002 characters"),
    "large-number": ("train: {max_steps: 0x" + "f" * 300 + "}", "max_steps"),
    "no-number": ("train: {seed: !!int abc}", "line 1, column 15: not valid YAML: not a value of type int"),
    "no-float": ("train: {epochs: !!float x}", "not a value of type float"),
    "empty-int": ("train: {seed: !!int ''}", "not a value of type int"),
    "no-bool": ("tensorboard: !!bool maybe", "not a value of type bool"),
    "no-list": ("data: {train: !!seq {a: b}}", "not valid YAML"),
    "nul": ('model: {path: "./a\\0b"}', "line 1, column 15: not valid YAML: a text cannot contain a NUL character"),
    "nul-in-a-key": ('env: {"A\\0": x}', "NUL"),
    "surrogate": ('name: "\\ud800"', "half of a surrogate pair"),
    "object": ("name: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "date-tag": ("name: !!timestamp 2001-01-01", "could not determine a constructor"),
    "binary": ("name: !!binary aGVsbG8=", "could not determine a constructor"),
    "large": ("name: '" + "a" * 50_000_000 + "'", "more than 131,072 characters"),
    "many-keys": ("env: {" + ",".join(f"K{number}: v" for number in range(11000)) + "}", "expands to more than"),
    "no-such-user": ("data: {train: ~nosuchuser/x}", "~nosuchuser/x: this machine has no such user"),
    "no-such-user-template": ("data: {chat_template: ~nosuchuser/x}", "~nosuchuser/x: this machine has no such user"),
    "no-such-user-model": ("model: {path: ~nosuchuser/x}", "~nosuchuser/x: this machine has no such user"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_refused_within_seconds(name: str, tmp_path: Path) -> None:
    text, reason = HOSTILE[name]
    file = tmp_path / "job.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(SpecError) as refused:
        read_job(file)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500
    assert time.process_time() - start < 10


def test_aliases_and_deep_values_within_the_limits_are_read() -> None:
    text = "a: &a {x: [1, 2]}\nb: *a\nc: {<<x: *a, y: [*a, *a]}\nd: " + "[" * 40 + "]" * 40
    read = yamlfile.loads(text, where="text")
    assert read["c"] == {"<<x": {"x": [1, 2]}, "y": [{"x": [1, 2]}, {"x": [1, 2]}]}


@pytest.mark.parametrize("text", ["!!int 5", "!!str 5", "!!float 1", "!!null ''", "!!map {a: 1}", "!!seq [1]"])
def test_the_tags_of_the_core_schema_are_read(text: str) -> None:
    assert yamlfile.loads(text, where="text") in (5, "5", 1.0, None, {"a": 1}, [1])


def test_a_long_name_is_no_local_model(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: {path: " + "a" * 5000 + "}")
    assert read_job(tmp_path / "job.yaml").spec.model.path == "a" * 5000


def test_a_flag_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the command line: name: "):
        read_job(None, flags={"name": "\udcff"})
