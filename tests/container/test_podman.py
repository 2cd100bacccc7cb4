"""A real podman, as root and as a user without rights, that may raise no limit: what it refuses is left, and told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from launcher.plan.container import Needs, container_plan
from launcher.plan.engines.own_words import OwnWords
from launcher.plan.engines.table import EngineName
from tests.container.conftest import Engine, Zl

pytestmark = [pytest.mark.container, pytest.mark.timeout(300)]

UID = 4711
SAY = "grep -i 'locked mem' /proc/self/limits; echo uid=$(id -u) rank=$RANK/$WORLD_SIZE; touch of-rank-$RANK"
AS_USER = """set -eu
mount --bind {home}/passwd /etc/passwd; mount --bind {home}/group /etc/group
mount --bind {home}/subuid /etc/subuid; mount --bind {home}/subuid /etc/subgid
mount --bind {python} {home}/python
exec setpriv --reuid={uid} --regid={uid} --clear-groups "$@"
"""


@dataclass
class Podman:
    """Starts commands as a user, in namespaces of their own: podman's pause process ends with them, and the user's name
    is known to nobody else. No process may raise a limit."""

    home: Path
    uid: int

    def __call__(self, *argv: object) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run"),
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
        }  # fmt: skip
        alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
        limited = ("prlimit", "--memlock=8388608", "setpriv", "--bounding-set=-sys_resource")
        text = AS_USER.format(home=self.home, uid=self.uid, python=Path(sys.base_prefix))
        return subprocess.run(
            [*alone, *limited, "sh", "-c", text, "sh", *map(str, argv)], env=environ, cwd=self.home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module", params=[0, UID], ids=["root", "rootless"])
def podman(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Podman]:
    home = Path(tempfile.mkdtemp(prefix="zl-podman-"))  # below pytest's own directory another user has no access
    found = Podman(home, request.param)
    try:
        for name in ("run", "python"):
            (home / name).mkdir()
        (home / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\ntester:x:{UID}:{UID}::{home}:/bin/sh\n")
        (home / "group").write_text(f"root:x:0:\ntester:x:{UID}:\n")
        (home / "subuid").write_text("tester:300000:65536\n")
        (home / "containers.conf").write_text('[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n')
        (home / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/images"\nrunroot = "{home}/run"\n'
            f'rootless_storage_path = "{home}/images"\n'
        )
        engine("docker", "save", "--output", home / "base.tar", engine.docker.base_image)
        owned(home, found.uid)
        loaded = found("podman", "load", "--input", home / "base.tar")
        assert loaded.returncode == 0, loaded.stdout
        yield found
    finally:
        shutil.rmtree(home, ignore_errors=True)


def owned(folder: Path, uid: int) -> None:
    folder.chmod(0o755)
    subprocess.run(["chown", "-R", f"{uid}:{uid}", folder], check=True)


def rendered(zl: Zl, home: Path, engine: EngineName, image: str, own: OwnWords) -> Path:
    """A run of two ranks that would have GPUs, less the GPUs: this machine has none."""
    words = ("--device", "cpu", "--procs", "2", "--container", "docker", "--image", image, "--dry-run")
    python = f"local.python={home}/python/bin/python3"
    run_id = zl.result("local", *words, "--set", python, "--", "sh", "-c", SAY)["run"]
    run = home / run_id
    shutil.copytree(zl.runs / run_id, run)
    file = run / "plan.json"
    plan = json.loads(file.read_text())
    needs = Needs(image=image, name=plan["launch"]["container"]["name"], gpus=True, stop_timeout=40, own=own)
    plan["launch"].update(container=msgspec.to_builtins(container_plan(engine, needs)), cwd=None)
    file.write_text(json.dumps(plan))
    return run


def notes(run: Path) -> str:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return "\n".join(event["text"] for event in events if event["event"] == "note")


def test_podman_starts_without_the_limits_that_it_may_not_raise_and_says_so(
    zl: Zl, engine: Engine, podman: Podman
) -> None:
    run = rendered(zl, podman.home, "podman", engine.docker.base_image, OwnWords(omit=("--device=nvidia.com/gpu",)))
    owned(run, podman.uid)
    done = podman("bash", run / "node.sh", 0)
    log = (run / "logs/node-0/agent.log").read_text()
    assert done.returncode == 0, log
    for rank in (0, 1):
        said = (run / f"logs/node-0/rank-{rank}.log").read_text()
        assert said.split()[3] == "8388608", said
        assert f"uid={podman.uid} rank={rank}/2" in said
        assert (run / f"of-rank-{rank}").stat().st_uid == podman.uid
    assert "podman may not raise the limit `memlock` on this host, and leaves it as it is" in notes(run)
    assert "stack" not in notes(run)  # it was below its hard limit


def test_a_limit_that_the_job_itself_asks_for_is_not_left_out(zl: Zl, engine: Engine, podman: Podman) -> None:
    asked = OwnWords(("--ulimit=memlock=99999999999",), ("--device=nvidia.com/gpu",))
    run = rendered(zl, podman.home, "podman", engine.docker.base_image, asked)
    owned(run, podman.uid)
    assert podman("bash", run / "node.sh", 0).returncode == 1
    failure = json.loads((run / "nodes/node-0.json").read_text())["failure"]
    assert failure["cause"] == "engine"
    assert "rlimit" in failure["message"]
    assert "container.omit" in failure["advice"][0]
