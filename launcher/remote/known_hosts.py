"""Whether a host's key may be trusted, by the known_hosts files that ssh itself reads."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import os
import re
import shlex
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from launcher.errors import TargetError
from launcher.machine import process
from launcher.remote import certificates
from launcher.remote.openssh import Settings, warn_once
from launcher.remote.ssh_config import in_list

AUTHORITY, REVOKED = "@cert-authority", "@revoked"
KRL_SECONDS = 10.0
"""For ssh-keygen to look one key up."""
_STORING = threading.Lock()


@dataclass(frozen=True)
class KnownKey:
    """A line of a known_hosts file."""

    marker: str
    """`@cert-authority`, `@revoked`, or empty."""
    hosts: str
    kind: str
    blob: bytes
    file: Path
    line: int

    def names(self, name: str) -> bool:
        """Whether the line is about this host; its names may be patterns, or hashed."""
        if not self.hosts.startswith("|1|"):
            names = self.hosts.split(",")
            # Many hosts look through as many lines, and patterns are slow.
            return in_list(name, names) if any(sign in self.hosts for sign in "*?!") else name in names
        salt, _, digest = self.hosts[3:].partition("|")
        return _hash(name, salt) == digest


def _hash(name: str, salt: str) -> str:
    try:
        return base64.b64encode(hmac.digest(base64.b64decode(salt), name.encode(), "sha1")).decode()
    except binascii.Error:
        return ""


def known_keys(settings: Settings, name: str | None = None) -> list[KnownKey]:
    """Return the lines of all known_hosts files about a host, the user's files first.

    `name`: another name of the host than the one that ssh looks for.
    """
    files = [*settings.known_hosts, *settings.global_known_hosts]
    return [known for file in files for known in read(file) if known.names(name or settings.known_name)]


def read(file: Path) -> tuple[KnownKey, ...]:
    """Return the lines of a known_hosts file. Like ssh, skip what is no such line; an absent file has none."""
    try:
        stat = file.stat()
    except OSError:
        return ()
    return _read(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _read(file: Path, modified: int, size: int) -> tuple[KnownKey, ...]:
    """`modified` and `size` are of the file's status, so that a changed file is read again."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError:
        return ()
    lines = (_parse(line, file, number) for number, line in enumerate(text.split("\n"), start=1))
    return tuple(known for known in lines if known is not None)


def _parse(line: str, file: Path, number: int) -> KnownKey | None:
    words = line.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or marker not in ("", AUTHORITY, REVOKED):
        return None
    blob = _blob(words[1], words[2])
    hosts = words[0] if words[0].startswith("|1|") else words[0].lower()
    return KnownKey(marker, hosts, words[1], blob, file, number) if blob else None


def _blob(kind: str, text: str) -> bytes | None:
    """The bytes of a public key as text; None: this is no key of that kind, or it is cut off."""
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    fields, rest = [], blob
    while rest:
        size = int.from_bytes(rest[:4], "big")
        if len(rest) < 4 + size:
            return None
        fields.append(rest[4 : 4 + size])
        rest = rest[4 + size :]
    whole = 1 + certificates.KEY_FIELDS.get(kind, len(fields) - 1)
    return blob if fields and fields[0] == kind.encode() and len(fields) == whole else None


class HostKeyError(TargetError):
    """The key that a host shows is not trusted."""

    code = "ZL-SSH-03"


def algorithms(settings: Settings, known: Sequence[KnownKey], supported: Collection[str]) -> list[str]:
    """Return the host key algorithms to offer, those of known keys first, so that the host shows a key we know.

    Certificates come first where an authority is known for the host, and not at all elsewhere.
    """
    wanted = [name for name in settings.host_key_algorithms if name in supported] or list(supported)
    kinds = {key.kind for key in known if not key.marker}
    authority = any(key.marker == AUTHORITY for key in known)
    certified = [name for name in wanted if name.endswith(certificates.SUFFIX)]
    plain = [name for name in wanted if name not in certified]
    plain.sort(key=lambda name: ("ssh-rsa" if name.startswith("rsa-") else name) not in kinds)
    return [*certified, *plain] if authority or not plain else plain


