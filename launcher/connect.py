"""One SSH connection, made as the user's own `ssh` would make it: their configuration, their keys, their known hosts.

Fabric connects and reads the configuration. What it leaves out is done here: it accepts unknown host keys silently,
knows neither UserKnownHostsFile nor HostKeyAlias, and waits for ever unless told otherwise.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import paramiko

from launcher import hostfile
from launcher.errors import TargetError

DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
KEEPALIVE = 15
"""Seconds between packets that keep a quiet connection open through firewalls."""


@dataclass(frozen=True)
class Options:
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    connect_timeout: float = 10.0
    """Seconds to reach the host; the handshake and the login get the same each, at least 15."""


class UnknownHostKey(TargetError):
    """No known_hosts file names this host."""


class _Verify(paramiko.MissingHostKeyPolicy):  # type: ignore[misc] # paramiko ships no types
    """Refuse an unknown key with its fingerprint, or write it down if the user chose so."""

    def __init__(self, name: str, files: list[Path], accept: bool) -> None:
        self.name, self.files, self.accept = name, files, accept

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        if not self.accept:
            host, port = _split_lookup(self.name)
            scan = f"ssh-keyscan{f' -p {port}' if port else ''} {host} >> {self.files[0]}"
            raise UnknownHostKey(
                f"unknown host key {key.get_name()} {fingerprint(key)}; compare it with the host's own "
                f"(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: {scan}   or say --accept-new-host-keys"
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


def _split_lookup(name: str) -> tuple[str, str | None]:
    if name.startswith("["):
        host, _, port = name[1:].partition("]:")
        return host, port
    return name, None


def _config(ssh_config: str | None) -> Any:
    """Fabric's configuration with the user's ssh_config, read once for all hosts. Raises TargetError."""
    if ssh_config is None:
        return _read_config(None, 0.0)
    path = Path(ssh_config).expanduser()
    if not path.is_file():
        raise TargetError(f"no ssh configuration file {path}")
    return _read_config(path, path.stat().st_mtime)


@functools.lru_cache(maxsize=8)
def _read_config(path: Path | None, stamp: float) -> Any:
    """`stamp` is the file's mtime, so that a changed file is read again."""
    try:
        return fabric.Config() if path is None else fabric.Config(runtime_ssh_path=str(path))
    except Exception as error:
        raise TargetError(f"{path or '~/.ssh/config'}: {error}") from error


@functools.lru_cache(maxsize=64)
def _known_keys(path: Path, stamp: float) -> Any:
    """The entries of a known_hosts file; `stamp` is its mtime, so that a changed file is read again."""
    keys = paramiko.HostKeys()
    try:
        keys.load(str(path))
    except OSError:
        pass  # absent or unreadable: it names no host
    return keys


def prepare(name: str, options: Options) -> Any:
    """A fabric.Connection to `[user@]host[:port]`, host keys verified, not yet open.

    Raises HostfileError, TargetError.
    """
    with _PREPARING:
        return _prepare(hostfile.parse_address(name), options)


_PREPARING = threading.Lock()
"""All connections of a run share invoke's configuration, which is not made for being read by two threads at once."""


def _prepare(address: hostfile.Address, options: Options) -> Any:
    patience = max(15.0, options.connect_timeout)
    connection = fabric.Connection(
        address.host, user=address.user, port=address.port, config=_config(options.ssh_config),
        connect_timeout=max(1, round(options.connect_timeout)),
        connect_kwargs={"banner_timeout": patience, "auth_timeout": patience},
    )  # fmt: skip
    hop = connection
    while isinstance(hop, fabric.Connection):  # through every ProxyJump
        _harden(hop, options)
        hop = hop.gateway
    return connection


def _harden(connection: Any, options: Options) -> None:
    # Fabric's open() asks the shared configuration for this, in a thread of its own, when others may be at work on it.
    connection._set(authentication=connection.authentication)
    settings = connection.ssh_config
    if str(settings.get("identitiesonly", "")).lower() in ("yes", "true"):
        connection.connect_kwargs.setdefault("look_for_keys", False)
        connection.connect_kwargs.setdefault("allow_agent", False)
    user = _paths(settings.get("userknownhostsfile", DEFAULT_KNOWN_HOSTS))
    files = user + _paths(settings.get("globalknownhostsfile", GLOBAL_KNOWN_HOSTS))
    # paramiko looks keys up under the address that it dials; ssh looks under the alias if there is one.
    dialled = connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"
    known_as = settings.get("hostkeyalias", dialled)
    for file in files:
        keys = _known_keys(file, file.stat().st_mtime if file.exists() else 0.0).lookup(known_as)
        for kind, key in (keys or {}).items():
            connection.client.get_host_keys().add(dialled, kind, key)
    strict = str(settings.get("stricthostkeychecking", "ask")).lower()
    accept = options.accept_new_host_keys or strict in ("accept-new", "no", "off")
    connection.client.set_missing_host_key_policy(_Verify(known_as, user, accept))


def _paths(value: str) -> list[Path]:
    return [Path(word).expanduser() for word in value.split()] or [Path("/dev/null")]


def explain(error: BaseException, connection: Any, timeout: float) -> str:
    """Why a connection failed, in one sentence with what to do."""
    where = f"{connection.user}@{connection.host}:{connection.port}"
    if isinstance(error, UnknownHostKey):
        return str(error)
    if isinstance(error, paramiko.BadHostKeyException):
        name = connection.ssh_config.get("hostkeyalias", connection.host)
        return (
            f"HOST KEY CHANGED: {where} shows {fingerprint(error.key)}, known is {fingerprint(error.expected_key)}. "
            f"Someone may be listening in; if the host was reinstalled: ssh-keygen -R {name}"
        )
    if isinstance(error, paramiko.PasswordRequiredException):
        return f"{where}: the key has a passphrase: load it with ssh-add"
    if isinstance(error, paramiko.AuthenticationException):
        keys = connection.ssh_config.get("identityfile") or ["the agent's and ~/.ssh/id_*"]
        return (
            f"{where}: permission denied (keys tried: {', '.join(keys)}); is the public key in authorized_keys there?"
        )
    if isinstance(error, socket.gaierror):
        return f"the name {connection.host} does not resolve"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"{where}: no answer within {timeout:g} s; is the host up, the network there, the port open?"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        reasons = {str(reason.strerror or reason) for reason in error.errors.values()}
        return f"{where}: {', '.join(sorted(reasons)).lower()}; is sshd running there?"
    if isinstance(error, OSError):
        return f"{where}: {error.strerror or error}"
    return f"{where}: {error or type(error).__name__}"
