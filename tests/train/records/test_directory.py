"""Files as people have them: separators, lists and objects in any file, Feather, folders of `datasets`, snapshots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from train.errors import DataError
from train.records import files
from train.records.conversation import RecordOptions
from train.records.conversations import Problem, Record, each

QUESTION = {"role": "user", "content": "q"}
ROWS = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(3)]


def answers(path: Path | str) -> list[str]:
    found = list(each(str(path)))
    assert all(isinstance(record, Record) for record in found), found
    return [record.answer for record in found if isinstance(record, Record)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "instruction\toutput\nq\ta0\nq\ta1\nq\ta2\n"),
        ("tab.csv", "instruction\toutput\nq, x\ta0\nq\ta1\nq\ta2\n"),
        ("semicolon.csv", "instruction;output\nq, x;a0\nq;a1\nq;a2\n"),
        ("bar.csv", "instruction|output\nq, x|a0\nq|a1\nq|a2\n"),
        ("comma.csv", 'instruction,output\n"q; x",a0\nq,a1\nq,a2\n'),
        ("list.jsonl", json.dumps(ROWS, indent=1)),
        ("line.jsonl", json.dumps(ROWS)),
        ("line.json", json.dumps(ROWS) + "\n\n"),
        ("printed.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
("turns.jsonl", "\n".join(json.dumps([QUESTION, {"role": "assistant", "content": f"a{i}"}]) for i in range(3))),
    ],
    ids=lambda value: value if "." in value[:20] else "",
)  # fmt: skip
def test_every_form_of_a_file_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert answers(tmp_path / name) == ["a0", "a1", "a2"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}), "records in the lists under 'train', 'test'"),
        ("a.json", json.dumps({"data": ROWS}, indent=1)[:-2], "bad JSON"),
        ("a.jsonl", "\n".join([json.dumps({"rows": ROWS})] * 2), "in the list under the key 'rows'"),
        ("a.json", json.dumps({"data": [QUESTION, QUESTION]}), "data.columns could be {messages: data}"),
        ("a.jsonl", json.dumps({"response": "a"}), "a text alone does not say"),
        ("a.txt", "plain", "does not say which part of it is the answer; data.documents: true"),
        ("a.json", json.dumps(ROWS) + "\n{}", "expected an object, got list"),
        ("a.json", json.dumps(ROWS, indent=1) + "\n{}", "text after the end of the list"),
        ("a.json", json.dumps({"instruction": ["q"], "output": ["a"]}), "holds a part that is not text"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_reason(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    problems = [str(record) for record in each(str(tmp_path / name)) if isinstance(record, Problem)]
    assert problems
    assert reason in problems[0]


@pytest.mark.parametrize("name", ["a.xls", "a.jsonl.gz"])
def test_a_kind_that_is_not_read_says_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError) as refused:
        answers(tmp_path / name)
    assert refused.value.advice


def test_feather_and_a_folder_of_datasets_are_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import feather

    feather.write_feather(pyarrow.Table.from_pylist(ROWS), str(tmp_path / "a.feather"))
    assert answers(tmp_path / "a.feather") == ["a0", "a1", "a2"]
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert answers(tmp_path / "saved") == ["a0", "a1", "a2"]
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match="holds several splits: train, test"):
        answers(tmp_path / "splits")
    assert answers(tmp_path / "splits" / "train") == ["a0", "a1", "a2"]
    assert answers(f"{tmp_path}/splits:test") == ["a0", "a1", "a2"]


def test_a_part_of_a_split_is_that_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    for name, place in (("ZLAUNCH_CACHE", "cache"), ("HF_DATASETS_CACHE", "hf")):
        monkeypatch.setenv(name, str(tmp_path / place))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert answers(f"hub:{tmp_path}/set:train[:2]") == ["a0", "a1"]


def test_a_snapshot_is_its_data_folder_and_mixed_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# card")
    line = json.dumps(ROWS[0]) + "\n"
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_text(line)
    assert answers(tmp_path) == ["a0"]
    (tmp_path / "data" / "test-00000-of-00001.jsonl").write_text(line)
    with pytest.raises(DataError, match="several splits: test, train") as refused:
        answers(tmp_path)
    assert refused.value.advice == (f"name one of them: {tmp_path}:train",)
    assert answers(f"{tmp_path}:train") == ["a0"]
    with pytest.raises(DataError, match="has no split 'dev'"):
        answers(f"{tmp_path}:dev")


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["training.jsonl", "test.jsonl"], None, "several splits: test, train"),
        (["training.jsonl", "val.jsonl"], "valid", ["val"]),
        (["train-0.jsonl", "train-1.jsonl", "dev.jsonl"], "train", ["train-0", "train-1"]),
        (["en/train.jsonl", "de/train.jsonl"], None, "several splits: de, en"),
        (["en/train.jsonl", "de/train.jsonl"], "en", ["en/train"]),
        (["en/train.jsonl", "en/test.jsonl", "de/train.jsonl"], "en", "en holds several splits: test, train"),
        (["train/a.jsonl", "dev/a.jsonl", "val/a.jsonl"], "dev", ["dev/a"]),
        (["training/a.jsonl", "train/a.jsonl"], "training", ["training/a"]),
        (["a.jsonl", "data/train.jsonl"], None, "holds records of its own, such as a.jsonl, and in data"),
        (["a.jsonl", ".cache/train.jsonl"], None, ["a"]),
        (["a.jsonl", "b.jsonl"], None, ["a", "b"]),
    ],
)
def test_a_directory_is_one_split_or_the_split_that_is_named(
    tmp_path: Path, names: list[str], split: str | None, found: Any
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"instruction": "q", "output": name.removesuffix(".jsonl")}) + "\n")
    path = f"{tmp_path}:{split}" if split else str(tmp_path)
    if isinstance(found, list):
        assert answers(path) == found
        return
    with pytest.raises(DataError, match=found):
        answers(path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("wrapper", "key", "beside"),
    [
        ({"data": ROWS}, "data", ()),
        ({"version": 1, "rows": ROWS, "info": {"n": 3}, "empty": []}, "rows", ("version", "info")),
        ({"train": ROWS}, "train", ()),
        ({"data": [[QUESTION, {"role": "assistant", "content": f"a{i}"}] for i in range(3)]}, "data", ()),
    ],
)
def test_the_records_of_a_wrapper_are_those_of_its_list(
    tmp_path: Path, wrapper: Any, key: str, beside: tuple[str, ...], indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(wrapper, indent=indent))
    assert answers(tmp_path / "a.json") == ["a0", "a1", "a2"]
    (chunk,) = files.chunks(str(tmp_path / "a.json"))
    assert (chunk.wrapper, chunk.unread) == (key, beside)


@pytest.mark.parametrize(
    "record",
    [
        {"sources": [{"url": "x"}], "instruction": "q", "output": "a0"},
        {"id": 1, "tools": [{"name": "f"}], "messages": [QUESTION, {"role": "assistant", "content": "a0"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_record_alone_is_no_wrapper(tmp_path: Path, record: Any, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(json.dumps(record, indent=indent))
    assert answers(tmp_path / "a.json") == ["a0"]


def test_a_column_that_the_job_names_is_read_from_a_table_beside_known_ones(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]] = [{"frage": "q", "antwort": "a", "category": "x", "input": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = RecordOptions(columns=(("frage", "instruction"), ("antwort", "output")))
    (record,) = each(str(tmp_path / "a.parquet"), options)
    assert isinstance(record, Record)
    assert record.messages == (("user", "q"), ("assistant", "a"))
