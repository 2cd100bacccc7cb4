"""Read CSV, Parquet and Arrow in chunks."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train.records.chunk import CHUNK_BYTES, CHUNK_ROWS, LARGEST_OBJECT, Broken, Chunk, Objects
from train.records.encoding import UTF8_BOM, describe_encoding_error
from train.records.formats import KEYS

PART_BYTES = 64 << 20
"""Larger Parquet row groups are read in parts: pandas writes a million records as one group, and one process holds all
records of a chunk. Parts are not small, because finding one means decoding the group up to it."""


def cut_csv(path: str, shown: str) -> Iterator[Chunk]:
    """Read the file as rows to find where to cut it: quoted cells may hold line breaks."""
    csv.field_size_limit(LARGEST_OBJECT)
    with Path(path).open("rb") as file:
        taken = 0

        def lines() -> Iterator[str]:
            nonlocal taken
            for raw in file:
                text = raw.removeprefix(UTF8_BOM) if taken == 0 else raw  # else a quoted name would begin with it
                taken += len(raw)
                yield text.decode("utf-8", errors="replace")

        delimiter = _delimiter(path)
        rows = csv.reader(lines(), delimiter=delimiter)
        try:
            header = next(rows, None)
            if header is None:
                return
            columns = tuple(name.strip() for name in header)
            if trouble := twice(columns):
                yield Chunk("csv", path, shown, taken, taken, 1, broken=trouble)
                return
            start, line = taken, rows.line_num + 1
            for _ in rows:
                if taken - start >= CHUNK_BYTES:
                    yield Chunk("csv", path, shown, start, taken, line, columns, delimiter=delimiter)
                    start, line = taken, rows.line_num + 1
            if taken > start:
                yield Chunk("csv", path, shown, start, taken, line, columns, delimiter=delimiter)
        except csv.Error as error:
            yield Chunk("csv", path, shown, taken, taken, rows.line_num, broken=f"bad CSV: {error}")


def twice(columns: Sequence[str]) -> str:
    """Why it is not known which column a record has its text from; empty: no name that counts stands twice."""
    counted = [name for name in columns if name in KEYS] or [name for name in columns if name]
    found = next((name for name in counted if counted.count(name) > 1), "")
    return f"the header names the column {found!r} twice; rename or remove one" if found else ""


def _delimiter(path: str) -> str:
    """The separator of the header: the one with which most columns have known names, else with which it has most."""
    with Path(path).open("rb") as file:
        head = file.readline(LARGEST_OBJECT).removeprefix(UTF8_BOM).decode("utf-8", errors="replace")
    found = {}
    for mark in ",;\t|":
        try:
            found[mark] = [name.strip() for name in next(csv.reader([head], delimiter=mark), [])]
        except csv.Error:  # the reader of the whole file reports it, with its line
            found[mark] = head.split(mark)
    return max(found, key=lambda mark: (sum(name in KEYS for name in found[mark]), len(found[mark])))


_END = "\ue000end of the file\ue000"
"""Stands behind the last line. Within a row it shows that a quote is still open there, which csv does not mind."""


def read_csv(chunk: Chunk) -> Objects:
    csv.field_size_limit(LARGEST_OBJECT)
    raw = chunk.read_bytes()
    torn = False
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        yield chunk.line + raw.count(b"\n", 0, error.start), Broken(describe_encoding_error(error))
        text, torn = raw.decode("utf-8", errors="replace"), True
    rows = csv.reader(itertools.chain(io.StringIO(text, newline=""), (_END,)), delimiter=chunk.delimiter)
    line = chunk.line
    for row in rows:
        if row == [_END]:
            return
        if any(cell.endswith(_END) for cell in row):
            lines = rows.line_num - 1 - (line - chunk.line)
            swallowed = f", so the {lines} lines to the end of the file would be one record" if lines > 1 else ""
            yield line, Broken(f"a quote is opened here and not closed{swallowed}")
        elif torn and "\ufffd" in "".join(row):
            pass  # reported above
        elif len(row) > len(chunk.columns):
            yield line, Broken(f"{len(row)} cells in this row, {len(chunk.columns)} columns in the header")
        elif row:
            cells = {name: cell for name, cell in zip(chunk.columns, row, strict=False) if cell}
            yield line, present(cells, chunk.columns)
        line = chunk.line + rows.line_num


def present(cells: dict[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """Treat empty cells as absent, except those for which the format has an error message of its own."""
    if "instruction" in columns and not cells.get("messages") and not cells.get("conversations"):
        for key in ("instruction", "output"):
            if key in columns:
                cells.setdefault(key, "")
    return cells


def cut_parquet(path: str, shown: str) -> Iterator[Chunk]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns, unread = _columns(file.schema_arrow.names)
        if trouble := twice(file.schema_arrow.names):
            yield Chunk("parquet", path, shown, 0, 0, 1, broken=trouble)
            return
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        yield Chunk("parquet", path, shown, 0, 0, 1, broken=f"not a Parquet file: {error}")
        return
    row = 0
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        parts = -(-facts.total_byte_size // PART_BYTES) or 1
        size = max(1, -(-facts.num_rows // parts))
        last = row + facts.num_rows
        for start in range(row, last, size):
            yield Chunk("parquet", path, shown, start, min(start + size, last), start + 1, columns, unread)
        row = last


def _columns(names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(columns to decode, columns to ignore); all are decoded where no name is known."""
    known = tuple(name for name in names if name in KEYS)
    return (known, tuple(name for name in names if name not in KEYS)) if known else (tuple(names), ())


