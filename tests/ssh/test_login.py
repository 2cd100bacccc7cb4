"""Logging in to real hosts: whatever `ssh` manages, zlaunch manages, and what neither can gets a clear error."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.remote import session
from launcher.remote.connect import Options
from launcher.remote.session import HostError, Session
from tests.testbed.bed import Lab

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(120)]

RHEL = "Match final all\n  GSSAPIAuthentication yes\n  ForwardX11Trusted yes\n  SendEnv LANG LC_CTYPE\n"
Config = Callable[..., str]


@pytest.fixture
def config(lab: Lab, tmp_path: Path) -> Config:
    """Write a configuration: lines before those of the lab, without the lab's lines that begin with a given word."""

    def write(before: str, *without: str) -> str:
        lines = [
            line for line in lab.ssh_config.read_text().splitlines() if not line.strip().startswith(without or "\0")
        ]
        (tmp_path / "config").write_text("\n".join([before, *lines, ""]))
        return str(tmp_path / "config")

    return write


def log_in(config: str, name: str = "node1", **options: object) -> str:
    """Return the name that the host gives itself; `ssh` must agree that it can be reached."""
    found = Session(name, Options(config, **options), sys.executable)  # type: ignore[arg-type] # of tests only
    try:
        found.open()
        facts = found.call("hello", workdir="/tmp/w", token="t", index=0, packages=[], gpus=False)
    finally:
        found.close()
    return str(facts["host"])


def refused(config: str, name: str = "node1", **options: object) -> str:
    with pytest.raises(HostError) as caught:
        log_in(config, name, **options)
    return str(caught.value)


def ssh(config: str, name: str = "node1") -> bool:
    words = ["ssh", "-F", config, "-o", "BatchMode=yes", name, "true"]
    return subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def second_sshd(lab: Lab, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Start a second sshd on port 2222 of a host, with lines before those of the lab."""
    started = []

    def start(host: str, *lines: str) -> None:
        number = host.removeprefix("node")
        text = (lab.root / f"ssh/sshd{number}.conf").read_text()
        text = text.replace("Port 22\n", "Port 2222\n").replace("PidFile none", "PidFile /run/second.pid")
        file = lab.shared / f"second-{tmp_path.name}-{number}.conf"
        file.write_text("\n".join([*lines, text]))
        lab.run(host, ["/usr/sbin/sshd", "-f", str(file)])
        started.append(host)

    yield start
    for host in started:
        lab.run(host, ["sh", "-c", "kill $(cat /run/second.pid)"])


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A running ssh-agent without keys; its socket."""
    path = tmp_path / "agent socket"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


@pytest.fixture
def locked_key(lab: Lab, tmp_path: Path) -> Path:
    """The key of the lab with a passphrase."""
    key = tmp_path / "id_locked"
    key.write_bytes((lab.root / "ssh/id_ed25519").read_bytes())
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True, capture_output=True)
    (tmp_path / "id_locked.pub").write_bytes((lab.root / "ssh/id_ed25519.pub").read_bytes())
    return key


def add_key(lab: Lab) -> None:
    subprocess.run(["ssh-add", "-q", lab.root / "ssh/id_ed25519"], check=True)


@pytest.mark.parametrize(
    "before",
    [
        RHEL, 'Match exec "test %n = node1"\n  Compression yes\n', "match !host nowhere\n  Compression yes\n",
        "Match host=node1\n  User root\n",
    ],
    ids=["RHEL", "exec", "negated", "equals sign"],
)  # fmt: skip
def test_a_configuration_that_ssh_understands_leads_to_the_host(config: Config, before: str) -> None:
    assert log_in(config(before)) == "node1"


def test_known_hosts_lines_of_other_hosts_and_bad_ones_do_no_harm(lab: Lab, config: Config, tmp_path: Path) -> None:
    key = " ".join((lab.root / "ssh/hostkey2.pub").read_text().split()[:2])
    bad = f"node9 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI\n@cert-authority *.other {key}\n@revoked * {key}\n@odd\n"
    (tmp_path / "known").write_text(bad + lab.known_hosts.read_text())
    with_bad = config(f"Host *\n  UserKnownHostsFile {tmp_path}/known\n")
    assert log_in(with_bad) == "node1"
    assert "REVOKED HOST KEY" in refused(with_bad, "node2")
    assert not ssh(with_bad, "node2")


