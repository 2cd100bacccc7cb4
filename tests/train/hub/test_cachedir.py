"""Locks of the caches, where there are some and where the file system has none."""

from __future__ import annotations

import errno
import fcntl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from train.hub.cachedir import locked


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_one_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    inside: list[int] = []

    def work(number: int) -> int:
        with locked(tmp_path / "a.lock") as held:
            assert held
            inside.append(number)
            time.sleep(0.01)
            most = len(inside)
            inside.remove(number)
        return most

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {1}


def test_missing_file_locks_are_no_error_and_other_errors_are(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path / "a.lock") as one, locked(tmp_path / "a.lock") as two:
        assert (one, two) == (False, False)

    def flock(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "a.lock"):
        pass


def test_several_make_the_same_model_or_tokens_without_a_lock(tmp_path: Path, no_locks: None) -> None:
    """Threads: processes of several nodes may have the same numbers too."""
    from tests.beds import bpe
    from tests.train.templating.test_chat_template import SMOLLM2
    from train.data import cache
    from train.model import base

    together = threading.Barrier(3)

    def make(place: Path) -> None:
        (place / "config.json").write_text("{}")
        together.wait(20)

    (tmp_path / "a.jsonl").write_text('{"instruction": "hello", "output": "again"}\n' * 50)
    recipe = bpe.recipe(SMOLLM2)

    def tokens(_: int) -> int:
        together.wait(20)
        return len(cache.entry([str(tmp_path / "a.jsonl")], recipe, tmp_path / "cache", processes=1).tokens)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: base._once(tmp_path / "model", make), range(3)))
        assert list(pool.map(tokens, range(3))) == [50] * 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["a.jsonl", "cache", "model"]
    assert not list((tmp_path / "cache").glob("*.tmp"))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_several_convert_the_same_model_without_a_lock(tmp_path: Path, no_locks: None) -> None:
    pytest.importorskip("torch")
    from tests.beds.models import MODELS
    from train.original.conversion import converted

    source = MODELS["chatglm2"][1](tmp_path / "chatglm")
    with ThreadPoolExecutor(3) as pool:
        places = set(pool.map(lambda _: converted(source, lambda _: None, tmp_path / "cache"), range(3)))
    (place,) = places
    assert (place / "config.json").is_file()
    assert [path.name for path in place.parent.iterdir() if path.suffix != ".lock"] == [place.name]
