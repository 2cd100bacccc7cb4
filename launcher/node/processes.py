"""Processes as /proc shows them: which are alive, their descendants, how to start them and how to end them."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

    Hook = Optional[Callable[[], None]]

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Process:
    def __init__(self, parent: int, session: int, state: str, start_time: int) -> None:
        self.parent, self.session, self.state = parent, session, state
        self.start_time = start_time
        """Clock ticks since boot, field 22 of /proc/PID/stat. Pid and start time identify a process of this boot."""


def process_of(pid: int) -> Optional[Process]:
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name in parentheses may contain anything
    except OSError:
        return None
    return Process(int(fields[1]), int(fields[3]), fields[0].decode(), int(fields[19])) if len(fields) > 19 else None


def process_table() -> Dict[int, Process]:
    found = ((int(name), process_of(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return {pid: process for pid, process in found if process is not None}


def start_time_of(pid: int) -> Optional[int]:
    process = process_of(pid)
    return process.start_time if process else None


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def namespace(kind: str, pid: Union[int, str] = "self") -> str:
    """The name of a process's namespace, as `pid:[4026531836]`; empty if it cannot be read."""
    try:
        return os.readlink("/proc/%s/ns/%s" % (pid, kind))
    except OSError:
        return ""


def pid_namespace() -> str:
    """The namespace in which our pids are valid: containers share the boot id with their machine."""
    return namespace("pid")


def is_alive(pid: int, start_time: Optional[int]) -> bool:
    """Whether this is the recorded process, and not a zombie."""
    process = process_of(pid)
    return process is not None and process.start_time == start_time and process.state not in "ZX"


def is_stopped(pid: int, start_time: Optional[int]) -> bool:
    """Whether this is the recorded process, and a signal such as SIGSTOP holds it: it does not end by itself."""
    process = process_of(pid)
    return process is not None and process.start_time == start_time and process.state in "Tt"


def is_same_process(pid: int, start_time: Optional[int], booted: str) -> bool:
    """Whether the process, recorded at the boot `booted`, is still alive here. Other boots repeat pids and times."""
    return booted == boot_id() and is_alive(pid, start_time)


