"""How a rank fails: an account in errors/rank-<R>.json, an exit status, and a traceback only for our own bugs.

TrainError         not a bug; carries a cause of the table and advice
└── UserError      exit 2: the request was wrong
    └── DataError  exit 2: records that cannot be trained on, with file and line
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from train.config import TrainConfig
from train.rundir.run_files import RunDir, write_json

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb]")
"""What a terminal obeys instead of showing it; launcher/machine/output.py has the same."""
EXIT_FAILED = 1
EXIT_USER = 2


class TrainError(Exception):
    """Not a bug: `cause` is one of CAUSES, `advice` says what to do next, `code` which kind of error it is.

    launcher/show/language/error_codes.py has all codes. The wide classes have none: whoever raises one gives it.
    """

    cause = "bug"
    exit_code = EXIT_FAILED
    code = ""

    def __init__(self, message: str, *advice: str, code: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        self.code = code or type(self).code


class UserError(TrainError):
    cause = "bad_configuration"
    exit_code = EXIT_USER


class DataError(UserError):
    cause = "data"
    code = "ZL-DATA-02"


@dataclass(frozen=True)
class Account:
    """The content of errors/rank-<R>.json."""

    cause: str
    message: str
    advice: tuple[str, ...] = ()
    exit_code: int = EXIT_FAILED
    code: str = ""

    @property
    def shown(self) -> str:
        """`error[CODE]: message`; launcher/machine/trainer.py reads it."""
        return f"error{f'[{self.code}]' if self.code else ''}: {self.message}"

    @property
    def is_bug(self) -> bool:
        return self.cause == "bug"


def account(error: BaseException, config: TrainConfig | None = None) -> Account:
    """Explain an error in the user's terms. Pure."""
    for matches, explain in _CAUSES:
        if matches(error):
            return explain(error, config)
    return Account("bug", f"{type(error).__name__}: {error}")


def report(error: BaseException, rundir: RunDir | None, config: TrainConfig | None, rank: int) -> int:
    """Write the account to the run directory and to stderr; return the exit status of this rank."""
    found = account(error, config)
    with suppress(OSError):  # a full disk takes the log; the account and the exit status still matter
        if found.is_bug:
            traceback.print_exception(error, file=sys.stderr)
        else:
            print(printable(found.shown), file=sys.stderr)
            advise(found.advice)
    if rundir is not None:
        content = {"cause": found.cause, "message": found.message, "advice": list(found.advice), "rank": rank}
        content |= {"code": found.code} if found.code else {}
        try:
            write_json(rundir.error(rank), content)
        except OSError as failure:  # most likely a full disk, which stderr has reported already
            with suppress(OSError):
                print(f"errors/rank-{rank}.json could not be written: {failure}", file=sys.stderr)
    return found.exit_code


def printable(text: str) -> str:
    """Write control characters as `\\u001b`, which in a JSON string still means the character."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


class _Printable(io.TextIOWrapper):
    def write(self, text: str) -> int:
        return super().write(printable(text))


def guard_output() -> None:
    """Let no control sequence of a model's answer or of a record reach the terminal through standard output."""
    old = sys.stdout
    if isinstance(old, io.TextIOWrapper) and old is sys.__stdout__:  # else somebody has replaced it already
        encoding, errors, lines = old.encoding, old.errors, old.line_buffering
        sys.stdout = _Printable(old.detach(), encoding, errors, line_buffering=lines, write_through=True)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def advise(advice: Iterable[str]) -> None:
    """Print each piece of advice on a line behind an arrow; launcher/machine/trainer.py reads them."""
    for line in advice:
        print(printable(f"  -> {line}"), file=sys.stderr)


def memory_advice(config: TrainConfig) -> tuple[str, ...]:
    """The three settings that lower the memory peak most, with this run's numbers. Pure."""
    train, ways = config.train, []
    if train.micro_batch_size > 1:
        half = max(size for size in range(1, train.micro_batch_size) if train.micro_batch_size % size == 0)
        factor = train.micro_batch_size // half
        ways.append(
            f"train.micro_batch_size={half} (now {train.micro_batch_size}; accumulation becomes "
            f"{train.gradient_accumulation_steps * factor}, the global batch of {train.global_batch_size} stays)"
        )
    if not train.gradient_checkpointing:
        ways.append("train.gradient_checkpointing=true (activations are recomputed instead of kept)")
    if config.model.quantization == "none":
        ways.append("model.quantization=nf4 (weights take about 4.5 bits instead of 16)")
    ways.append(f"data.max_length={config.data.max_length // 2} (now {config.data.max_length})")
    if train.zero_stage < 3 and config.world_size > 1:
        ways.append(f"train.zero_stage=3 (now {train.zero_stage}; weights are shared by {config.world_size} ranks)")
    if train.offload == "none" and train.zero_stage and config.device == "cuda":
        ways.append("train.offload=cpu (the optimizer's state moves to the host)")
    if config.lora.r > 1:
        ways.append(f"lora.r={config.lora.r // 2} (now {config.lora.r}; adapter, gradients and optimizer halve)")
    return tuple(ways[:3])


