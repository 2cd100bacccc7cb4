"""OpenSSH certificates: what is in one, and whether a host's certificate holds (PROTOCOL.certkeys of OpenSSH)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import paramiko

from launcher.remote.ssh_config import matches

SUFFIX = "-cert-v01@openssh.com"
HOST = 2
KEY_FIELDS = {"ssh-ed25519": 1, "ssh-rsa": 2, "ecdsa-sha2-nistp256": 2, "ecdsa-sha2-nistp384": 2,
              "ecdsa-sha2-nistp521": 2, "sk-ssh-ed25519@openssh.com": 2,
              "sk-ecdsa-sha2-nistp256@openssh.com": 3}  # fmt: skip
"""Fields of the public key in a certificate, by the kind of key."""


@dataclass(frozen=True)
class Certificate:
    """A key that an authority has signed."""

    plain_key: bytes
    """The key itself, as it stands without the certificate."""
    kind: int
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    """Seconds of the epoch."""
    critical_options: bytes
    authority: bytes
    """Public key of the authority."""
    signed: bytes
    signature: bytes

    def problem(self, name: str) -> str | None:
        """Return why it does not vouch for the host of this name; None: it does."""
        if not self._is_signed():
            return "its signature is wrong"
        if self.kind != HOST:
            return "it is not for hosts"
        if not self.valid_after <= time.time() < self.valid_before:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(self.valid_before, 2**40)))
            return "it is not valid yet" if time.time() < self.valid_after else f"it expired on {day}"
        if self.critical_options:
            return "it has critical options, which no certificate of a host may have"
        if self.principals and not any(matches(name, principal.lower()) for principal in self.principals):
            return f"it is for {', '.join(self.principals)}, not for {name}"
        return None

    def _is_signed(self) -> bool:
        try:
            key = paramiko.PKey.from_type_string(paramiko.Message(self.authority).get_text(), self.authority)
            return bool(key.verify_ssh_sig(self.signed, paramiko.Message(self.signature)))
        except Exception:  # paramiko and cryptography each have their own for a damaged key
            return False


def base_kind(kind: str) -> str:
    """Return the kind of key that a certificate of this kind holds; another kind as it is."""
    return kind.replace(SUFFIX, "@openssh.com" if kind.startswith("sk-") else "")


def parse(blob: bytes) -> Certificate | None:
    """Return the certificate in the bytes of a key; None: it is a plain key, or of an unknown kind."""
    message = paramiko.Message(blob)
    kind = message.get_text()
    if not kind.endswith(SUFFIX) or base_kind(kind) not in KEY_FIELDS:
        return None
    message.get_string()  # nonce
    plain = paramiko.Message()
    plain.add_string(base_kind(kind))
    for _ in range(KEY_FIELDS[base_kind(kind)]):
        plain.add_string(message.get_string())
    message.get_int64()  # serial number
    purpose = message.get_int()
    message.get_string()  # key id, for logs
    names = paramiko.Message(message.get_string())
    principals = []
    while names.get_remainder():
        principals.append(names.get_text())
    after, before = message.get_int64(), message.get_int64()
    critical = message.get_string()
    message.get_string()  # extensions: none matters for a host
    message.get_string()  # reserved
    authority = message.get_string()
    signed = message.get_so_far()
    return Certificate(
        plain.asbytes(), purpose, tuple(principals), after, before, critical, authority, signed, message.get_string()
    )