def test_a_certificate_of_a_host_is_accepted(
    lab: Lab, config: Config, second_sshd: Callable[..., None], tmp_path: Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ca"], check=True)
    pub = lab.shared / "host.pub"
    pub.write_bytes((lab.root / "ssh/hostkey2.pub").read_bytes())
    subprocess.run(["ssh-keygen", "-q", "-s", tmp_path / "ca", "-h", "-I", "x", "-n", "node2", pub], check=True)
    second_sshd("node2", f"HostCertificate {lab.shared}/host-cert.pub")
    (tmp_path / "known").write_text(f"@cert-authority node* {(tmp_path / 'ca.pub').read_text()}")
    with_authority = config(f"Host *\n  Port 2222\n  UserKnownHostsFile {tmp_path}/known\n")
    assert ssh(with_authority, "node2")
    assert log_in(with_authority, "node2") == "node2"
    authority = with_authority.replace("config", "revoking")
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", tmp_path / "krl", tmp_path / "ca.pub"], check=True)
    Path(authority).write_text(f"RevokedHostKeys {tmp_path}/krl\n{Path(with_authority).read_text()}")
    assert not ssh(authority, "node2")
    assert "REVOKED HOST KEY" in refused(authority, "node2")
    (tmp_path / "serials").write_text("id: x\n")
    words = ["-k", "-s", tmp_path / "ca.pub", "-f", tmp_path / "krl", tmp_path / "serials"]
    subprocess.run(["ssh-keygen", "-q", *words], check=True)
    assert not ssh(authority, "node2")
    assert "REVOKED HOST KEY" in refused(authority, "node2")
    (tmp_path / "known").write_text(f"@cert-authority other* {(tmp_path / 'ca.pub').read_text()}")
    assert "unknown host key" in refused(with_authority, "node2")


@pytest.mark.parametrize("identity", ["{key}", "{key}.pub", "{other}"], ids=["locked", "public", "not named"])
@pytest.mark.parametrize("only", ["yes", "no"])
def test_a_key_in_the_agent_is_used_as_ssh_uses_it(
    lab: Lab, config: Config, agent: Path, locked_key: Path, tmp_path: Path, identity: str, only: str
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    named = identity.format(key=locked_key, other=tmp_path / "other")
    file = config(f"Host *\n  IdentityFile {named}\n  IdentitiesOnly {only}\n", "IdentityFile", "IdentitiesOnly")
    assert "permission denied" in refused(file)
    add_key(lab)
    assert ssh(file) is (only == "no" or "other" not in identity)
    if ssh(file):
        assert log_in(file) == "node1"
    else:
        assert "permission denied" in refused(file)


def test_a_locked_key_without_agent_and_a_public_one_are_reported(config: Config, locked_key: Path) -> None:
    file = config(f"Host *\n  IdentityFile {locked_key}\n  IdentityAgent none\n", "IdentityFile")
    assert f"{locked_key} has a passphrase: load it with ssh-add" in refused(file)
    file = config(f"Host *\n  IdentityFile {locked_key}.pub\n  IdentityAgent /run/no-agent\n", "IdentityFile")
    refusal = refused(file)
    assert f"{locked_key}.pub is a public key, and its private half is not in the agent" in refusal
    assert "no ssh-agent answers at /run/no-agent" in refusal


@pytest.mark.parametrize("named", ['"{socket}"', "$ZL_AGENT", "none"])
def test_the_agent_is_the_one_that_the_configuration_names(
    lab: Lab, config: Config, agent: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    add_key(lab)
    monkeypatch.setenv("ZL_AGENT", str(agent))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/nothing")
    file = config(f"Host *\n  IdentityAgent {named.format(socket=agent)}\n", "IdentityFile", "IdentitiesOnly")
    assert ssh(file) is (named != "none")
    if named == "none":
        assert "permission denied" in refused(file)
    else:
        assert log_in(file) == "node1"


@pytest.mark.parametrize("where", ["beside the key", "CertificateFile", "agent holds the key"])
def test_a_certificate_of_a_user_logs_in(
    lab: Lab, config: Config, second_sshd: Callable[..., None], agent: Path, tmp_path: Path, where: str
) -> None:
    for name in ("ca", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "me", "-n", "root", tmp_path / "user.pub"], check=True
    )
    (lab.shared / "user-ca.pub").write_bytes((tmp_path / "ca.pub").read_bytes())
    second_sshd("node1", f"TrustedUserCAKeys {lab.shared}/user-ca.pub")
    certificate = ""
    if where != "beside the key":
        (tmp_path / "user-cert.pub").rename(tmp_path / "signed.pub")
        certificate = f"  CertificateFile {tmp_path}/signed.pub\n"
    if where == "agent holds the key":
        subprocess.run(["ssh-add", "-q", tmp_path / "user"], check=True)
        (tmp_path / "user").unlink()
    file = config(f"Host *\n  Port 2222\n  IdentityFile {tmp_path}/user\n{certificate}", "IdentityFile")
    assert ssh(file)
    assert log_in(file) == "node1"


def test_a_jump_host_that_refuses_is_named(lab: Lab, config: Config, second_sshd: Callable[..., None]) -> None:
    second_sshd("node2", "AllowTcpForwarding no")
    gate = f"root@{lab.address('node2')}:2222"
    file = config("Host node1\n  ProxyJump node2:2222\n")
    assert f"jump host node2 ({gate}) does not let connections through to node1 (" in refused(file)
    file = config("Host node1\n  ProxyJump node2\n  Port 2299\n")
    refusal = refused(file)
    assert "jump host node2 (" in refusal
    assert f"cannot connect to node1 ({lab.address('node1')}:2299): is that host up" in refusal
    file = config("Host node1\n  ProxyJump node3,node2\nHost node2\n  PubkeyAuthentication no\n")
    assert f"jump host node2: root@{lab.address('node2')}:22: permission denied" in refused(file)
    assert log_in(config("Host node1\n  ProxyJump node3,node2\n")) == "node1"


def test_a_dead_target_behind_a_jump_host_is_reported_in_time(lab: Lab, config: Config) -> None:
    lab.cut("node1")
    try:
        started = time.monotonic()
        refusal = refused(config("Host node1\n  ProxyJump node2\n"), connect_timeout=2.0)
        assert time.monotonic() - started < 15
        assert "jump host node2 (" in refusal
        assert "node1 (" in refusal
    finally:
        lab.restore("node1")


def test_a_proxy_command_has_a_shell_and_its_words_are_reported(lab: Lab, config: Config) -> None:
    relay = "bash -c 'exec 3<>/dev/tcp/%h/%p && { cat <&3 & cat >&3; }'"
    assert log_in(config(f"Host node1\n  ProxyCommand {relay}\n")) == "node1"
    refusal = refused(config("Host node1\n  ProxyCommand echo 'no gate open' >&2; exit 3\n"))
    assert "no gate open (ProxyCommand echo 'no gate open' >&2; exit 3)" in refusal


@pytest.fixture
def bashrc(lab: Lab) -> Iterator[Callable[[str], None]]:
    yield lambda text: (lab.run("node1", ["sh", "-c", 'printf "%s\\n" "$0" > /root/.bashrc', text]), None)[1]
    lab.run("node1", ["rm", "-f", "/root/.bashrc"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exec sh", "a login file of this host replaces the shell"),
        ("exec cat", "a login file of this host replaces the shell"),
        ("read x", "a login file of this host reads standard input"),
        ("cat > /root/stolen", "a login file of this host reads standard input"),
        ("echo bye; exit", "the login shell ended, saying 'bye', before"),
        ("exit 3", "the login shell ended without a word before"),
        ("echo no more processes >&2; exit 1", "did not start: no more processes"),
        ("yes", "print too much"),
        ("sleep 60", "its login files do not end"),
    ],
)
def test_login_files_that_are_in_the_way_are_reported_within_seconds(
    lab: Lab, bashrc: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setattr(session, "HELLO_SECONDS", 8.0)
    monkeypatch.setattr(session, "DOUBT_SECONDS", 2.0)
    monkeypatch.setattr(session, "PROBE_SECONDS", 2.0)
    bashrc(text)
    started = time.monotonic()
    assert expected in refused(str(lab.ssh_config))
    assert time.monotonic() - started < 20
    stolen = lab.run("node1", ["sh", "-c", "cat /root/stolen 2>/dev/null; rm -f /root/stolen"]).stdout
    assert stolen == ""  # nothing was sent to what has not said hello


@pytest.mark.parametrize(
    "text", ["echo welcome; printf 'no line end'", "cat /dev/zero | head -c 50000", "sleep 3; set -x"]
)
def test_login_files_that_only_talk_or_are_slow_do_no_harm(
    lab: Lab, bashrc: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(session, "DOUBT_SECONDS", 1.0)
    bashrc(text)
    assert log_in(str(lab.ssh_config)) == "node1"


def test_setup_lines_run_before_the_far_end_and_do_not_eat_its_input(lab: Lab, tmp_path: Path) -> None:
    lines = ("export ZL_SETUP='it''s \"here\"'", "if true; then", "  cat; fi", "echo loaded module $UNSET")
    found = Session("node1", Options(str(lab.ssh_config), setup=lines), sys.executable)
    found.open()
    pid = lab.processes("node1", "ZL_SETUP=its")
    found.close()
    assert pid
    refusal = refused(str(lab.ssh_config), setup=("echo no module cuda/99 >&2; false",))
    assert (
        "did not start: no module cuda/99 (status 1; a line of ssh.setup or the login files may have said so)"
        in refusal
    )


SHELLS = ("bash", "dash", "fish", "zsh", "tcsh", "mksh")


@pytest.fixture
def login_shell(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """The login shell of root on node1, with a login file of its own that prints."""
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"{request.param} is not installed")
    files = ".bashrc .zshenv .tcshrc .mkshrc .profile .config/fish/config.fish"
    lab.run("node1", ["usermod", "-s", path, "root"])
    lab.run(
        "node1", ["sh", "-c", f"cd; mkdir -p .config/fish; for f in {files}; do echo echo hello from $f > $f; done"]
    )
    yield path
    lab.run("node1", ["sh", "-c", f"cd; rm -f {files}"])
    lab.run("node1", ["usermod", "-s", "/bin/bash", "root"])


SETUP_LINES = ("export ZL_SETUP='it''s \"here\" $HOME !0 a\\\\b'", "if true; then", "  cat; fi", "echo $UNSET")


@pytest.mark.parametrize("login_shell", SHELLS, indirect=True)
def test_any_login_shell_starts_the_far_end_with_its_setup(lab: Lab, login_shell: str, tmp_path: Path) -> None:
    asked = ["ssh", "-F", str(lab.ssh_config), "node1", "ps -o comm= -p $$ || ps -o comm= -p $fish_pid"]
    shown = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    assert Path(login_shell).name in shown  # sshd asks this shell, and no other
    odd = Path("/tmp/zl odd $HOME `x` \"'é !0 \\' a\\\\b")
    lab.run("node1", ["sh", "-c", 'mkdir -p "$1"; ln -sf "$2" "$1/python"', "sh", str(odd), sys.executable])
    for python in (sys.executable, str(odd / "python")):
        for setup in ((), SETUP_LINES):
            found = Session("node1", Options(str(lab.ssh_config), setup=setup), python)
            try:
                found.open()
                facts = found.call("hello", workdir="/tmp/w", token="t", index=0, packages=[], gpus=False)
                assert facts["host"] == "node1"
                assert bool(lab.processes("node1", 'ZL_SETUP=its "here" $HOME !0 a\\\\b')) is bool(setup)
            finally:
                found.close()
