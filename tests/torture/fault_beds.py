"""Where runs with faults live: this machine, hosts of the lab, a Slurm cluster. Each case has its own folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launcher.node import processes
from tests.beds.places import ROOT
from tests.testbed.bed import Lab, Slurm
from tests.testbed.plugin import missing, running
from tests.testbed.slots import acquire

SECRET = "TORTURE_SECRET"
PROGRAM = Path(__file__).with_name("imitation.py")
PATIENCE = 90.0
"""Seconds for whatever must happen, on an idle machine; a busy one takes as much longer as its load says."""
Victim = tuple[str, int]
"""(host, pid as the host counts it); the host is empty on this machine."""


@dataclass
class Case:
    """One run: its folder, its commands, and the process of its launcher."""

    bed: Bed
    folder: Path
    secret: str
    words: list[str] = field(default_factory=list)
    """More words of the first start."""
    environ: dict[str, str] = field(default_factory=dict)
    launcher: subprocess.Popen[str] | None = None
    output: str = ""

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        found = [path for path in self.runs.glob("*-*-*-*") if (path / "plan.json").exists()]
        return found[0] if found else self.runs / "none-yet"

    def start(self, *words: str) -> subprocess.Popen[str]:
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "ZLAUNCH_RUNS": str(self.runs), "HOME": str(home), "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", SECRET: self.secret, **self.bed.environment, **self.environ}
        environment.pop("XDG_CACHE_HOME", None)
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *words], cwd=home, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def patience(self) -> float:
        return 4 * PATIENCE if isinstance(self.bed, TrainingBed) else PATIENCE

    def zlaunch(self, *words: str, timeout: float = 0) -> tuple[int, str]:
        process, timeout = self.start(*words), timeout or self.patience
        output, in_time = _output(process, timeout)
        return (process.returncode, output) if in_time else (-1, f"no end within {timeout:g} s: {output}")

    def begin(self, program: list[str]) -> None:
        common = ["--device", "cpu", "--set", f"secrets=[{SECRET}]", "--set", "heartbeat_timeout=8"]
        self.launcher = self.start(*self.bed.target, *common, *self.words, *(["--", *program] if program else []))

    def end_launcher(self) -> None:
        """Wait for the launcher, however it ends."""
        if self.launcher is None:
            return
        output, in_time = _output(self.launcher, self.patience)
        self.output = output if in_time else f"no end within {self.patience:g} s: {output}"


class Bed(Protocol):
    name: str
    target: list[str]
    environment: dict[str, str]

    def victims(self, case: Case) -> dict[str, list[Victim]]:
        """The processes of a run by what they are: rank0, rank1, agent, warden."""
        ...

    def kill(self, victim: Victim, signum: int) -> None: ...

    def left(self, case: Case) -> list[str]: ...

    def collect(self, case: Case) -> None:
        """Bring results of other machines into the run directory."""
        ...


def wait_for(ask: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer; None if there is none in so many seconds of an idle machine."""
    spent, before = 0.0, time.monotonic()
    while spent < seconds:
        if answer := ask():
            return answer
        time.sleep(0.05)
        spent, before = spent + (time.monotonic() - before) / slowness(), time.monotonic()
    return ask() or None


def slowness() -> float:
    """How many times longer than on an idle machine things may take now."""
    return min(8.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def _output(process: subprocess.Popen[str], seconds: float) -> tuple[str, bool]:
    """(output of a process, whether it has ended in so many seconds of an idle machine); else it is killed."""
    spent = 0.0
    while spent < seconds:
        try:
            return process.communicate(timeout=2)[0], True
        except subprocess.TimeoutExpired:
            spent += 2 / slowness()
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0], False


