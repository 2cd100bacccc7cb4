"""Host keys: known_hosts files, fingerprints, and the policy for unknown hosts."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

import paramiko

from launcher.errors import TargetError

DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"


GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"


class UnknownHostKey(TargetError):
    """No known_hosts file names this host."""


class Verify(paramiko.MissingHostKeyPolicy):  # type: ignore[misc] # paramiko ships no types
    """Refuse an unknown key with its fingerprint, or write it down if the user chose so."""

    def __init__(self, hop: Any, accept: bool) -> None:
        self.name, self.files, self.accept = known_as(hop), _user_files(hop), accept
        self.host, self.port = hop.host, hop.port
        self.alias = None if self.name == dialed(hop) else self.name
        self.direct = hop.gateway is None

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        if not self.accept:
            kind = "ecdsa" if key.get_name().startswith("ecdsa") else key.get_name().rpartition("-")[2]
            own = f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub"
            if self.direct:
                write = keyscan(self.host, self.port, self.alias, self.files[0])
                compare = f"compare it with the host's own ({own})"
            else:  # a keyscan from here would not reach it
                line = shlex.quote(f"{self.name} {key.get_name()} {key.get_base64()}")
                write = f"echo {line} >> {shlex.quote(str(self.files[0]))}"
                compare = f"it is behind a ProxyJump or ProxyCommand: look at the key on the host itself ({own})"
            raise UnknownHostKey(
                f"unknown host key {key.get_name()} {fingerprint(key)}; {compare}, then: {write}   "
                "or say --accept-new-host-keys"
            )
        self.files[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = f"{self.name} {key.get_name()} {key.get_base64()}\n"
        handle = os.open(self.files[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def fingerprint(key: Any) -> str:
    """As ssh-keygen -l prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def keyscan(host: str, port: int, alias: str | None, file: Path) -> str:
    """The command that writes a host's keys into a known_hosts file; under its HostKeyAlias if it has one. Pure."""
    scan = f"ssh-keyscan{'' if port == 22 else f' -p {port}'} {shlex.quote(host)}"
    if alias:  # ssh-keyscan knows only the name that it dials
        word = re.sub(r"([\\/&])", r"\\\1", alias)
        scan += f" | sed {shlex.quote(f's/^[^# ][^ ]*/{word}/')}"
    return f"{scan} >> {shlex.quote(str(file))}"


@functools.lru_cache(maxsize=64)
def _known_keys(path: Path, stamp: float) -> Any:
    """The entries of a known_hosts file; `stamp` is its mtime, so that a changed file is read again."""
    keys = paramiko.HostKeys()
    try:
        keys.load(str(path))
    except OSError:
        pass  # absent or unreadable: it names no host
    return keys


def dialed(hop: Any) -> str:
    return str(hop.host) if hop.port == 22 else f"[{hop.host}]:{hop.port}"


def known_as(hop: Any) -> str:
    return str(hop.ssh_config.get("hostkeyalias", dialed(hop)))


def _user_files(hop: Any) -> list[Path]:
    return _paths(hop.ssh_config.get("userknownhostsfile", DEFAULT_KNOWN_HOSTS))


def known_files(hop: Any) -> list[Path]:
    return _user_files(hop) + _paths(hop.ssh_config.get("globalknownhostsfile", GLOBAL_KNOWN_HOSTS))


def keys_in(file: Path, name: str) -> Any:
    return _known_keys(file, file.stat().st_mtime if file.exists() else 0.0).lookup(name)


def _paths(value: str) -> list[Path]:
    return [Path(word).expanduser() for word in value.split() if word.lower() != "none"] or [Path("/dev/null")]


def forget_key(hop: Any) -> str:
    """The commands that remove what is known of a host's keys, one for each file that has some."""
    name = known_as(hop)
    files = [file for file in known_files(hop) if keys_in(file, name)] or _user_files(hop)[:1]
    return " && ".join(f"ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(file))}" for file in files)
