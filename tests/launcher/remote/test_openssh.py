"""Our answers about a host against those of the OpenSSH that is installed here."""

from __future__ import annotations

import getpass
import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.errors import TargetError
from launcher.remote import openssh, ssh_config
from launcher.remote.address import Address, parse_address
from launcher.remote.openssh import Settings, interpret, settings_of

HOSTS = ["a", "b", "node1", "node12", "gate", "host.example.org", "A", "10.0.0.1", "fd00::1"]
PATTERNS = ["a", "b", "*", "node*", "node?", "!node12", "!b", "*.example.org", "h*g", "10.0.*", "fd00::*", '"gate"']
SETTINGS = [
    "HostName 10.0.0.{n}", "HostName=%h.example.org", 'HostName "x{n}"', "HostName fe80::{n}%%eth0", "User u{n}",
    "User = u{n}", "Port {n}", "port={n}", "IdentityFile ~/.ssh/k{n}", 'IdentityFile "/keys/my {n}"',
    "IdentityFile %d/%r@%h-{n}", "IdentityFile none", "CertificateFile /keys/c{n}-cert.pub", "IdentitiesOnly yes",
    "IdentityAgent ~/agent-{n}", "IdentityAgent none", "IdentityAgent $ZL_AGENT", "IdentityAgent SSH_AUTH_SOCK",
    "ProxyJump gate{n}", "ProxyJump me@gate{n}:22{n},[fd00::{n}]:44", "ProxyJump none",
    "ProxyCommand nc -X 'a b' %h %p  # {n}", "ProxyCommand none", "UserKnownHostsFile /known/{n} ~/.ssh/k{n}",
    "UserKnownHostsFile none", "GlobalKnownHostsFile /dev/null", "HostKeyAlias Alias{n}", "StrictHostKeyChecking no",
    "StrictHostKeyChecking accept-new", "StrictHostKeyChecking=yes", "AddressFamily inet6", "HashKnownHosts yes",
    "BindAddress 10.9.9.{n}", "PubkeyAuthentication no", "RevokedHostKeys /revoked/{n}", "Compression yes # why not",
    "NoHostAuthenticationForLocalhost yes", "KnownHostsCommand /bin/echo %H '{n}'", "VerifyHostKeyDNS yes",
]  # fmt: skip
CRITERIA = [
    "all", "ALL", "host {p}", "Host a,b,!node12", "originalhost {p}", "user u1,u2", "user root", "localuser *",
    "!host {p}", "host {p} user u*", "!originalhost node*,gate", "localuser nobody",
]  # fmt: skip
UNKNOWN = ["final all", "canonical all", "final host {p}", "exec true", "exec false host a", "host=a"]


def config(random_: random.Random, folder: Path, depth: int = 0, *, odd: bool) -> str:
    """Return the text of a configuration that ssh accepts; `odd`: some criteria that our own reader does not know."""
    lines = []
    for _ in range(random_.randint(2, 6)):
        pattern = random_.choice(PATTERNS).strip('"')
        kind = random_.random()
        if kind < 0.45:
            words = random_.sample(PATTERNS, random_.randint(1, 3))
            lines.append(random_.choice(["Host {}", "host = {}", "HOST\t{}"]).format(" ".join(words)))
        elif kind < 0.8:
            criteria = random_.choice(UNKNOWN if odd and random_.random() < 0.4 else CRITERIA)
            lines.append(random_.choice(["Match {}", "match {}"]).format(criteria.format(p=pattern)))
        elif depth < 2:
            name = f"part-{depth}-{random_.randint(0, 10**9)}"
            (folder / name).write_text(config(random_, folder, depth + 1, odd=odd))
            lines.append(random_.choice(["Include {}", "include={}", '  Include "{}" absent-*']).format(folder / name))
        for _ in range(random_.randint(0, 4)):
            line = random_.choice(SETTINGS).format(n=random_.randint(1, 9))
            lines.append(random_.choice(["", "  ", "\t"]) + line + random_.choice(["", "  "]))
        lines.append(random_.choice(["", "# a comment", "   "]))
    return "\n".join(lines) + "\n"


def both(address: Address, file: Path) -> tuple[Settings, Settings, list[str]] | None:
    """Return OpenSSH's settings, ours without it, and what we do not know; None: ssh refuses the configuration."""
    ssh = shutil.which("ssh")
    assert ssh is not None
    try:
        theirs = interpret(address, openssh.ask(ssh, address, str(file)))
    except TargetError as error:
        if "jumphost loop" in str(error):
            return None
        raise
    reader = ssh_config.read_files(address, str(file))
    return theirs, interpret(address, reader.answer()), reader.unknown


def comparable(settings: Settings) -> Mapping[str, object]:
    """Without what only OpenSSH knows: its lists of algorithms and of default keys."""
    fields = vars(settings) | {"host_key_algorithms": ()}
    known = [path for path in settings.identity_files if not re.search(r"/\.ssh/id_(xmss|dsa)$", str(path))]
    return fields | {"identity_files": known}


@pytest.mark.parametrize("odd", [False, True], ids=["known criteria", "some unknown criteria"])
def test_without_ssh_a_claimed_answer_is_that_of_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bool
) -> None:
    monkeypatch.setenv("ZL_AGENT", "/run/agent")
    compared = warned = 0
    for seed in range(80):
        random_ = random.Random(f"{seed} {odd}")
        file = tmp_path / f"config-{seed}"
        file.write_text(config(random_, tmp_path, odd=odd))
        for host in random_.sample(HOSTS, 3):
            address = Address(host, random_.choice([None, None, "me"]), random_.choice([None, None, 2222]))
            found = both(address, file)
            if found is None:
                continue
            theirs, ours, unknown = found
            warned += bool(unknown)
            if not unknown:
                compared += 1
                assert comparable(ours) == comparable(theirs), f"{address}\n{file.read_text()}"
    assert compared > (40 if odd else 150)
    assert (warned > 30) is odd


