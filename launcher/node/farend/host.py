"""Facts about the host: its hardware, its Python packages, its image, and which hosts share its working directory."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from ..census import SECONDS, census
from ..files import read_text
from ..processes import boot_id, namespace
from ..write_errors import explain
from .common import TEXT

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional, Sequence

    from ..files import Json

MARK_BYTES = 4096
"""More than an inode can hold, so that writing a mark fails on a full disk."""
OWN_MARKS: List[str] = []
"""This host's mark in the working directory, while there is one."""


def hello(workdir: str, token: str, index: int, packages: Sequence[str], gpus: bool, **asked: Any) -> Json:
    """Facts about the host. Leaves its mark in the working directory, for `shared_dir_marks`."""
    facts: Json = {
        **report(packages, gpus, **asked),
        "address": ssh_address(),
        "workdir": os.path.abspath(os.path.expanduser(workdir)),
        "workdir_error": None,
        "free_bytes": None,
    }
    try:
        leave_mark(facts["workdir"], token, index)
        disk = os.statvfs(facts["workdir"])
        facts["free_bytes"] = disk.f_bavail * disk.f_frsize
    except OSError as error:
        error.filename = error.filename or facts["workdir"]
        found = explain(error)
        facts["workdir_error"] = "%s; %s" % found if found else "%s: %s" % (error.filename, error.strerror)
    return facts


def report(
    packages: Sequence[str], gpus: bool, paths: Sequence[str] = (), env: Optional[Dict[str, str]] = None, **_: Any
) -> Json:
    """Facts about a machine that need no working directory. `env`: what the job adds to its ranks' environment."""
    facts: Json = {
        "host": os.uname().nodename,
        "python": sys.executable,
        "version": list(sys.version_info[:3]),
        "time": time.time(),
        "boot_id": boot_id(),
        "network": namespace("net"),
        "memory_bytes": available_memory(),
        "cpus": os.cpu_count(),
        "packages": installed_versions(packages),
        "missing": [path for path in paths if not os.path.exists(os.path.expanduser(path))],
    }
    if gpus:
        facts["gpus"] = census(dict(os.environ, **(env or {})), SECONDS)
    return facts


def ssh_address() -> str:
    """This host's address by which the launcher's connection came in; empty if sshd does not say."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) > 2 else ""


def available_memory() -> Optional[int]:
    """MemAvailable in bytes; None where /proc does not say."""
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def installed_versions(packages: Sequence[str]) -> Dict[str, str]:
    """Versions of installed packages, read from directory names: importing the packages takes seconds."""
    found: Dict[str, str] = {}
    for folder in import_folders() if packages else ():
        names: List[str] = []
        with suppress(OSError):
            names = os.listdir(folder or ".")
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                package, _, version = name.rpartition(".")[0].partition("-")
                package = package.lower().replace("_", "-")
                if package in packages:
                    found.setdefault(package, version)
    return found


def import_folders() -> List[str]:
    """Where Python looks for modules, site-packages included.

    The far end starts without `site`, which costs as much as the interpreter itself. A child asks it: a sitecustomize
    of the environment may start threads, which the agent, a fork of this process, must not find half dead.
    """
    if not sys.flags.no_site:
        return sys.path
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import site

            site.main()
        finally:
            os.write(writer, "\0".join(sys.path).encode("utf-8", "surrogateescape"))
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as pipe:
        found = os.read(pipe.fileno(), 1 << 16)  # no `read`: what a sitecustomize left running may hold the pipe
    return found.decode("utf-8", "surrogateescape").split("\0")


def in_path(program: str, environ: Mapping[str, str]) -> bool:
    """Whether PATH has the program. (shutil.which imports every archive format.)"""
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path(environ))


def image(engine: Sequence[str], name: str, environ: Dict[str, str], **_: Any) -> Json:
    """What this host's engine prints about an image: its id, then its registry digests; or why there is no image.

    `engine`: the program with its arguments up to the image's name. Empty: the image is a file or a directory.
    """
    if not engine:
        path = os.path.expanduser(name)
        size = os.path.getsize(path) if os.path.isfile(path) else None
        return {"code": 0 if os.path.exists(path) else 1, "said": "", "size": size}
    environ = dict(os.environ, **environ)
    if not in_path(engine[0], environ):
        return {"code": 127, "said": ""}
    import subprocess

    done = subprocess.run(
        [*engine, name], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=60,
    )  # fmt: skip
    output = done.stdout if done.returncode == 0 else done.stderr
    return {"code": done.returncode, "said": output.decode("utf-8", "replace")[:TEXT]}


def leave_mark(workdir: str, token: str, index: int) -> None:
    """Write this host's mark into the working directory. Raises OSError."""
    folder = mark_folder(workdir, token)
    os.makedirs(folder, exist_ok=True)
    OWN_MARKS[:] = [os.path.join(folder, str(index))]
    with open(OWN_MARKS[0], "w") as file:
        file.write("x" * MARK_BYTES)


def mark_folder(workdir: str, token: str) -> str:
    return os.path.join(workdir, ".marks", token)


def shared_dir_marks(workdir: str, token: str, clean: bool = False, **_: Any) -> Json:
    """Which hosts' marks are in the working directory: these hosts share it. `clean` removes the marks."""
    folder = mark_folder(workdir, token)
    try:
        seen = sorted(int(name) for name in os.listdir(folder))
    except FileNotFoundError:
        seen = []
    if clean:
        remove_marks([os.path.join(folder, str(index)) for index in seen])
    return {"seen": seen}


def remove_own_mark() -> None:
    remove_marks(OWN_MARKS)


def remove_marks(paths: Sequence[str]) -> None:
    """Remove marks, and their folder with the last mark."""
    for path in paths:
        for remove, what in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
            with suppress(OSError):  # another host of the same directory was faster, or its mark is still there
                remove(what)
