"""Weights come into the page cache before they are loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train.model import read_ahead


def cached(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return read_ahead._is_cached(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    """Files that are on the disk only."""
    files = [tmp_path / f"model-{number}.safetensors" for number in range(6)]
    for file in files:
        file.write_bytes(os.urandom(3 << 20))
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if cached(files[0]):
        pytest.skip("the files of this file system are always in memory")
    return files


def test_all_weights_are_read(weights: list[Path]) -> None:
    assert not any(map(cached, weights))
    for thread in read_ahead.read_ahead(weights[0].parent):
        thread.join()
    assert all(map(cached, weights))


def test_more_than_the_free_memory_is_left_alone(weights: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_free_memory", lambda: 20 << 20)
    assert read_ahead.read_ahead(weights[0].parent) == []
    assert not any(map(cached, weights))


def test_what_cannot_be_read_is_left_to_the_loading(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.safetensors").touch()
    for thread in read_ahead.read_ahead(tmp_path):
        thread.join()
    assert read_ahead.read_ahead(tmp_path / "no such directory") == []
