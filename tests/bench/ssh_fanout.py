"""A whole cold submission over SSH, compared with a trivial command by fabric's ThreadingGroup and by pdsh.

    python -m tests.bench.ssh_fanout [--hosts 4,16,64,128] [--repeat 3] [--json FILE]

The hosts are real sshd on loopback addresses, so far ends, agents and ranks share this machine's processors with the
launcher; real hosts have their own. The files of the hosts lie in memory if there is /dev/shm. Real hosts have a disk
each; on one shared ext4 they would wait for its search for inodes that were not deleted recently (up to 50 ms per
host). A submission connects, verifies keys, surveys (clock, disk, versions, shared file system), finds a master address
and ports, sends the bundle, and starts every agent.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.backends import backend_of
from launcher.job.load import read_job
from launcher.lifecycle import submit
from launcher.rundir.directory import RunDir
from launcher.rundir.find import new_run_id
from tests.testbed import slots
from tests.testbed.bed import Farm


def threading_group(farm: Farm) -> float:
    """Seconds from host names to `true` on every host with fabric's group, as a user would write it.

    Fabric accepts any unknown host key. Our checks count in our time only.
    """
    import fabric

    connect = {"look_for_keys": False, "allow_agent": False, "banner_timeout": 60, "auth_timeout": 60}
    started = time.perf_counter()
    config = fabric.Config(runtime_ssh_path=str(farm.ssh_config))
    group = fabric.ThreadingGroup(*farm.hosts, config=config, connect_timeout=60, connect_kwargs=connect)
    group.run("true", hide=True, in_stream=False)
    seconds = time.perf_counter() - started
    group.close()
    return seconds


def pdsh(farm: Farm) -> float:
    """Seconds for `true` on all hosts at once with pdsh."""
    environ = {**os.environ, "PDSH_SSH_ARGS": f"-F {farm.ssh_config} %h"}
    words = ["pdsh", "-S", "-R", "ssh", "-f", str(farm.size), "-w", f"node[1-{farm.size}]", "true"]
    started = time.perf_counter()
    subprocess.run(words, env=environ, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - started


def submission(farm: Farm, root: Path, python: str, program: list[str]) -> tuple[float, dict[str, float], RunDir]:
    """Seconds of a cold submission, seconds of its parts, and the run."""
    job = read_job(
        None,
        flags={
            "device": "cpu", "program": tuple(program), "ssh.hosts": ",".join(farm.hosts),
            "ssh.ssh_config": str(farm.ssh_config), "ssh.python": python, "ssh.connect_timeout": 60.0,
        },
    )  # fmt: skip
    started = time.perf_counter()
    backend = backend_of("ssh")
    target = backend.target(job.spec)
    surveyed = time.perf_counter()
    run, plan = submit.prepare(job, target, run=RunDir(root / new_run_id(job.spec.name)))
    prepared = time.perf_counter()
    submit.submit(run, plan, backend, {})
    ended = time.perf_counter()
    parts = {"survey": surveyed - started, "render": prepared - surveyed, "send and start": ended - prepared}
    return ended - started, parts, run


def finish(run: RunDir) -> None:
    """Wait for the end of the run, then disconnect."""
    backend = backend_of("ssh")
    while not backend.state(run).is_final:
        time.sleep(0.2)
    backend.close()


def following(farm: Farm, root: Path, python: str) -> dict[str, Any]:
    """Follow the logs on all hosts: open connections meanwhile, memory of this process, lines seen."""
    program = ["bash", "-c", "for i in $(seq 20); do echo line $i of $RANK; sleep 0.2; done"]
    _, _, run = submission(farm, root, python, program)
    counts: list[int] = []
    done = threading.Event()

    def count() -> None:
        while not done.wait(0.5):
            lines = Path("/proc/net/tcp").read_text().splitlines()
            port = f":{2222:04X}"
            counts.append(sum(1 for line in lines if line.split()[2].endswith(port) and line.split()[3] == "01"))

    threading.Thread(target=count, daemon=True).start()
    lines = sum(line.startswith("line ") for block in backend_of("ssh").logs(run, follow=True) for line in block.lines)
    done.set()
    finish(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"hosts": farm.size, "lines": lines, "most_connections": max(counts), "peak_rss_mib": peak}


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="4,16,64,128")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--follow", type=int, default=64, help="hosts whose logs are followed at the end; 0: none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    os.environ.setdefault("USER", "root")  # paramiko asks for it per line of configuration; unset, that is slow
    slot = slots.acquire()
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="zlaunch-bench-", dir=memory if os.access(memory, os.W_OK) else None))
    os.environ["TMPDIR"] = str(root)
    results: list[dict[str, Any]] = []
    try:
        for size in map(int, options.hosts.split(",")):
            farm = Farm(root / "farm", slot.farm_network, size)
            farm.start()
            row: dict[str, Any] = {"hosts": size, "fabric": [], "pdsh": [], "zlaunch": []}
            for _ in range(options.repeat):
                row["fabric"].append(threading_group(farm))
                seconds, parts, run = submission(farm, root, sys.executable, ["true"])
                row["zlaunch"].append(seconds)
                row.setdefault("parts", []).append(parts)
                finish(run)
                if shutil.which("pdsh"):
                    row["pdsh"].append(pdsh(farm))
            results.append(row)
            report(row)
            if size == options.follow:
                followed = following(farm, root, sys.executable)
                results.append(followed)
                print(f"     following their logs: {followed}", flush=True)
            farm.stop()
    finally:
        Farm(root / "farm", slot.farm_network, 0).stop()
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def report(row: dict[str, Any]) -> None:
    """Print one line per farm: the best of each side, and the ratios."""
    fabric, ours = min(row["fabric"]), min(row["zlaunch"])
    rival = (
        f"pdsh {min(row['pdsh']):.2f} s ({ours / min(row['pdsh']):.2f} x)" if row["pdsh"] else "pdsh is not installed"
    )
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["parts"][row["zlaunch"].index(ours)].items())
    print(
        f"{row['hosts']:4d} hosts: zlaunch submission {ours:.2f} s = {ours / fabric:.2f} x fabric ThreadingGroup "
        f"{fabric:.2f} s; {rival}   [{parts}]",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
