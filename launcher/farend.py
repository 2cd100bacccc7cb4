"""The other end of an SSH session: one process on a host that answers the launcher's questions until it hangs up.

The launcher sends this file over the channel, and the one module of ours that it imports, so nothing has to be
installed on a host but Python 3.8. Else standard library only, and what costs milliseconds to import is imported by the
operation that needs it: a run on 64 hosts starts 64 of these.

A request is a line of JSON {"op", "payload": number of bytes, ...} and its payload; an answer is a line
{"ok": true, "payload": n, ...} or {"ok": false, "error": text} and its payload. Nothing of it is secret to the host;
secrets come in a payload and go to the agent's standard input.
"""

from __future__ import annotations

import os
import sys
import time

from launcher.node.lightjson import dumps, loads

TYPE_CHECKING = False  # importing typing costs every host ten milliseconds
if TYPE_CHECKING:
    import socket
    from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

    Json = Dict[str, Any]

CHUNK = 1 << 20
"""Most bytes of one file in one answer."""
ANSWER = 4 << 20
"""About the most bytes in one answer."""
VIRTUAL = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman", "lxc", "lxd", "kube")
"""Beginnings of interface names whose addresses other hosts cannot reach."""

LISTENERS: List[socket.socket] = []
MARKS: List[str] = []
"""This host's mark in the working directory, while there is one."""


class Refused(Exception):
    """What the host answers instead; the text is for people."""


# ------------------------------------------------------------------------------------------------------- the host


def hello(
    workdir: str, token: str, index: int, packages: Sequence[str], gpus: bool, paths: Sequence[str] = (), **_: Any
) -> Json:
    """Facts about the host, and its mark in the working directory, by which hosts learn that they share it."""
    facts: Json = {
        "host": os.uname().nodename,
        "python": sys.executable,
        "version": list(sys.version_info[:3]),
        "time": time.time(),
        "boot_id": read("/proc/sys/kernel/random/boot_id").strip(),
        "network": link("/proc/self/ns/net"),
        "address": (os.environ.get("SSH_CONNECTION") or "   ").split(" ")[2],
        "memory_bytes": memory(),
        "cpus": os.cpu_count(),
        "packages": installed(packages),
        "missing": [path for path in paths if not os.path.exists(os.path.expanduser(path))],
        "workdir": os.path.abspath(os.path.expanduser(workdir)),
        "workdir_error": None,
        "free_bytes": None,
    }
    marks = os.path.join(facts["workdir"], ".marks", token)
    try:
        os.makedirs(marks, exist_ok=True)
        MARKS[:] = [os.path.join(marks, str(index))]
        with open(MARKS[0], "w") as file:
            file.write("x" * 4096)  # more than an inode can hold, so that a full disk shows here
        room = os.statvfs(facts["workdir"])
        facts["free_bytes"] = room.f_bavail * room.f_frsize
    except OSError as error:
        facts["workdir_error"] = "%s: %s" % (error.filename or facts["workdir"], error.strerror)
    if gpus:
        facts["gpus"] = nvidia_smi()
    return facts


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def memory() -> Optional[int]:
    """MemAvailable in bytes; None where /proc does not say."""
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def installed(packages: Sequence[str]) -> Dict[str, str]:
    """Versions of installed packages, read from directory names: importing them takes seconds."""
    found: Dict[str, str] = {}
    if packages and sys.flags.no_site:
        import site

        site.main()  # the far end is started without: it costs as much as the interpreter itself
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                package, _, version = name.rpartition(".")[0].partition("-")
                package = package.lower().replace("_", "-")
                if package in packages:
                    found.setdefault(package, version)
    return found


