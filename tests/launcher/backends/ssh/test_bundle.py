"""The bundle is a function of the run's files, and inputs are known by their content."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from launcher.backends.ssh import bundle
from launcher.errors import DataError
from launcher.job import inputs
from launcher.job.load import convert
from launcher.job.spec import JobSpec
from launcher.plan.resolve import on_target
from launcher.rundir.directory import RunDir


def make_run(path: Path) -> RunDir:
    run = RunDir(path)
    code = {"code/agent/main.py": "print()", "code/train/a b.py": "x = 1"}
    run.write({"plan.json": "{}", "node.sh": "#!/bin/sh\n", **code})
    (run.path / "run.json").write_text("{}")
    (run.path / "events.jsonl").write_text("{}\n")
    return run


def test_the_same_files_give_the_same_bytes_and_a_change_other_bytes(tmp_path: Path) -> None:
    one, two = bundle.build(make_run(tmp_path / "a")), bundle.build(make_run(tmp_path / "b"))
    assert one == two
    run = make_run(tmp_path / "c")
    (run.code / "agent" / "main.py").write_text("print(1)")
    assert bundle.build(run) != one


def test_records_of_the_launcher_do_not_travel(tmp_path: Path) -> None:
    head, _, body = zlib.decompress(bundle.build(make_run(tmp_path / "a"))).partition(b"\n")
    assert [name for name, _ in json.loads(head)] == ["plan.json", "node.sh", "code/agent/main.py", "code/train/a b.py"]
    assert body == b"{}#!/bin/sh\nprint()x = 1"


def job(train: object, **more: object) -> JobSpec:
    return convert({"data": {"train": train, **more}}, where="test")


def test_inputs_are_named_by_their_content_and_folders_keep_their_inside(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/one.jsonl").write_text("1")
    (tmp_path / "set/two.jsonl").write_text("22")
    (tmp_path / "eval set.jsonl").write_text("333")
    files, paths = inputs.inputs(job(str(tmp_path / "set"), eval=str(tmp_path / "eval set.jsonl")))
    folder, single = paths[str(tmp_path / "set")], paths[str(tmp_path / "eval set.jsonl")]
    assert [file.link for file in files] == [f"{folder}/one.jsonl", f"{folder}/two.jsonl", single]
    assert [file.size for file in files] == [1, 2, 3]
    assert single.startswith("inputs/")
    assert single.endswith("/eval set.jsonl")
    (tmp_path / "eval set.jsonl").write_text("334")
    assert inputs.inputs(job(str(tmp_path / "eval set.jsonl")))[1][str(tmp_path / "eval set.jsonl")] != single


def test_a_split_of_a_directory_travels_with_its_directory(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text("1")
    (tmp_path / "set/test.jsonl").write_text("2")
    asked = job(f"{tmp_path}/set:train", eval=f"{tmp_path}/set:test")
    files, paths = inputs.inputs(asked)
    ((here, there),) = paths.items()
    assert (here, len(files)) == (f"{tmp_path}/set", 2)
    found = on_target(asked, paths).data
    assert (found.train, found.eval) == (f"{there}:train", f"{there}:test")


def test_hub_data_is_not_an_input(tmp_path: Path) -> None:
    assert inputs.inputs(job(["hub:some/set", {"path": "hf://other"}])) == ((), {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        inputs.inputs(job(str(tmp_path / "nowhere.jsonl")))


def test_a_programs_own_files_are_inputs_and_the_hosts_programs_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("prog.py", "sub/data.csv", "bash"):
        (tmp_path / name).write_text(name)
    words = ("bash", "prog.py", "/etc/hostname", "sub/data.csv", "sub", "--flag", "echo " * 2000)
    files, paths = inputs.inputs(convert({"program": list(words)}, where="test"))
    assert list(paths) == ["prog.py", "sub/data.csv"]
    assert [file.path for file in files] == [tmp_path / "prog.py", tmp_path / "sub/data.csv"]
    assert paths["prog.py"].endswith("/prog.py")
    assert list(inputs.program_files(["prog.py"])) == ["prog.py"]


def test_directories_with_the_same_files_in_other_places_are_other_inputs(tmp_path: Path) -> None:
    for name, places in (("one", ("a", "b")), ("two", ("a", "c"))):
        for place, text in zip(places, ("1", "2"), strict=True):
            (tmp_path / name / "adapter" / place).mkdir(parents=True)
            (tmp_path / name / "adapter" / place / "f").write_text(text)
    links = [inputs.inputs(job(str(tmp_path / name / "adapter")))[1].popitem()[1] for name in ("one", "two")]
    assert links[0] != links[1]
