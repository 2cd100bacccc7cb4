"""Connect to one host as the user's own `ssh` would: same address, proxies, known hosts and keys.

Where to, through whom and with what comes from OpenSSH itself (openssh.py). paramiko speaks the protocol, since Fabric
cannot log in by these settings. Commands and files on the open connection are Fabric's.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import fabric
import invoke
import paramiko

from launcher.errors import TargetError
from launcher.machine import process
from launcher.remote import identities, known_hosts
from launcher.remote.address import parse_address
from launcher.remote.openssh import Settings, settings_of

HANG_UP_SECONDS = 5.0
KEEPALIVE = 15
"""Seconds between packets that keep a quiet connection open through firewalls."""
MOST_JUMPS = 8
EXPECTED = (TargetError, OSError, EOFError, paramiko.SSHException)
"""What a host or the network can bring about; all else is a bug."""
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
READ = 1 << 16
MOST_OUTPUT = 32 << 20
"""Bytes that a command on a host may print."""
COMMAND_SECONDS = 3600.0
"""For a command on a host, unless it has its own time."""
PROHIBITED = 1
"""Why a jump host opens no channel (RFC 4254)."""

logging.getLogger("paramiko").addHandler(logging.NullHandler())
"""Otherwise paramiko's threads print tracebacks beside our errors."""


@dataclass(frozen=True)
class Options:
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    connect_timeout: float = 10.0
    """Seconds to reach the host. Handshake and login get the same each, at least 15."""
    setup: Sequence[str] = ()
    """Shell lines that run on the host before the far end."""


class ConnectError(TargetError):
    """A host, or a jump host before it, cannot be reached or refuses; one sentence on why and what to do."""

    code = "ZL-SSH-01"

    def __init__(self, message: str, *, overloaded: bool = False) -> None:
        super().__init__(message)
        self.overloaded = overloaded
        """The server hung up at once and without a word, as sshd does when too many clients log in at the same time
        (MaxStartups; a jump host of many hosts)."""


class _Remote(fabric.runners.Remote):  # type: ignore[misc] # fabric ships no types
    """A command whose output has an end. Raises OSError after MOST_OUTPUT bytes."""

    came = 0

    def read_proc_stdout(self, num_bytes: int) -> bytes:
        return self._count(self.channel.recv(READ))

    def read_proc_stderr(self, num_bytes: int) -> bytes:
        return self._count(self.channel.recv_stderr(READ))

    def _count(self, data: bytes) -> bytes:
        self.came += len(data)
        if self.came > MOST_OUTPUT:
            self.channel.close()
            raise OSError(f"it prints more than {MOST_OUTPUT >> 20} MiB")
        return data


def _config() -> Any:
    """Fabric's configuration without any file of the user: where to connect is settled."""
    return fabric.Config(ssh_config=paramiko.SSHConfig(), overrides={"runners": {"remote": _Remote}}, lazy=True)


class _Transport(paramiko.Transport):  # type: ignore[misc] # paramiko ships no types
    host_key_algorithms: Sequence[str] = ()

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return tuple(self.host_key_algorithms)


