"""The local files that a job names, by content hash: what other machines must get."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import DataError
from launcher.job.spec import JobSpec
from train.config import HUBS


@dataclass(frozen=True)
class Input:
    """A file that the training reads."""

    path: Path
    """On this machine."""
    link: str
    """Its name in the run directory on the host, `inputs/<hash>/<name>`."""
    size: int
    sha256: str

    @property
    def item(self) -> dict[str, Any]:
        """As the far end expects it."""
        return {"path": str(self.path), "name": self.path.name, "size": self.size, "sha256": self.sha256}


Sums = dict[Path, str]
"""{file: sha256 of its content}"""


def inputs(
    spec: JobSpec, *, absent_ok: bool = False, known: Sums | None = None
) -> tuple[tuple[Input, ...], dict[str, str]]:
    """The local input files of a job, and {path here: path in the run directory} for the plan. Raises DataError.

    `absent_ok`: a path that does not exist here is a path of the target. `known`: hashes from other jobs that start
    together; new hashes are added to it.
    """
    known = {} if known is None else known
    found: list[Input] = []
    paths: dict[str, str] = {}
    for text in named_paths(spec):
        path = Path(text).absolute()
        files = [] if absent_ok and not path.exists() else _below(path)
        if text in paths or not files:
            continue
        for file in files:
            if file not in known:
                known[file] = _sha256(file)
        sums = {file: known[file] for file in files}
        names = {file: file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files}
        whole = hashlib.sha256("".join(f"{names[file]}{digest}" for file, digest in sums.items()).encode()).hexdigest()
        paths[text] = f"inputs/{whole[:16]}/{path.name}"
        for file, digest in sums.items():
            link = f"{paths[text]}/{names[file]}" if path.is_dir() else paths[text]
            found.append(Input(file, link, file.stat().st_size, digest))
    return tuple(found), paths


def named_paths(spec: JobSpec) -> Iterator[str]:
    """The local paths that a job names: data sets and an adapter to continue from, or files of the user's program."""
    if spec.program:
        yield from program_files(spec.program)
        return
    for _, path in spec.data.paths:
        if "://" not in path and not path.startswith(HUBS):
            yield path
    if spec.lora.adapter:
        yield spec.lora.adapter


def program_files(words: Sequence[str]) -> Iterator[str]:
    """Files of the working directory among the words of a program.

    Files elsewhere are taken to be on the hosts already. So is the first word, which a shell would look up on the PATH,
    unless it is a Python file.
    """
    here = Path.cwd()
    for position, word in enumerate(words):
        path = Path(here, word)
        if (position or word.endswith(".py")) and path.is_relative_to(here) and _is_file(path):
            yield word


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a script given as one word is too long for a file name
        return False


def _below(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def links_of(files: Iterable[Input], places: dict[str, str]) -> dict[str, str]:
    """{name in the run directory: path of the file on the host}; `places` maps hashes to paths on the host."""
    return {file.link: places[file.sha256] for file in files}
