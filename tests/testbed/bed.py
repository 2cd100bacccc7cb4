"""The parts of the test bed as objects. Each starts with one script of this directory and stops with another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


def script(name: str, *args: object, **environment: object) -> None:
    """Run one of the scripts beside this file; raises RuntimeError with its output when it fails."""
    # The scripts leave daemons behind, which would keep a pipe open forever: output goes to a file.
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"zlaunch-testbed-{os.getpid()}.log"
    with log.open("wb") as output:
        code = subprocess.run(
            ["bash", str(HERE / name), *map(str, args)],
            env={**os.environ, **{key: str(value) for key, value in environment.items()}},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=300,  # removing the images of a dockerd takes long on a busy disk
        ).returncode
    text = log.read_text(errors="replace")
    log.unlink()
    if code != 0:
        raise RuntimeError(f"{name} failed with status {code}:\n{text}")


def interpreter_directories() -> list[Path]:
    """Directories of this machine that a host needs to run this interpreter with its packages."""
    wanted = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    # Extensions that torch compiles at first use take most of a minute. Compile them once for all hosts.
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))
    cache.mkdir(parents=True, exist_ok=True)
    # Directories below `/` itself (/usr, /opt) are seen through the overlay anyway.
    hidden = (Path("/root"), Path("/tmp"), Path("/home"), Path("/var"), Path("/work"), Path("/srv"), Path("/mnt"))
    found: list[Path] = []
    for path in [*wanted, cache]:
        if path not in found and (path == cache or any(path.is_relative_to(top) for top in hidden)):
            found.append(path)
    return found


@dataclass
class Lab:
    """Simulated hosts node1..nodeN, each with its own network, processes, file system and sshd; see lab-up.sh."""

    root: Path
    tag: str
    network: str
    size: int = 4
    gpus: int | None = None
    """GPUs of this machine that each host has for itself; None: hosts share /dev."""
    mtu: int | None = None
    disk: str = "1g"

    def start(self, bind: Sequence[Path] = ()) -> None:
        directories = " ".join(map(str, [*interpreter_directories(), *bind]))
        more = {"GPUS": self.gpus, "MTU": self.mtu, "DISK": self.disk}
        more = {name: value for name, value in more.items() if value is not None}
        script("lab-up.sh", self.root, self.size, TAG=self.tag, NET=self.network, BIND=directories, **more)

    def stop(self) -> None:
        script("lab-down.sh", self.root)

    @property
    def hosts(self) -> list[str]:
        return [f"node{i}" for i in range(1, self.size + 1)]

    @property
    def ssh_config(self) -> Path:
        return self.root / "ssh/config"

    @property
    def known_hosts(self) -> Path:
        return self.root / "ssh/known_hosts"

    @property
    def shared(self) -> Path:
        """A directory that this machine and all hosts see under the same path."""
        return self.root / "shared"

    @property
    def python(self) -> str:
        """The interpreter of these tests, which every host sees under the same path."""
        return sys.executable

    def address(self, host: str) -> str:
        return f"{self.network}.{10 + self._number(host)}"

    def run(
        self, host: str, argv: Sequence[str], *, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host's console. It uses neither network nor ssh, so it works while the cable is out."""
        return subprocess.run(
            self.console(host) + list(argv),
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def read(self, host: str, path: str | Path) -> str:
        return self.run(host, ["cat", str(path)]).stdout

    def processes(self, host: str, *containing: str) -> list[str]:
        """`pid command line` of every process of a host whose command line or environment contains one of the texts."""
        look = (
            "import os,sys\n"
            "for p in filter(str.isdigit, os.listdir('/proc')):\n"
            "    try:\n"
            "        c = open(f'/proc/{p}/cmdline','rb').read(); e = open(f'/proc/{p}/environ','rb').read()\n"
            "    except OSError: continue\n"
            "    if int(p) != os.getpid() and c and any(t.encode() in c + b'\\0' + e for t in sys.argv[1:]):\n"
            "        print(p, c.replace(b'\\0', b' ').decode(errors='replace'))\n"
        )
        output = self.run(host, [self.python, "-S", "-c", look, *containing]).stdout
        return [line for line in output.splitlines() if "nsenter" not in line]

    def cut(self, host: str) -> None:
        """Pull the cable: packets to and from the host are lost without an answer."""
        self._link(host, "down")

    def kill_host(self, host: str) -> None:
        """Switch the power off: every process of the host ends at once, and its disk is lost."""
        pid = self._power_pid(host)
        if pid is None:
            return
        init = Path(f"/proc/{self._init_pid(pid)}")
        os.kill(pid, 9)
        while init.exists():  # the kernel ends the init with its parent, and the whole host with the init
            time.sleep(0.005)

    def restore(self, host: str) -> None:
        """Plug the cable in, and switch the host on if it is off."""
        self._link(host, "up")
        if self._power_pid(host) is None:
            script("lab-host.sh", self.root, self._number(host))

    def restore_all(self) -> None:
        for host in self.hosts:
            self.restore(host)

    def _number(self, host: str) -> int:
        if host not in self.hosts:
            raise ValueError(f"no host {host!r} in this lab of {self.hosts}")
        return int(host.removeprefix("node"))

    def _link(self, host: str, state: str) -> None:
        subprocess.run(["ip", "link", "set", f"{self.tag}v{self._number(host)}", state], check=True)

    def _power_pid(self, host: str) -> int | None:
        """The recorded process that holds the host, if it is still the same one and alive."""
        try:
            pid = int((self.root / f"run/{host}.pid").read_text())
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            zombie = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (OSError, ValueError):
            return None
        return pid if str(self.root).encode() in line and not zombie else None

    def _init_pid(self, power_pid: int) -> str:
        return Path(f"/proc/{power_pid}/task/{power_pid}/children").read_text().split()[0]

    def console(self, host: str) -> list[str]:
        power = self._power_pid(host)
        if power is None:
            raise RuntimeError(f"{host} is switched off")
        clean = ["env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        return ["nsenter", "-t", self._init_pid(power), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", *clean]


@dataclass
class Farm:
    """N real sshd on loopback addresses of this machine, node1..nodeN; see farm-up.sh."""

    root: Path
    network: str
    size: int

    def start(self) -> None:
        script("farm-up.sh", self.root, self.size, NET=self.network)

    def stop(self) -> None:
        script("farm-down.sh", self.root)

    @property
    def hosts(self) -> list[str]:
        return [f"node{i}" for i in range(1, self.size + 1)]

    @property
    def ssh_config(self) -> Path:
        return self.root / "config"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    def home(self, host: str) -> Path:
        return self.root / host


@dataclass
class Slurm:
    """A real Slurm cluster with partitions `gpu` (default, one hour) and `short` (two minutes); see slurm-up.sh."""

    root: Path
    base_port: int
    size: int = 4
    accounting: bool = False
    lab: Lab | None = None
    beside: Slurm | None = None
    """A cluster with accounting whose slurmdbd this one joins, as cluster `other` with arrays of two elements."""

    def start(self) -> None:
        environment: dict[str, object] = {"BASE_PORT": self.base_port}
        if self.lab is not None:
            environment["LAB"] = self.lab.root
        if self.beside is not None:
            environment |= {"DBD": self.beside.root, "CLUSTER": "other", "MAX_ARRAY": 2}
        script("slurm-up.sh", self.root, self.size, *(["accounting"] if self.accounting else []), **environment)

    def stop(self) -> None:
        script("slurm-down.sh", self.root)

    @property
    def nodes(self) -> list[str]:
        return [f"node{i}" for i in range(1, self.size + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which a process talks to this cluster and to no other."""
        return {"SLURM_CONF": str(self.root / "etc/slurm.conf")}

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(argv),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start_node(self, host: str) -> None:
        """Start the slurmd of a lab's host that was switched off."""
        assert self.lab is not None
        self.lab.run(host, ["/usr/sbin/slurmd", "-f", self.environment["SLURM_CONF"], "-N", host])

    def stop_controller(self) -> None:
        """End slurmctld only; jobs continue."""
        pid = int((self.root / "run/slurmctld.pid").read_text())
        os.kill(pid, 15)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)

    def start_controller(self) -> None:
        self.run(["slurmctld", "-f", self.environment["SLURM_CONF"]])


@dataclass
class Docker:
    """A private dockerd and one tiny base image of it; see docker-up.sh and docker-base.sh."""

    root: Path
    base_image: str = "testbed/base:tiny"

    def start(self) -> None:
        script("docker-up.sh", self.root)
        script("docker-base.sh", self.base_image, DOCKER_HOST=self.host, PYTHON=sys.executable)

    def stop(self) -> None:
        script("docker-down.sh", self.root)

    @property
    def host(self) -> str:
        return f"unix://{self.root}/docker.sock"

    @property
    def environment(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.host}
