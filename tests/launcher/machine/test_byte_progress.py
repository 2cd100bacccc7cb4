"""Long copies say how far they are; short ones say nothing."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest

from launcher.machine import byte_progress
from launcher.machine.byte_progress import ByteProgress, Counted, shown


def test_a_quick_copy_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ByteProgress("sending", 10)
    progress.moved(10)
    assert capsys.readouterr().err == ""


def test_a_long_copy_prints_its_bytes_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(byte_progress.time, "monotonic", lambda: clock[0])
    progress = ByteProgress("sending data to 2 hosts")
    progress.expect(30_000_000)
    for _ in range(10):
        clock[0] += 1
        progress.moved(1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "sending data to 2 hosts: 2.0 MB of 30.0 MB, 1.0 MB/s, 28 s left",
        "sending data to 2 hosts: 7.0 MB of 30.0 MB, 1.0 MB/s, 23 s left",
    ]


def test_copies_at_once_are_counted_together() -> None:
    progress = ByteProgress("sending", 40_000)
    threads = [threading.Thread(target=lambda: [progress.moved(1) for _ in range(10_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.done == 40_000


def test_reads_of_a_file_are_counted() -> None:
    progress = ByteProgress("sending")
    file = Counted(io.BytesIO(b"abcdef"), progress)
    assert (file.read(4), file.tell(), file.read(), progress.done) == (b"abcd", 4, b"ef", 6)


@pytest.mark.parametrize("size", [0, 999, 1e3, 31.5e6, 2.126e9])
def test_sizes_have_the_unit_that_fits(size: float) -> None:
    assert re.fullmatch(r"\d{1,3}(\.\d+)? ([kMG]?B)", shown(size))


def test_a_call_that_tells_nothing_shows_its_time_or_what_it_has_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(byte_progress, "FIRST_AFTER", 0.01)
    monkeypatch.setattr(byte_progress, "EVERY", 0.01)
    errors = ""
    with byte_progress.waiting("writing image.tar", tmp_path / "image.tar"):
        while "0 s so far" not in errors:
            errors += capsys.readouterr().err
        (tmp_path / "image.tar").write_bytes(bytes(2000))
        while "writing image.tar: 2 kB, " not in errors:
            errors += capsys.readouterr().err
    assert "writing image.tar: 0 s so far" in errors
