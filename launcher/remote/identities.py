"""Log in with the keys that ssh itself would offer, in its order: of files, of the agent, and certificates."""

from __future__ import annotations

import base64
import binascii
import copy
import functools
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import PublicBlob

from launcher.errors import TargetError
from launcher.remote import certificates
from launcher.remote.openssh import Settings

AGENT_SECONDS = 60.0
"""For the agent to sign: it may ask the user first."""
OPENSSH_KEY = b"openssh-key-v1\0"


class LoginRefused(TargetError):
    """The host accepted no key."""

    code = "ZL-SSH-02"


class Agent(AgentSSH):  # type: ignore[misc] # paramiko ships no types
    """The keys of an agent at a socket. paramiko itself knows SSH_AUTH_SOCK only."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(AGENT_SECONDS)
        try:
            connection.connect(str(path))
            self._connect(connection)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._close()


@dataclass
class Keys:
    """The keys to offer, and why some that the user named cannot be."""

    offered: list[tuple[str, Any]] = field(default_factory=list)
    """(what to call it, paramiko.PKey), in order."""
    problems: list[str] = field(default_factory=list)


def log_in(transport: Any, settings: Settings) -> None:
    """Log in with the first key that the host accepts. Raises LoginRefused, and paramiko's errors of the connection."""
    agent, problems = _open_agent(settings)
    try:
        keys = find_keys(settings, agent.get_keys() if agent else ())
        _offer(transport, settings, keys.offered, [*problems, *keys.problems])
    finally:
        if agent:
            agent.close()


def _open_agent(settings: Settings) -> tuple[Agent | None, list[str]]:
    if settings.identity_agent is None or not settings.keys_allowed:
        return None, []
    try:
        return Agent(settings.identity_agent), []
    except (OSError, paramiko.SSHException) as error:
        return None, [f"no ssh-agent answers at {settings.identity_agent} ({getattr(error, 'strerror', 0) or error})"]


def _offer(transport: Any, settings: Settings, keys: Sequence[tuple[str, Any]], problems: list[str]) -> None:
    accepted: list[str] = []
    methods: Sequence[str] = ("publickey",)
    for label, key in keys:
        try:
            methods = transport.auth_publickey(settings.user, key)
        except paramiko.BadAuthenticationType as error:
            methods = error.allowed_types
            break
        except (paramiko.AuthenticationException, paramiko.SSHException) as error:
            if not transport.is_active():
                raise LoginRefused(_explain(settings, keys, problems, methods, hung_up=True)) from error
            if not isinstance(error, paramiko.AuthenticationException) or "sign" in str(error):
                problems.append(f"{label}: {error}")
            continue
        if transport.is_authenticated():
            return
        accepted.append(label)
    if not accepted:
        try:
            transport.auth_none(settings.user)  # some hosts know their users by other means
            return
        except paramiko.BadAuthenticationType as error:
            methods = error.allowed_types
        except (paramiko.AuthenticationException, paramiko.SSHException):
            pass
    raise LoginRefused(_explain(settings, keys, problems, methods, accepted=accepted))


def _explain(
    settings: Settings, keys: Sequence[tuple[str, Any]], problems: Sequence[str], methods: Sequence[str],
    *, accepted: Sequence[str] = (), hung_up: bool = False,
) -> str:  # fmt: skip
    tried = ", ".join(label for label, _ in keys) or "none"
    said = f"{settings.where}: permission denied (keys tried: {tried})"
    if not settings.keys_allowed:
        said += "; PubkeyAuthentication is off in the ssh configuration, and zlaunch logs in with keys only"
    if accepted:
        said += f"; {', '.join(accepted)} was accepted, but the host wants {' and '.join(methods)} too"
    elif hung_up and len(keys) > 1:
        said += (
            "; the host hung up meanwhile (MaxAuthTries): name the right key with IdentityFile and IdentitiesOnly yes"
        )
    elif "publickey" not in methods:
        said += f"; the host accepts no keys, only {', '.join(methods)}"
    elif keys:
        said += "; is the public key in authorized_keys there?"
    return "; ".join([said, *problems])