def read_parquet(chunk: Chunk) -> Objects:
    import pyarrow
    from pyarrow import parquet

    row = chunk.start
    try:
        file = parquet.ParquetFile(chunk.path)
        group, at = _row_group(file, chunk.start)
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=list(chunk.columns)):
            wanted = batch.slice(min(max(0, chunk.start - at), batch.num_rows), chunk.end - max(chunk.start, at))
            at += batch.num_rows
            for value in wanted.to_pylist():
                row += 1
                yield row, _without_nulls(value)
            if at >= chunk.end:
                return
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield row + 1, Broken(f"this Parquet file is damaged: {str(error).partition(chr(10))[0]}")


def _row_group(file: Any, row: int) -> tuple[int, int]:
    """(index of the row group that holds this row of the file, first row of the group)"""
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < first + count:
            return group, first
        first += count
    raise OSError(f"row {row + 1} of {first}: the file became shorter")


def cut_arrow(path: str, shown: str) -> Iterator[Chunk]:
    import pyarrow

    try:
        table = _arrow(path)
        columns, unread = _columns(table.column_names)
        if trouble := twice(table.column_names):
            yield Chunk("arrow", path, shown, 0, 0, 1, broken=trouble)
            return
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the latter for the name of a column
        yield Chunk("arrow", path, shown, 0, 0, 1, broken=f"not an Arrow file: {str(error).partition(chr(10))[0]}")
        return
    for start in range(0, table.num_rows, CHUNK_ROWS):
        yield Chunk("arrow", path, shown, start, min(start + CHUNK_ROWS, table.num_rows), start + 1, columns, unread)


def read_arrow(chunk: Chunk) -> Objects:
    import pyarrow

    try:
        part = _arrow(chunk.path).select(list(chunk.columns)).slice(chunk.start, chunk.end - chunk.start)
        part.validate(full=True)  # Arrow itself follows offsets out of a damaged file, and ends the process
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield chunk.line, Broken(f"this Arrow file is damaged: {str(error).partition(chr(10))[0]}")
        return
    for row, value in enumerate(part.to_pylist(), chunk.line):
        yield row, _without_nulls(value)


def _arrow(path: str) -> Any:
    """A memory-mapped table, from Arrow's stream format (datasets) or its file format (Feather)."""
    import pyarrow

    with Path(path).open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    opened = pyarrow.memory_map(path)
    return (pyarrow.ipc.open_file(opened) if is_file else pyarrow.ipc.open_stream(opened)).read_all()


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}
