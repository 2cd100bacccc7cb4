"""Files of every kind, cut into chunks of any size, give the same records with the same lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from train.errors import DataError
from train.records import files, json_text, tables
from train.records.conversations import Problem, Record, each

RECORDS = [
    {"instruction": f'问 {i}\n"zwei"', "input": "x" * (i % 7), "output": f"答 {i}", "history": [["a", "b"]]}
    for i in range(40)
]


def write_jsonl(path: Path) -> None:
    path.write_text("\ufeff" + "\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, ensure_ascii=False, indent=2), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.DictWriter(file, list(RECORDS[0]))
        rows.writeheader()
        rows.writerows({**record, "history": json.dumps(record["history"])} for record in RECORDS)


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path, row_group_size=7)


def write_arrow(path: Path) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(RECORDS)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


WRITERS = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".arrow": write_arrow,
}


def load(path: Path | str) -> list[Record | Problem]:
    return list(each(str(path)))


@pytest.mark.parametrize("size", [64, 300, 1 << 20])
@pytest.mark.parametrize("suffix", WRITERS)
def test_records_are_the_same_in_every_format_however_the_file_is_cut(
    tmp_path: Path, suffix: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reader in (json_text, tables):
        monkeypatch.setattr(reader, "CHUNK_BYTES", size)
    monkeypatch.setattr(tables, "CHUNK_ROWS", max(1, size // 64))
    path = tmp_path / f"数据 $(x){suffix}"
    WRITERS[suffix](path)
    found = load(path)
    assert [record.messages for record in found] == [  # type: ignore[union-attr]
        (
            ("user", "a"),
            ("assistant", "b"),
            ("user", f"{r['instruction']}\n{r['input']}" if r["input"] else r["instruction"]),
            ("assistant", r["output"]),
        )
        for r in RECORDS
    ]
    lines = [record.line for record in found]
    assert lines == sorted(set(lines))
    assert len(list(files.chunks(str(path)))) > 1 or size > 300
    if suffix == ".csv":  # a question holds a line break, so each row is two lines
        assert lines == [2 + 2 * i for i in range(len(RECORDS))]
    elif suffix != ".json":
        assert lines == list(range(1, len(RECORDS) + 1))
    else:
        text = path.read_text(encoding="utf-8").splitlines()
        assert all(text[line - 1].strip() == "{" for line in lines)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"instruction,output\nq,a\nq,\n", 3, "the answer is empty"),
        (b"instruction,output\nq,a\nq,b,c\n", 3, "3 cells in this row, 2 columns in the header"),
        (b"instruction,output\nq,a\n\xff,b\n", 3, "not UTF-8"),
        (b"messages\nnonsense\n", 2, "messages is a text but not a JSON list"),
        (b"subject,body\na,b\n", 2, "none of the keys"),
        (b'instruction,output\nq,a\nq,"b\nq,c\nq,d\n', 3, "not closed, so the 3 lines to the end of the file"),
        (b'instruction,output\nq,a\nq,"b', 3, "a quote is opened here and not closed"),
        (b'instruction\toutput\r\nq\ta\r\nq\t"b\r\nq\tc\r\n', 3, "not closed, so the 2 lines to the end"),
        (b"instruction,instruction,output\nq,,a\n", 1, "the header names the column 'instruction' twice"),
        (b"body,body\na,b\n", 1, "the header names the column 'body' twice"),
    ],
)
def test_a_csv_row_that_cannot_be_used_is_reported_with_its_line(
    tmp_path: Path, content: bytes, line: int, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    problems = [problem for problem in load(path) if isinstance(problem, Problem)]
    assert [problem.line for problem in problems] == [line]
    assert message in str(problems[0])


@pytest.mark.parametrize("content", [b"instruction,output,,\nq,a,,\n", b"instruction,x,output,x\nq,1,a,2\n"])
def test_columns_that_hold_nothing_for_a_record_may_share_a_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    (record,) = load(tmp_path / "a.csv")
    assert isinstance(record, Record)
    assert record.messages == (("user", "q"), ("assistant", "a"))


def test_a_quoted_last_cell_is_closed_with_and_without_a_line_end(tmp_path: Path) -> None:
    for end in (b"", b"\n", b"\r\n", b"\n\n"):
        (tmp_path / "a.csv").write_bytes(b'instruction,output\nq,"a\n""b"""' + end)
        (record,) = load(tmp_path / "a.csv")
        assert isinstance(record, Record)
        assert record.answer == 'a\n"b"'


