"""Files as people have them: separators, lists and objects in any file, Feather, folders of `datasets`, snapshots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from train.errors import DataError
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
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "in the list under the key 'data'"),
        ("a.jsonl", json.dumps({"rows": ROWS}), "in the list under the key 'rows'"),
        ("a.json", json.dumps(ROWS) + "\n{}", "expected an object, got list"),
        ("a.json", json.dumps(ROWS, indent=1) + "\n{}", "text after the end of the list"),
        ("a.json", json.dumps({"instruction": ["q"], "output": ["a"]}), "holds a part that is not text"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_reason(tmp_path: Path, name: str, text: str, reason: str) -> None:
    import re

    (tmp_path / name).write_text(text, encoding="utf-8")
    problems = [str(record) for record in each(str(tmp_path / name)) if isinstance(record, Problem)]
    assert problems
    assert re.search(reason, problems[0])


@pytest.mark.parametrize("name", ["a.xlsx", "a.jsonl.gz", "a.txt"])
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
    with pytest.raises(DataError, match="holds the splits train, test"):
        answers(tmp_path / "splits")
    assert answers(tmp_path / "splits" / "train") == ["a0", "a1", "a2"]


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
    with pytest.raises(DataError, match="several splits"):
        answers(tmp_path)


def test_a_column_that_the_job_names_is_read_from_a_table_beside_known_ones(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]] = [{"frage": "q", "antwort": "a", "category": "x", "input": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = RecordOptions(columns=(("frage", "instruction"), ("antwort", "output")))
    (record,) = each(str(tmp_path / "a.parquet"), options)
    assert isinstance(record, Record)
    assert record.messages == (("user", "q"), ("assistant", "a"))
