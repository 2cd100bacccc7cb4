"""Damaged data files: what is accepted is what an independent reader finds, and nothing is lost without a word.

The independent readers are Python's json and csv modules and pyarrow.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import random
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import feather, parquet

from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source
from train.errors import UserError
from train.records.conversations import Problem, each

NAME = "data files"
TRIED = "JSON lines, JSON lists, CSV, TSV, Parquet, Arrow and workbooks: cut, bits flipped, bytes put in or removed"
_ROWS = [{"instruction": f"问{i}", "input": "", "output": f"答 {i}"} for i in range(30)]
_CHATS = [
    {"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}]} for i in range(30)
]
_INSERTS = (
    *(b"\0", b'"', b"[", b"{", b"}", b"\n", b"\xff", b",", b"\\u", b"null", b"1e999", b"\xef\xbb\xbf", b"\r", b"\t"),
    *(b'"output":', b"[" * 3000, b"9" * 5000, b"\\ud800", b"\xf0\x9f", b"NaN", b"\x1a", b"\n\n\n", b'""'),
)
Pair = tuple[str, str]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _table(separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(_ROWS)
    return text.getvalue().encode()


def _columns(kind: str, rows: list[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "f")
        table = pa.Table.from_pylist(rows)
        if kind == "parquet":
            parquet.write_table(table, file)
        else:
            feather.write_feather(table, file, compression="uncompressed")
        return file.read_bytes()


def _workbook(change: Callable[[str, bytes], bytes]) -> bytes:
    """The rows as an .xlsx; `change` gets the name and content of each member."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    names = list(_ROWS[0])
    shared = [*names, *(str(row[name]) for row in _ROWS for name in names)]
    rows = "".join(
        f'<row r="{number + 1}">'
        + "".join(
            f'<c r="{chr(65 + at)}{number + 1}" t="s" s="1"><v>{number * len(names) + at}</v></c>'
            for at in range(len(names))
        )
        + "</row>"
        for number in range(len(_ROWS) + 1)
    )
    members = {
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        '<sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": '<R><R Id="r1" Target="worksheets/s.xml"/></R>',
        "xl/sharedStrings.xml": f'<sst xmlns="{main}">'
        + "".join(f"<si><t>{text}</t></si>" for text in shared)
        + "</sst>",
        "xl/styles.xml": f'<s xmlns="{main}"><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs></s>',
        "xl/worksheets/s.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>',
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as book:
        for name, text in members.items():
            book.writestr(name, change(name, text.encode()))
    return made.getvalue()


def _damaged_member(rnd: random.Random) -> bytes:
    """A workbook whose zip is sound, but not the XML in one of its members."""
    chosen = rnd.choice(("xl/worksheets/s.xml", "xl/worksheets/s.xml", "xl/sharedStrings.xml", "xl/styles.xml", "xl/w"))
    numbers = ("-1", "nan", "1e999", "99999999999999999999", "x", "", "1.5", "９", "A1:B2", "e", "inlineStr", "d", "n")

    def change(name: str, content: bytes) -> bytes:
        if not name.startswith(chosen):
            return content
        if rnd.random() < 0.4:
            return damaged(rnd, content)
        text = content.decode()
        for _ in range(rnd.randint(1, 3)):
            places = [found.span(1) for found in re.finditer(r'(?:<v>|t="|s="|r="|numFmtId=")([^"<]*)', text)]
            if places:
                start, end = rnd.choice(places)
                text = text[:start] + rnd.choice(numbers) + text[end:]
        return text.encode()

    return _workbook(change)


@functools.cache
def files() -> dict[str, bytes]:
    """The undamaged files, by name."""
    return {
        "rows.jsonl": _lines(_ROWS),
        "chats.jsonl": _lines(_CHATS),
        "rows.json": json.dumps(_ROWS, ensure_ascii=False, indent=1).encode(),
        "chats.json": json.dumps(_CHATS).encode(),
        "rows.csv": _table(","),
        "rows.tsv": _table("\t"),
        "rows.parquet": _columns("parquet", _ROWS),
        "chats.parquet": _columns("parquet", _CHATS),
        "rows.feather": _columns("feather", _ROWS),
        "rows.xlsx": _workbook(lambda _, text: text),
    }


def damaged(rnd: random.Random, content: bytes) -> bytes:
    data, chance = bytearray(content), rnd.random()
    if chance < 0.3:
        return bytes(data[: rnd.randrange(len(data))])
    if chance < 0.65:
        for _ in range(rnd.randint(1, 12)):
            data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
    elif chance < 0.85:
        for _ in range(rnd.randint(1, 5)):
            place = rnd.randrange(len(data))
            data[place:place] = rnd.choice([*_INSERTS, rnd.randbytes(8), bytes(data[: rnd.randint(1, 60)])])
    else:
        place = rnd.randrange(len(data))
        del data[place : place + rnd.randint(1, 100)]
    return bytes(data)


def _judge(folder: Path, seed: int, number: int) -> str:
    rnd = source(seed, NAME, number)
    name = rnd.choice(list(files()))
    inside = name == "rows.xlsx" and rnd.random() < 0.7
    data = _damaged_member(rnd) if inside else damaged(rnd, files()[name])
    file = folder / name
    file.write_bytes(data)
    accepted: list[Pair] = []
    problems: list[Problem] = []
    try:
        for record in each(str(file)):
            if isinstance(record, Problem):
                problems.append(record)
                str(record).encode("utf-8", "surrogatepass")
            else:
                accepted.append((record.messages[-2][1] if len(record.messages) > 1 else "", record.answer))
    except UserError:
        return "refused"
    finally:
        file.unlink()
    independent = _independent(name, data)
    if independent is None:
        return "accepted"
    known = {_stripped(pair) for pair in independent}
    for pair in accepted:
        if _stripped(pair) not in known:
            raise Wrong(f"a record of {name} that no other reader finds: {pair!r}; {data[:120]!r}")
    told = any("the rest of the file is not read" in problem.text for problem in problems)
    if name.endswith(".jsonl") and not told and (whole := _sound_lines(data)) > len(accepted) + len(problems):
        raise Wrong(f"records of {name} lost without a word: {whole} lines, {len(accepted)} records, {len(problems)}")
    if name.endswith("sv") and not problems and _has_open_quote(data):
        raise Wrong(f"lines of {name} lost in a quote that is not closed: {data[-120:]!r}")
    return "read in part, with problems" if problems else "read"


def _has_open_quote(data: bytes) -> bool:
    """Whether the end of a table stands inside of a quoted cell, whatever separates its cells."""
    text = data.decode("utf-8-sig", "replace")
    return all(_ends_within_a_quote(text, mark) for mark in ",\t;|")


def _ends_within_a_quote(text: str, delimiter: str) -> bool:
    rows, last = csv.reader(io.StringIO(f"{text}\n~", newline=""), delimiter=delimiter), [""]
    with contextlib.suppress(csv.Error):
        for last in rows:  # noqa: B007 # the last row
            pass
        return last != ["~"]
    return False


def _stripped(pair: Pair) -> Pair:
    question, answer = (text.replace("\r\n", "\n").strip() for text in pair)
    return question, answer


def _sound_lines(data: bytes) -> int:
    return sum(1 for line in data.split(b"\n") if line.strip())


def _independent(name: str, data: bytes) -> list[Pair] | None:
    """The pairs that another reader finds; None if it cannot be asked."""
    suffix = name.rpartition(".")[2]
    try:
        if suffix == "jsonl":
            lines = [pair for line in data.split(b"\n") for pair in _pairs_of_text(line)]
            return [*lines, *_pairs_of_list(data)]  # an object may take several lines
        if suffix == "json":
            return list(_pairs_of_list(data))
        if suffix == "xlsx":
            return None  # its cells refer to texts and formats of other members
        if suffix in ("csv", "tsv"):
            return None if b"\0" in data else list(_pairs_of_table(data))
        reader = parquet.read_table if suffix == "parquet" else feather.read_table
        table = reader(pa.BufferReader(data))
        table.validate(full=True)
        return [pair for row in table.to_pylist() for pair in _pairs(row)]
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError):
        return None


