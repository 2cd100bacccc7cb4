"""Run ids of names in any script, and what a RUN on the command line means."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from launcher.errors import RunNotFound
from launcher.rundir import find
from launcher.rundir.directory import RunDir, RunRecord


def make_run(root: Path, run_id: str, *, submitted: float | None = 1.0, state: str = "SUCCEEDED") -> RunDir:
    run = RunDir(root / run_id)
    run.write({"plan.json": '{"train": {"train": {}}}'})
    run.save_record(
        RunRecord(run_id=run_id, name="x", backend="local", created=1.0, submitted=submitted, state=state)
    )  # fmt: skip
    return run


NAMES = {
    "demo": "demo",
    "情感分类": "情感分类",
    "情感 $(x)": "情感-x",
    "../../etc": "etc",
    "a" * 300: "a" * 60,
    "情" * 300: "情" * 60,
    "𠮷" * 60: "𠮷" * 45,  # four bytes each
    "": "run",
    "。，!": "run",
    "a\nb\x1b[31m\x00": "a-b-31m",
    "-rf": "rf",
    "ＧＰＴ：一／二": "ＧＰＴ-一-二",
    "עברית‮x": "עבריתx",  # without the override of the direction
    "cafe\u0301": "café",
    "हिन्दी": "हिन्दी",
    "a\ud800b": "a-b",
    "모델/한국어": "모델-한국어",
    "🚀 go": "go",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_id_keeps_the_letters_of_a_name_and_is_a_safe_file_name(name: str, tmp_path: Path) -> None:
    run_id = find.new_run_id(name)
    kept, stamp = run_id[: len(NAMES[name])], run_id[len(NAMES[name]) :]
    assert kept == NAMES[name]
    assert re.fullmatch(r"-[0-9]{8}-[0-9]{6}-[0-9a-f]{4}", stamp)
    assert len(run_id.encode()) <= find.MOST_BYTES + 21
    (tmp_path / f".{run_id}.json.abcdef01.tmp").touch()  # the longest name that is made of it
    run = make_run(tmp_path, run_id)
    if "/" not in name and kept != "run":
        assert find.find_run(name, tmp_path).path == run.path


def test_a_name_that_no_file_can_have_in_this_locale_loses_only_that() -> None:
    code = "from launcher.rundir import find; print(find.safe_name('\\u60c5\\u611f demo'))"
    environ = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "demo"


def test_a_run_is_meant_by_id_name_prefix_path_and_however_its_name_is_typed(tmp_path: Path) -> None:
    cafe = make_run(tmp_path, "café-模型-20260101-000000-aaaa")
    demo = make_run(tmp_path, "demo-20260101-000001-aaaa")
    other = make_run(tmp_path, "demo-2-20260101-000002-aaaa")
    for text in (cafe.run_id, "café-模型", "caf", unicodedata.normalize("NFD", "café-模"), "café 模型", str(cafe.path),
                 os.path.relpath(cafe.path), f"{cafe.path}/code/.."):  # fmt: skip
        assert find.find_run(text, tmp_path).path == cafe.path, text
    assert find.find_run("demo", tmp_path).path == demo.path  # the name, though another run begins with it
    assert find.find_run("demo-2", tmp_path).path == other.path
    for text in ("dem", "", "模型", "..", str(tmp_path), "/nowhere/x"):
        with pytest.raises(RunNotFound):
            find.find_run(text, tmp_path)


def test_a_run_is_found_from_inside_the_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "模型-20260101-000000-aaaa")
    for folder, text in ((run.path, "."), (run.path / "nodes", ".."), (tmp_path, run.run_id)):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert find.find_run(text, tmp_path / "elsewhere").path == run.path


def test_dry_runs_have_no_short_name_and_are_never_last(tmp_path: Path) -> None:
    dry = RunDir(tmp_path / "demo-20260103-000000-bbbb")
    dry.write({"plan.json": '{"train": {"train": {}}}'})
    with pytest.raises(RunNotFound, match="was started"):
        find.find_run("last", tmp_path)
    run = make_run(tmp_path, "demo-20260101-000000-aaaa")
    assert find.find_run("demo", tmp_path).path == run.path
    assert find.find_run("last", tmp_path).path == run.path
    assert find.find_run(dry.run_id, tmp_path).path == dry.path
    with pytest.raises(RunNotFound) as caught:
        find.find_run("demo-20260103", tmp_path)
    assert dry.run_id in str(caught.value.hint)


def test_last_is_what_was_really_started_last(tmp_path: Path) -> None:
    resumed = make_run(tmp_path, "a-20260101-000000-aaaa", submitted=50.0)
    make_run(tmp_path, "b-20260102-000000-aaaa", submitted=40.0)
    make_run(tmp_path, "c-20260103-000000-aaaa", submitted=None, state="FAILED")  # its target refused it
    make_run(tmp_path, "d-20260104-000000-aaaa", submitted=None, state="CANCELLED")  # a point that never ran
    make_run(tmp_path, "e-20260105-000000-aaaa").run_json.write_text("{torn")
    assert find.find_run("last", tmp_path).path == resumed.path
    starting = make_run(tmp_path, "f-20260101-000000-aaaa", submitted=None, state="PENDING")
    assert find.find_run("last", tmp_path).path == starting.path
    os.utime(starting.run_json, (45.0, 45.0))
    assert find.find_run("last", tmp_path).path == resumed.path
    killed = make_run(tmp_path, "g-20260101-000000-aaaa", submitted=None, state="FAILED")
    killed.nodes_dir.mkdir()
    killed.node_record(0).write_text("{}")  # it ran, and its launcher could not record the start
    assert find.find_run("last", tmp_path).path == killed.path


def test_without_a_started_run_last_is_the_newest_whose_start_was_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "a-20260101-000000-aaaa", submitted=None, state="FAILED")
    refused = make_run(tmp_path, "b-20260102-000000-aaaa", submitted=None, state="FAILED")
    assert find.find_run("last", tmp_path).path == refused.path


def test_ten_thousand_ids_are_matched_at_once() -> None:
    ids = [f"模型-{number}-20260101-000000-aaaa" for number in range(10_000)]
    started = time.monotonic()
    assert find.matching("模型-77", ids) == ["模型-77-20260101-000000-aaaa"]
    assert time.monotonic() - started < 2
