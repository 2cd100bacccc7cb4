"""Known hosts as ssh reads them: which lines count, and which errors a key leads to."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from launcher.remote import known_hosts
from launcher.remote.address import parse_address
from launcher.remote.openssh import Settings, settings_of

KEY, OTHER = (paramiko.RSAKey.generate(1024) for _ in range(2))
"""As good as any for a lookup."""
RSA, RSA_OTHER = (f"ssh-rsa {key.get_base64()}" for key in (KEY, OTHER))
ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILyTGoOIMgPCsuxn9S6nAJzs+A/6PRD/4hjC2YiU7hn7"


def settings(tmp_path: Path, config: str = "", known: str = "", name: str = "10.0.0.1") -> Settings:
    (tmp_path / "known").write_text(known)
    (tmp_path / "config").write_text(
        f"{config}\nHost *\n  UserKnownHostsFile {tmp_path}/known\n  GlobalKnownHostsFile none\n"
    )
    return settings_of(parse_address(name), str(tmp_path / "config"))


def check(found: Settings, key: Any = KEY, *, accept_new: bool = False, direct: bool = True) -> None:
    known_hosts.verify(key, found, known_hosts.known_keys(found), accept_new=accept_new, direct=direct)


def refusal(found: Settings, key: Any = KEY, **more: Any) -> str:
    with pytest.raises(known_hosts.HostKeyError) as caught:
        check(found, key, **more)
    return str(caught.value)


def hashed(line: str, tmp_path: Path) -> str:
    file = tmp_path / "to-hash"
    file.write_text(line)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    return file.read_text()


BROKEN = (
    f"node9 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI\n\n# a comment\n10.0.0.1\n10.0.0.1 ssh-rsa !!!\n@odd 10.0.0.1 {RSA}\n"
)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("10.0.0.1", f"10.0.0.1 {RSA}"),
        ("10.0.0.1", f"node1,10.0.0.1 {RSA} a comment"),
        ("10.0.0.1", f"10.0.*,!10.0.0.2 {RSA}"),
        ("10.0.0.1:2222", f"[10.0.0.1]:2222 {RSA}"),
        ("10.0.0.1:2222", f"10.0.0.1 {RSA}"),
        ("Node1.Example.ORG", f"node1.example.org {RSA}"),
        ("node1.example.org", f"*.Example.org\t {RSA}"),
        ("fd00::1", f"fd00::1 {RSA}"),
        ("[fd00::1]:22", f"fd00::1 {RSA}"),
        ("[fd00::1]:44", f"[fd00::1]:44 {RSA}"),
        ("10.0.0.1", f"10.0.0.1 {ED}\n10.0.0.1 {RSA_OTHER}\n10.0.0.1 {RSA}"),
    ],
)
@pytest.mark.parametrize("hash_it", [False, True], ids=["plain", "hashed"])
def test_a_line_that_ssh_would_find_is_found_among_bad_ones(
    tmp_path: Path, name: str, line: str, hash_it: bool
) -> None:
    if hash_it and "*" not in line:  # ssh-keygen hashes no patterns
        line = hashed(line + "\n", tmp_path)
    check(settings(tmp_path, known=f"{BROKEN}{line}\n{BROKEN}", name=name))


@pytest.mark.parametrize(
    "line", [BROKEN, f"10.0.0.* {ED}", f"10.0.0.1,!10.0.0.1 {RSA}", f"[10.0.0.1]:2222 {RSA}", f"10.0.0.11 {RSA}"]
)
def test_a_line_about_another_host_or_with_another_kind_of_key_is_no_acquaintance(tmp_path: Path, line: str) -> None:
    text = refusal(settings(tmp_path, known=line))
    assert "unknown host key ssh-rsa SHA256:" in text
    assert ("known for it: ssh-ed25519" in text) is (ED in line)


@pytest.mark.parametrize("strict", ["no", "accept-new", "ask"])
def test_a_revoked_key_is_refused_whatever_the_user_accepts(tmp_path: Path, strict: str) -> None:
    known = f"10.0.0.1 {RSA}\n@revoked * {RSA}\n"
    text = refusal(settings(tmp_path, f"StrictHostKeyChecking {strict}", known), accept_new=True)
    assert text.startswith("REVOKED HOST KEY: ")
    assert f"revoked in {tmp_path}/known line 2" in text
    check(settings(tmp_path, known=f"10.0.0.1 {RSA}\n@revoked 10.0.0.2 {RSA}\n@revoked * {RSA_OTHER}\n"))


def test_a_list_of_revoked_keys_is_heeded(tmp_path: Path) -> None:
    config, known = f"RevokedHostKeys {tmp_path}/revoked", f"10.0.0.1 {RSA}\n"
    (tmp_path / "revoked").write_text(f"# stolen\n{RSA} laptop\n")
    assert "REVOKED" in refusal(settings(tmp_path, config, known))
    (tmp_path / "revoked").write_text(f"{RSA_OTHER}\n")
    check(settings(tmp_path, config, known))
    (tmp_path / "revoked").unlink()
    assert "No such file" in refusal(settings(tmp_path, config, known))


@pytest.mark.parametrize("form", ["{key}", "key: {key}", "sha256: {key}", "hash: {fingerprint}"])
def test_a_binary_list_of_revoked_keys_is_heeded(tmp_path: Path, form: str) -> None:
    config, known = f"RevokedHostKeys {tmp_path}/revoked", f"10.0.0.1 {RSA}\n"

    def revoke(key: paramiko.PKey) -> None:
        line = form.format(key=f"{key.get_name()} {key.get_base64()}", fingerprint=key.fingerprint)
        (tmp_path / "list").write_text(line + "\n")
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", tmp_path / "revoked", tmp_path / "list"], check=True)

    revoke(KEY)
    assert f"which is revoked in {tmp_path}/revoked" in refusal(settings(tmp_path, config, known), accept_new=True)
    revoke(OTHER)
    check(settings(tmp_path, config, known))


def test_a_binary_list_of_revoked_keys_that_cannot_be_read_lets_no_key_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings(tmp_path, f"RevokedHostKeys {tmp_path}/revoked", f"10.0.0.1 {RSA}\n")
    (tmp_path / "revoked").write_bytes(b"SSHKRL\n\0\0\0\0")
    assert "revoked cannot be read: " in refusal(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "only ssh-keygen can read RevokedHostKeys" in refusal(found)


def test_a_changed_key_is_refused_unless_the_user_has_switched_the_check_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = f"10.0.0.1 {RSA_OTHER}\n"
    for strict in ("yes", "ask", "accept-new"):
        assert "HOST KEY CHANGED" in refusal(
            settings(tmp_path, f"StrictHostKeyChecking {strict}", known), accept_new=True
        )
    check(settings(tmp_path, "StrictHostKeyChecking no", known))
    assert "HOST KEY CHANGED" in capsys.readouterr().err
    assert (tmp_path / "known").read_text() == known


@pytest.mark.parametrize(("hash_names", "name"), [("no", "10.0.0.1"), ("no", "10.0.0.1:2222"), ("yes", "10.0.0.1")])
def test_a_new_key_is_stored_as_ssh_stores_it(tmp_path: Path, hash_names: str, name: str) -> None:
    found = settings(tmp_path, f"StrictHostKeyChecking accept-new\nHashKnownHosts {hash_names}", f"other {ED}", name)
    check(found)
    assert (tmp_path / "known").read_text().startswith(f"other {ED}\n")
    look = ["ssh-keygen", "-F", found.known_name, "-f", str(tmp_path / "known")]
    assert KEY.get_base64() in subprocess.run(look, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "known").read_text().splitlines()[1].startswith("|1|") is (hash_names == "yes")
    check(settings_of(parse_address(name), str(tmp_path / "config")))
    assert len((tmp_path / "known").read_text().splitlines()) == 2


def test_several_files_none_and_an_alias(tmp_path: Path) -> None:
    spaced = tmp_path / "my keys"
    spaced.write_text(f"one {RSA}\n")
    config = f'HostKeyAlias One\nUserKnownHostsFile {tmp_path}/absent "{spaced}" {tmp_path}/third'
    found = settings(tmp_path, config)
    assert found.known_hosts == (tmp_path / "absent", spaced, tmp_path / "third")
    check(found)
    found = settings(tmp_path, "UserKnownHostsFile none\nStrictHostKeyChecking no")
    assert found.known_hosts == ()
    check(found)


def test_localhost_is_trusted_where_the_user_says_so(tmp_path: Path) -> None:
    config = "NoHostAuthenticationForLocalhost yes"
    check(settings(tmp_path, config, name="127.0.0.1"))
    assert "unknown host key" in refusal(settings(tmp_path, config))


def test_the_keyscan_of_an_unknown_key_names_port_alias_and_file(tmp_path: Path) -> None:
    assert f"then: ssh-keyscan 10.0.0.1 >> {tmp_path}/known " in refusal(settings(tmp_path))
    assert f"then: ssh-keyscan -p 2222 10.0.0.1 >> {tmp_path}/known " in refusal(
        settings(tmp_path, name="10.0.0.1:2222")
    )
    config = "Host node1\n  HostName 10.0.0.1\n  Port 2222\n  HostKeyAlias one"
    text = refusal(settings(tmp_path, config, name="node1"))
    assert f"ssh-keyscan -p 2222 10.0.0.1 | sed 's/^[^# ][^ ]*/one/' >> {tmp_path}/known " in text
    assert "/etc/ssh/ssh_host_rsa_key.pub" in text


def test_the_alias_replaces_the_name_that_was_scanned() -> None:
    command = known_hosts.keyscan_command("h", 2222, "a/b&c", Path("/tmp/known")).partition("| ")[2].partition(" >>")[0]
    lines = "# h:2222 SSH-2.0-OpenSSH\n[h]:2222 ssh-rsa AAAA\n"
    done = subprocess.run(["sh", "-c", command], input=lines, capture_output=True, text=True, check=True)
    assert done.stdout == "# h:2222 SSH-2.0-OpenSSH\na/b&c ssh-rsa AAAA\n"


def test_no_keyscan_is_proposed_where_it_cannot_reach_the_host(tmp_path: Path) -> None:
    text = refusal(settings(tmp_path), direct=False)
    assert "ssh-keyscan" not in text
    assert "look at the key on the host itself" in text
    assert f"echo '10.0.0.1 ssh-rsa {KEY.get_base64()}' >> {tmp_path}/known " in text


@pytest.mark.parametrize(("port", "alias"), [(22, None), (2222, None), (2222, "one")])
def test_a_changed_key_is_forgotten_by_the_command_that_is_printed(
    tmp_path: Path, port: int, alias: str | None
) -> None:
    dialled = "10.0.0.1" if port == 22 else f"[10.0.0.1]:{port}"
    config = f"Host node1\n  HostName 10.0.0.1\n  Port {port}\n" + (f"  HostKeyAlias {alias}\n" if alias else "")
    text = refusal(settings(tmp_path, config, f"{alias or dialled} {RSA_OTHER}\nelse {RSA_OTHER}\n", "node1"))
    subprocess.run(["sh", "-c", text[text.index("ssh-keygen -R") :]], check=True, capture_output=True)
    assert (tmp_path / "known").read_text() == f"else {RSA_OTHER}\n"


@pytest.fixture
def certified(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    """Return (the key of a host with a certificate, public key of its authority); options are those of ssh-keygen."""

    def make(*options: str, kind: str = "ed25519") -> tuple[Any, str]:
        for name in ("ca", "host"):
            (tmp_path / name).unlink(missing_ok=True)
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", tmp_path / name], check=True)
        words = ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "id", *options, tmp_path / "host.pub"]
        subprocess.run(words, check=True, capture_output=True)
        blob = base64.b64decode((tmp_path / "host-cert.pub").read_text().split()[1])
        key = paramiko.Transport._key_info[
            {"rsa": "rsa-sha2-512", "ecdsa": "ecdsa-sha2-nistp256", "ed25519": "ssh-ed25519"}[kind]
        ](paramiko.Message(blob))
        return key, " ".join((tmp_path / "ca.pub").read_text().split()[:2])

    return make


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_an_authority_vouches_for_hosts(tmp_path: Path, certified: Any, kind: str) -> None:
    key, authority = certified("-h", "-n", "10.0.0.1,node1", "-V", "-1m:+5m", kind=kind)
    check(settings(tmp_path, known=f"@cert-authority 10.0.* {authority}\n"), key)
    assert "unknown host key" in refusal(settings(tmp_path, known=f"@cert-authority 10.1.* {authority}\n"), key)
    assert "unknown host key" in refusal(settings(tmp_path, known=f"@cert-authority * {ED}\n"), key)
    text = refusal(settings(tmp_path, known=f"@cert-authority * {authority}\n@revoked * {authority}\n"), key)
    assert "REVOKED" in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("-h", "-n", "10.0.0.2"), "it is for 10.0.0.2, not for 10.0.0.1"),
        (("-n", "10.0.0.1"), "it is not for hosts"),
        (("-h", "-V", "20200101:20200102"), "it expired on 2020-01-0"),
        (("-h", "-V", "+1d:+2d"), "it is not valid yet"),
    ],
)
def test_a_certificate_that_does_not_hold_is_refused(
    tmp_path: Path, certified: Any, options: tuple[str, ...], problem: str
) -> None:
    key, authority = certified(*options)
    text = refusal(settings(tmp_path, known=f"@cert-authority * {authority}\n"), key)
    assert f"the certificate of the host's key does not hold: {problem}" in text


def test_a_forged_certificate_is_refused(tmp_path: Path, certified: Any) -> None:
    key, _ = certified("-h", "-n", "10.0.0.1")
    _, authority = certified("-h")
    blob = key.public_blob.key_blob
    known = base64.b64decode(authority.split()[1])
    # The other authority's key in place of the one that signed.
    at = blob.index((len(known)).to_bytes(4, "big") + b"\0\0\0\x0bssh-ed25519", 64) + 4
    key.public_blob.key_blob = blob[:at] + known + blob[at + len(known) :]
    assert "its signature is wrong" in refusal(settings(tmp_path, known=f"@cert-authority * {authority}\n"), key)


def test_certificates_are_asked_for_only_where_an_authority_is_known(tmp_path: Path) -> None:
    supported = list(paramiko.Transport._key_info)
    plain = settings(tmp_path, known=f"10.0.0.1 {RSA}\n")
    offered = known_hosts.algorithms(plain, known_hosts.known_keys(plain), supported)
    assert offered[0].startswith("rsa-sha2-")
    assert not any("cert" in name for name in offered)
    vouched = settings(tmp_path, known=f"@cert-authority * {ED}\n")
    assert "cert" in known_hosts.algorithms(vouched, known_hosts.known_keys(vouched), supported)[0]


def test_many_known_hosts_are_read_quickly(tmp_path: Path) -> None:
    lines = "".join(f"10.1.{n // 250}.{n % 250} {ED}\n" for n in range(20000))
    found = settings(tmp_path, known=lines + f"10.0.0.1 {RSA}\n")
    check(found)
    started = time.process_time()
    for _ in range(20):
        check(found)
    assert time.process_time() - started < 8