def _out_of_memory(error: BaseException, config: TrainConfig | None) -> Account:
    message = "out of GPU memory" if type(error).__name__ == "OutOfMemoryError" else "out of memory"
    if config is not None:
        train = config.train
        message += (
            f": micro batch {train.micro_batch_size} x up to {config.data.max_length} tokens, ZeRO stage "
            f"{train.zero_stage}, {config.model.quantization} quantization, gradient checkpointing "
            f"{'on' if train.gradient_checkpointing else 'off'}"
        )
    advice = memory_advice(config) if config else ()
    return Account("out_of_memory", f"{message} ({first_line(error)})", advice, code="ZL-TRAIN-02")


def _disk_full(error: BaseException, config: TrainConfig | None) -> Account:
    place = getattr(error, "filename", None)  # safetensors names none
    free = _free(place or (Path(config.run_dir) / "file" if config else "/"))
    return Account(
        "disk_full",
        f"no space left on the disk{f' while writing {place}' if place else ''}{f' ({free})' if free else ''}",
        ("free some space; the last complete checkpoint is untouched, and `zlaunch resume` continues from it",),
        code="ZL-FILE-03",
    )


def _free(place: str | Path) -> str | None:
    """How much is free where a file was to be written; None if it cannot be read."""
    folder = next((path for path in Path(place).absolute().parents if path.exists()), None)
    try:
        found = os.statvfs(folder or "/")
    except OSError:
        return None
    if found.f_files and not found.f_favail:
        return f"no inode is left of {found.f_files} on the disk of {folder}"
    return f"{found.f_bavail * found.f_frsize / 2**20:.1f} MiB free on the disk of {folder}"


def _storage(error: BaseException, config: TrainConfig | None) -> Account:
    assert isinstance(error, OSError)
    return Account(
        "storage",
        f"cannot use {error.filename}: {error.strerror}",
        (
            "check whether the directory was removed and its file system is mounted and writable",
            "the last complete checkpoint is untouched, and `zlaunch resume` continues from it",
        ),
        code="ZL-FILE-03",
    )


def _is_storage(error: BaseException) -> bool:
    """An error of the place of a file, which is no bug of the program that uses it."""
    if not isinstance(error, OSError) or error.filename is None:
        return False
    if error.errno in (errno.EROFS, errno.ESTALE, errno.EIO, errno.ENOTCONN):
        return True
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    # A file that is missing may be a bug; a folder that is missing, or is a file, was changed by somebody else.
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EEXIST)
    return gone and place is not None and not (place.parent.is_dir() and os.access(place.parent, os.W_OK))


def _own(error: BaseException, config: TrainConfig | None) -> Account:
    assert isinstance(error, TrainError)
    return Account(error.cause, str(error), error.advice, error.exit_code, error.code)


def _schema(error: BaseException, config: TrainConfig | None) -> Account:
    return Account("bad_configuration", f"train.json: {error}", (), EXIT_USER, "ZL-TRAIN-05")


def _nccl(error: BaseException, config: TrainConfig | None) -> Account:
    return Account(
        "nccl",
        f"the ranks lost their connection: {first_line(error)}",
        ("look for the first failing rank: `zlaunch status` names it", "NCCL_DEBUG=INFO in `env` shows the network"),
        code="ZL-TRAIN-03",
    )


def is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = str(error)  # safetensors raises its own type
    return full or "No space left on device" in told or "Disk quota exceeded" in told


_CAUSES: tuple[tuple[Callable[[BaseException], bool], Callable[[BaseException, TrainConfig | None], Account]], ...] = (
    (lambda e: isinstance(e, TrainError), _own),
    (lambda e: isinstance(e, msgspec.ValidationError), _schema),
    (lambda e: type(e).__name__ == "OutOfMemoryError" or isinstance(e, MemoryError), _out_of_memory),
    (is_disk_full, _disk_full),
    (_is_storage, _storage),
    (lambda e: type(e).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"), _nccl),
    (lambda e: isinstance(e, RuntimeError) and "gloo" in str(e), _nccl),
)