def test_a_block_that_is_not_understood_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    openssh.warn_once.cache_clear()
    (tmp_path / "config").write_text("Host a\n  User right\nMatch final all\n  User wrong\nCanonicalizeHostname yes\n")
    assert settings_of(Address("a"), str(tmp_path / "config")).user == "right"
    warnings = capsys.readouterr().err
    assert f"{tmp_path}/config line 3: Match final all: not understood" in warnings
    (tmp_path / "config").write_text(f"Include {tmp_path}/config\n")
    with pytest.raises(TargetError, match="include one another"):
        settings_of(Address("a"), str(tmp_path / "config"))
    (tmp_path / "config").write_text('Host "a\n')
    with pytest.raises(TargetError, match="line 1: a quote is not closed"):
        settings_of(Address("a"), str(tmp_path / "config"))


RHEL = """\
Match final all
	Include {}/crypto.config
	GSSAPIAuthentication yes
	ForwardX11Trusted yes
	SendEnv LANG LC_CTYPE
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RHEL, {"user": getpass.getuser(), "port": 22}),
        ("Match host=node1\n  User u\n", {"user": "u"}),
        ('match HOST node1 exec "test %h = node1"\n  User u\n', {"user": "u"}),
        ("Match !host node2 originalhost node1\n  User u\n", {"user": "u"}),
        ("Host node1\n  HostName localhost\nMatch final host localhost\n  User u\n", {"user": "u"}),
        ("Host node1\n  ForkAfterAuthentication yes\n  Port 7\n", {"port": 7}),
        ("Host node1\n  RemoteCommand htop\n  RequestTTY force\n  SessionType none\n  Port 7\n", {"port": 7}),
        ("Host *\n  HostName %h.example.org\n", {"host": "node1.example.org"}),
    ],
    ids=["RHEL", "equals sign", "exec", "negated", "final", "fork", "remote command", "token"],
)
def test_what_ssh_understands_is_understood(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    (tmp_path / "crypto.config").write_text("Ciphers aes128-ctr\n")
    (tmp_path / "config").write_text(text.format(tmp_path))
    found = settings_of(Address("node1"), str(tmp_path / "config"))
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize(
    "name", ["k", "%d/x-%h", "~/.ssh/%n:%p@%r", "a %%h ${ZL_PART}", "%i-%u-%L-%l", "%C", "%k", "/k/%j."]
)
def test_tokens_of_a_key_file_are_those_that_ssh_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`ssh -G` does not expand them, `ssh -v` does when it connects."""
    monkeypatch.setenv("ZL_PART", "part")
    file = tmp_path / "config"
    file.write_text(
        f'Host node1\n  HostName localhost\n  ProxyCommand true\n  HostKeyAlias Al\n  User u\n  IdentityFile "{name}"\n'
    )
    done = subprocess.run(["ssh", "-v", "-F", file, "node1"], capture_output=True, text=True)
    tried = re.findall(r"identity file (.*) type", done.stderr)
    if not tried:
        assert "unknown key" in done.stderr  # %j is younger than this ssh
        return
    assert [str(path) for path in settings_of(Address("node1"), str(file)).identity_files] == tried[:1]


def test_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/first")
    monkeypatch.setenv("SECOND", "/run/second")

    def socket_of(text: str) -> Path | None:
        return settings_of(Address("h"), write(tmp_path, text)).identity_agent

    expected = {"": "/run/first", "none": None, "SSH_AUTH_SOCK": "/run/first", "$SECOND": "/run/second",
                "$ABSENT": None, "~/a b": str(Path.home() / "a b"), "/run/%r": f"/run/{getpass.getuser()}",
                "${SECOND}.x": "/run/second.x"}  # fmt: skip
    found = {text: socket_of(f'IdentityAgent "{text}"' if text else "") for text in expected}
    assert {text: path and str(path) for text, path in found.items()} == expected


def write(folder: Path, text: str) -> str:
    (folder / "config").write_text(text + "\n")
    return str(folder / "config")


def test_file_names_with_spaces_are_put_together_again(tmp_path: Path) -> None:
    (tmp_path / "my known hosts").touch()
    (tmp_path / "my").touch()
    there = str(tmp_path / "my known hosts")
    assert joined(there, "/absent one", "~/two", there) == [there, "/absent one", "~/two", there]
    assert joined(str(tmp_path / "my")) == [str(tmp_path / "my")]
    assert joined("none") == ["none"]


def joined(*paths: str) -> Sequence[str]:
    return openssh.join_paths(" ".join(paths).split(" "))


@pytest.mark.parametrize(
    ("text", "where"),
    [("fd00::1", "u@[fd00::1]:22"), ("[fd00::1]:2222", "u@[fd00::1]:2222"), ("fe80::1%lo", "u@[fe80::1%lo]:22")],
)
def test_an_address_of_ipv6_goes_to_ssh_and_back(tmp_path: Path, text: str, where: str) -> None:
    assert settings_of(parse_address(text), write(tmp_path, "User u")).where == where


def test_what_is_not_followed_is_named(tmp_path: Path) -> None:
    text = "BindInterface lo\nVerifyHostKeyDNS ask\nKnownHostsCommand /bin/true\n"
    found = settings_of(Address("h"), write(tmp_path, text)).not_followed
    assert found == ("bindinterface", "knownhostscommand", "verifyhostkeydns")
    assert settings_of(Address("h"), write(tmp_path, "")).not_followed == ()