def find_keys(settings: Settings, agent_keys: Sequence[Any]) -> Keys:
    """Return the keys to offer, in ssh's order: certificates, agent keys that a file names, other agent keys, files."""
    found = Keys()
    if not settings.keys_allowed:
        return found
    by_blob = {key.asbytes(): key for key in agent_keys}
    private, listed = _named_keys(settings.identity_files, by_blob, found.problems)
    for path in (*settings.certificate_files, *(Path(f"{path}-cert.pub") for path in settings.identity_files)):
        found.offered += _certified(path, by_blob, private)
    chosen = {blob for _, blob in listed}
    others = {} if settings.identities_only else {blob: key for blob, key in by_blob.items() if blob not in chosen}
    found.offered += [(f"{label} (agent)", by_blob[blob]) for label, blob in listed if blob in by_blob]
    found.offered += [(f"{key.comment or key.get_name()} (agent)", key) for key in others.values()]
    found.offered += [(label, private[blob]) for label, blob in listed if blob in private]
    return found


def _named_keys(
    paths: Sequence[Path], in_agent: Collection[bytes], problems: list[str]
) -> tuple[dict[bytes, Any], list[tuple[str, bytes]]]:
    """Return ({public key: private key of a file}, [(file, public key)]); what hinders a file goes to `problems`."""
    private: dict[bytes, Any] = {}
    listed: list[tuple[str, bytes]] = []
    for path in paths:
        blob = public_blob(path)
        if blob is not None and blob in in_agent:
            listed.append((str(path), blob))
        elif path.is_file():
            key, problem = load_private(path)
            if key is None:
                problems.append(problem)
            else:
                private[key.asbytes()] = key
                listed.append((str(path), key.asbytes()))
    return private, listed


def _certified(path: Path, by_blob: dict[bytes, Any], private: dict[bytes, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the key of a certificate file with the certificate, if its private half is in the agent or a file."""
    try:
        public = PublicBlob.from_file(str(path))
        certificate = certificates.parse(public.key_blob)
    except (OSError, ValueError, binascii.Error, paramiko.SSHException):
        return
    key = certificate and (by_blob.get(certificate.plain_key) or private.get(certificate.plain_key))
    if key:
        key = AgentKey(key.agent, key.blob, key.comment) if isinstance(key, AgentKey) else copy.copy(key)
        key.public_blob = public
        yield str(path), key


def public_blob(path: Path) -> bytes | None:
    """Return the public key that belongs to an IdentityFile: in itself, or in the file `.pub` beside it."""
    for file in (path, Path(f"{path}.pub")):
        try:
            text = file.read_bytes()
        except OSError:
            continue
        words = text.split()
        try:
            if text.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----"):
                message = paramiko.Message(base64.b64decode(b"".join(text.splitlines()[1:-1]))[len(OPENSSH_KEY) :])
                for _ in range(3):  # cipher, key derivation, its options
                    message.get_string()
                message.get_int()
                return bytes(message.get_string())
            if len(words) > 1 and not text.startswith(b"-"):
                return base64.b64decode(words[1], validate=True)
        except (binascii.Error, ValueError):
            continue
    return None


def load_private(path: Path) -> tuple[Any, str]:
    """Return (private key without certificate, ""), or (None, why there is none)."""
    try:
        return _load(path, path.stat().st_mtime_ns), ""
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    except TypeError:  # cryptography's word for a missing passphrase
        return None, f"{path} has a passphrase: load it with ssh-add"
    except Exception as error:  # cryptography and paramiko each have their own
        blob = public_blob(path)
        kind = paramiko.Message(blob).get_text() if blob else ""
        if kind.startswith("sk-"):
            return None, f"{path} is a hardware key: load it with ssh-add"
        if not path.read_bytes().startswith(b"-----BEGIN"):
            return None, f"{path} is a public key, and its private half is not in the agent: load it with ssh-add"
        return None, f"{path} cannot be used: {error or type(error).__name__}"


@functools.lru_cache(maxsize=64)
def _load(path: Path, modified: int) -> Any:
    """`modified` is the file's mtime, so that a changed file is read again; hosts by the hundred use one key."""
    key = paramiko.PKey.from_path(path)
    key.public_blob = None
    return key
