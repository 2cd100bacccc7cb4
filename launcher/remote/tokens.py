"""Expand `~`, `%` tokens and environment variables in values of an ssh configuration, as ssh does when it connects."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
from collections.abc import Mapping


def tokens(*, name: str, host: str, port: int, user: str, alias: str | None, jump: str) -> dict[str, str]:
    """Return the value of each token of ssh_config(5). `name`: the host as the user gave it; `jump`: its ProxyJump."""
    local = socket.gethostname()
    mine = pwd.getpwuid(os.getuid())
    connection = f"{local}{host}{port}{user}{jump}"
    return {
        "%": "%", "h": host, "n": name, "p": str(port), "r": user, "k": alias or name, "j": jump,
        "d": mine.pw_dir, "i": str(os.getuid()), "u": mine.pw_name, "l": local, "L": local.partition(".")[0],
        "C": hashlib.sha1(connection.encode(), usedforsecurity=False).hexdigest(),
    }  # fmt: skip


def expand(text: str, values: Mapping[str, str], *, path: bool = True, environment: bool = True) -> str:
    """Expand tokens; for a path also a leading `~`, and `${NAME}`. What is no token stays as it is."""
    if path:
        text = os.path.expanduser(text)  # noqa: PTH111 - the text need not be a path yet
    text = re.sub(r"%(.)", lambda found: values.get(found[1], found[0]), text)
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), text) if environment else text