def descendants(root: int, table: Optional[Dict[int, Process]] = None) -> List[int]:
    """Return all living pids below `root`, without zombies. For a subreaper these are all that it ever started."""
    table = process_table() if table is None else table
    children: Dict[int, List[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found, queue = [], list(children.get(root, ()))
    while queue:
        pid = queue.pop()
        queue += children.get(pid, ())
        if table[pid].state not in "ZX":
            found.append(pid)
    return found


def environ_of(pid: int) -> Dict[bytes, bytes]:
    """Return the environment that a process was started with; empty if it is gone or another user's."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            pairs = file.read().split(b"\0")
    except OSError:
        return {}
    return dict(pair.partition(b"=")[::2] for pair in pairs if b"=" in pair)


def find_run_processes(run_id: str) -> List[Tuple[int, int]]:
    """Return (pid, start_time) of the living processes on this machine that a rank of the run started.

    Every descendant of a rank inherits ZLAUNCH_RUN_ID. The caller itself is left out.
    """
    wanted = run_id.encode("utf-8", "surrogateescape")
    return [(pid, found.start_time) for pid, found, environ in run_processes() if environ[b"ZLAUNCH_RUN_ID"] == wanted]


def run_processes() -> Iterator[Tuple[int, Process, Dict[bytes, bytes]]]:
    """Yield (pid, process, environment) of living processes that a rank of any run started, without the caller."""
    for pid, process in process_table().items():
        if pid != os.getpid() and process.state not in "ZX":
            environ = environ_of(pid)
            if environ.get(b"ZLAUNCH_RUN_ID"):
                yield pid, process, environ


def spawn(
    argv: List[str],
    cwd: str,
    environ: Dict[str, str],
    stdin: int,
    output: int,
    prepare: Hook = None,
    keep: Optional[int] = None,
) -> int:
    """Start a program in its own session with the descriptors `stdin` and `output`; return its pid. Raises OSError.

    `prepare` runs in the child. `keep`: a further descriptor that it keeps, under the same number.

    `subprocess` would do the same, but importing it costs each host 9 ms.
    """
    reader, writer = os.pipe()  # a successful exec closes it; a failed one writes the reason
    pid = os.fork()
    if pid == 0:
        _become(argv, cwd, environ, [stdin, output, output], prepare, (writer, keep))
    os.close(writer)
    with open(reader, "rb") as pipe:
        reason = pipe.read().decode()
    if not reason:
        return pid
    os.waitpid(pid, 0)
    number, _, name = reason.partition(" ")
    raise OSError(int(number), os.strerror(int(number)), name)


def _become(
    argv: List[str],
    cwd: str,
    environ: Dict[str, str],
    streams: List[int],
    prepare: Hook,
    kept: Tuple[int, Optional[int]],
) -> None:
    """Turn the forked child into the program. Never returns."""
    at, (writer, keep) = cwd, kept
    try:
        os.setsid()
        if prepare is not None:
            prepare()
        take_streams(streams, kept)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        if keep is not None:
            os.set_inheritable(keep, True)
        os.chdir(cwd)
        at = argv[0]
        os.execvpe(argv[0], argv, environ)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(writer, ("%d %s" % (error.errno or 0, at)).encode("utf-8", "replace"))
    finally:
        os._exit(127)


def take_streams(streams: Sequence[int], kept: Sequence[Optional[int]]) -> None:
    """Make `streams` the standard streams of a forked child, and close every other descriptor but `kept`."""
    for target, source in enumerate(streams):
        os.dup2(source, target)
    for name in os.listdir("/proc/self/fd"):  # descriptors that our parent left open
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))


def call_process(name: str) -> None:
    """Give this process the name that `top` and `ps -e` show, at most 15 characters."""
    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)


def show_command(argv: List[str]) -> None:
    """Have `ps` show another command line for this process, as far as there is room. A hardened kernel forbids it.

    proc_pid_stat(5): fields 48 and 49 are where the arguments lie in memory. The last byte must stay NUL.
    """
    with suppress(OSError):
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, room = int(fields[45]), int(fields[46]) - int(fields[45])
        text = b"\0".join(word.encode("utf-8", "surrogateescape") for word in argv)[: room - 1]
        if start and room > 0:
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(start)
                memory.write(text.ljust(room, b"\0"))


def kill_quietly(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def wake(pid: int) -> None:
    """Let a process and all below it go on that a signal such as SIGSTOP holds; it is harmless to the others."""
    for each in (pid, *descendants(pid)):
        kill_quietly(each, signal.SIGCONT)


def reap_children() -> List[Tuple[int, int]]:
    """Collect every child that ended, adopted ones too. Returns (pid, wait status) of each."""
    ended = []
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, status))
    return ended


def wait_for_child(pid: int, seconds: float) -> Optional[int]:
    """Return the wait status of a child; None if it still runs after `seconds`. SIGCHLD ends the wait."""
    end = time.monotonic() + seconds
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            left = end - time.monotonic()
            if ended:
                return status
            if left <= 0:
                return None
            signal.sigtimedwait([signal.SIGCHLD], min(left, 1.0))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def split_status(status: int) -> Tuple[Optional[int], Optional[int]]:
    """Return (exit code, signal) of a wait status; one of them is None."""
    return (None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None)


def prctl(option: int, value: int) -> None:
    """prctl(2), for which the standard library has no function."""
    import ctypes  # the far end never calls this

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def die_with_parent(signum: int, parent: int) -> None:
    """Have the kernel signal this process when its parent ends; signal at once if the parent is gone."""
    prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def left_below() -> List[int]:
    """Return the living descendants of this process, a subreaper.

    Without children there are none: an orphan becomes our child before its parent can be collected.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    return descendants(os.getpid())


def kill_descendants(spared: Sequence[int] = ()) -> List[Tuple[int, int]]:
    """Kill all descendants of this process, round after round, until none is left but `spared` and what is below it.

    Returns (pid, wait status) of every child that it collected.
    """
    collected: List[Tuple[int, int]] = []
    while True:
        left = left_below()
        for pid in spared if left else ():
            below = [pid, *descendants(pid)]
            left = [other for other in left if other not in below]
        for pid in left:
            kill_quietly(pid, signal.SIGKILL)
        collected += reap_children()
        if not left:
            return collected
        time.sleep(0.01)
