"""Rows of results: printed as they come, and kept as JSON lines and as Markdown."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLUMNS = {
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "of_one_host": ("of one host", "{:.0%}"),
    "of_one_rank": ("of one rank", "{:.0%}"),
    "losses_mean": ("losses, mean", "{:.3%}"),
    "losses_worst": ("worst step", "{:.3%}"),
    "peak_gib": ("peak GiB", "{:.1f}"),
    "predicted_gib": ("predicted", "{:.1f}"),
    "seconds": ("seconds", "{:.1f}"),
    "ok": ("as expected", "{}"),
    "note": ("", "{}"),
}
"""Key of a row -> (head of its column, format). A part's table has the columns that any of its rows fills."""


@dataclass
class Table:
    """Results of one call of the bench, also those of parts that a time limit cut."""

    out: Path
    """Without a suffix; `.jsonl` and `.md` are written after every row."""
    about: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, part: str, what: str, **values: Any) -> None:
        """Add a row and write the files. `ok`: True, False, or absent where there is nothing to expect."""
        if "ok" in values:
            values["ok"] = "yes" if values["ok"] else "NO"
        row = {"part": part, "what": what, **{key: value for key, value in values.items() if value is not None}}
        self.rows.append(row)
        words = [f"{head or key} {text.format(row[key])}" for key, (head, text) in COLUMNS.items() if key in row]
        print(f"[{time.monotonic() - self.started:6.1f}] {part}: {what}: {'; '.join(words)}", flush=True)
        with self.out.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.out.with_suffix(".md").write_text(self.markdown(), encoding="utf-8")

    @property
    def failed(self) -> list[str]:
        return [f"{row['part']}: {row['what']}" for row in self.rows if row.get("ok") == "NO"]

    def markdown(self) -> str:
        parts = list(dict.fromkeys(row["part"] for row in self.rows))
        return "\n".join([self.about, "", *(line for part in parts for line in self._of(part))])

    def _of(self, part: str) -> list[str]:
        rows = [row for row in self.rows if row["part"] == part]
        columns = [key for key in COLUMNS if any(key in row for row in rows)]
        lines = [f"| {part} | {' | '.join(COLUMNS[key][0] for key in columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            cells = [COLUMNS[key][1].format(row[key]) if key in row else "" for key in columns]
            lines.append(f"| {row['what']} | {' | '.join(cells)} |")
        return [*lines, ""]
