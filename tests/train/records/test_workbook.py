"""Workbooks: texts, numbers, dates and formulas of the one sheet that holds records."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from train.records import files
from train.records.chunk import Broken

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
HEADER = '<c t="s"><v>0</v></c><c t="s"><v>1</v></c>'
STYLES = (  # 0 General, 1 a date, 2 percent, 3 a date of its own, 4 a duration, 5 seconds as a unit
    f'<styleSheet xmlns="{MAIN}"><numFmts><numFmt numFmtId="164" formatCode="yyyy&quot;年&quot;m&quot;月&quot;"/>'
    '<numFmt numFmtId="165" formatCode="[h]:mm:ss"/><numFmt numFmtId="166" formatCode="0.0&quot; s&quot;"/></numFmts>'
    "<cellXfs>"
    + "".join(f'<xf numFmtId="{number}"/>' for number in (0, 14, 9, 164, 165, 166))
    + "</cellXfs></styleSheet>"
)


def workbook(path: Path, *sheets: str, texts: str = "", date1904: bool = False) -> Path:
    """`sheets`: rows of each, as XML. The first shared texts are `question` and `answer`."""
    names = "".join(f'<sheet name="S{n}" sheetId="{n}" r:id="r{n}"/>' for n in range(len(sheets)))
    links = "".join(f'<Relationship Id="r{n}" Target="worksheets/sheet{n}.xml"/>' for n in range(len(sheets)))
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><workbookPr date1904="{int(date1904)}"/>'
            f"<sheets>{names}</sheets></workbook>",
        )
        book.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{links}</Relationships>")
        book.writestr(
            "xl/sharedStrings.xml", f'<sst xmlns="{MAIN}"><si><t>question</t></si><si><t>answer</t></si>{texts}</sst>'
        )
        book.writestr("xl/styles.xml", STYLES)
        for n, rows in enumerate(sheets):
            data = f"<sheetData>{rows}</sheetData>"
            book.writestr(f"xl/worksheets/sheet{n}.xml", f'<worksheet xmlns="{MAIN}">{data}</worksheet>')
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    return [item for chunk in files.chunks(str(path)) for item in files.objects(chunk)]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('<c r="B2" t="s"><v>2</v></c>', "bold end"),
        ('<c r="B2" t="inlineStr"><is><t> two\nlines</t></is></c>', " two\nlines"),
        ('<c r="B2" t="str"><f>A1</f><v>_x005F_x0041_</v></c>', "_x0041_"),
        ('<c r="B2"><v>0.30000000000000004</v></c>', 0.3),
        ('<c r="B2"><v>3</v></c>', 3),
        ('<c r="B2" t="b"><v>1</v></c>', "TRUE"),
        ('<c r="B2" s="1"><v>45296</v></c>', "2024-01-05"),
        ('<c r="B2" s="3"><v>45296.4375</v></c>', "2024-01-05 10:30:00"),
        ('<c r="B2" s="1"><v>0.4375</v></c>', "10:30:00"),
        ('<c r="B2" s="4"><v>1.25</v></c>', "30:00:00"),
        ('<c r="B2" s="2"><v>0.05</v></c>', "5%"),
        ('<c r="B2" s="5"><v>2.5</v></c>', 2.5),
    ],
)
def test_a_cell_is_what_a_person_sees_in_it(tmp_path: Path, cell: str, value: Any) -> None:
    texts = "<si><r><t>bold</t></r><r><t> end</t></r><rPh><t>reading</t></rPh></si>"
    rows = f'<row r="1">{HEADER}</row><row r="2"><c r="A2" t="s"><v>0</v></c>{cell}</row>'
    assert read(workbook(tmp_path / "a.xlsx", rows, texts=texts)) == [(2, {"question": "question", "answer": value})]


def test_dates_may_count_from_1904(tmp_path: Path) -> None:
    rows = f'<row>{HEADER}</row><row><c s="1"><v>43834</v></c><c><v>1</v></c></row>'
    assert read(workbook(tmp_path / "a.xlsx", rows, date1904=True)) == [(2, {"question": "2024-01-05", "answer": 1})]


def test_an_empty_row_or_sheet_is_no_record_and_an_empty_cell_no_key(tmp_path: Path) -> None:
    rows = f'<row r="1">{HEADER}</row><row r="2"><c r="A2"/></row><row r="4"><c r="B4"><v>1</v></c></row>'
    assert read(workbook(tmp_path / "a.xlsx", "", rows)) == [(4, {"answer": 1})]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ('<c r="B2"><f>1+2</f></c>', "cell B2 is a formula without a value"),
        ('<c r="B2" t="e"><v>#DIV/0!</v></c>', "cell B2 holds the error #DIV/0!"),
        ('<c r="D2"><v>1</v></c>', "a cell in column D, which has no name in the first row"),
    ],
)
def test_a_cell_without_a_value_or_a_name_is_a_problem_of_its_row(tmp_path: Path, cell: str, reason: str) -> None:
    ((line, found),) = read(workbook(tmp_path / "a.xlsx", f'<row r="1">{HEADER}</row><row r="2">{cell}</row>'))
    assert line == 2
    assert isinstance(found, Broken)
    assert reason in found.text


def test_several_sheets_and_other_files_are_refused(tmp_path: Path) -> None:
    rows = f"<row>{HEADER}</row>"
    (tmp_path / "b.xlsx").write_bytes(b"PK")
    for path, reason in (
        (workbook(tmp_path / "a.xlsx", rows, rows), "several sheets: S0, S1"),
        (tmp_path / "b.xlsx", "not an .xlsx workbook"),
    ):
        ((_, found),) = read(path)
        assert isinstance(found, Broken)
        assert reason in found.text


def test_two_columns_of_one_name_are_a_problem(tmp_path: Path) -> None:
    rows = (
        f'<row r="1">{HEADER}<c t="s"><v>1</v></c></row><row r="2"><c><v>1</v></c><c><v>2</v></c><c><v>3</v></c></row>'
    )
    ((line, found),) = read(workbook(tmp_path / "a.xlsx", rows))
    assert (line, found) == (1, Broken("the header names the column 'answer' twice; rename or remove one"))
