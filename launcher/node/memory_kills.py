"""Whether the kernel's out-of-memory killer ended a process: its own counters and its log say so, a signal 9 does not.

The kernel counts its kills in /proc/vmstat (the whole host) and in the files of each memory cgroup. Where neither can
be read, nothing is known, and the message says so.
"""

from __future__ import annotations

import os
import re

from .files import read_text

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
"""In /proc/vmstat, in memory.events (cgroup v2) and in memory.oom_control (v1)."""
NO_LIMIT = 1 << 60
"""cgroup v1 writes a number like this where there is none."""


class MemoryKills:
    """The counters at one moment, to be compared with those after a death."""

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.host = self._count("proc/vmstat")
        self.cgroup, self.limit_file = self._own_cgroup()
        self.in_cgroup = self._count(self.cgroup) if self.cgroup else None

    def verdict(self, pids: List[int]) -> Tuple[bool, str]:
        """Return (whether the kernel's killer ended one of these processes, what is known, for people).

        No pids: a child of unknown pid was killed.
        """
        host, in_cgroup = self._more("proc/vmstat", self.host), self._more(self.cgroup, self.in_cgroup)
        if host is None and in_cgroup is None:
            return False, "whether by the kernel's out-of-memory killer is not known here"
        if not host and not in_cgroup:
            where = "this kernel's" if host == 0 else "its cgroup's"
            return False, "not by %s out-of-memory killer, which ended nothing meanwhile" % where
        named = self._named_in_log(pids)
        if named:
            return True, "the kernel's out-of-memory killer ended %s%s" % (named, self._limit() if in_cgroup else "")
        count = _processes(in_cgroup or host or 0)
        if named == "":
            return False, "the kernel's out-of-memory killer ended %s on this host meanwhile, but not this one" % count
        if in_cgroup:
            return True, "the out-of-memory killer of its cgroup ended %s%s" % (count, self._limit())
        return False, "the kernel's out-of-memory killer ended %s on this host meanwhile, perhaps this one" % count

    def _own_cgroup(self) -> Tuple[str, str]:
        """Return the files with the kills and the limit of this process's memory cgroup; empty: there is none.

        In a container the paths may be those of the host, while only the container's own cgroup is mounted.
        """
        for line in read_text(os.path.join(self.root, "proc/self/cgroup")).splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if "memory" in controllers.split(","):
                base, events, limit = "sys/fs/cgroup/memory", "memory.oom_control", "memory.limit_in_bytes"
            elif number == "0":
                base, events, limit = "sys/fs/cgroup", "memory.events", "memory.max"
            else:
                continue
            for folder in (base + path.rstrip("/"), base):
                if self._count(folder + "/" + events) is not None:
                    return folder + "/" + events, folder + "/" + limit
        return "", ""

    def _count(self, file: str) -> Optional[int]:
        found = COUNT.search(read_text(os.path.join(self.root, file)))
        return int(found.group(1)) if found else None

    def _more(self, file: str, before: Optional[int]) -> Optional[int]:
        now = self._count(file) if file and before is not None else None
        return None if now is None or before is None else now - before

    def _limit(self) -> str:
        text = read_text(os.path.join(self.root, self.limit_file)).strip()
        if not text.isdigit() or int(text) >= NO_LIMIT:
            return ""
        return " (its memory limit: %.2f GiB)" % (int(text) / 2**30)

    def _named_in_log(self, pids: List[int]) -> Optional[str]:
        """Return which of these processes the kernel's log names, with its memory; "" where it names others only; None
        where the log cannot be read, or its pids are not those of this namespace."""
        log = self._log()
        if not log or not pids:
            return None
        killed = {int(pid): rest for pid, rest in re.findall(r"Killed process (\d+)(.*)", log)}
        for pid in pids:
            if pid in killed:
                size = re.search(r"anon-rss:(\d+)kB", killed[pid])
                return "process %d" % pid + (" with %.2f GiB" % (int(size.group(1)) / 2**20) if size else "")
        return "" if killed and in_first_pid_namespace() else None

    def _log(self) -> Optional[str]:
        """Return the kernel's log; None: it may not be read. Two calls of the C library cost less than a process."""
        if self.root != "/":
            return read_text(os.path.join(self.root, "dev/kmsg"))
        import ctypes  # needed only after a death

        libc = ctypes.CDLL(None, use_errno=True)
        size = libc.klogctl(10, None, 0)
        buffer = ctypes.create_string_buffer(max(size, 1))
        read = libc.klogctl(3, buffer, size) if size > 0 else -1
        return buffer.raw[:read].decode(errors="replace") if read >= 0 else None


def in_first_pid_namespace() -> bool:
    """Whether pids here are those in the kernel's log."""
    try:
        return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
    except OSError:
        return False


def _processes(count: int) -> str:
    return "one process" if count == 1 else "%d processes" % count
