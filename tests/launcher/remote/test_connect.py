"""A connection prepared as ssh would make it: jump hosts, and servers that are too busy to answer."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import paramiko
import pytest

from launcher.errors import TargetError
from launcher.remote import session
from launcher.remote.connect import Connection, Options
from launcher.remote.openssh import Settings


def prepared(tmp_path: Path, text: str, name: str = "inner") -> Connection:
    (tmp_path / "config").write_text(text)
    return Connection(name, Options(ssh_config=str(tmp_path / "config")))


def hops(connection: Connection | None) -> list[Settings]:
    found = []
    while connection is not None:
        found.append(connection.settings)
        connection = connection.gateway
    return found


def test_a_connection_goes_through_the_proxy_of_an_included_host(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.conf").write_text("Host inner\n  HostName 10.1.1.1\n  Port 2200\n  ProxyJump me@outer:2222\n")
    inner, outer = hops(prepared(tmp_path, f"Include {tmp_path}/more/*.conf\n"))
    assert (inner.host, inner.port) == ("10.1.1.1", 2200)
    assert (outer.user, outer.host, outer.port) == ("me", "outer", 2222)
    (tmp_path / "more/a.conf").write_text("Host inner\n  HostName 10.1.1.2\n")
    assert [hop.host for hop in hops(prepared(tmp_path, f"Include {tmp_path}/more/*.conf\n"))] == ["10.1.1.2"]


def test_each_jump_host_has_its_own_settings_and_a_list_overrides_their_own_jump_hosts(tmp_path: Path) -> None:
    text = (
        "Host inner\n  ProxyJump one,u@[fd00::2]:44\nHost one\n  HostName 10.0.0.1\n  ProxyJump zero\n"
        "Host fd00::2\n  ProxyJump never\n  IdentityFile /keys/two\n"
    )
    connection = prepared(tmp_path, text)
    assert [hop.where.partition("@")[2] for hop in hops(connection)] == [
        "inner:22", "[fd00::2]:44", "10.0.0.1:22", "zero:22"
    ]  # fmt: skip
    assert hops(connection)[1].user == "u"
    assert hops(connection)[1].identity_files == (Path("/keys/two"),)


@pytest.mark.parametrize("text", ["Host *\n  ProxyJump inner\n", "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n"])
def test_jump_hosts_that_lead_in_a_circle_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TargetError, match=r"jumphost loop via|back to itself"):
        prepared(tmp_path, text, "a")


def test_a_configuration_that_ssh_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"ssh itself refuses inner: .*line 2: Bad configuration option: colour"):
        prepared(tmp_path, "Host *\n  Colour red\n")
    with pytest.raises(TargetError, match="no ssh configuration file"):
        Connection("inner", Options(ssh_config=str(tmp_path / "absent")))


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
        busy = session.Session(f"127.0.0.1:{server.getsockname()[1]}", Options(), "python3")
        with pytest.raises(session.HostError, match="banner"):
            busy.open()
        server.shutdown(socket.SHUT_RDWR)
    assert len(asked) == 3
    assert capfd.readouterr().err == ""


def test_all_addresses_of_a_host_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may have an address of a family that has no route here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        unreachable = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0))
        reachable = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [unreachable, reachable])
        connection = Connection(f"127.0.0.1:{port}", Options(ssh_config="none", connect_timeout=2))
        with connection._dial() as sock:
            assert sock.getpeername() == ("127.0.0.1", port)


def test_paramiko_knows_the_algorithms_that_are_offered() -> None:
    """The transport's table is not documented; certificates of hosts are read by it."""
    assert "ssh-ed25519-cert-v01@openssh.com" in paramiko.Transport._key_info
