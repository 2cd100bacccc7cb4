"""Run directories are for their owner only, under any umask: here, and on a host."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from launcher.node.farend import __main__ as farend
from tests.beds.places import ROOT

OTHER = 65534
"""Another user."""


@pytest.fixture
def open_umask():
    """Everybody may write what is made."""
    before = os.umask(0)
    yield
    os.umask(before)


def reach(path: Path) -> list[str]:
    """What another user sees below a path, or can write there."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    look = (
        "import os, sys\n"
        f"os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})\n"
        "for folder, folders, names in os.walk(sys.argv[1]):\n"
        "    print(*(os.path.join(folder, name) for name in names), sep='\\n')\n"
        "    if os.access(folder, os.W_OK): print('writable', folder)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", look, str(path)], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line]


def visible(tmp_path: Path) -> Path:
    """A folder that another user can enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(0o755 if folder.name != "tmp" else stat.S_IMODE(folder.stat().st_mode))
    return tmp_path


def test_a_run_made_with_an_open_umask_is_closed_to_others(tmp_path: Path, open_umask: None) -> None:
    home = visible(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ZLAUNCH_RUNS": str(home / "some" / "runs"),
        "TOKEN": "s3cret",
    }
    words = ["local", "--device", "cpu", "--procs", "1", "--set", "secrets=[TOKEN]", "--", "sh", "-c", "touch made"]
    subprocess.run([sys.executable, "-m", "launcher", *words], cwd=home, env=environment, check=True, stdout=-3)
    (run,) = (home / "some" / "runs").glob("*-*-*-*")
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (home / "some", home / "some" / "runs")} == {0o755}
    assert stat.S_IMODE((home / "made").stat().st_mode) == 0o666, "the program has the umask of the user"
    assert reach(home / "some") == []
    for file in run.rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes()


def test_what_the_far_end_makes_is_closed_to_others(tmp_path: Path, open_umask: None) -> None:
    home = visible(tmp_path)
    run = home / "zlaunch" / "runs" / "a-20260101-000000-aaaa"
    index = json.dumps([["plan.json", 2], ["code/x.py", 4]]).encode()
    payload = zlib.compress(index + b"\n" + b"{}" + b"pass")
    request = {"op": "unpack", "payload": len(payload), "run_dir": str(run), "links": {}}
    answer = farend.carry_out(dict(request), io.BytesIO(payload))
    assert answer is not None
    assert answer["ok"], answer
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (home / "zlaunch").rglob("*")} == {0}
    assert stat.S_IMODE((home / "zlaunch").stat().st_mode) == 0o700
    assert reach(home / "zlaunch") == []
    assert os.umask(0) == 0, "the umask is the user's again"
