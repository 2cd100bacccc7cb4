"""One SSH connection, made as the user's own `ssh` would make it: their configuration, their keys, their known hosts.

Fabric connects and reads the configuration. What it leaves out is done here: it accepts unknown host keys silently,
knows neither Include nor UserKnownHostsFile nor HostKeyAlias, and waits for ever unless told otherwise.
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
    UnknownHostKey,
    Verify,
    dialed,
    fingerprint,
    forget_key,
    keys_in,
    known_as,
    known_files,
)
from launcher.remote.ssh_config import ssh_config_of

TURNED_AWAY_SECONDS = 5.0
KEEPALIVE = 15
"""Seconds between packets that keep a quiet connection open through firewalls."""

logging.getLogger("paramiko").addHandler(logging.NullHandler())
"""Else its threads print tracebacks beside the errors that we explain."""


@dataclass(frozen=True)
class Options:
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    connect_timeout: float = 10.0
    """Seconds to reach the host; the handshake and the login get the same each, at least 15."""


def prepare(name: str, options: Options) -> Any:
    """A fabric.Connection to `[user@]host[:port]`, host keys verified, not yet open.

    Raises HostfileError, TargetError.
    """
    with _PREPARING:
        return _prepare(parse_address(name), options)


_PREPARING = threading.Lock()
"""All connections of a run share invoke's configuration, which is not made for being read by two threads at once."""


def _prepare(address: Address, options: Options) -> Any:
    patience = max(15.0, options.connect_timeout)
    connection = fabric.Connection(
        address.host, user=address.user, port=address.port, config=ssh_config_of(options.ssh_config),
        connect_timeout=max(1, round(options.connect_timeout)),
        connect_kwargs={"banner_timeout": patience, "auth_timeout": patience},
    )  # fmt: skip
    for hop in _hops(connection):
        _harden(hop, options)
    return connection


def _harden(connection: Any, options: Options) -> None:
    # Fabric's open() asks the shared configuration for this, in a thread of its own, when others may be at work on it.
    connection._set(authentication=connection.authentication)
    settings = connection.ssh_config
    if str(settings.get("identitiesonly", "")).lower() in ("yes", "true"):
        connection.connect_kwargs.setdefault("look_for_keys", False)
        connection.connect_kwargs.setdefault("allow_agent", False)
    # paramiko looks keys up under the address that it dials; ssh looks under the alias if there is one.
    for file in known_files(connection):
        for kind, key in (keys_in(file, known_as(connection)) or {}).items():
            connection.client.get_host_keys().add(dialed(connection), kind, key)
    strict = str(settings.get("stricthostkeychecking", "ask")).lower()
    accept = options.accept_new_host_keys or strict in ("accept-new", "no", "off")
    connection.client.set_missing_host_key_policy(Verify(connection, accept))


def _hops(connection: Any) -> Iterator[Any]:
    """The connection and those that it goes through, the last ProxyJump first."""
    while isinstance(connection, fabric.Connection):
        yield connection
        connection = connection.gateway


def is_turned_away(error: BaseException, seconds: float) -> bool:
    """Whether a server hung up at once and without a word, as sshd does when too many log in at the same time
    (MaxStartups; a jump host of many hosts). `seconds`: how long it took, for a silent one looks alike later."""
    silent = isinstance(error, (EOFError, ConnectionResetError)) or "protocol banner" in str(error)
    return silent and seconds < TURNED_AWAY_SECONDS


def explain(error: BaseException, connection: Any, timeout: float) -> str:
    """Why a connection failed, in one sentence with what to do."""
    where = f"{connection.user}@{connection.host}:{connection.port}"
    if isinstance(error, UnknownHostKey):
        return str(error)
    if isinstance(error, paramiko.BadHostKeyException):
        hop = next((hop for hop in _hops(connection) if error.hostname in (hop.host, dialed(hop))), connection)
        where = f"{hop.user}@{hop.host}:{hop.port}"
        return (
            f"HOST KEY CHANGED: {where} shows {fingerprint(error.key)}, known is {fingerprint(error.expected_key)}. "
            f"Someone may be listening in; if the host was reinstalled: {forget_key(hop)}"
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