def nvidia_smi() -> Optional[str]:
    """The lines of nvidia-smi and the driver's version; None where there is no such tool."""
    if not in_path("nvidia-smi", os.environ):
        return None
    import subprocess

    query = ["--query-gpu=index,uuid,name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
    done = subprocess.run(["nvidia-smi"] + query, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def in_path(program: str, environ: Mapping[str, str]) -> bool:
    """Whether there is such a program (shutil.which, without importing every archive format)."""
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path(environ))


def image(engine: Sequence[str], name: str, environ: Dict[str, str], **_: Any) -> Json:
    """What this host's engine says of an image: a line with its id, then its registry digests; or why there is none.

    `engine` is the program with its words up to the image; none for an image that is a file or a directory.
    """
    if not engine:
        path = os.path.expanduser(name)
        return {"code": 0 if os.path.exists(path) else 1, "said": "", "size": file_size(path)}
    environ = dict(os.environ, **environ)
    if not in_path(engine[0], environ):
        return {"code": 127, "said": ""}
    import subprocess

    done = subprocess.run(
        list(engine) + [name], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=60,
    )  # fmt: skip
    said = done.stdout if done.returncode == 0 else done.stderr
    return {"code": done.returncode, "said": said.decode("utf-8", "replace")}


def file_size(path: str) -> Optional[int]:
    return os.path.getsize(path) if os.path.isfile(path) else None


def marks(workdir: str, token: str, clean: bool = False, **_: Any) -> Json:
    """Which hosts' marks are seen in the working directory; `clean` removes them."""
    folder = os.path.join(workdir, ".marks", token)
    try:
        seen = sorted(int(name) for name in os.listdir(folder))
    except FileNotFoundError:
        seen = []
    if clean:
        forget([os.path.join(folder, str(index)) for index in seen])
    return {"seen": seen}


def forget(paths: Sequence[str]) -> None:
    """Remove marks, and their folder with the last of them."""
    for path in paths:
        for remove, what in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
            try:
                remove(what)
            except OSError:  # another host sees the same directory and was quicker, or has its mark there yet
                pass


def meet(workdir: str, token: str, targets: Sequence[Any], seconds: float, **_: Any) -> Json:
    """What hosts see of each other, in one answer: `marks` and `reach`."""
    return dict(marks(workdir, token), **reach(targets, seconds))


# --------------------------------------------------------------------------------------------------- the network


def listen(nonce: str, peers: Sequence[str], ports: Optional[Sequence[int]] = None, **_: Any) -> Json:
    """Open the run's two ports for a moment; answers to every caller with the nonce. Returns ports and addresses."""
    import socket

    chosen = []
    for port in ports or candidates():
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
            server.listen(512)
        except OSError as error:
            server.close()
            if ports:
                raise Refused("port %d: %s" % (port, error.strerror))
            continue
        serve(server, nonce)
        chosen.append(port)
        if len(chosen) == 2:
            return {"ports": chosen, "addresses": addresses(peers)}
    raise Refused("no two free ports between 10000 and 29999")


def candidates() -> Iterator[int]:
    """Ports below the range of outgoing connections, far enough apart that counting up one never meets the other."""
    for _ in range(200):
        yield 10000 + 32 * (int.from_bytes(os.urandom(4), "big") % 625)


def serve(server: socket.socket, nonce: str) -> None:
    import threading

    def answer() -> None:
        while True:
            try:
                sock, _caller = server.accept()
            except OSError:
                return
            try:
                sock.sendall(nonce.encode())
            except OSError:
                pass
            sock.close()

    LISTENERS.append(server)
    threading.Thread(target=answer, daemon=True).start()


def unlisten(**_: Any) -> Json:
    """Close the ports again; the shutdown wakes the accepting thread, which would hold the port until then."""
    import socket

    for server in LISTENERS:
        try:
            server.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        server.close()
    del LISTENERS[:]
    return {}


def addresses(peers: Sequence[str]) -> List[str]:
    """This host's addresses, the likely ones first: towards the peers, where ssh came in, then of real interfaces."""
    import socket

    found = []
    for peer in peers:
        with socket.socket(socket.AF_INET6 if ":" in peer else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((peer, 9))  # sends nothing; the kernel picks the route, as `ip route get` would
                found.append(sock.getsockname()[0])
            except OSError:
                pass
    found.append((os.environ.get("SSH_CONNECTION") or "   ").split(" ")[2])
    virtual: set[str] = set()
    for name, address in interfaces():
        (virtual.add if name.startswith(VIRTUAL) else found.append)(address)
    real = [a for a in found if a and a not in virtual and not a.startswith("127.") and a != "::1"]
    return list(dict.fromkeys(real + ["127.0.0.1"]))  # loopback is taken only if every host of the run is this machine


def interfaces() -> List[Tuple[str, str]]:
    """(interface, IPv4 address) pairs, by the ioctl that `ifconfig` uses."""
    import fcntl
    import socket
    import struct

    pairs = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:
                continue
            pairs.append((name, socket.inet_ntoa(answer[20:24])))
    return pairs


def reach(targets: Sequence[Any], seconds: float, **_: Any) -> Json:
    """For each [address, port, nonce] whether the host with this nonce answers there.

    The nonce tells hosts apart: the address of a docker bridge leads somewhere on every machine, but to itself.
    """
    if not targets:
        return {"reached": []}
    import select

    try:
        import _socket as socket  # its half in C; the other half costs as much as the interpreter
    except ImportError:
        import socket  # type: ignore[no-redef]

    answers = [False] * len(targets)
    waiting: Dict[int, Tuple[int, socket.socket]] = {}
    poll = select.poll()
    for index, (address, port, _nonce) in enumerate(targets):
        try:
            host = address.encode() if address.isascii() else address  # text would load the codec for other names
            family, _kind, _protocol, _name, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.connect_ex(target)  # its error, if there is one, comes with the first read
        except OSError:
            continue
        waiting[sock.fileno()] = (index, sock)
        poll.register(sock.fileno(), select.POLLIN)
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        for number, _event in poll.poll(1000 * max(0.0, end - time.monotonic())):
            index, sock = waiting.pop(number)
            poll.unregister(number)
            try:
                answers[index] = sock.recv(256).decode("ascii", "replace") == targets[index][2]
            except OSError:
                pass
            sock.close()
    for _index, sock in waiting.values():
        sock.close()
    return {"reached": answers}


# -------------------------------------------------------------------------------------------------------- files


def have(inputs: Sequence[Json], workdir: str, **_: Any) -> Json:
    """{hash: path} of the inputs that lie on this host, in our store or at the very path they have at home."""
    found = {}
    for item in inputs:
        stored = store_path(workdir, item)
        if file_size(stored) == item["size"]:  # one whose host lost its power may be shorter
            found[item["sha256"]] = stored
        elif is_same(item):
            found[item["sha256"]] = item["path"]
    return {"found": found}


def store_path(workdir: str, item: Json) -> str:
    return os.path.join(workdir, "data", item["sha256"][:32], item["name"])


def is_same(item: Json) -> bool:
    try:
        if os.path.getsize(item["path"]) != item["size"]:
            return False
        return bool(sha256_of(item["path"]) == item["sha256"])
    except OSError:
        return False


def sha256_of(path: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def keep(workdir: str, item: Json, source: BinaryIO, **_: Any) -> Json:
    """Put one input into the store: read from the channel, checked, renamed into place."""
    import hashlib

    target = store_path(workdir, item)
    temporary = "%s.%d.tmp" % (target, os.getpid())
    digest, left = hashlib.sha256(), item["size"]
    trouble: Optional[OSError] = None
    file: Any = None
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        file = open(temporary, "wb")  # noqa: SIM115 - the payload must be read to its end even when this fails
    except OSError as error:
        trouble = error
    while left:
        block = source.read(min(CHUNK, left))
        if not block:
            raise Refused("the launcher hung up")
        left -= len(block)
        digest.update(block)
        try:
            if trouble is None:
                file.write(block)
        except OSError as error:
            trouble = error
    try:
        if trouble is None:
            file.close()
            if digest.hexdigest() != item["sha256"]:
                raise Refused("%s changed while it was sent" % item["name"])
            os.replace(temporary, target)
            return {"path": target}
        raise trouble
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def unpack(run_dir: str, digest: str, links: Dict[str, str], payload: Any, **_: Any) -> Json:
    """Write a bundle into the run directory; `links` are made there to inputs that lie elsewhere."""
    import zlib

    try:
        from _blake2 import blake2b  # hashlib would load OpenSSL first
    except ImportError:
        from hashlib import blake2b
    if blake2b(payload).hexdigest() != digest:
        raise Refused("the bundle arrived damaged")
    head, _newline, body = zlib.decompress(payload).partition(b"\n")
    refuse_living(run_dir)
    os.makedirs(run_dir, exist_ok=True)
    os.chmod(run_dir, 0o700)
    for stale in ("nodes", "code"):  # of an earlier submission: records, maybe of other hosts, and modules now gone
        if os.path.exists(os.path.join(run_dir, stale)):
            import shutil

            shutil.rmtree(os.path.join(run_dir, stale), ignore_errors=True)
    start, made = 0, set()
    for name, size in loads(head.decode()):
        path = os.path.join(run_dir, name)
        if os.path.dirname(path) not in made:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            made.add(os.path.dirname(path))
        # a run's first files have no reader yet: no need to rename them into place
        (replace if os.path.exists(path) else create)(path, body[start : start + size])
        start += size
    for name, target in links.items():
        path = os.path.join(run_dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)
    return {}


def refuse_living(run_dir: str) -> None:
    """Another launcher may have started this run a moment ago: its files are not taken from under its ranks."""
    try:
        names = os.listdir(os.path.join(run_dir, "nodes"))
    except OSError:
        return
    for name in names:
        rank = name[5:-5] if name.startswith("node-") else ""
        record = record_of(run_dir, int(rank)) if rank.isdigit() else None
        if record and not record.get("ended") and lives(record):
            raise Refused("an agent of this run is running here already, pid %d" % record["pid"])


def create(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError:
        if os.path.exists(path):
            os.unlink(path)
        raise


def replace(path: str, data: bytes) -> None:
    temporary = "%s.%d.tmp" % (path, os.getpid())
    create(temporary, data)
    os.replace(temporary, path)


def tree(run_dir: str, tops: Sequence[str], **_: Any) -> Json:
    """[[relative path, size]] of the regular files below `tops`, which are files or folders of the run directory."""
    found = []
    for top in tops:
        path = os.path.join(run_dir, top)
        if os.path.isfile(path):
            found.append([top, os.path.getsize(path)])
        for folder, _folders, names in os.walk(path):
            for name in sorted(names):
                full = os.path.join(folder, name)
                if os.path.isfile(full):
                    found.append([os.path.relpath(full, run_dir), os.path.getsize(full)])
    return {"files": found}


def get(run_dir: str, name: str, offset: int, **_: Any) -> Json:
    with open(os.path.join(run_dir, name), "rb") as file:
        file.seek(offset)
        return {"payload": file.read(ANSWER)}


def put(run_dir: str, name: str, offset: int, last: bool, payload: Any, **_: Any) -> Json:
    """One block of a file that comes whole into place with its last."""
    path = os.path.join(run_dir, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = path + ".part"
    with open(part, "r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(payload)
    if last:
        os.replace(part, path)
    return {}


# ------------------------------------------------------------------------------------------------------- the run


def start(run_dir: str, node_rank: int, environ: Dict[str, str], seconds: float, payload: Any, **_: Any) -> Json:
    """Start this node's agent, detached; its record. The payload is the secrets, for its standard input."""
    forget(MARKS)
    argv = ["bash", os.path.join(run_dir, "node.sh"), str(node_rank), "--secrets-stdin", "--detach"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    status, output = run(argv, dict(clean, **environ), payload, seconds)
    if status is None:
        raise Refused("node.sh did not start the agent within %g s" % seconds)
    record = record_of(run_dir, node_rank)
    if status != 0 or record is None:
        lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()][-5:]
        raise Refused("the agent did not start: %s" % ("; ".join(lines) or "wait status %s" % status))
    return {"record": record}


def run(argv: List[str], environ: Dict[str, str], told: bytes, seconds: float) -> Tuple[Optional[int], bytes]:
    """(wait status, output) of a program in a session of its own, fed with `told`; status None: it had to be killed.

    As subprocess does it, whose import alone costs a host more than all that is done here.
    """
    import select

    (stdin, feed), (said, stdout) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        become(argv, environ, stdin, stdout)
    os.close(stdin)
    os.close(stdout)
    os.set_blocking(feed, False)
    output, end, status = b"", time.monotonic() + seconds, 0
    readers, writers = [said], [feed]
    try:
        while readers and time.monotonic() < end:
            readable, writable, _ = select.select(readers, writers, [], max(0.0, end - time.monotonic()))
            if writable:
                try:
                    told = told[os.write(feed, told) :]
                except BrokenPipeError:
                    told = b""
                if not told:
                    os.close(writers.pop())
            if readable:
                block = os.read(said, 65536)
                output += block
                if not block:
                    os.close(readers.pop())
        ended = 0
        while not ended and time.monotonic() < end:  # usually it is over with its output
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0 if ended else 0.001)
        if ended:
            return status, output
        os.killpg(pid, 9)
        os.waitpid(pid, 0)
        return None, output
    finally:
        for number in readers + writers:
            os.close(number)


def become(argv: List[str], environ: Dict[str, str], stdin: int, stdout: int) -> None:
    """A forked child turns into the program; never returns."""
    try:
        import _signal as signal  # type: ignore[import-not-found] # without enumerations, which cost as much as the rest
    except ImportError:
        import signal

    try:
        os.setsid()
        for source, target in ((stdin, 0), (stdout, 1), (stdout, 2)):
            os.dup2(source, target)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and programs expect it
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        os.write(2, ("%s: %s" % (argv[0], error.strerror)).encode())
    finally:
        os._exit(127)


def record_of(run_dir: str, node_rank: int) -> Optional[Json]:
    try:
        record: Json = loads(read(os.path.join(run_dir, "nodes", "node-%d.json" % node_rank)))
    except ValueError:
        return None
    return record


def start_time(pid: int) -> Optional[int]:
    """Field 22 of /proc/PID/stat of a living process; None for a zombie or none."""
    fields = read("/proc/%d/stat" % pid).rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def lives(record: Optional[Json]) -> List[int]:
    """Which of (agent, warden) of a record run on this host: pid, start time and boot must all be the recorded ones."""
    if record is None or record["boot_id"] != read("/proc/sys/kernel/random/boot_id").strip():
        return []
    if record.get("pid_namespace") not in (None, "", link("/proc/self/ns/pid")):
        return []
    both = [record, record.get("warden") or record]
    return [item["pid"] for item in both if start_time(item["pid"]) == item["start_time"]]


def look(run_dir: str, node_rank: int, offsets: Dict[str, int], tops: Sequence[str], **_: Any) -> Json:
    """The node's record, whether its agent lives, and what was added to the files below `tops` since `offsets`."""
    record = record_of(run_dir, node_rank)
    alive = bool(lives(record))
    if not alive:
        record = record_of(run_dir, node_rank)  # it may have written its last word between the two looks
    files, blocks, left, more = [], [], ANSWER, False
    for name, size in tree(run_dir, tops)["files"]:
        offset = offsets.get(name, 0)
        if size < offset:
            offset = 0  # written anew: from the start
        if size > offset and left > 0:
            with open(os.path.join(run_dir, name), "rb") as file:
                file.seek(offset)
                block = file.read(min(CHUNK, left))
            files.append([name, offset, len(block)])
            blocks.append(block)
            left -= len(block)
            more = more or size > offset + len(block)
        else:
            more = more or size > offset
    return {"record": record, "alive": alive, "files": files, "more": more, "payload": b"".join(blocks)}


def send_signal(run_dir: str, node_rank: int, number: int, **_: Any) -> Json:
    """Signal this node's agent, or its warden if only that is left; whether there was one."""
    record = record_of(run_dir, node_rank)
    for pid in lives(record)[:1]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return {"sent": False}
        return {"sent": True}
    return {"sent": False}


def strays(run_id: Optional[str] = None, kill: bool = False, dead_only: bool = False, **_: Any) -> Json:
    """Processes that ranks of a run (or of any) left: found by the run's id in their environment, this user's only.

    `dead_only`: leave out those whose run directory names an agent that lives. `kill` ends them, and proves it.
    """
    deadline = time.time() + 10
    found = scan(run_id, dead_only)
    first = list(found)
    while kill and found and time.time() < deadline:
        for item in found:
            if start_time(item["pid"]) == item["start_time"]:
                try:
                    os.kill(item["pid"], 9)
                except ProcessLookupError:
                    pass
        time.sleep(0.05)
        found = scan(run_id, dead_only)
    return {"found": first, "left": found}


def scan(run_id: Optional[str], dead_only: bool) -> List[Json]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open("/proc/%s/environ" % name, "rb") as file:
                environ = dict(pair.partition(b"=")[::2] for pair in file.read().split(b"\0"))
            if os.stat("/proc/%s" % name).st_uid != os.getuid():
                continue
        except OSError:
            continue
        run = environ.get(b"ZLAUNCH_RUN_ID", b"").decode("utf-8", "replace")
        born = start_time(int(name))
        if not run or born is None or run_id not in (None, run):
            continue
        folder = os.fsdecode(environ.get(b"ZLAUNCH_RUN_DIR", b""))
        rank = environ.get(b"ZLAUNCH_NODE_RANK", b"0").decode()
        record = record_of(folder, int(rank)) if rank.isdigit() else None
        if dead_only and (lives(record) or is_elsewhere(name, record)):
            continue
        command = read("/proc/%s/cmdline" % name).replace("\0", " ").strip()
        found.append({"pid": int(name), "start_time": born, "run_id": run, "run_dir": folder, "command": command[:200]})
    return found


def is_elsewhere(pid: str, record: Optional[Json]) -> bool:
    """Whether a process is in somebody's container with its agent: from here nobody can tell whether that lives."""
    here = link("/proc/self/ns/pid")
    return link("/proc/%s/ns/pid" % pid) != here and (record is None or record.get("pid_namespace") != here)


# ------------------------------------------------------------------------------------------------------ the talk

OPERATIONS = {
    f.__name__: f
    for f in (
        hello, image, marks, meet, listen, unlisten, reach, have, keep, unpack, tree, get, put, start, look,
        send_signal, strays,
    )
}  # fmt: skip


def main(source: BinaryIO, sink: BinaryIO) -> None:
    for line in iter(source.readline, b""):
        request = loads(line.decode())
        operation = OPERATIONS[request.pop("op")]
        size = request.pop("payload", 0)
        if operation is keep:
            request["source"] = source
        else:
            request["payload"] = source.read(size)
            if len(request["payload"]) < size:
                break  # the launcher hung up: half of a file or of the secrets is worse than nothing
        try:
            answer = dict(operation(**request), ok=True)
        except Refused as error:
            answer = {"ok": False, "error": str(error)}
        except OSError as error:
            where = " (%s)" % error.filename if error.filename else ""
            answer = {"ok": False, "error": "%s%s" % (error.strerror or error, where)}
        except Exception as error:  # ours to repair; said here, because a dead far end says nothing
            answer = {"ok": False, "error": "%s failed: %r" % (operation.__name__, error)}
        payload = answer.pop("payload", b"")
        sink.write(dumps(dict(answer, payload=len(payload))).encode() + b"\n" + payload)
        sink.flush()
    forget(MARKS)


if __name__ == "__main__":
    out = open(os.dup(1), "wb")  # noqa: SIM115 - until the end
    os.dup2(2, 1)  # what else prints, an environment's sitecustomize, would stand between the answers
    out.write(("\n%s\n" % globals().get("GREETING", "ready")).encode())
    out.flush()
    main(sys.stdin.buffer, out)