@pytest.mark.parametrize("size", [64, 1 << 20])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(b"\xff", "not UTF-8"), (b"\xe7", "not UTF-8"), (b'"', "bad JSON"), (b"}", "bad JSON"), (b"\\ud800", "bad JSON")],
)
def test_objects_before_a_damaged_one_are_read_and_the_loss_of_those_behind_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, damage: bytes, message: str
) -> None:
    monkeypatch.setattr(json_text, "CHUNK_BYTES", size)
    text = b"\n".join(json.dumps({"instruction": f"q{n}", "output": "a"}, indent=1).encode() for n in range(9))
    place = text.index(b"q4")
    (tmp_path / "a.jsonl").write_bytes(text[: place - 1] + damage + text[place - 1 :])
    *records, problem = load(tmp_path / "a.jsonl")
    assert [record.messages[0][1] for record in records if isinstance(record, Record)] == ["q0", "q1", "q2", "q3"]
    assert isinstance(problem, Problem)
    assert problem.line == 4 * 4 + 2
    assert message in problem.text
    assert problem.text.endswith("; the rest of the file is not read")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_whose_columns_share_a_name_is_a_problem(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table([["q"], ["r"], ["a"]], names=["instruction", "instruction", "output"])
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (problem,) = load(path)
    assert "names the column 'instruction' twice" in str(problem)


def test_a_row_with_a_null_in_a_table_lacks_that_key(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"instruction": "q", "output": "a"}, {"instruction": "q", "output": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = load(tmp_path / "a.parquet")
    assert isinstance(found[0], Record)
    assert str(found[1]).endswith("a.parquet:2: the key 'output' is missing (found: instruction)")


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.jsonl"])
def test_a_file_that_is_not_what_its_name_says_is_a_problem_and_not_a_crash(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[\x00\xff not it")
    found = load(tmp_path / name)
    assert len(found) == 1
    assert isinstance(found[0], Problem)


def test_a_json_list_is_read_up_to_the_object_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "CHUNK_BYTES", 128)
    path = tmp_path / "a.json"
    good = json.dumps(RECORDS[0])
    path.write_text(f"[\n{good},\n{good},\n{{'single': 1}},\n{good}]", encoding="utf-8")
    found = load(path)
    assert [type(item).__name__ for item in found] == ["Record", "Record", "Problem"]
    assert str(found[2]).startswith(f"{path}:4: bad JSON")


def test_a_directory_is_all_its_files_of_records(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl")
    write_csv(tmp_path / "a.csv")
    (tmp_path / "notes.txt").write_text("no records")
    assert len(load(tmp_path)) == 2 * len(RECORDS)


def test_a_hub_data_set_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def __init__(self, file: str) -> None:
            self.cache_files = [{"filename": file}]

    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, split: str) -> Loaded:
        asked.append((name, config, split))
        return Loaded(str(tmp_path / "a.arrow"))

    write_arrow(tmp_path / "a.arrow")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("hub:owner/name")) == len(RECORDS)
    assert len(load("hub:owner/name:test")) == len(RECORDS)
    assert len(load("hub:owner/name:zh:test")) == len(RECORDS)
    assert asked == [("owner/name", None, "train"), ("owner/name", None, "test"), ("owner/name", "zh", "test")]
    with pytest.raises(DataError, match="expected hub:owner/name"):
        load("hub:a:b:c:d")


def test_sharegpt_and_openai_roles_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    odd = [*turns[:2], {"from": "judge", "value": "x"}]
    path.write_text("".join(json.dumps({"conversations": one}) + "\n" for one in (turns, odd)))
    good, bad = load(path)
    assert good.messages == (("system", "s"), ("user", "q"), ("assistant", "a"))  # type: ignore[union-attr]
    assert "turn 3 has the unknown role 'judge'" in str(bad)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("quoted.csv", '\ufeff"instruction","output"\nq,a\n'),
        ("plain.csv", "\ufeffinstruction,output\nq,a\n"),
        ("a.jsonl", '\ufeff{"instruction": "q", "output": "a"}\n'),
        ("a.json", '\ufeff[{"instruction": "q", "output": "a"}]'),
    ],
)
def test_a_byte_order_mark_belongs_to_no_record(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [record.messages for record in load(tmp_path / name)] == [(("user", "q"), ("assistant", "a"))]  # type: ignore[union-attr]


def test_a_replacement_character_that_the_file_itself_holds_is_a_character_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\nwas \ufffd here,a\nq,b\n", encoding="utf-8")
    assert [record.answer for record in load(path)] == ["a", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "instruction,output\n问,答\n"),
        ("a.jsonl", '{"instruction": "问", "output": "答"}\n'),
        ("a.json", '[{"instruction": "问", "output": "答"}]'),
    ],
)
@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_another_encoding_is_reported_with_the_command_that_mends_it(
    tmp_path: Path, name: str, content: str, encoding: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding=encoding)
    messages = [str(problem) for problem in load(path) if isinstance(problem, Problem)]
    assert f"iconv -f {'GB18030' if encoding == 'gbk' else 'UTF-16'} -t UTF-8" in messages[0]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{}\n{}\n"), ("a.json", "[{}, {}]")])
