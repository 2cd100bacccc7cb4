"""The OpenSSH client configuration: Include and Match, expanded for one host."""

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
"""Files that may include one another; ssh's own limit (READCONF_MAX_DEPTH)."""


def ssh_config_of(ssh_config: str | None) -> Any:
    """Fabric's configuration with the user's ssh_config, made once for all hosts. Raises TargetError."""
    home = Path("~/.ssh").expanduser()
    if ssh_config is None:
        texts = [expanded(home / "config", home), expanded(Path("/etc/ssh/ssh_config"), Path("/etc/ssh"))]
        return _parse_config("\nHost *\n".join(texts), "~/.ssh/config")
    path = Path(ssh_config).expanduser()
    if not path.is_file():
        raise TargetError(f"no ssh configuration file {path}")
    return _parse_config(expanded(path, home), str(path))


@functools.lru_cache(maxsize=8)
def _parse_config(text: str, where: str) -> Any:
    """Its key is the whole text, so that a changed file is read again, and an included one as well."""
    try:
        return fabric.Config(ssh_config=paramiko.SSHConfig.from_text(text))
    except Exception as error:
        raise TargetError(f"{where}: {error}") from error


_BLOCK = re.compile(r"\s*(host|match|include)(?:\s*=\s*|\s+)(.+)", re.IGNORECASE)


def expanded(path: Path, base: Path, within: str = "", depth: int = 0) -> str:
    """The text of an ssh configuration with its Include directives replaced by the files, as ssh_config(5) says.

    A relative name is one below `base` (~/.ssh, or /etc/ssh for the system's file), a pattern's files come in lexical
    order, and one without files is no error. `within` is the criteria of the blocks around the Include, as a `Match`
    line has them: all of them must be met by what is included. An absent file is empty. Raises TargetError.
    """
    if depth > INCLUDE_DEPTH:
        raise TargetError(f"{path}: more than {INCLUDE_DEPTH} ssh configuration files include one another")
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from error
    out, criteria = [], within
    for line in text.splitlines():
        match = _BLOCK.match(line)
        if match is None:
            out.append(line)
        elif match[1].lower() == "include":
            for file in _included(match[2], base, path):
                # What stands before the first block of the file belongs to the block around the Include.
                out += [expanded(file, base, criteria, depth + 1), f"Match {criteria}" if criteria else "Host *"]
        else:
            own = _criteria(match[1].lower(), match[2], path)
            criteria = _both(within, own)
            out.append(f"Match {criteria}" if within else line)
    return "\n".join(out)


def _included(words: str, base: Path, path: Path) -> Iterator[Path]:
    for word in _words(words, path):
        name = re.sub(r"\$\{(\w+)\}", lambda name: os.environ.get(name[1], name[0]), word)
        found = glob.glob(str(base / Path(name).expanduser()))  # noqa: PTH207 - as ssh does: * is no hidden file
        yield from filter(Path.is_file, map(Path, sorted(found)))


def _words(text: str, path: Path) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise TargetError(f"{path}: {text!r}: {error}") from error


def _criteria(kind: str, value: str, path: Path) -> str:
    """What a Host or Match line asks for, in the words of a Match line."""
    if kind == "match":
        return value.strip()
    return f"originalhost {shlex.quote(','.join(_words(value, path)))}"


def _both(outer: str, inner: str) -> str:
    """Criteria that are met where both are; `all` may stand with no others."""
    return " ".join(part for part in (outer, inner) if part and part.lower() != "all") or inner or outer