def record(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _named(content: dict[str, Any], host: str = "") -> dict[str, list[Victim]]:
    """The processes that a node record names."""
    if not content:
        return {}
    found = {"agent": [(host, content["pid"])], "warden": [(host, (content.get("warden") or content)["pid"])]}
    for row in content.get("ranks", ()):
        if row["exit_code"] is None and row["signal"] is None:
            found.setdefault(f"rank{min(row['rank'], 1)}", []).append((host, row["pid"]))
    return found


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def _left_here(case: Case) -> list[str]:
    """Processes of a run on this machine: by their environment, by its records, and agents in its directory."""
    run = case.run
    found = {pid for pid, _ in processes.find_run_processes(run.name)}
    for file in run.glob("nodes/node-*.json"):
        content = record(file)
        named = [content, content.get("warden") or content, *content.get("ranks", ())] if content else []
        found |= {one["pid"] for one in named if processes.is_alive(one["pid"], one["start_time"])}
    return [f"{pid} {_command(pid)}" for pid in found if pid != os.getpid()]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


class LocalBed:
    name = "local"
    target = ("local", "--procs", "2")
    environment: dict[str, str] = {}

    def victims(self, case: Case) -> dict[str, list[Victim]]:
        return _named(record(case.run / "nodes/node-0.json"))

    def kill(self, victim: Victim, signum: int) -> None:
        _signal(victim[1], signum)

    def left(self, case: Case) -> list[str]:
        return _left_here(case)

    def collect(self, case: Case) -> None:
        pass


class TrainingBed(LocalBed):
    """This machine, with a tiny model that is really trained on two processes."""

    name = "training"

    def words(self, steps: int, every: int) -> list[str]:
        settings = {"train.engine": "peft", "train.max_steps": steps, "train.checkpoint_every": every}
        return ["--smoke", *(word for name, value in settings.items() for word in ("--set", f"{name}={value}"))]

    def uninterrupted(self, steps: int, every: int) -> dict[int, float]:
        """{step: loss} of a run that nothing disturbs."""
        with tempfile.TemporaryDirectory(prefix="torture-training-") as folder:
            case = Case(self, Path(folder), "secret-of-the-undisturbed")
            code, output = case.zlaunch(
                *self.target, "--device", "cpu", *self.words(steps, every), timeout=4 * PATIENCE
            )
            if code != 0:
                raise RuntimeError(f"the uninterrupted training ended with {code}: {output[-1000:]}")
            lines = (json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines())
            return {line["step"]: line["loss"] for line in lines if "loss" in line}


_LOOK = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    place, seen = "/proc/" + pid, b""
    try:
        for name in ("cmdline", "environ"):
            seen += open(place + "/" + name, "rb").read()
        for name in ("cwd", *("fd/" + number for number in os.listdir(place + "/fd"))):
            seen += os.fsencode(os.readlink(place + "/" + name))
    except OSError:
        pass
    if int(pid) != os.getpid() and sys.argv[1].encode() in seen:
        print(pid, open(place + "/cmdline", "rb").read().replace(bytes(1), b" ").decode(errors="replace")[:200])
"""
"""Prints the processes of a host that have to do with a run: an agent is forked by the far end, so neither its command
line nor its environment names the run, but its directory does."""


class SshBed:
    """Two hosts of the lab; each has its own disk."""

    name = "ssh"
    environment: dict[str, str] = {}

    def __init__(self, lab: Lab, hosts: tuple[str, ...]) -> None:
        self.lab, self.hosts = lab, hosts
        self.target = ["ssh", "--hosts", ",".join(hosts), "--ssh-config", str(lab.ssh_config), "--python", lab.python]

    def victims(self, case: Case) -> dict[str, list[Victim]]:
        found: dict[str, list[Victim]] = {}
        for node, host in enumerate(self.hosts):
            with contextlib.suppress(RuntimeError, subprocess.SubprocessError, ValueError):
                text = self.lab.read(host, f"/root/zlaunch/runs/{case.run.name}/nodes/node-{node}.json")
                for kind, victims in _named(json.loads(text), host).items():
                    found.setdefault(kind, []).extend(victims)
        return found

    def kill(self, victim: Victim, signum: int) -> None:
        with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
            self.lab.run(victim[0], ["kill", f"-{signum}", str(victim[1])], check=False)

    def left(self, case: Case) -> list[str]:
        found = []
        for host in self.hosts:
            with contextlib.suppress(RuntimeError):
                words = [self.lab.python, "-S", "-c", _LOOK, case.run.name]
                found += [f"{host}: {line}" for line in self.lab.run(host, words, check=False).stdout.splitlines()]
        return [*found, *_left_here(case)]

    def collect(self, case: Case) -> None:
        case.zlaunch("pull", case.run.name)


class SlurmBed:
    """Two nodes of a cluster on this machine."""

    name = "slurm"
    target = ("slurm", "--nodes", "2", "--set", "slurm.max_requeues=0", "--set", "slurm.procs_per_node=1")

    def __init__(self, cluster: Slurm) -> None:
        self.cluster, self.environment = cluster, cluster.environment

    def victims(self, case: Case) -> dict[str, list[Victim]]:
        found: dict[str, list[Victim]] = {}
        for file in case.run.glob("nodes/node-*.json"):
            for kind, victims in _named(record(file)).items():
                found.setdefault(kind, []).extend(victims)
        return found

    def kill(self, victim: Victim, signum: int) -> None:
        _signal(victim[1], signum)

    def left(self, case: Case) -> list[str]:
        ids = record(case.run / "run.json").get("ids") or []
        jobs = self.cluster.run(["squeue", "-h", "-j", ",".join(ids), "-o", "%A %T"], check=False).stdout if ids else ""
        return [*_left_here(case), *(f"job {line}" for line in jobs.splitlines())]

    def collect(self, case: Case) -> None:
        pass


@contextlib.contextmanager
def beds(kinds: set[str]) -> Iterator[dict[str, list[Any]]]:
    """{kind: beds that can be used at the same time}; empty where this machine cannot carry them."""
    found: dict[str, list[Any]] = {"local": [LocalBed()] * 4, "training": [TrainingBed()]}
    with contextlib.ExitStack() as stack:
        slot = acquire() if kinds & {"ssh", "slurm"} and missing("lab") is None else None
        if slot is not None:
            stack.callback(slot.release)
        if slot is not None and "ssh" in kinds:
            lab = _LabWithCheckout(slot.root / "lab", slot.tag, slot.lab_network)
            stack.enter_context(running(lab))
            found["ssh"] = [SshBed(lab, ("node1", "node2")), SshBed(lab, ("node3", "node4"))]
        if slot is not None and "slurm" in kinds and missing("slurm") is None:
            cluster = Slurm(slot.root / "slurm", slot.ports(0))
            stack.enter_context(running(cluster))
            found["slurm"] = [SlurmBed(cluster)] * 2
        yield found


class _LabWithCheckout(Lab):
    """Its hosts see the program of these runs."""

    def start(self, bind: Any = ()) -> None:
        super().start([*bind, ROOT])