def test_half_of_an_emoji_is_a_problem_of_its_record_and_not_a_crash(tmp_path: Path, name: str, content: str) -> None:
    good = '{"instruction": "\\u4f60 \\ud83d\\ude00", "output": "a"}'
    torn = '{"instruction": "\\ud83d", "output": "a"}'
    (tmp_path / name).write_text(content.replace("{}", good, 1).replace("{}", torn), encoding="utf-8")
    whole, half = load(tmp_path / name)
    assert isinstance(whole, Record)
    assert whole.messages[0] == ("user", "你 😀")
    assert "holds half of a character (\\ud83d" in str(half)


def test_a_compressed_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError) as refused:
        load(tmp_path / "a.jsonl.gz")
    assert "unpack it" in refused.value.advice[0]


def test_the_input_alone_may_be_the_question(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "", "input": "q", "output": "a"}\n', encoding="utf-8")
    assert load(path)[0].messages[0] == ("user", "q")  # type: ignore[union-attr]


def test_a_large_row_group_of_a_table_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(tables, "PART_BYTES", 2048)
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(500)]
    table = pyarrow.Table.from_pylist([{"messages": each, "extra": i} for i, each in enumerate(turns)])
    parquet.write_table(table, path, row_group_size=300)
    assert len(list(files.chunks(str(path)))) > 4
    found = load(path)
    assert [record.answer for record in found] == [f"a{i}" for i in range(500)]  # type: ignore[union-attr]
    assert [record.line for record in found] == list(range(1, 501))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{}\n{}\n"), ("a.json", "[{},\n{}]")])
@pytest.mark.parametrize(
    ("value", "reason"),
    [("1" * 5000, "bad JSON: Exceeds the limit"), ("[" * 100_000 + "]" * 100_000, "bad JSON: nested too deeply")],
)
def test_json_that_python_refuses_is_a_problem_of_its_line(
    tmp_path: Path, name: str, content: str, value: str, reason: str
) -> None:
    good = '{"instruction": "q", "output": "a"}'
    (tmp_path / name).write_text(content.replace("{}", good, 1).replace("{}", f'{{"output": {value}}}'))
    record, problem = load(tmp_path / name)
    assert isinstance(record, Record)
    assert str(problem).startswith(f"{tmp_path / name}:2: {reason}")
