"""containers: the same run inside containers with the hosts' GPUs, through each backend."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.bench.multi import ROOT
from tests.bench.nodes.runs import RunFailedError, Runner
from tests.testbed.bed import interpreter_directories

SCRIPT = ROOT / "tests/testbed/gpuhosts/containers.sh"
IMAGE = "localhost/bed/train:1"
PLACE = Path("/run/zlaunch-containers")
SMOKE = ROOT / "templates/smoke.jsonl"


def containers(runner: Runner) -> None:
    """podman on all hosts by CDI, and Charliecloud on this machine. The images are skeletons with the hosts' /usr."""
    hosts = runner.hosts
    if hosts.lab is None:
        runner.table.add("containers", "all", note="not run: it configures podman on the hosts")
        return
    mounts = [Path("/usr"), Path("/opt"), *(path for path in [*interpreter_directories(), ROOT] if not _within(path))]
    environ = ["env", f"PYTHON={hosts.python}", f"MOUNTS={' '.join(map(str, [*mounts, SMOKE]))}"]
    for host in hosts.names:
        argv = [*environ, "bash", str(SCRIPT), str(PLACE), IMAGE, str(runner.place / "image.tar")]
        done = hosts.lab.run(host, argv, check=False, timeout=90)
        words = done.stdout.splitlines()[-1:]
        print(f"{host}: podman with {''.join(words)} {done.stderr[-600:] if done.returncode else ''}", flush=True)
    words = ["--smoke", "--set", f"container.mounts=[{', '.join(f'{path}:{path}' for path in mounts)}]", *runner.extra]
    podman = ["--container", "podman", "--image", IMAGE, *words]
    count = ["--gpus" if hosts.device == "cuda" else "--procs", str(hosts.per_host)]
    _smoke(runner, "zlaunch ssh, podman", [*hosts.words(), *podman], hosts.ranks)
    if hosts.slurm is not None:
        _smoke(runner, "zlaunch slurm, podman", [*hosts.slurm_words(), "--wait", *podman], hosts.ranks)
    local = ["local", "--device", hosts.device, *count]
    _smoke(runner, "zlaunch local, podman", [*local, *podman], hosts.per_host, host=hosts.names[0])
    subprocess.run(["bash", str(SCRIPT), str(runner.place / "ch")], env={**os.environ, **_pairs(environ)}, check=False)
    image = ["--container", "charliecloud", "--image", str(runner.place / "ch/tree")]
    with tempfile.TemporaryDirectory(dir="/tmp") as runs:  # Charliecloud shares /tmp, and makes no places for mounts
        _smoke(runner, "zlaunch local, Charliecloud", [*local, *image, *words], hosts.per_host, ZLAUNCH_RUNS=runs)


def _within(path: Path) -> bool:
    return path.is_relative_to("/usr") or path.is_relative_to("/opt")


def _pairs(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words[1:])


def _smoke(runner: Runner, what: str, words: list[str], ranks: int, host: str | None = None, **variables: str) -> None:
    """`host`: run zlaunch itself there."""
    try:
        answer = runner.zlaunch(*words, host=host, **variables)
        note = f"{answer['world_size']} ranks, loss {answer['loss_first']:.2f} to {answer['loss_last']:.2f}"
        ok = answer["state"] == "SUCCEEDED" and answer["world_size"] == ranks
        runner.table.add("containers", what, ok=ok, seconds=answer["seconds"], note=note)
    except RunFailedError as error:
        runner.table.add("containers", what, ok=False, note=str(error))
