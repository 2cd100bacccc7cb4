"""The address of notices is a secret: a job names the variable that holds it, and no file of a run has the address.

An address that a job file itself holds is taken out when the file is read, and goes the way of `secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from launcher.errors import SpecError, UsageError

TAKEN = {"url": "ZLAUNCH_NOTIFY_URL", "sign": "ZLAUNCH_NOTIFY_SIGN"}
"""{key of notify: the variable for a value that the job file itself holds}"""
_NAME = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)


def variable_of(value: str) -> str | None:
    """`$NAME` or `${NAME}` -> NAME; None: the value is none of them."""
    found = _NAME.fullmatch(value)
    return found and (found[1] or found[2])


def take_out(tree: Mapping[str, Any], places: Collection[str], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The job with `$NAME` in place of addresses, and {NAME: address} of those that it held. Raises SpecError.

    `places`: keys that the command line gives. Every user of the machine sees a command line, so an address there is
    refused.
    """
    section = tree.get("notify")
    values: dict[str, str] = {}
    if not isinstance(section, dict):
        return dict(tree), values
    section = dict(section)
    for key, name in TAKEN.items():
        value = section.get(key)
        if not isinstance(value, str) or variable_of(value):
            continue
        if f"notify.{key}" in places or "notify" in places:
            raise SpecError(
                f"notify.{key}: a secret on the command line can be read by every user of this machine",
                hint=f"export {name}=..., and give notify.{key}='${name}'",
                code="ZL-JOB-05",
            )
        if key == "url":
            try:
                check_address(value)
            except ValueError as error:
                raise SpecError(f"{where}: notify.url: {error}", hint=_HINT, code="ZL-JOB-05") from None
        section[key], values[name] = f"${name}", value
    return {**tree, "notify": section}, values


_HINT = "write `url: $NAME`, where the variable NAME holds the address, or the address itself: https://..."


def check_address(value: str) -> None:
    """Raise ValueError, which does not show the value, for what is no address of a web hook."""
    try:
        split = urlsplit(value)
        host, _ = split.hostname, split.port
    except ValueError:
        raise ValueError("not a web address") from None
    if split.scheme not in ("http", "https") or not host:
        raise ValueError("not an address that begins with https:// or http://")
    if not value.isascii() or any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError("the address holds a space, a control character or a character that is not ASCII")
    if "@" in split.netloc:
        raise ValueError("an address with user and password is not supported")


def check_values(names: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Raise UsageError for a variable that holds no address. `names`: {key of notify: variable}"""
    if name := names.get("url"):
        try:
            check_address(values[name])
        except ValueError as error:
            raise UsageError(
                f"notify.url: {name}: {error}", hint="the value is not shown: it may be a secret", code="ZL-JOB-05"
            ) from None
