"""Every error that a user can see, as a tree.

ZlaunchError
├── UsageError            exit 2: the request was wrong; nothing was started
│   ├── SpecError         a key or value of the job file or of --set
│   ├── BatchError        no batch size fits these ranks
│   ├── DataError         records that cannot be trained on
│   ├── CompatibilityError  settings that cannot work together
│   ├── HostfileError     hostfile, --hosts, --include, --exclude
│   └── RunNotFound       no run, or several, of that name
├── TargetError           exit 1: the target refused: GPUs, ports, disk, ssh, sbatch, container engine
│   ├── HostsError        one or more of several hosts failed
│   └── StorageError      a file cannot be written: disk full, over quota, read-only, directory gone; also an OSError
└── RunFailed             exit 1: the run started and did not succeed

An error says what was tried, where, what the answer was and what to do next. Commands print `str(error)` and
`error.hint` without a traceback. Any other exception is a bug and shows one.
"""

from __future__ import annotations

from collections.abc import Mapping


class ZlaunchError(Exception):
    """Base of all; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint and hasattr(
            self, "add_note"
        ):  # Python 3.11 shows it below a traceback, which users of `import zlaunch` see
            self.add_note(f"-> {hint}")

    @property
    def text(self) -> str:
        """The message, with the hint on a separate line."""
        return f"{self}\n  -> {self.hint}" if self.hint else str(self)


class UsageError(ZlaunchError):
    exit_code = 2


class SpecError(UsageError):
    pass


class BatchError(UsageError):
    pass


class DataError(UsageError):
    pass


class CompatibilityError(UsageError):
    pass


class HostfileError(UsageError):
    pass


class RunNotFound(UsageError):
    pass


class TargetError(ZlaunchError):
    pass


class HostsError(TargetError):
    """One or more of several hosts failed. Keeps the result of every host, also of those that succeeded."""

    def __init__(self, message: str, results: Mapping[str, str], *, hint: str | None = None) -> None:
        super().__init__(message + "".join(f"\n  {host}: {text}" for host, text in results.items()), hint=hint)
        self.results = dict(results)


class StorageError(TargetError, OSError):
    """An OSError of the place where a file is written. Code that goes on without the file catches OSError."""

    __str__ = Exception.__str__


class RunFailed(ZlaunchError):
    pass