def verify(key: Any, settings: Settings, known: Sequence[KnownKey], *, accept_new: bool, direct: bool) -> None:
    """Check the key that a host shows. A new one is stored if the user chose so. Raises HostKeyError.

    `direct`: the host is reached without jump host or proxy.
    """
    whole = key.public_blob.key_blob if key.public_blob else key.asbytes()
    certificate, blob = certificates.parse(whole), key.asbytes()
    shown = (blob, certificate.authority) if certificate else (blob,)
    _refuse_revoked(shown, key, settings, known)
    local = settings.host in ("localhost", "127.0.0.1", "::1")
    if (settings.trust_localhost and local) or _is_vouched_for(certificate, settings, known):
        return
    plain = [line for line in known if not line.marker]
    if any(line.blob == blob for line in plain) or _known_without_port(blob, settings):
        return
    if any(line.kind == key.get_name() for line in plain):
        if settings.strict != "no":
            raise HostKeyError(_explain_changed(key, settings, plain))
        warn_once(f"{settings.where}: {_explain_changed(key, settings, plain)} (StrictHostKeyChecking no: used anyway)")
        return
    if not (accept_new or settings.strict in ("no", "accept-new")):
        raise HostKeyError(_explain_unknown(key, settings, plain, direct=direct))
    store(key, settings)


def _is_vouched_for(
    certificate: certificates.Certificate | None, settings: Settings, known: Sequence[KnownKey]
) -> bool:
    """Whether an authority that is known for the host has signed its key. Raises HostKeyError: but not for this."""
    if certificate is None:
        return False
    if not any(line.marker == AUTHORITY and line.blob == certificate.authority for line in known):
        return False
    problem = certificate.problem(settings.host_key_alias or settings.host)
    if problem:
        raise HostKeyError(f"{settings.where}: the certificate of the host's key does not hold: {problem}")
    return True


def _refuse_revoked(shown: Sequence[bytes], key: Any, settings: Settings, known: Sequence[KnownKey]) -> None:
    places = [f"{line.file} line {line.line}" for line in known if line.marker == REVOKED and line.blob in shown]
    for file in settings.revoked_host_keys:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise HostKeyError(
                f"{settings.where}: RevokedHostKeys {file}: {error.strerror}; ssh refuses it too"
            ) from error
        if data.startswith(b"SSHKRL\n"):
            places += [str(file)] if _is_in_krl(file, key, settings) else []
            continue
        revoked = {word for line in data.decode(errors="replace").splitlines() for word in line.split()}
        places += [str(file) for blob in shown if base64.b64encode(blob).decode() in revoked]
    if places:
        raise HostKeyError(
            f"REVOKED HOST KEY: {settings.where} shows {fingerprint(key)}, which is revoked in {', '.join(places)}: "
            "whoever has that key may pretend to be this host"
        )


def _is_in_krl(file: Path, key: Any, settings: Settings) -> bool:
    """Have OpenSSH look a key, or a certificate with its authority, up in a binary list of revoked ones (KRL).

    Raises HostKeyError if it cannot say.
    """
    blob = key.public_blob.key_blob if key.public_blob else key.asbytes()
    line = f"{paramiko.Message(blob).get_text()} {base64.b64encode(blob).decode()}\n"
    try:
        argv = ["ssh-keygen", "-Q", "-f", str(file), "/dev/stdin"]
        result = process.run(argv, stdin=line.encode(), timeout=KRL_SECONDS, check=False)
    except TargetError as error:
        raise HostKeyError(f"{settings.where}: only ssh-keygen can read RevokedHostKeys {file}: {error}") from error
    if result.code not in (0, 1):
        said = " ".join(result.last_lines) or f"exit status {result.code}"
        raise HostKeyError(f"{settings.where}: RevokedHostKeys {file} cannot be read: {said}; ssh refuses it too")
    return result.code == 1


