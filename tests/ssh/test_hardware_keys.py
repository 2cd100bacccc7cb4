"""Hardware keys. OpenSSH's own tests have a key in software that stands for one: `make hardware-keys` builds it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh.conftest import Zl

PROVIDER = os.environ.get("ZLAUNCH_SK_PROVIDER", "")
"""sk-dummy.so of OpenSSH."""

pytestmark = [
    pytest.mark.ssh,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not PROVIDER, reason="needs OpenSSH's software key: make hardware-keys"),
]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that may load the software key, without keys."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path, "-P", PROVIDER], stdout=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield
    process.terminate()
    process.wait()


@pytest.mark.parametrize("certified", [False, True], ids=["plain", "certified"])
@pytest.mark.parametrize("kind", ["ed25519-sk", "ecdsa-sk"])
def test_a_hardware_key_in_the_agent_logs_in(zl: Zl, agent: None, tmp_path: Path, kind: str, certified: bool) -> None:
    key, allowed = tmp_path / "id_sk", zl.lab.shared / f"allowed-{kind}-{certified}"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key, "-w", PROVIDER], check=True)
    trust = f"AuthorizedKeysFile {allowed}"
    allowed.write_bytes(key.with_suffix(".pub").read_bytes())
    if certified:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ca"], check=True)
        words = ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "me", "-n", "root", f"{key}.pub"]
        subprocess.run(words, check=True)
        trust = f"TrustedUserCAKeys {allowed}\nAuthorizedKeysFile none"
        allowed.write_bytes((tmp_path / "ca.pub").read_bytes())
    number = 1
    text = (zl.lab.root / f"ssh/sshd{number}.conf").read_text().replace("PidFile none", "PidFile /run/keys.pid")
    file = zl.lab.shared / "keys.conf"
    file.write_text(f"{trust}\nStrictModes no\n{text.replace('Port 22', 'Port 2223')}")
    config = tmp_path / "config"
    lines = [line for line in zl.lab.ssh_config.read_text().splitlines() if "IdentityFile" not in line]
    config.write_text("\n".join([f"Host *\n  Port 2223\n  IdentityFile {key}", *lines, ""]))
    words = ["--hosts", "node1", "--ssh-config", str(config), "--python", zl.lab.python, "--device", "cpu"]
    zl.lab.run("node1", ["/usr/sbin/sshd", "-f", str(file)])
    try:
        zl.environ["SSH_AUTH_SOCK"] = os.environ["SSH_AUTH_SOCK"]
        refused = zl("ssh", *words, "--", "true", code=1)
        assert f"{key} is a hardware key: load it with ssh-add" in refused
        subprocess.run(["ssh-add", "-q", "-S", PROVIDER, key], check=True)
        key.unlink()  # only its public half is left, as with any key of an agent
        ssh = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "node1", "true"]
        assert subprocess.run(ssh, stdin=subprocess.DEVNULL, check=False).returncode == 0
        assert "node1" in zl("doctor", "ssh", *words)
        assert "hello by key" in zl("ssh", *words, "--", "echo", "hello by key")
    finally:
        zl.lab.run("node1", ["sh", "-c", "kill $(cat /run/keys.pid)"])
