"""The libraries of the page are those that were published, and the page stays small."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState
from launcher.show.page import gather, html, write

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "templates/page"
VENDORED = json.loads((PAGE / "vendored.json").read_text())


@pytest.mark.parametrize("library", VENDORED, ids=lambda library: library["package"])
def test_a_vendored_file_is_the_published_one(library: dict[str, object]) -> None:
    files = library["files"]
    assert isinstance(files, dict)
    assert {name: hashlib.sha256((PAGE / name).read_bytes()).hexdigest() for name in files} == files


def test_every_vendored_file_is_recorded() -> None:
    recorded = {name for library in VENDORED for name in library["files"]}
    ours = {
        "base.html", "runs.html", "run.html", "actions.html", "chat.html", "compare.html", "new.html", "parts.html",
        "page.js", "live.js", "actions.js", "chat.js", "new.js", "page.css", "new.css", "vendored.json",
    }  # fmt: skip
    assert {file.name for file in PAGE.iterdir()} - recorded == ours


def test_the_page_without_its_data_is_under_400_kb_and_carries_the_licences() -> None:
    page = gather.run_page(RunDir(ROOT / "tests/fixtures/run-0.1.0"), RunState.SUCCEEDED)
    text = write.run_text(page)
    assert len(text.encode()) < 400_000
    assert "The MIT License (MIT)" in text
    assert "BSD 3-Clause License" in text
    assert not re.search(r"(?:src|href)\s*=\s*['\"]?(?:https?:)?//", text)


@pytest.mark.parametrize(
    "text", ["</script>", "<!--", "]]>", "&lt;/script&gt;", "\u2028\u2029", "<script", "\ud83d\ude00"]
)
def test_json_for_a_script_holds_nothing_that_html_reads(text: str) -> None:
    found = html.for_script({"a": [text]})
    assert not set(found) & set("<>&\u2028\u2029")
    assert json.loads(found) == {"a": [text]}


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path: Path) -> None:
    page = gather.run_page(RunDir(ROOT / "tests/fixtures/run-0.1.0"), RunState.SUCCEEDED)
    page["answers"][0]["rows"][0]["given"] = "\ud800"
    write.write(tmp_path / "a.html", write.run_text(page))


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min"), (3725, "1 h 2 min")]
)
def test_durations_have_their_two_largest_units(seconds: float | None, text: str) -> None:
    assert text in html.seconds(seconds)
