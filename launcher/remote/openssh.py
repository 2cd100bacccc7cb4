"""Where a host is, how to log in, through whom and with which keys: what OpenSSH itself says.

`ssh -G` is asked for every host and every jump host: Match, Include, canonical names and the system's files then mean
what they mean to ssh. Only where no `ssh` is installed does ssh_config.py read the files.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import TargetError
from launcher.machine import process
from launcher.remote.address import Address
from launcher.remote.ssh_config import read_files
from launcher.remote.tokens import expand, tokens

ASK_SECONDS = 30.0
"""`ssh -G` runs the commands of `Match exec` and looks names up."""
FILES = ("userknownhostsfile", "globalknownhostsfile", "revokedhostkeys")
"""Keywords whose file names `ssh -G` prints in one line."""
NOT_FOLLOWED = ("bindinterface", "knownhostscommand", "proxyusefdpass", "verifyhostkeydns", "pkcs11provider")
"""Settings that zlaunch does not follow; a connection that fails names them."""

Answers = Mapping[str, Sequence[str]]
"""Keyword in lower case -> its values, as `ssh -G` prints them."""


@dataclass(frozen=True)
class Settings:
    """How to reach and log in to one host."""

    name: str
    """As the user, or a ProxyJump, names it."""
    host: str
    user: str
    port: int
    jumps: tuple[str, ...]
    """Jump hosts, the nearest to this machine first."""
    proxy_command: str | None
    family: str
    """`any`, `inet` or `inet6`."""
    bind_address: str | None
    identity_files: tuple[Path, ...]
    certificate_files: tuple[Path, ...]
    identities_only: bool
    identity_agent: Path | None
    """Socket of the agent."""
    keys_allowed: bool
    known_hosts: tuple[Path, ...]
    """The user's files; a new key is added to the first."""
    global_known_hosts: tuple[Path, ...]
    revoked_host_keys: tuple[Path, ...]
    host_key_alias: str | None
    host_key_algorithms: tuple[str, ...]
    strict: str
    """StrictHostKeyChecking: `ask`, `yes`, `no` or `accept-new`."""
    hash_known_hosts: bool
    trust_localhost: bool
    """NoHostAuthenticationForLocalhost."""
    not_followed: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.user}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def known_name(self) -> str:
        """The name of the host in known_hosts files."""
        plain = self.host if self.port == 22 else f"[{self.host}]:{self.port}"
        return (self.host_key_alias or plain).lower()


def settings_of(address: Address, ssh_config: str | None, jumps: Sequence[str] = ()) -> Settings:
    """Return the settings for a host. `jumps`: jump hosts that stand in a ProxyJump before it. Raises TargetError."""
    if ssh_config is not None and not Path(ssh_config).expanduser().is_file() and ssh_config != "none":
        raise TargetError(f"no ssh configuration file {Path(ssh_config).expanduser()}", code="ZL-SSH-04")
    ssh = shutil.which("ssh")
    if ssh is not None:
        return interpret(address, ask(ssh, address, ssh_config, jumps))
    reader = read_files(address, ssh_config)
    for unknown in reader.unknown:
        warn_once(f"{unknown}: not understood without an `ssh` here to ask; its block does not count")
    answers = reader.answer()
    return interpret(address, {**answers, "proxyjump": [",".join(jumps)]} if jumps else answers)


def ask(ssh: str, address: Address, ssh_config: str | None, jumps: Sequence[str] = ()) -> Answers:
    """Return what `ssh -G` says about a host. Raises TargetError with ssh's own words."""
    words = [ssh, "-G", "-T", "-n"]
    for option, value in (
        ("-F", ssh_config and os.path.expanduser(ssh_config)),  # noqa: PTH111 - `none` is no path
        ("-l", address.user),
        ("-p", address.port),
        ("-J", ",".join(jumps)),
    ):
        words += [option, str(value)] if value else []
    result = process.run([*words, "--", address.host], timeout=ASK_SECONDS, check=False)
    if result.code != 0 and "Cannot fork into background" in result.stderr:  # ForkAfterAuthentication
        result = process.run([*words, "-N", "--", address.host], timeout=ASK_SECONDS, check=False)
    answers: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        answers.setdefault(keyword.lower(), []).append(value)
    if result.code != 0 or "hostname" not in answers:
        said = " ".join(result.last_lines) or f"`{ssh} -G` answers nothing"
        raise TargetError(
            f"ssh itself refuses {address.host}: {said}", hint=f"try: ssh -G {address.host}", code="ZL-SSH-04"
        )
    return {
        keyword: join_paths(values[0].split(" ")) if keyword in FILES else values for keyword, values in answers.items()
    }


