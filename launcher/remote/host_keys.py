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

USER_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"


class UnknownHostKey(TargetError):
    """No known_hosts file names this host."""


class HostKeyPolicy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc] # paramiko ships no types
    """Refuse an unknown key with its fingerprint, or store it if the user chose so."""

    def __init__(self, hop: Any, accept: bool) -> None:
        self.name, self.files, self.accept = known_hosts_name(hop), _user_files(hop), accept
        self.host, self.port = hop.host, hop.port
        self.alias = None if self.name == dialed_name(hop) else self.name
        self.direct = hop.gateway is None

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        if not self.accept:
            raise UnknownHostKey(
                f"unknown host key {key.get_name()} {fingerprint(key)}; {self._advice(key)}   "
                "or use --accept-new-host-keys"
            )
        self.files[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = f"{self.name} {key.get_name()} {key.get_base64()}\n"
        handle = os.open(self.files[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def _advice(self, key: Any) -> str:
        """How to compare the key and then store it."""
        kind = "ecdsa" if key.get_name().startswith("ecdsa") else key.get_name().rpartition("-")[2]
        show = f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub"
        if self.direct:
            command = keyscan_command(self.host, self.port, self.alias, self.files[0])
            return f"compare it with the host's own ({show}), then: {command}"
        # ssh-keyscan would not reach the host from here.
        line = shlex.quote(f"{self.name} {key.get_name()} {key.get_base64()}")
        return (
            f"it is behind a ProxyJump or ProxyCommand: look at the key on the host itself ({show}), then: "
            f"echo {line} >> {shlex.quote(str(self.files[0]))}"
        )


def fingerprint(key: Any) -> str:
    """Return the fingerprint of a key as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def keyscan_command(host: str, port: int, alias: str | None, file: Path) -> str:
    """Return the command that adds a host's keys to a known_hosts file, under its HostKeyAlias if any. Pure."""
    scan = f"ssh-keyscan{'' if port == 22 else f' -p {port}'} {shlex.quote(host)}"
    if alias:  # ssh-keyscan writes only the name that it dials
        replacement = re.sub(r"([\\/&])", r"\\\1", alias)
        scan += f" | sed {shlex.quote(f's/^[^# ][^ ]*/{replacement}/')}"
    return f"{scan} >> {shlex.quote(str(file))}"


def remove_key_command(hop: Any) -> str:
    """Return the commands that remove the known keys of a host, one per file that has some."""
    name = known_hosts_name(hop)
    files = [file for file in known_hosts_files(hop) if known_keys(file, name)] or _user_files(hop)[:1]
    return " && ".join(f"ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(file))}" for file in files)


def dialed_name(hop: Any) -> str:
    """Return the name under which paramiko looks up the host's key."""
    return str(hop.host) if hop.port == 22 else f"[{hop.host}]:{hop.port}"


def known_hosts_name(hop: Any) -> str:
    """Return the name under which ssh looks up the host's key."""
    return str(hop.ssh_config.get("hostkeyalias", dialed_name(hop)))


def known_hosts_files(hop: Any) -> list[Path]:
    return _user_files(hop) + _paths(hop.ssh_config.get("globalknownhostsfile", GLOBAL_KNOWN_HOSTS))


def _user_files(hop: Any) -> list[Path]:
    return _paths(hop.ssh_config.get("userknownhostsfile", USER_KNOWN_HOSTS))


def _paths(value: str) -> list[Path]:
    return [Path(word).expanduser() for word in value.split() if word.lower() != "none"] or [Path("/dev/null")]


def known_keys(file: Path, name: str) -> Any:
    """Return {key type: key} of a host in a known_hosts file, or None."""
    return _load(file, file.stat().st_mtime if file.exists() else 0.0).lookup(name)


@functools.lru_cache(maxsize=64)
def _load(path: Path, modified: float) -> Any:
    """Load a known_hosts file. `modified` is its mtime, so that a changed file is read again."""
    keys = paramiko.HostKeys()
    try:
        keys.load(str(path))
    except OSError:
        pass  # absent or unreadable: it names no host
    return keys
