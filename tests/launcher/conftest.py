"""What the launcher's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def lock_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ZLAUNCH_IMAGE_LOCK", str(tmp_path / "image.lock"))
    return tmp_path / "image.lock"
