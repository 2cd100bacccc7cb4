"""The user's cache directory on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$ZLAUNCH_CACHE, else ~/.cache/zlaunch."""
    return Path(os.environ.get("ZLAUNCH_CACHE") or Path.home() / ".cache" / "zlaunch")
