"""Read ssh configuration files where no `ssh` is installed that could be asked (openssh.py).

The answer has the form of `ssh -G`. Nothing is guessed: a criterion of a Match line that cannot be judged here is not
met, and the answer says so.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import pwd
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import TargetError
from launcher.remote.address import Address

INCLUDE_DEPTH = 16
"""Most files that may include one another, as in ssh (READCONF_MAX_DEPTH)."""
COMMANDS = ("proxycommand", "knownhostscommand", "localcommand", "remotecommand")
"""Their value is the rest of the line, quotes included."""
SEVERAL = ("identityfile", "certificatefile")
"""Each line adds a value; of other keywords the first line counts."""
DEFAULTS = {
    "identityfile": [f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk")],
    "userknownhostsfile": ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"],
    "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"],
}
_LINE = re.compile(r'\s*"?(\w+)"?(?:\s*=\s*|\s+)(.*?)\s*$')
_WORD = re.compile(r"""\s*((?:\\[\\'" ]|"(?:\\[\\"']|[^"])*"|'(?:\\[\\"']|[^'])*'|[^\s"'])+)""")
_PART = re.compile(r"""\\([\\'" ])|"((?:\\[\\"']|[^"])*)"|'((?:\\[\\"']|[^'])*)'|(.)""", re.DOTALL)


@dataclass
class Reader:
    """What configuration files say about one host: keyword -> values, and what could not be judged."""

    address: Address
    found: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def read(self, path: Path, base: Path, *, active: bool = True, depth: int = 0) -> None:
        """Read a file and what it includes; a relative name is below `base`. An absent file is empty.

        `active`: whether the block around the Include applies. No block of the file applies if that one does not.
        Raises TargetError.
        """
        if depth > INCLUDE_DEPTH:
            raise TargetError(
                f"{path}: more than {INCLUDE_DEPTH} ssh configuration files include one another", code="ZL-SSH-04"
            )
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}", code="ZL-SSH-04") from error
        here = active
        for number, line in enumerate(text.split("\n"), start=1):
            match = _LINE.match(line)
            if match is None or line.lstrip().startswith("#"):
                continue
            keyword, where = match[1].lower(), f"{path} line {number}"
            words = [match[2]] if keyword in COMMANDS else split(match[2], where)
            if keyword == "host":
                here = active and in_list(self.address.host, words)
            elif keyword == "match":
                here = self._matches(words, where) and active  # `final` asks for a second pass from anywhere
            elif keyword == "include":
                for word in words:
                    for file in _included(word, base):
                        self.read(file, base, active=here, depth=depth + 1)
            elif here and words:
                self._take(keyword, words, where)

    def _take(self, keyword: str, words: list[str], where: str) -> None:
        jump = self.found.get("proxyjump", ["none"])[0].lower()
        if (keyword == "proxycommand" and jump != "none") or (
            keyword == "proxyjump" and words[0].lower() != "none" and "proxycommand" in self.found
        ):
            return  # the first of both counts
        if keyword == "canonicalizehostname" and words[0].lower() not in ("no", "none", "false"):
            self.unknown.append(f"{where}: CanonicalizeHostname")
        if keyword in SEVERAL and words[0] not in self.found.setdefault(keyword, []):
            self.found[keyword].append(words[0])
        self.found.setdefault(keyword, words)

    def _matches(self, words: list[str], where: str) -> bool:
        """Whether all criteria of a Match line are met. One that cannot be judged is not met."""
        if [word.lower() for word in words] == ["all"]:
            return True
        local = pwd.getpwuid(os.getuid()).pw_name
        subjects = {
            "host": expand_host(self.found.get("hostname", ["%h"])[0], self.address.host).lower(),
            "originalhost": self.address.host.lower(),
            "user": self.address.user or self.found.get("user", [local])[0],
            "localuser": local,
        }
        met = True
        for criterion, patterns in zip(words[::2], [*words[1::2], ""], strict=False):
            subject = subjects.get(criterion.lower().removeprefix("!"))
            if subject is None or not patterns or "=" in criterion:
                self.unknown.append(f"{where}: Match {' '.join(words)}")
                return False
            patterns = patterns.lower() if "host" in criterion.lower() else patterns
            met = met and in_list(subject, patterns.split(",")) is not criterion.startswith("!")
        return met and bool(words)

    def answer(self) -> dict[str, list[str]]:
        """Return the values in the form of `ssh -G`: the address of the user first, then the files, then defaults."""
        host = expand_host(self.found.get("hostname", ["%h"])[0], self.address.host)
        user = self.address.user or self.found.get("user", [pwd.getpwuid(os.getuid()).pw_name])[0]
        port = str(self.address.port or self.found.get("port", ["22"])[0])
        found = {keyword: values for keyword, values in self.found.items() if values[0].lower() != "none"}
        kept = {key: self.found[key] for key in ("identityagent", *DEFAULTS) if key in self.found}
        return {**DEFAULTS, **found, **kept, "hostname": [host], "user": [user], "port": [port]}


def read_files(address: Address, ssh_config: str | None) -> Reader:
    """Read the user's and the system's configuration, or the one file that the user names. Raises TargetError."""
    home, reader = Path("~/.ssh").expanduser(), Reader(address)
    if ssh_config is not None:
        reader.read(Path(ssh_config).expanduser(), home)
    else:
        reader.read(home / "config", home)
        reader.read(Path("/etc/ssh/ssh_config"), Path("/etc/ssh"))
    return reader


def split(text: str, where: str) -> list[str]:
    """Split a line's words: quotes group, a backslash keeps a quote, `#` starts a comment. Raises TargetError."""
    words, position = [], 0
    while text[position:].strip() and not text[position:].lstrip().startswith("#"):
        match = _WORD.match(text, position)
        if match is None:
            raise TargetError(f"{where}: a quote is not closed: {text!r}", code="ZL-SSH-04")
        words.append("".join(map(_unquote, _PART.finditer(match[1]))))
        position = match.end()
        if text[position : position + 1] not in ("", " ", "\t"):
            raise TargetError(f"{where}: a quote is not closed: {text!r}", code="ZL-SSH-04")
    return words


def _unquote(part: re.Match[str]) -> str:
    quoted = part[2] if part[2] is not None else part[3]
    return re.sub(r"\\([\\\"'])", r"\1", quoted) if quoted is not None else part[1] or part[4]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern of `*` and `?` matches. Brackets are no pattern here."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def in_list(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches, and none of those after `!`."""
    refused = any(matches(name, pattern[1:]) for pattern in patterns if pattern.startswith("!"))
    return not refused and any(matches(name, pattern) for pattern in patterns)


def expand_host(text: str, host: str) -> str:
    return re.sub("%([%h])", lambda token: "%" if token[1] == "%" else host, text)


def _included(word: str, base: Path) -> Iterator[Path]:
    found = glob.glob(str(base / Path(word).expanduser()))  # noqa: PTH207 - as in ssh, * matches no hidden file
    yield from filter(Path.is_file, map(Path, sorted(found)))
