"""Small files of a run directory, written by several at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from train.rundir.run_files import write_atomic


def test_writers_of_the_same_number_do_not_take_each_others_file_away(tmp_path: Path) -> None:
    """Two threads of a process, and processes in the containers of two nodes that share a directory."""
    place = tmp_path / "digest.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_atomic(place, str(number)), range(200)))
    assert [path.name for path in tmp_path.iterdir()] == ["digest.json"]