class Connection:
    """A connection to `[user@]host[:port]`, through its jump hosts; not open yet."""

    def __init__(self, name: str, options: Options, jumps: Sequence[str] = (), depth: int = 0) -> None:
        """`jumps`: jump hosts that a ProxyJump names before this host. Raises HostfileError, TargetError."""
        self.options = options
        self.settings = settings_of(parse_address(name), options.ssh_config, jumps)
        self.transport: Any = None
        self.gateway: Connection | None = None
        self._proxy: process.SocketProcess | None = None
        self._session: Any = None
        if depth > MOST_JUMPS:
            raise TargetError(f"more than {MOST_JUMPS} jump hosts: does {name} lead back to itself?", code="ZL-SSH-04")
        if self.settings.jumps:
            *before, last = self.settings.jumps
            try:
                self.gateway = Connection(last, options, before, depth + 1)
            except TargetError as error:
                raise TargetError(f"jump host {last}: {error}", code="ZL-SSH-01") from error

    @property
    def is_connected(self) -> bool:
        return self.transport is not None and bool(self.transport.is_active())

    def open(self) -> None:
        """Reach the host, check its key, log in. Raises ConnectError, and HostKeyError of an untrusted key."""
        if self.gateway is not None:
            try:
                self.gateway.open()
            except ConnectError as error:
                raise ConnectError(
                    f"jump host {self.gateway.settings.name}: {error}", overloaded=error.overloaded
                ) from error
        began = time.monotonic()
        try:
            self._open()
        except BaseException as error:
            said = self._proxy.last_words() if self._proxy else ""
            self.close()
            if isinstance(error, ConnectError) or not isinstance(error, EXPECTED):
                raise
            silent = isinstance(error, (EOFError, ConnectionResetError)) or "protocol banner" in str(error)
            quick = time.monotonic() - began < HANG_UP_SECONDS
            raise ConnectError(self._explain(error, said), overloaded=silent and quick and not said) from error

    def _open(self) -> None:
        settings, timeout = self.settings, max(15.0, self.options.connect_timeout)
        known = known_hosts.known_keys(settings)
        transport = self.transport = _Transport(self._dial())
        offered = transport.get_security_options()
        # One pass in C encrypts and authenticates; the others' MAC is compared byte by byte in Python.
        offered.ciphers = sorted(offered.ciphers, key=lambda name: "-gcm@" not in name)
        transport.host_key_algorithms = known_hosts.algorithms(settings, known, _Transport._key_info)
        transport.banner_timeout = transport.auth_timeout = timeout
        transport.start_client(timeout=timeout)
        known_hosts.verify(
            transport.get_remote_server_key(), settings, known, accept_new=self.options.accept_new_host_keys,
            direct=self.gateway is None and settings.proxy_command is None,
        )  # fmt: skip
        identities.log_in(transport, settings)

    def _dial(self) -> Any:
        """Return a socket, or what serves as one, whose other end is the host's sshd."""
        settings, timeout = self.settings, self.options.connect_timeout
        if self.gateway is not None:
            return self.gateway.forward(settings, timeout)
        if settings.proxy_command is not None:
            self._proxy = process.SocketProcess(
                [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {settings.proxy_command}"]
            )
            return self._proxy.socket
        failed: OSError | None = None
        family = FAMILIES.get(settings.family, socket.AF_UNSPEC)
        for kind, _, _, _, address in socket.getaddrinfo(settings.host, settings.port, family, socket.SOCK_STREAM):
            sock = socket.socket(kind, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            try:
                if settings.bind_address:
                    sock.bind((settings.bind_address, 0))
                sock.connect(address)
                return sock
            except OSError as error:
                failed = failed or error
                sock.close()
        raise failed or OSError(f"no address of {settings.host}")

    def forward(self, target: Settings, timeout: float) -> Any:
        """As a jump host, return a channel to another host. Raises ConnectError."""
        me = f"jump host {self.settings.name} ({self.settings.where})"
        there = f"{target.name} ({target.where.partition('@')[2]})"
        try:
            return self.transport.open_channel("direct-tcpip", (target.host, target.port), ("", 0), timeout=timeout)
        except paramiko.ChannelException as error:
            if error.code == PROHIBITED:
                why = f"does not let connections through to {there}: is AllowTcpForwarding or PermitOpen set there?"
            else:
                why = f"cannot connect to {there}: is that host up, and does sshd run there? ({error.text})"
            raise ConnectError(f"{me} {why}") from error
        except paramiko.SSHException as error:
            raise ConnectError(f"{me} got no answer from {there} within {timeout:g} s: {error}") from error

    def _explain(self, error: BaseException, said: str) -> str:
        """Return one sentence on why the connection failed and what to do. `said`: last words of the ProxyCommand."""
        settings, where, timeout = self.settings, self.settings.where, self.options.connect_timeout
        notes = "".join(
            f"; zlaunch does not follow {keyword} of the ssh configuration" for keyword in settings.not_followed
        )
        if isinstance(error, TargetError):
            return f"{error}{notes}"
        if settings.proxy_command is not None:
            return f"{where}: {said or error or type(error).__name__} (ProxyCommand {settings.proxy_command}){notes}"
        if isinstance(error, socket.gaierror):
            return f"the name {settings.host} does not resolve{notes}"
        if isinstance(error, TimeoutError):
            return f"{where}: no answer within {timeout:g} s; are host and network up, and is the port open?{notes}"
        if isinstance(error, ConnectionRefusedError):
            return f"{where}: connection refused; is sshd running there?{notes}"
        if isinstance(error, OSError):
            return f"{where}: {(error.strerror or str(error)).lower()}{notes}"
        return f"{where}: {error or type(error).__name__}{notes}"

    @property
    def session(self) -> Any:
        """The open connection as Fabric's, for commands and files."""
        if self._session is None:
            where = self.settings
            self._session = fabric.Connection(where.host, where.user, where.port, config=_config())
            self._session.client._transport = self._session.transport = self.transport
        return self._session

    def run(self, line: str, timeout: float | None = None) -> Any:
        """Run a line in the host's shell; return Fabric's result whatever the exit status. Raises as Fabric does."""
        try:
            return self.session.run(
                line, hide=True, warn=True, in_stream=False, encoding="utf-8", timeout=timeout or COMMAND_SECONDS
            )
        except invoke.exceptions.ThreadException as error:
            raise error.exceptions[0].value from error

    def put(self, file: IO[bytes], path: str) -> None:
        """Write a file on the host over SFTP. Raises paramiko's errors, OSError."""
        self.session.put(file, path)

    def get(self, path: str, file: IO[bytes], most: int, moved: Callable[[int], None]) -> None:
        """Copy a file of the host over SFTP. Raises paramiko's errors, OSError if it has more bytes than `most`.

        `moved` gets the size of each block.
        Not by SFTPClient.getfo, which believes any size that the host tells it.
        """
        sftp = self.session.sftp()
        size = sftp.stat(path).st_size
        if size is None or not 0 <= size <= most:
            raise OSError(f"{path} has {size} bytes, and {most} fit here")
        with sftp.open(path, "rb") as source:
            source.prefetch(size)
            while size > 0 and (block := source.read(min(READ, size))):
                file.write(block)
                moved(len(block))
                size -= len(block)

    def close(self) -> None:
        transport, self.transport, proxy, self._proxy = self.transport, None, self._proxy, None
        self._session = None
        if transport is not None:
            transport.close()
        if proxy is not None:
            proxy.close()
        if self.gateway is not None:
            self.gateway.close()
