"""One SSH connection, made as the user's own `ssh` would make it: their configuration, their keys, their known hosts.

Fabric connects and reads the configuration. What it leaves out is done here: it accepts unknown host keys silently,
knows neither Include nor UserKnownHostsFile nor HostKeyAlias, and waits for ever unless told otherwise.
"""

from __future__ import annotations

import base64
import functools
import glob
import hashlib
import logging
import os
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import paramiko

from launcher import hostfile
from launcher.errors import TargetError

DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
INCLUDE_DEPTH = 16
"""Files that may include one another; ssh's own limit (READCONF_MAX_DEPTH)."""
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


class UnknownHostKey(TargetError):
    """No known_hosts file names this host."""


class _Verify(paramiko.MissingHostKeyPolicy):  # type: ignore[misc] # paramiko ships no types
    """Refuse an unknown key with its fingerprint, or write it down if the user chose so."""

    def __init__(self, hop: Any, accept: bool) -> None:
        self.name, self.files, self.accept = _known_as(hop), _user_files(hop), accept
        self.host, self.port = hop.host, hop.port
        self.alias = None if self.name == _dialled(hop) else self.name
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


def _config(ssh_config: str | None) -> Any:
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
    for file in _known_files(connection):
        for kind, key in (_keys_in(file, _known_as(connection)) or {}).items():
            connection.client.get_host_keys().add(_dialled(connection), kind, key)
    strict = str(settings.get("stricthostkeychecking", "ask")).lower()
    accept = options.accept_new_host_keys or strict in ("accept-new", "no", "off")
    connection.client.set_missing_host_key_policy(_Verify(connection, accept))


def _dialled(hop: Any) -> str:
    return str(hop.host) if hop.port == 22 else f"[{hop.host}]:{hop.port}"


def _known_as(hop: Any) -> str:
    return str(hop.ssh_config.get("hostkeyalias", _dialled(hop)))


def _user_files(hop: Any) -> list[Path]:
    return _paths(hop.ssh_config.get("userknownhostsfile", DEFAULT_KNOWN_HOSTS))


def _known_files(hop: Any) -> list[Path]:
    return _user_files(hop) + _paths(hop.ssh_config.get("globalknownhostsfile", GLOBAL_KNOWN_HOSTS))


def _keys_in(file: Path, name: str) -> Any:
    return _known_keys(file, file.stat().st_mtime if file.exists() else 0.0).lookup(name)


def _paths(value: str) -> list[Path]:
    return [Path(word).expanduser() for word in value.split() if word.lower() != "none"] or [Path("/dev/null")]


def _hops(connection: Any) -> Iterator[Any]:
    """The connection and those that it goes through, the last ProxyJump first."""
    while isinstance(connection, fabric.Connection):
        yield connection
        connection = connection.gateway


def forget_key(hop: Any) -> str:
    """The commands that remove what is known of a host's keys, one for each file that has some."""
    name = _known_as(hop)
    files = [file for file in _known_files(hop) if _keys_in(file, name)] or _user_files(hop)[:1]
    return " && ".join(f"ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(file))}" for file in files)


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
        hop = next((hop for hop in _hops(connection) if error.hostname in (hop.host, _dialled(hop))), connection)
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