def _pairs_of_text(line: bytes) -> Iterator[Pair]:
    try:
        yield from _pairs(json.loads(line.decode("utf-8-sig", "surrogatepass")))
    except (ValueError, RecursionError):
        return


def _pairs_of_list(data: bytes) -> Iterator[Pair]:
    """Every object of a text that may be damaged anywhere."""
    text, decoder, place = data.decode("utf-8", "replace"), json.JSONDecoder(), 0
    while (place := text.find("{", place)) >= 0:
        try:
            value, _ = decoder.raw_decode(text, place)
            yield from _pairs(value)
        except (ValueError, RecursionError):
            pass
        place += 1


def _pairs_of_table(data: bytes) -> Iterator[Pair]:
    csv.field_size_limit(1 << 24)
    text = data.decode("utf-8-sig", "surrogateescape")
    for separator in ",\t;":
        try:
            for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator):
                yield from _pairs({str(key): value for key, value in row.items()})
        except csv.Error:
            continue


def _pairs(row: Any) -> Iterator[Pair]:
    """(question, answer) of a row, in every way in which its fields can be a record."""
    if not isinstance(row, dict):
        return
    turns = row.get("messages")
    if isinstance(turns, list):
        texts = [turn.get("content") if isinstance(turn, dict) else None for turn in turns]
        for question in texts:
            for answer in texts:
                if isinstance(answer, str):
                    yield question if isinstance(question, str) else "", answer
    texts = [str(value) for value in row.values() if isinstance(value, (str, int, float))]
    for answer in texts:
        yield "", answer
        for question in texts:
            yield question, answer
            for more in texts:
                yield f"{question}\n{more}", answer
                yield f"{question}\n\n{more}", answer


def main(count: int, seed: int) -> Outcome:
    """Judge `count` damaged data files."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    files()
    with tempfile.TemporaryDirectory() as folder:
        return outcome(NAME, TRIED, count, seed, judge_all(functools.partial(_judge, Path(folder), seed), range(count)))


if __name__ == "__main__":
    from_command_line(main, 4000)
