"""Long campaigns: the suite runs a part of them, and `make long` the whole."""

from __future__ import annotations

import os

WHOLE = os.environ.get("ZLAUNCH_LONG") == "1"
