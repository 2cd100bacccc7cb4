"""Prepare one SSH connection as the user's own `ssh` would make it: same configuration, keys and known hosts.

Fabric connects and reads the configuration. This module adds what Fabric lacks. Fabric accepts unknown host keys
silently, ignores UserKnownHostsFile and HostKeyAlias, and waits forever unless told otherwise.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fabric
import paramiko

from launcher.remote.address import Address, parse_address
from launcher.remote.host_keys import (
    HostKeyPolicy,
    UnknownHostKey,
    dialed_name,
    fingerprint,
    known_hosts_files,
    known_hosts_name,
    known_keys,
    remove_key_command,
)
from launcher.remote.ssh_config import load_config

HANG_UP_SECONDS = 5.0
KEEPALIVE = 15
"""Seconds between packets that keep a quiet connection open through firewalls."""

logging.getLogger("paramiko").addHandler(logging.NullHandler())
"""Otherwise paramiko's threads print tracebacks beside the errors that `explain` words."""


@dataclass(frozen=True)
class Options:
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    connect_timeout: float = 10.0
    """Seconds to reach the host. Handshake and login get the same each, at least 15."""


def prepare(name: str, options: Options) -> Any:
    """Return a fabric.Connection to `[user@]host[:port]` that verifies host keys and is not open yet.

    Raises HostfileError, TargetError.
    """
    with _PREPARING:
        return _prepare(parse_address(name), options)


_PREPARING = threading.Lock()
"""All connections of a run share Invoke's configuration, which two threads must not read at once."""


def _prepare(address: Address, options: Options) -> Any:
    timeout = max(15.0, options.connect_timeout)
    connection = fabric.Connection(
        address.host, user=address.user, port=address.port, config=load_config(options.ssh_config),
        connect_timeout=max(1, round(options.connect_timeout)),
        connect_kwargs={"banner_timeout": timeout, "auth_timeout": timeout},
    )  # fmt: skip
    for hop in _hops(connection):
        _harden(hop, options)
    return connection


def _harden(connection: Any, options: Options) -> None:
    # Fabric's open() reads this from the shared configuration in a thread of its own, while others may change it.
    connection._set(authentication=connection.authentication)
    settings = connection.ssh_config
    if str(settings.get("identitiesonly", "")).lower() in ("yes", "true"):
        connection.connect_kwargs.setdefault("look_for_keys", False)
        connection.connect_kwargs.setdefault("allow_agent", False)
    # paramiko looks keys up under the address that it dials; ssh looks them up under HostKeyAlias if there is one.
    for file in known_hosts_files(connection):
        for kind, key in (known_keys(file, known_hosts_name(connection)) or {}).items():
            connection.client.get_host_keys().add(dialed_name(connection), kind, key)
    strict = str(settings.get("stricthostkeychecking", "ask")).lower()
    accept = options.accept_new_host_keys or strict in ("accept-new", "no", "off")
    connection.client.set_missing_host_key_policy(HostKeyPolicy(connection, accept))


def _hops(connection: Any) -> Iterator[Any]:
    """Yield the connection and its jump hosts, the nearest to the target first."""
    while isinstance(connection, fabric.Connection):
        yield connection
        connection = connection.gateway


def is_overloaded(error: BaseException, seconds: float) -> bool:
    """Whether the server hung up at once and without a word, after `seconds`.

    sshd does so when too many clients log in at the same time (MaxStartups; a jump host of many hosts). A silent server
    gives the same errors, but later.
    """
    silent = isinstance(error, (EOFError, ConnectionResetError)) or "protocol banner" in str(error)
    return silent and seconds < HANG_UP_SECONDS


def explain(error: BaseException, connection: Any, timeout: float) -> str:
    """Return one sentence on why a connection failed and what to do."""
    where = f"{connection.user}@{connection.host}:{connection.port}"
    if isinstance(error, UnknownHostKey):
        return str(error)
    if isinstance(error, paramiko.BadHostKeyException):
        return _explain_changed_key(error, connection)
    if isinstance(error, paramiko.PasswordRequiredException):
        return f"{where}: the key has a passphrase: load it with ssh-add"
    if isinstance(error, paramiko.AuthenticationException):
        keys = connection.ssh_config.get("identityfile") or ["those of the agent and ~/.ssh/id_*"]
        return (
            f"{where}: permission denied (keys tried: {', '.join(keys)}); is the public key in authorized_keys there?"
        )
    if isinstance(error, socket.gaierror):
        return f"the name {connection.host} does not resolve"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"{where}: no answer within {timeout:g} s; are host and network up, and is the port open?"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        reasons = {str(reason.strerror or reason) for reason in error.errors.values()}
        return f"{where}: {', '.join(sorted(reasons)).lower()}; is sshd running there?"
    if isinstance(error, OSError):
        return f"{where}: {error.strerror or error}"
    return f"{where}: {error or type(error).__name__}"


def _explain_changed_key(error: Any, connection: Any) -> str:
    hop = next((hop for hop in _hops(connection) if error.hostname in (hop.host, dialed_name(hop))), connection)
    return (
        f"HOST KEY CHANGED: {hop.user}@{hop.host}:{hop.port} shows {fingerprint(error.key)}, known is "
        f"{fingerprint(error.expected_key)}. Someone may be listening in; if the host was reinstalled: "
        f"{remove_key_command(hop)}"
    )
