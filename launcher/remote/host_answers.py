"""What a host may answer: one schema per operation of the far end, decoded here and nowhere else.

A host is not trusted. Its answer is data of known names, types and sizes, or it is refused, and the conversation with
that host ends. Launcher and far end are of one version, so an unknown key is refused as well.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from launcher.node import fields
from launcher.node.farend.common import MOST_FILES

Value = TypeVar("Value")

MOST_HEAD = 8 << 20
"""Bytes of the line of JSON in an answer."""
MOST_PAYLOAD = 6 << 20
"""Bytes after it: a far end's ANSWER and one more block (launcher/node/farend/common.py)."""
MOST_SIZE = 1 << 40
"""Bytes of one file of a run."""

Word = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=65536)]
Path = Annotated[str, Meta(max_length=4096, pattern=r"^/[^\x00-\x1f\x7f]*\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Count = Annotated[int, Meta(ge=0, le=fields.LARGEST)]
Size = Annotated[int, Meta(ge=0, le=MOST_SIZE)]
Pid = Annotated[int, Meta(ge=1, le=1 << 32)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
Ranks = Annotated[list[Annotated[int, Meta(ge=0, le=65535)]], Meta(max_length=65536)]
Flags = Annotated[list[bool], Meta(max_length=65536)]
Words = Annotated[list[Word], Meta(max_length=1024)]


class _Head(Struct):
    """What every answer begins with."""

    ok: bool
    payload: Annotated[int, Meta(ge=0, le=MOST_PAYLOAD)]
    error: Text = "no reason given"


class Answer(Struct, forbid_unknown_fields=True, kw_only=True):
    """An answer to an operation that returns nothing."""

    ok: bool
    payload: int


class Get(Answer):
    """A block of a file."""


class Gpu(Struct, forbid_unknown_fields=True):
    """One GPU of a census (launcher/node/census.py)."""

    index: Annotated[int, Meta(ge=0, le=4096)]
    entry: Word
    name: Word
    memory_bytes: Count
    compute_capability: Annotated[float, Meta(ge=0, le=1000)] | None
    uuid: Word
    card: Word
    mig: bool


class Census(Struct, forbid_unknown_fields=True):
    gpus: Annotated[list[Gpu], Meta(max_length=4096)]
    driver: Word
    visible: Annotated[str, Meta(max_length=4096)] | None
    error: Text
    notes: Annotated[list[Text], Meta(max_length=1024)]


class Report(Struct, forbid_unknown_fields=True, kw_only=True):
    """Facts about a machine (launcher/node/farend/host.py)."""

    host: Word
    python: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
    version: Annotated[list[Annotated[int, Meta(ge=0, le=9999)]], Meta(min_length=3, max_length=3)]
    time: Seconds
    boot_id: Word
    network: Word
    memory_bytes: Count | None
    cpus: Annotated[int, Meta(ge=1, le=1 << 20)] | None
    packages: Annotated[dict[Word, Word], Meta(max_length=256)]
    missing: Words
    gpus: Census | UnsetType = UNSET


class NodeReport(Report):
    """The same from a node of a cluster, by Slurm's name of it (launcher/backends/machine_report.py)."""

    node: Word


class Hello(Report):
    ok: bool
    payload: int
    address: Annotated[str, Meta(max_length=64)]
    workdir: Path
    workdir_error: Text | None
    free_bytes: Count | None

    def __post_init__(self) -> None:
        _addresses([self.address] if self.address else [])
        if self.workdir_error is None and self.free_bytes is None:
            raise ValueError("neither the free space of the working directory nor an error")


class Image(Answer):
    code: Annotated[int, Meta(ge=-255, le=255)]
    said: Text
    size: Count | UnsetType | None = UNSET


class Marks(Answer):
    seen: Ranks


class Listen(Answer):
    ports: Annotated[list[Annotated[int, Meta(ge=1, le=65535)]], Meta(min_length=2, max_length=2)]
    addresses: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=1024)]

    def __post_init__(self) -> None:
        _addresses(self.addresses)


class Reach(Answer):
    reached: Flags


class Peers(Answer):
    seen: Ranks
    reached: Flags


class Inputs(Answer):
    found: Annotated[dict[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")], Path], Meta(max_length=100_000)]


class Stored(Answer):
    path: Path


class Tree(Answer):
    files: Annotated[list[tuple[Name, Size]], Meta(max_length=MOST_FILES)]


class Started(Answer):
    record: dict[str, Any]

    def __post_init__(self) -> None:
        _record(self.record)


class Polled(Answer):
    record: dict[str, Any] | None
    alive: bool
    files: Annotated[list[tuple[Name, Size, Size]], Meta(max_length=MOST_FILES)]
    more: bool

    def __post_init__(self) -> None:
        if self.record is not None:
            _record(self.record)
        if sum(length for _, _, length in self.files) != self.payload:
            raise ValueError("the lengths of the files are not that of the payload")


class Signalled(Answer):
    sent: bool


class Process(Struct, forbid_unknown_fields=True):
    pid: Pid
    start_time: Count | None
    run_id: Word
    run_dir: Annotated[str, Meta(max_length=4096)]
    command: Annotated[str, Meta(max_length=1024)]


class Leftovers(Answer):
    found: Annotated[list[Process], Meta(max_length=100_000)]
    left: Annotated[list[Process], Meta(max_length=100_000)]


class Removed(Answer):
    freed: Annotated[int, Meta(ge=0, le=1 << 62)]


ANSWERS: dict[str, type[Answer | Hello]] = {
    "hello": Hello, "image": Image, "shared_dir_marks": Marks, "listen": Listen, "unlisten": Answer, "reach": Reach,
    "probe_peers": Peers, "find_inputs": Inputs, "store_input": Stored, "tree": Tree, "get": Get, "put": Answer,
    "unpack": Answer, "start": Started, "poll_node": Polled, "send_signal": Signalled, "leftovers": Leftovers,
    "remove_run": Removed,
}  # fmt: skip
"""Operation -> its answer. A test holds the table against that of the far end."""
WITH_PAYLOAD = (Get, Polled)


class AnswerError(ValueError):
    """A host answered something else than the operation returns; the text says what."""


class Refusal(Exception):
    """The far end refuses the operation; the text is the host's."""


def _addresses(texts: list[str]) -> None:
    for text in texts:
        address, _, scope = text.partition("%")
        ipaddress.ip_address(address)
        if not all(char.isalnum() or char in "-_.:@" for char in scope):
            raise ValueError("a strange interface in an address")


def _record(value: dict[str, Any]) -> None:
    wrong = fields.RECORD.misfit(value)
    if wrong is not None or not fields.shallow(value):
        raise ValueError(f"the node's record: {wrong or 'nested too deep'}")


def decode_report(line: str) -> dict[str, Any]:
    """Return the facts of a node. Raises AnswerError."""
    found: dict[str, Any] = msgspec.to_builtins(_decoded(line, NodeReport))
    return found


def _decoded(line: bytes | str, schema: type[Value]) -> Value:
    try:
        return msgspec.json.decode(line, type=schema)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise AnswerError(str(error)[:500]) from error


def decode(operation: str, line: bytes) -> dict[str, Any]:
    """Return the answer to an operation, with nothing in it but what its schema has; `payload` is still a number.

    Raises AnswerError, Refusal.
    """
    schema = ANSWERS[operation]
    head = _decoded(line, _Head)
    if not head.ok and not head.payload:
        raise Refusal(head.error)
    answer = _decoded(line, schema)
    if not answer.ok or (answer.payload and schema not in WITH_PAYLOAD):
        raise AnswerError("bytes after an answer that has none")
    found: dict[str, Any] = msgspec.to_builtins(answer)
    del found["ok"]
    return found
