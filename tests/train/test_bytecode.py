"""Bytecode in the user's cache, where Python keeps none beside the sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.beds.places import ROOT

PROGRAM = """
import sys
compiled = []
sys.addaudithook(lambda event, args: event == "compile" and args[1] and compiled.append(str(args[1])))
from train.rundir import bytecode
bytecode.keep()
import library, train.config
print(library.VALUE, any("library" in str(name) for name in compiled), library.where())
"""


class Bed:
    """A library, and processes that import it with one cache."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.cache = place / "cache"
        self.source = place / "lib" / "library.py"
        self.source.parent.mkdir()
        self.write(1)

    def write(self, value: int) -> None:
        """A source of the same size, with the same time."""
        self.source.write_text(f"VALUE = {value}\ndef where(): return where.__code__.co_filename\n", encoding="utf-8")
        os.utime(self.source, (1e9, 1e9))

    def imported(self, **env: str) -> tuple[int, bool]:
        """(the value that a new process sees, whether it compiled the library)."""
        given = {"PYTHONDONTWRITEBYTECODE": "1", "ZLAUNCH_CACHE": str(self.cache)} | env
        path = os.pathsep.join([str(ROOT), str(self.source.parent)])
        environ = {name: value for name, value in {**os.environ, "PYTHONPATH": path, **given}.items() if value}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
        value, compiled, where = done.stdout.split()
        assert where == str(self.source)
        return int(value), compiled == "True"

    @property
    def kept(self) -> list[Path]:
        return sorted(path for path in self.cache.rglob("*") if path.is_file())

    @property
    def beside(self) -> list[Path]:
        return sorted(self.source.parent.rglob("*.pyc"))


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_a_library_is_compiled_once(bed: Bed) -> None:
    assert [bed.imported() for _ in range(3)] == [(1, True), (1, False), (1, False)]
    assert bed.beside == []
    assert any(path.name.startswith("library.") for path in bed.kept)


def test_our_own_modules_are_not_kept(bed: Bed) -> None:
    bed.imported()
    assert bed.kept
    assert [path for path in bed.kept if str(ROOT / "train") in str(path)] == []


def test_another_source_of_the_same_size_and_time_is_compiled(bed: Bed) -> None:
    bed.imported()
    bed.write(2)
    assert [bed.imported() for _ in range(2)] == [(2, True), (2, False)]


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "flipped", "directory"])
def test_damaged_bytecode_is_compiled_again(bed: Bed, damage: str) -> None:
    bed.imported()
    (file,) = [path for path in bed.kept if path.name.startswith("library.")]
    data = file.read_bytes()
    if damage == "directory":
        file.unlink()
        file.mkdir()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"cut": data[:-9], "empty": b"", "header": data[:12], "flipped": flipped}[damage])
    assert bed.imported() == (1, True)
    assert bed.imported() == (1, damage == "directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_bytecode_of_another_user_is_not_run(bed: Bed) -> None:
    bed.imported()
    for file in bed.kept:
        os.chown(file, 12345, -1)
    assert bed.imported() == (1, True)


def test_where_python_keeps_bytecode_we_do_not(bed: Bed) -> None:
    assert [bed.imported(PYTHONDONTWRITEBYTECODE="") for _ in range(2)] == [(1, True), (1, False)]
    assert len(bed.beside) == 1
    assert [path for path in bed.kept if path.name.startswith("library.")] == []


def test_bytecode_beside_the_source_is_used(bed: Bed) -> None:
    bed.imported(PYTHONDONTWRITEBYTECODE="")
    assert bed.imported() == (1, False)


def test_a_prefix_of_the_users_is_left_alone(bed: Bed) -> None:
    prefix = {"PYTHONPYCACHEPREFIX": str(bed.place / "prefix"), "PYTHONDONTWRITEBYTECODE": ""}
    assert [bed.imported(**prefix) for _ in range(2)] == [(1, True), (1, False)]
    assert bed.kept == []


def test_without_a_cache_that_can_be_written_imports_work(bed: Bed) -> None:
    bed.cache.write_text("no directory", encoding="utf-8")
    assert [bed.imported() for _ in range(2)] == [(1, True), (1, True)]
