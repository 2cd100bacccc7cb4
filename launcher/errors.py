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

An error says what was tried, where, what the answer was and what to do next. Commands print its code, `str(error)` and
`error.hint` without a traceback. Any other exception is a bug and shows one.

A code such as ZL-DATA-03 is the kind of an error. launcher/show/language/error_codes.py says what each means, for
`zlaunch explain` and docs/errors.md. The wide classes have no code of their own: whoever raises one gives it.
"""

from __future__ import annotations

from collections.abc import Mapping


class ZlaunchError(Exception):
    """Base of all; `hint` says what to do next, `code` which kind of error it is."""

    exit_code = 1
    code = ""

    def __init__(self, message: str, *, hint: str | None = None, code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code or type(self).code
        if hint and hasattr(
            self, "add_note"
        ):  # Python 3.11 shows it below a traceback, which users of `import zlaunch` see
            self.add_note(f"-> {hint}")

    @property
    def text(self) -> str:
        """The message, with the hint on a separate line."""
        return f"{self}\n  -> {self.hint}" if self.hint else str(self)

    @property
    def shown(self) -> str:
        """`error[CODE]: text`, as commands print it."""
        return f"error{f'[{self.code}]' if self.code else ''}: {self.text}"


class UsageError(ZlaunchError):
    exit_code = 2


class SpecError(UsageError):
    code = "ZL-JOB-01"


class BatchError(UsageError):
    code = "ZL-PLAN-03"


class DataError(UsageError):
    code = "ZL-DATA-01"


class CompatibilityError(UsageError):
    code = "ZL-PLAN-01"


class HostfileError(UsageError):
    code = "ZL-HOST-01"


class RunNotFound(UsageError):
    code = "ZL-RUN-01"


class TargetError(ZlaunchError):
    pass


class HostsError(TargetError):
    """One or more of several hosts failed. Keeps the result of every host, also of those that succeeded."""

    code = "ZL-SSH-07"

    def __init__(self, message: str, results: Mapping[str, str], *, hint: str | None = None, code: str = "") -> None:
        lines = "".join(f"\n  {host}: {text}" for host, text in results.items())
        super().__init__(message + lines, hint=hint, code=code)
        self.results = dict(results)


class StorageError(TargetError, OSError):
    """An OSError of the place where a file is written. Code that goes on without the file catches OSError."""

    code = "ZL-FILE-03"
    __str__ = Exception.__str__


class RunFailed(ZlaunchError):
    code = "ZL-RUN-05"
