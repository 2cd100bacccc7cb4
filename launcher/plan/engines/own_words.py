"""A job's own arguments of an engine (container.args, container.omit), beside the ones that the plan writes. Pure.

An argument of the job replaces the plan's argument of the same name. What would take the container from the agent's
hands is refused: an engine would accept it, and the run would fail or be left alone much later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launcher.errors import UsageError

SAME = {"-u": "--user", "-w": "--workdir", "--net": "--network", "-d": "--detach", "-t": "--tty", "-a": "--attach",
        "-i": "--interactive", "-h": "--help", "-N": "--nodes", "-n": "--ntasks"}  # fmt: skip
"""Short forms and aliases."""
SEVERAL = frozenset(
    ("--mount", "--env", "--device", "--set-env", "--unset-env", "--bind", "--security-opt", "--ulimit")
)
"""Arguments that an engine takes several times: the job's stand beside the plan's, except a limit of the same name."""
NO_VALUE = frozenset(
    ("--privileged", "--init", "--read-only", "--rm", "--interactive", "--oom-kill-disable", "--no-healthcheck",
     "--nv", "--rocm", "--contain", "--containall", "--cleanenv", "--no-home", "--writable", "--writable-tmpfs", "--rw")
)  # fmt: skip
NEEDED = frozenset(("--interactive", "--name", "--mount", "--bind", "--container-image", "--container-mounts"))
"""Arguments without which the agent inside gets no secrets, no run directory, or is never found again."""
_LEFT_ALONE = "the agent waits for the container's end, and ends it"
REFUSED = {
    "--detach": _LEFT_ALONE,
    "--tty": "the agent inside reads the secrets from standard input, which a terminal would echo",
    "--attach": "the agent inside reads the secrets from standard input",
    "--name": "the agent ends the container by the name that it has from the run",
    "--restart": "a container that the engine starts again has no agent; use max_restarts",
    "--help": "the engine would print its help and start nothing",
    "--container-image": "use container.image",
    "--container-mounts": "srun takes it once, and the run directory is in it; use container.mounts",
    "--nodes": "the run has one task per node; use slurm.nodes",
    "--ntasks": "the run has one task per node",
    "--ntasks-per-node": "the run has one task per node",
}


@dataclass(frozen=True)
class OwnWords:
    """What a job adds to an engine's arguments and leaves out of them."""

    args: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()

    def keeps(self, word: str) -> bool:
        """Whether this argument of the plan's stays."""
        if any(word == entry or word.startswith(entry + "=") for entry in self.omit):
            return False
        name, _, value = word.partition("=")
        for given, of_it in options(self.args):
            same_limit = name == "--ulimit" and (of_it or "").partition("=")[0] == value.partition("=")[0]
            if given == name and (name not in SEVERAL or same_limit):
                return False
        return True

    def kept(self, words: Iterable[str]) -> tuple[str, ...]:
        return tuple(word for word in words if self.keeps(word))


def options(args: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value or None) of each option of an argument list. Raises UsageError for a word that belongs to none."""
    name: str | None = None
    """An option that may still take a word as its value."""
    for word in args:
        if not word.startswith("-"):
            if name is None:
                raise UsageError(
                    f"container.args: {word!r} belongs to no option: the engine would take it for the image",
                    hint="write an option and its value as one word, for example --shm-size=64g",
                    code="ZL-IMAGE-04",
                )
            yield name, word
            name = None
            continue
        if name is not None:
            yield name, None
        if word.strip("-") == "":
            raise UsageError(
                f"container.args: {word!r} would end the engine's options before the image", code="ZL-IMAGE-04"
            )
        written, equals, value = word.partition("=")
        name = SAME.get(written, written)
        if equals or name in NO_VALUE:
            yield name, value if equals else None
            name = None
    if name is not None:
        yield name, None


def check(own: OwnWords, engine: str, plans: Iterable[str], secrets: Iterable[str] = (), hosts: int = 1) -> None:
    """Refuse what cannot work. `plans`: every argument that the plan writes. Raises UsageError."""
    for name, value in options(own.args):
        _check_option(name, value, tuple(secrets), hosts)
    written = [word for word in plans if word.startswith("-") and word != "--"]
    names = list(dict.fromkeys(word.partition("=")[0] for word in written))
    for entry in own.omit:
        if entry.partition("=")[0] in NEEDED:
            raise UsageError(f"container.omit: {entry} cannot be left out: the run needs it", code="ZL-IMAGE-04")
        if not any(word == entry or word.startswith(entry + "=") for word in written):
            left = ", ".join(name for name in names if name not in NEEDED)
            raise UsageError(
                f"container.omit: the plan gives {engine} no argument {entry!r}",
                hint=f"it gives these: {left}",
                code="ZL-IMAGE-04",
            )


def _check_option(name: str, value: str | None, secrets: tuple[str, ...], hosts: int) -> None:
    if name in REFUSED:
        raise UsageError(f"container.args: {name} cannot be given: {REFUSED[name]}", code="ZL-IMAGE-04")
    if name == "--interactive" and value == "false":
        raise UsageError(
            f"container.args: {name} cannot be switched off: the secrets come on standard input", code="ZL-IMAGE-04"
        )
    if name == "--network" and value != "host" and hosts > 1:
        raise UsageError(
            f"container.args: --network={value} on {hosts} hosts: ranks on other hosts would not reach these",
            hint="leave it out: the container has the host's network",
            code="ZL-IMAGE-04",
        )
    variable, is_given, _ = (value or "").partition("=")
    if name in ("--env", "-e", "--set-env") and is_given and variable in secrets:
        raise UsageError(
            f"container.args: {name}={variable}=... shows the value of a secret to every user of the host",
            hint=f"leave it out: {variable} is in `secrets`, and reaches the ranks without it",
            code="ZL-JOB-04",
        )