def _known_without_port(blob: bytes, settings: Settings) -> bool:
    """Like ssh, let a line without a port count for a host on another port."""
    if settings.port == 22 or settings.host_key_alias:
        return False
    return any(line.blob == blob and not line.marker for line in known_keys(settings, settings.host))


def store(key: Any, settings: Settings) -> None:
    """Add a key to the user's first known_hosts file. Raises HostKeyError."""
    if not settings.known_hosts:
        return
    file, name = settings.known_hosts[0], settings.known_name
    if settings.hash_known_hosts:
        salt = base64.b64encode(os.urandom(20)).decode()
        name = f"|1|{salt}|{_hash(name, salt)}"
    line = f"{name} {key.get_name()} {key.get_base64()}\n"
    with _STORING:  # many hosts may be behind one new jump host
        if any(known.blob == key.asbytes() and known.names(settings.known_name) for known in read(file)):
            return
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(handle).st_size
                cut_off = size and os.pread(handle, 1, size - 1) not in (b"\n", b"")
                os.write(handle, f"{chr(10) if cut_off else ''}{line}".encode())
            finally:
                os.close(handle)
        except OSError as error:
            warn_once(f"cannot add the key of {settings.where} to {file}: {error.strerror}")


def fingerprint(key: Any) -> str:
    """Return the fingerprint of a key as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _explain_changed(key: Any, settings: Settings, plain: Sequence[KnownKey]) -> str:
    old = [line for line in plain if line.kind == key.get_name()]
    files = dict.fromkeys(line.file for line in plain)
    name = shlex.quote(settings.known_name)
    command = " && ".join(f"ssh-keygen -R {name} -f {shlex.quote(str(file))}" for file in files)
    known = ", ".join(dict.fromkeys(fingerprint(paramiko.PKey.from_type_string(line.kind, line.blob)) for line in old))
    return (
        f"HOST KEY CHANGED: {settings.where} shows {fingerprint(key)}, known is {known} "
        f"({old[0].file} line {old[0].line}). Someone may be listening in; if the host was reinstalled: {command}"
    )


def _explain_unknown(key: Any, settings: Settings, plain: Sequence[KnownKey], *, direct: bool) -> str:
    """Name the key, and how to compare it and then store it."""
    kind = "ecdsa" if key.get_name().startswith("ecdsa") else key.get_name().rpartition("-")[2]
    show = f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub"
    others = f" (known for it: {', '.join(sorted({line.kind for line in plain}))})" if plain else ""
    said = f"unknown host key {key.get_name()} {fingerprint(key)}{others}; "
    file = settings.known_hosts[0] if settings.known_hosts else Path("~/.ssh/known_hosts")
    if direct:
        command = keyscan_command(settings.host, settings.port, settings.host_key_alias, file)
        said += f"compare it with the host's own ({show}), then: {command}"
    else:  # ssh-keyscan would not reach the host from here
        line = shlex.quote(f"{settings.known_name} {key.get_name()} {key.get_base64()}")
        said += (
            f"it is behind a ProxyJump or ProxyCommand: look at the key on the host itself ({show}), then: "
            f"echo {line} >> {shlex.quote(str(file))}"
        )
    return f"{said}   or use --accept-new-host-keys"


def keyscan_command(host: str, port: int, alias: str | None, file: Path) -> str:
    """Return the command that adds a host's keys to a known_hosts file, under its HostKeyAlias if any. Pure."""
    scan = f"ssh-keyscan{'' if port == 22 else f' -p {port}'} {shlex.quote(host)}"
    if alias:  # ssh-keyscan writes only the name that it dials
        replacement = re.sub(r"([\\/&])", r"\\\1", alias)
        scan += f" | sed {shlex.quote(f's/^[^# ][^ ]*/{replacement}/')}"
    return f"{scan} >> {shlex.quote(str(file))}"
