"""What a case that went wrong leaves for whoever looks at it: processes with their stacks, records, logs.

The case's folder is removed after it, and its processes are ended, so this is taken before. Secrets stay out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PLACE = Path(os.environ.get("ZLAUNCH_TORTURE_EVIDENCE") or Path(tempfile.gettempdir()) / "zlaunch-torture-evidence")
"""Below it one folder per case."""
LOOK = ("status", "wchan", "syscall", "stack", "cgroup")
"""Files of /proc/PID."""
MOST = 64
"""Processes of a case that are looked at."""
FAR = "cd {} 2>/dev/null && ls -laR . && tail -v -c 20000 logs/*/agent.log nodes/* events.jsonl errors/* run.json"


def take(case: Any, number: int, said: str) -> Path:
    """Write down the state of a case as it stands now; return the folder. Never raises."""
    place = PLACE / f"{case.bed.name}-{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Exception):
        (place / "said.txt").write_text(f"{said}\n\nload {os.getloadavg()}\n\n{case.output}", errors="replace")
        (place / "processes.txt").write_text("\n\n".join(_processes(case.run.name)), errors="replace")
    with contextlib.suppress(Exception):
        skipped = shutil.ignore_patterns(".secrets", "filler", "code", "*.safetensors", "base_model", "cache")
        shutil.copytree(case.runs, place / "runs", ignore=skipped, symlinks=True)
    for host in getattr(case.bed, "hosts", ()):
        with contextlib.suppress(Exception):
            seen = case.bed.lab.run(host, ["sh", "-c", FAR.format(f"/root/zlaunch/runs/{case.run.name}")], check=False)
            (place / f"{host}.txt").write_text(seen.stdout + seen.stderr)
    if hasattr(case.bed, "cluster"):
        with contextlib.suppress(Exception):
            told = [case.bed.cluster.run(words, check=False).stdout for words in (["squeue"], ["sinfo", "-R"])]
            (place / "slurm.txt").write_text("\n".join(told))
    return place


def _processes(run: str) -> list[str]:
    """Every process that names the run in its command line or environment, also those inside the lab's hosts."""
    found = []
    for entry in sorted(Path("/proc").iterdir(), key=lambda path: path.name.zfill(9)):
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            cwd = os.fsencode((entry / "cwd").readlink())
            if words and run.encode() in words + (entry / "environ").read_bytes() + cwd:
                found.append(_process(entry, words))
        if len(found) == MOST:
            break
    return found


def _process(entry: Path, words: bytes) -> str:
    lines = [f"== {entry.name}: {words.replace(bytes(1), b' ').decode(errors='replace')}"]
    for name in LOOK:
        with contextlib.suppress(OSError):
            lines.append(f"-- {name}: {(entry / name).read_text(errors='replace').strip()}")
    for task in sorted((entry / "task").iterdir()) if (entry / "task").is_dir() else ():
        with contextlib.suppress(OSError):
            lines.append(f"-- thread {task.name}: {(task / 'wchan').read_text()}")
    for handle in sorted((entry / "fd").iterdir()) if (entry / "fd").is_dir() else ():
        with contextlib.suppress(OSError):
            lines.append(f"-- fd {handle.name}: {handle.readlink()}")
    if shutil.which("strace"):
        watch = ["timeout", "3", "strace", "-f", "-s", "120", "-p", entry.name]
        with contextlib.suppress(OSError):
            told = subprocess.run(watch, capture_output=True, text=True, errors="replace", check=False).stderr
            lines.append(f"-- calls within 3 s:\n{told[:6000]}")
    return "\n".join(lines)
