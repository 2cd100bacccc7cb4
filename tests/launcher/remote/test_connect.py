"""Connections prepared for many hosts at once, from one shared configuration."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import paramiko
import pytest

from launcher.errors import TargetError
from launcher.remote import connect, host_keys, session
from launcher.remote.ssh_config import expand_includes


def test_a_prepared_connection_opens_while_others_are_being_prepared(tmp_path: Path) -> None:
    """Invoke empties its configuration whenever it merges it anew, as each prepared connection makes it do; fabric's
    open() reads it from another thread."""
    ssh_config = tmp_path / "config"
    ssh_config.write_text("Host node1\n  HostName 127.0.0.1\n")
    connection = connect.prepare("node1", connect.Options(ssh_config=str(ssh_config)))
    merged = connection.config._config
    try:
        connection.config._set(_config={})
        assert connection.authentication.strategy_class is None
    finally:
        connection.config._set(_config=merged)


def included(tmp_path: Path, **files: str) -> Any:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return paramiko.SSHConfig.from_text(expand_includes(tmp_path / "config", tmp_path))


def test_included_files_count_where_they_are_included(tmp_path: Path) -> None:
    config = included(
        tmp_path,
        config=f"Include part-* {tmp_path}/absent\nUser all\nHost a\n  Include inner\n  Port 7\nHost b\n  Port 8\n",
        inner="User late\nCompression yes\nHost b a\n  ForwardAgent yes\nHost b\n  IdentityFile never\n",
        **{"part-1": "Host node*\n  HostName 10.0.0.1\n  ProxyJump gate\n", "part-2": "Include=nested\n"},
        nested='Host "b" c\n  User nested\n',
    )
    node = config.lookup("node1")
    assert (node["hostname"], node["proxyjump"], node["user"]) == ("10.0.0.1", "gate", "all")
    assert "compression" not in node
    a = config.lookup("a")
    assert (a["user"], a["port"], a["compression"], a["forwardagent"]) == ("all", "7", "yes", "yes")
    b = config.lookup("b")
    assert (b["user"], b["port"], "forwardagent" in b, "identityfile" in b) == ("nested", "8", False, False)


def test_files_that_include_themselves_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="include one another"):
        included(tmp_path, config="Include config\n")


def test_a_connection_goes_through_the_proxy_of_an_included_host(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"Include {tmp_path}/more/*.conf\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.conf").write_text("Host inner\n  HostName 10.1.1.1\n  Port 2200\n  ProxyJump me@outer:2222\n")
    connection = connect.prepare("inner", connect.Options(ssh_config=str(tmp_path / "config")))
    assert (connection.host, connection.port) == ("10.1.1.1", 2200)
    assert (connection.gateway.user, connection.gateway.host, connection.gateway.port) == ("me", "outer", 2222)
    (tmp_path / "more/a.conf").write_text("Host inner\n  HostName 10.1.1.2\n")
    assert connect.prepare("inner", connect.Options(ssh_config=str(tmp_path / "config"))).host == "10.1.1.2"


KEY, OTHER = (paramiko.RSAKey.generate(1024) for _ in range(2))
"""As good as any for a lookup."""


def unknown(tmp_path: Path, text: str, name: str = "node1") -> str:
    (tmp_path / "config").write_text(text)
    connection = connect.prepare(name, connect.Options(ssh_config=str(tmp_path / "config")))
    with pytest.raises(host_keys.UnknownHostKey) as caught:
        connection.client._policy.missing_host_key(connection.client, "x", KEY)
    return str(caught.value)


def test_the_keyscan_of_an_unknown_key_names_port_alias_and_file(tmp_path: Path) -> None:
    known = f"Host *\n  UserKnownHostsFile {tmp_path}/known\n"
    assert f"then: ssh-keyscan 10.0.0.1 >> {tmp_path}/known " in unknown(tmp_path, known, "10.0.0.1")
    assert f"then: ssh-keyscan -p 2222 10.0.0.1 >> {tmp_path}/known " in unknown(tmp_path, known, "10.0.0.1:2222")
    said = unknown(tmp_path, f"Host node1\n  HostName 10.0.0.1\n  Port 2222\n  HostKeyAlias one\n{known}")
    assert f"ssh-keyscan -p 2222 10.0.0.1 | sed 's/^[^# ][^ ]*/one/' >> {tmp_path}/known " in said
    assert "/etc/ssh/ssh_host_rsa_key.pub" in said


def test_the_alias_replaces_the_name_that_was_scanned() -> None:
    command = host_keys.keyscan_command("h", 2222, "a/b&c", Path("/tmp/known")).partition("| ")[2].partition(" >>")[0]
    lines = "# h:2222 SSH-2.0-OpenSSH\n[h]:2222 ssh-rsa AAAA\n"
    done = subprocess.run(["sh", "-c", command], input=lines, capture_output=True, text=True, check=True)
    assert done.stdout == "# h:2222 SSH-2.0-OpenSSH\na/b&c ssh-rsa AAAA\n"


def test_no_keyscan_is_proposed_where_it_cannot_reach_the_host(tmp_path: Path) -> None:
    said = unknown(
        tmp_path, f"Host node1\n  HostName 10.0.0.1\n  Port 22\n  ProxyJump gate\n  UserKnownHostsFile {tmp_path}/known"
    )
    assert "ssh-keyscan" not in said
    assert "look at the key on the host itself" in said
    assert f"echo '10.0.0.1 ssh-rsa {KEY.get_base64()}' >> {tmp_path}/known " in said


@pytest.mark.parametrize(("port", "alias"), [(22, None), (2222, None), (2222, "one")])
def test_a_changed_key_is_forgotten_by_the_command_that_is_printed(
    tmp_path: Path, port: int, alias: str | None
) -> None:
    known, dialled = tmp_path / "known", "10.0.0.1" if port == 22 else f"[10.0.0.1]:{port}"
    known.write_text(f"{alias or dialled} ssh-rsa {OTHER.get_base64()}\nelse ssh-rsa {OTHER.get_base64()}\n")
    (tmp_path / "config").write_text(
        f"Host node1\n  HostName 10.0.0.1\n  Port {port}\n  UserKnownHostsFile {tmp_path}/none {known}\n"
        + (f"  HostKeyAlias {alias}\n" if alias else "")
    )
    connection = connect.prepare("node1", connect.Options(ssh_config=str(tmp_path / "config")))
    said = connect.explain(paramiko.BadHostKeyException("10.0.0.1", KEY, OTHER), connection, 1)
    command = said[said.index("ssh-keygen -R") :]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert known.read_text() == f"else ssh-rsa {OTHER.get_base64()}\n"


def test_a_server_too_busy_to_say_hello_is_asked_again_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "BUSY_PAUSES", (0.01, 0.01))
    asked = []

    def turn_away() -> None:
        while True:
            try:
                sock, caller = server.accept()
            except OSError:
                return
            asked.append(caller)
            sock.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=turn_away, daemon=True).start()
        busy = session.Session(f"127.0.0.1:{server.getsockname()[1]}", connect.Options(), "python3")
        with pytest.raises(session.HostError, match="banner"):
            busy.open()
        server.shutdown(socket.SHUT_RDWR)
    assert len(asked) == 3
    assert capfd.readouterr().err == ""
    assert not connect.is_overloaded(paramiko.SSHException("Error reading SSH protocol banner"), 15.0)