def join_paths(words: Sequence[str]) -> list[str]:
    """Undo the split of file names with spaces, which `ssh -G` prints without quotes.

    The longest name that exists counts; without one, a name ends before the next word that begins like a path.
    """
    paths: list[str] = []
    while words:
        joined = [" ".join(words[:count]) for count in range(1, len(words) + 1)]
        there = [count for count, path in enumerate(joined, 1) if Path(path).expanduser().exists()]
        begins = (count for count in range(1, len(words)) if words[count].startswith(("/", "~", "%", "$")))
        count = there[-1] if there else next(begins, 1 if words[0] == "none" else len(words))
        paths.append(joined[count - 1])
        words = words[count:]
    return paths


def interpret(address: Address, answers: Answers) -> Settings:
    """Return the settings that answers in the form of `ssh -G` stand for: tokens expanded, `none` left out."""

    def value(keyword: str) -> str | None:
        found = answers.get(keyword, [""])[0]
        return found if found and found.lower() != "none" else None

    host, user, port = answers["hostname"][0], answers["user"][0], int(answers["port"][0])
    host = host if ":" in host else host.lower()  # the interface in an address of IPv6 keeps its case
    alias, jump = value("hostkeyalias"), value("proxyjump") or ""
    known = tokens(name=address.host, host=host, port=port, user=user, alias=alias, jump=jump)

    def paths(keyword: str) -> tuple[Path, ...]:
        texts = [text for text in answers.get(keyword, ()) if text.lower() != "none"]
        return tuple(Path(expand(text, known)) for text in texts)

    def flag(keyword: str) -> bool:
        return (value(keyword) or "no").lower() in ("yes", "true")

    command = value("proxycommand") if not jump else None
    strict = (value("stricthostkeychecking") or "ask").lower()
    return Settings(
        name=address.host,
        host=host,
        user=user,
        port=port,
        jumps=tuple(expand(hop.strip(), known, path=False, environment=False) for hop in jump.split(",") if hop),
        proxy_command=expand(command, known, path=False, environment=False) if command else None,
        family=(value("addressfamily") or "any").lower(),
        bind_address=value("bindaddress"),
        identity_files=paths("identityfile"),
        certificate_files=paths("certificatefile"),
        identities_only=flag("identitiesonly"),
        identity_agent=_agent_socket(answers.get("identityagent", ["SSH_AUTH_SOCK"])[0], known),
        keys_allowed=(value("pubkeyauthentication") or "yes").lower() not in ("no", "false"),
        known_hosts=paths("userknownhostsfile"),
        global_known_hosts=paths("globalknownhostsfile"),
        revoked_host_keys=paths("revokedhostkeys"),
        host_key_alias=alias and alias.lower(),
        host_key_algorithms=tuple((value("hostkeyalgorithms") or "").split(",")),
        strict={"true": "yes", "false": "no", "off": "no"}.get(strict, strict),
        hash_known_hosts=flag("hashknownhosts"),
        trust_localhost=flag("nohostauthenticationforlocalhost"),
        not_followed=tuple(
            keyword for keyword in NOT_FOLLOWED if (value(keyword) or "no").lower() not in ("no", "false")
        ),
    )


def _agent_socket(text: str, known: Mapping[str, str]) -> Path | None:
    """IdentityAgent: a path, `none`, `SSH_AUTH_SOCK`, or `$NAME` of a variable that has the path."""
    if text.lower() == "none":
        return None
    if text == "SSH_AUTH_SOCK" or (text.startswith("$") and not text.startswith("${")):
        text = os.environ.get(text.removeprefix("$"), "")
    return Path(expand(text, known)) if text else None


@functools.cache
def warn_once(text: str) -> None:
    """Tell the user what holds although the connection works, once per command."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
