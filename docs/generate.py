"""Write the files that are made from the schema of a job: `make reference`. A test fails while one of them is stale."""

from __future__ import annotations

from pathlib import Path

from launcher.job.reference import json_schema

ROOT = Path(__file__).resolve().parent.parent


def files() -> dict[str, str]:
    """{file relative to the checkout: its text}."""
    return {f"templates/{json_schema.FILE}": json_schema.text()}


if __name__ == "__main__":
    for name, text in files().items():
        (ROOT / name).write_text(text, encoding="utf-8")
