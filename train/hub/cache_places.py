"""Where Hugging Face's libraries keep what they have fetched, and how fast that grows."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from train.rundir.counter import doing

SECONDS = 1.0
"""Between two looks at files that grow."""


def places_of(kind: str, name: str) -> list[Path]:
    """Directories that may hold a repository `owner/name`; `kind`: models or datasets."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub"
    places = [Path(hub).expanduser() / f"{kind}--{name.replace('/', '--')}"]
    if kind == "datasets":
        made = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
        places += [place for place in made.glob("*") if _plain(place.name) == _plain(name.replace("/", "___"))]
    return places


def _plain(name: str) -> str:
    """`datasets` writes MyData as my_data."""
    return name.replace("_", "").lower()


@contextlib.contextmanager
def fetching_counted(name: str) -> Iterator[None]:
    """While `datasets` fetches a data set, whose own bars would fill a log, count the bytes that come."""
    before, over = _bytes_below(places_of("datasets", name)), threading.Event()
    counted = doing(f"fetching hub:{name}", "bytes", "data")

    def look() -> None:
        while not over.wait(SECONDS):
            counted(max(0, _bytes_below(places_of("datasets", name)) - before), None)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _bytes_below(places: Iterable[Path]) -> int:
    total = 0
    for place in places:
        for file in place.rglob("*"):
            with contextlib.suppress(OSError):  # renamed when it is whole
                total += file.lstat().st_size if file.is_file() and not file.is_symlink() else 0
    return total
