"""Read the sheet of an .xlsx workbook. The first row names the columns.

A workbook is a zip of XML files. Each cell is read as its text, number or date; of a formula, its last value is read.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from xml.etree import ElementTree

from train.records.chunk import Broken, Chunk, Objects
from train.records.tables import present, twice

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_DATE_IDS = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})
"""Built-in number formats that show a number as a date or time."""
_PERCENT_IDS = frozenset({9, 10})
_QUOTED = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_ELAPSED = re.compile(r"\[[hms]+\]")
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")


_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, ElementTree.ParseError, EOFError, NotImplementedError, RuntimeError),
    *(LookupError, ValueError, OverflowError),
)
"""What zipfile and expat raise for damaged, encrypted or unknown content, and what wrong numbers in it lead to."""
_MOST_EXPANSION = 200
"""Bytes of content per byte of the file, beyond BIG. A sheet of one repeated value has about 100."""
_BIG = 64 << 20


class _CellError(Exception):
    """Why a cell has no value, in words for the author of the file."""


class _Style(NamedTuple):
    """What a number is shown as."""

    is_date: bool = False
    is_duration: bool = False
    is_percent: bool = False


def cut_workbook(path: str, shown: str) -> Iterator[Chunk]:
    """One chunk: a sheet has no places where it could be cut without reading what stands before."""
    try:
        with zipfile.ZipFile(path) as book:
            for member in book.infolist():
                if member.file_size > max(_BIG, _MOST_EXPANSION * member.compress_size):
                    raise zipfile.BadZipFile(f"{member.filename} expands to {member.file_size:,} bytes")
            sheets = [(name, place) for name, place in _sheets(book) if next(_rows(book, place), None) is not None]
    except _DAMAGE as error:
        yield Chunk("xlsx", path, shown, 0, 0, 1, broken=f"not an .xlsx workbook: {error}")
        return
    if len(sheets) > 1:
        names = ", ".join(name for name, _ in sheets)
        broken = f"the workbook holds several sheets: {names}; save the one to train on as a file of its own"
        yield Chunk("xlsx", path, shown, 0, 0, 1, broken=broken)
    elif sheets:
        yield Chunk("xlsx", path, shown, 0, 0, 1)


def read_workbook(chunk: Chunk) -> Objects:
    last = chunk.line
    try:
        for last, value in _records(chunk):
            yield last, value
    except _DAMAGE as error:
        yield last + 1, Broken(f"this workbook is damaged: {error}")


def _records(chunk: Chunk) -> Objects:
    with zipfile.ZipFile(chunk.path) as book:
        (place,) = [place for _, place in _sheets(book) if next(_rows(book, place), None) is not None]
        reader = _CellReader(book)
        header: dict[int, str] = {}
        for number, row in _rows(book, place):
            try:
                cells = {column: value for column, cell in row if (value := reader.value(cell)) not in (None, "")}
            except _CellError as error:
                yield number, Broken(str(error))
                continue
            if not header:
                header = {column: str(value).strip() for column, value in cells.items()}
                if trouble := twice(tuple(header.values())):
                    yield number, Broken(trouble)
                    return
            elif beyond := cells.keys() - header.keys():
                yield number, Broken(f"a cell in column {_letters(min(beyond))}, which has no name in the first row")
            elif cells:
                yield number, present({header[at]: value for at, value in cells.items()}, tuple(header.values()))


def _sheets(book: zipfile.ZipFile) -> list[tuple[str, str]]:
    """(name, file in the zip) of each sheet."""
    relations = {
        node.get("Id"): node.get("Target", "")
        for node in ElementTree.fromstring(book.read("xl/_rels/workbook.xml.rels"))
    }
    found = []
    for sheet in ElementTree.fromstring(book.read("xl/workbook.xml")).iter(f"{_MAIN}sheet"):
        target = relations.get(sheet.get(_RELATION), "")
        if "worksheets/" in target:  # not a chart
            place = target.removeprefix("/")
            found.append((sheet.get("name", ""), place if place.startswith("xl/") else f"xl/{place}"))
    return found


Row = list[tuple[int, ElementTree.Element]]
"""(column from 0, cell) pairs."""


def _rows(book: zipfile.ZipFile, place: str) -> Iterator[tuple[int, Row]]:
    """(number of the row, its cells) of the rows with a value."""
    last = 0
    with book.open(place) as file:
        for _, node in ElementTree.iterparse(file):
            if node.tag != f"{_MAIN}row":
                continue
            last = int(node.get("r") or last + 1)
            cells: Row = []
            for cell in node.iter(f"{_MAIN}c"):
                place_of = re.match("[A-Z]+", cell.get("r") or "")
                cells.append((_column(place_of[0]) if place_of else len(cells), cell))
            if any(len(cell) for _, cell in cells):
                yield last, cells
            node.clear()


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number - 1


def _letters(column: int) -> str:
    found = ""
    while column >= 0:
        column, rest = divmod(column, 26)
        found, column = chr(65 + rest) + found, column - 1
    return found


class _CellReader:
    """Knows what cells refer to: shared texts, number formats and the first day of dates."""

    def __init__(self, book: zipfile.ZipFile) -> None:
        names = set(book.namelist())
        self._texts: list[str] = []
        if "xl/sharedStrings.xml" in names:
            with book.open("xl/sharedStrings.xml") as file:
                self._texts = [_text(node) for _, node in ElementTree.iterparse(file) if node.tag == f"{_MAIN}si"]
        self._styles = _styles(book.read("xl/styles.xml")) if "xl/styles.xml" in names else []
        properties = ElementTree.fromstring(book.read("xl/workbook.xml")).find(f"{_MAIN}workbookPr")
        from_1904 = properties is not None and properties.get("date1904") in ("1", "true")
        self._first_day = datetime(1904, 1, 1) if from_1904 else datetime(1899, 12, 30)

    def value(self, cell: ElementTree.Element) -> Any:
        """The text or number of a cell; None for an empty one. Raises _CellError."""
        kind, found = cell.get("t", "n"), cell.find(f"{_MAIN}v")
        text = found.text if found is not None else None
        if kind == "inlineStr":
            return _text(cell)
        if text is None:
            if cell.find(f"{_MAIN}f") is not None:
                raise _CellError(f"cell {cell.get('r')} is a formula without a value: open and save the file in Excel")
            return None
        if kind == "s":
            place = int(text)
            if not 0 <= place < len(self._texts):
                raise _CellError(f"cell {cell.get('r')} refers to text {text} of {len(self._texts)}")
            return self._texts[place]
        if kind == "e":
            raise _CellError(f"cell {cell.get('r')} holds the error {text}")
        if kind == "b":
            return "TRUE" if text == "1" else "FALSE"
        if kind != "n":
            return _unescaped(text)
        number = float(text)
        if not math.isfinite(number):
            raise _CellError(f"cell {cell.get('r')} holds the number {text}")
        return self._number(number, int(cell.get("s") or 0))

    def _number(self, number: float, style: int) -> Any:
        """With 15 digits, as Excel shows it."""
        shown = self._styles[style] if 0 <= style < len(self._styles) else _Style()
        if shown.is_duration:
            seconds = round(number * 86400)
            return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        if shown.is_date:
            moment = self._first_day + timedelta(seconds=round(number * 86400))
            text = moment.strftime("%H:%M:%S" if number < 1 else "%Y-%m-%d %H:%M:%S")
            return text.removesuffix(" 00:00:00")
        if shown.is_percent:
            return f"{number * 100:.15g}%"
        short = float(f"{number:.15g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _styles(text: bytes) -> list[_Style]:
    """The number format of each cell style."""
    tree = ElementTree.fromstring(text)
    own: Mapping[int, str] = {
        int(node.get("numFmtId") or 0): node.get("formatCode", "").lower() for node in tree.iter(f"{_MAIN}numFmt")
    }
    styles = tree.find(f"{_MAIN}cellXfs")
    found = []
    for node in styles if styles is not None else ():
        number = int(node.get("numFmtId") or 0)
        code = _QUOTED.sub("", own.get(number, ""))
        is_date = number in _DATE_IDS if number not in own else any(letter in code for letter in "ymdhs")
        is_duration = number == 46 or _ELAPSED.search(own.get(number, "")) is not None
        found.append(_Style(is_date and "general" not in code, is_duration, number in _PERCENT_IDS or "%" in code))
    return found


def _text(node: ElementTree.Element) -> str:
    """The text of a cell or shared text, without readings that are shown above characters."""
    readings = {part for reading in node.iter(f"{_MAIN}rPh") for part in reading}
    return _unescaped("".join(part.text or "" for part in node.iter(f"{_MAIN}t") if part not in readings))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text
