"""Read the OpenSSH client configuration, with Include directives expanded (paramiko ignores them)."""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabric
import paramiko

from launcher.errors import TargetError

INCLUDE_DEPTH = 16
"""Most files that may include one another, as in ssh (READCONF_MAX_DEPTH)."""


def load_config(ssh_config: str | None) -> Any:
    """Return Fabric's configuration with the user's ssh_config, one object for all hosts. Raises TargetError."""
    home = Path("~/.ssh").expanduser()
    if ssh_config is None:
        texts = [expand_includes(home / "config", home), expand_includes(Path("/etc/ssh/ssh_config"), Path("/etc/ssh"))]
        return _parse_config("\nHost *\n".join(texts), "~/.ssh/config")
    path = Path(ssh_config).expanduser()
    if not path.is_file():
        raise TargetError(f"no ssh configuration file {path}")
    return _parse_config(expand_includes(path, home), str(path))


@functools.lru_cache(maxsize=8)
def _parse_config(text: str, where: str) -> Any:
    """The cache key is the whole text, so a changed file is read again, and so is a changed included one."""
    try:
        return fabric.Config(ssh_config=paramiko.SSHConfig.from_text(text))
    except Exception as error:
        raise TargetError(f"{where}: {error}") from error


_BLOCK = re.compile(r"\s*(host|match|include)(?:\s*=\s*|\s+)(.+)", re.IGNORECASE)


def expand_includes(path: Path, base: Path, outer: str = "", depth: int = 0) -> str:
    """Return the text of an ssh configuration with Include directives replaced by the files, as in ssh_config(5).

    A relative name is below `base`: ~/.ssh, or /etc/ssh for the system's file. A pattern's files come in lexical order,
    and a pattern without files is no error. An absent file is empty. `outer` has the criteria of the blocks around the
    Include in the syntax of a `Match` line: included blocks apply only if they are met too. Raises TargetError.
    """
    if depth > INCLUDE_DEPTH:
        raise TargetError(f"{path}: more than {INCLUDE_DEPTH} ssh configuration files include one another")
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from error
    out, criteria = [], outer
    for line in text.splitlines():
        match = _BLOCK.match(line)
        if match is None:
            out.append(line)
        elif match[1].lower() == "include":
            for file in _included_files(match[2], base, path):
                # Lines before the first block of the file belong to the block around the Include.
                out += [expand_includes(file, base, criteria, depth + 1)]
                out += [f"Match {criteria}" if criteria else "Host *"]
        else:
            criteria = _combine(outer, _criteria(match[1].lower(), match[2], path))
            out.append(f"Match {criteria}" if outer else line)
    return "\n".join(out)


def _included_files(value: str, base: Path, path: Path) -> Iterator[Path]:
    for word in _split(value, path):
        name = re.sub(r"\$\{(\w+)\}", lambda name: os.environ.get(name[1], name[0]), word)
        found = glob.glob(str(base / Path(name).expanduser()))  # noqa: PTH207 - as in ssh, * matches no hidden file
        yield from filter(Path.is_file, map(Path, sorted(found)))


def _split(text: str, path: Path) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise TargetError(f"{path}: {text!r}: {error}") from error


def _criteria(kind: str, value: str, path: Path) -> str:
    """Return the criteria of a Host or Match line in the syntax of a Match line."""
    if kind == "match":
        return value.strip()
    return f"originalhost {shlex.quote(','.join(_split(value, path)))}"


def _combine(outer: str, inner: str) -> str:
    """Return criteria that are met where both are; `all` must stand alone."""
    return " ".join(part for part in (outer, inner) if part and part.lower() != "all") or inner or outer
