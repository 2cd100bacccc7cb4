"""Arguments that a container engine refused, and what the container is then started with.

Raising a limit takes a capability (CAP_SYS_RESOURCE) or a high enough limit of the engine's own process, and an init
takes a program that the engine may lack. Nobody can ask for it beforehand: a daemon is another process, often of
another namespace. So the engine tries, and the agent reads its refusal.
"""

from __future__ import annotations

import re
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Tuple

    from .files import Json

LIMITS = ("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
          "msgqueue", "nice", "rtprio", "rttime")  # fmt: skip
"""Limits in the order of their numbers in Linux."""
LIMIT = re.compile(r"(?:rlimit type (\d+)|setrlimit `?(?:RLIMIT_)?(\w+)`?): operation not permitted", re.IGNORECASE)
"""runc's words, and crun's."""
INSTEAD = (
    (r"container-init binary not found|docker-init\S* (?:executable file )?not found", "--init", (),
     "has no init program here: the agent inside is the first process"),  # podman's words (catatonit), and docker's
    (r"/dev/mqueue: no such file", "--ipc=host", ("--volume=/dev/shm:/dev/shm",),
     "cannot share all of the host's IPC here, which lacks /dev/mqueue: the container has the host's /dev/shm"),
)  # fmt: skip
"""(pattern of a refusal, the argument that it is about, what to write instead, what to tell people)."""
WHY_RAISED = {"memlock": "; InfiniBand needs locked memory", "stack": "; large graphs need a large stack"}


def start_instead(container: Json, output: str) -> Optional[Tuple[Json, str]]:
    """Return the container to start instead, and what to tell people; None: the engine refused something else."""
    for pattern, argument, instead, said in INSTEAD:
        if argument in container["argv"] and re.search(pattern, output, re.IGNORECASE):
            at = container["argv"].index(argument)
            argv = [*container["argv"][:at], *instead, *container["argv"][at + 1 :]]
            return {**container, "argv": argv}, "%s %s" % (container["engine"], said)
    name = refused_limit(output)
    return without_limit(container, name) if name else None


def refused_limit(output: str) -> Optional[str]:
    """Return the name of the limit that the engine says it may not set."""
    found = LIMIT.search(output)
    if found is None:
        return None
    number, name = found.groups()
    if number is None:
        return str(name).lower()
    return LIMITS[int(number)] if int(number) < len(LIMITS) else None


def without_limit(container: Json, name: str) -> Optional[Tuple[Json, str]]:
    """A limit that the plan raises is left as the engine has it. One that the engine raises on its own account (podman:
    open files, processes) is set to what this process has. One that the job asks for stays, and the run fails."""
    raised: Dict[str, List[str]] = container["limits"]
    argv: List[str] = container["argv"]
    engine = container["engine"]
    if name in raised:
        left = {**container, "limits": {key: words for key, words in raised.items() if key != name}}
        text = "%s may not raise the limit `%s` on this host, and leaves it as it is" % (engine, name)
        return {**left, "argv": [word for word in argv if word not in raised[name]]}, text + WHY_RAISED.get(name, "")
    if engine not in ("docker", "podman") or any(word.startswith("--ulimit=%s=" % name) for word in argv):
        return None
    own = own_limit(name)
    if own is None:
        return None
    place = argv.index("run") + 1
    text = "%s may not raise the limit `%s` on this host: the container has the agent's own, %s" % (engine, name, own)
    return {**container, "argv": [*argv[:place], "--ulimit=%s=%s" % (name, own), *argv[place:]]}, text


def own_limit(name: str) -> Optional[str]:
    """Return this process's limits as `soft:hard`; -1 is none. Of processes no more than the system can have: podman
    lowers its own limit to that, and its runtime may not raise it again."""
    import resource  # needed only after a refusal

    kind = getattr(resource, "RLIMIT_" + name.upper(), None)
    if kind is None:
        return None
    found = resource.getrlimit(kind)
    if name == "nproc":
        with suppress(OSError, ValueError), open("/proc/sys/kernel/pid_max") as file:
            most = int(file.read())
            found = min(found[0] % 2**64, most), min(found[1] % 2**64, most)
    return "%d:%d" % found
