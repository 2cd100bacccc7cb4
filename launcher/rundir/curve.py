"""The curves of metrics.jsonl, read once and kept short: every line of a small run, the extremes of a long one.

A million lines take most of a second to decode. So what was read is kept beside the file, as an index that the next
reader continues: `list`, `status`, `report` and `watch` read only what is new.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from launcher.node import files, run_files
from launcher.rundir import shapes
from launcher.rundir.shapes import Count

MOST_BLOCKS = 1000
"""Blocks of a curve, of four points each at most."""
CHUNK = 1 << 18
"""Bytes read at a time."""
WORTH_KEEPING = 1 << 20
"""Bytes of new lines after which the index is written again. Smaller files are read whole each time."""
SEAL = 200
"""Bytes before the end of what was read, to notice that a resume has cut the file and others were appended."""


class Metric(shapes.Metric, gc=False, omit_defaults=True):
    """A line of metrics.jsonl, with a loss, or the loss on the held-out records. A line without a step has step 0."""

    step: Count = 0


class Block(msgspec.Struct, array_like=True, gc=False):
    """Neighboring lines as one."""

    lines: int
    mean: float
    points: list[Metric]
    """The first line, the last, and those with the smallest and the largest value; in the order of the file."""


class Series(msgspec.Struct, array_like=True):
    """A growing curve in at most MOST_BLOCKS blocks of the same number of lines; only the last may have fewer."""

    name: str
    """Which value of a line: loss or eval_loss."""
    width: int = 1
    blocks: list[Block] = []

    @property
    def lines(self) -> int:
        return sum(block.lines for block in self.blocks[-1:]) + self.width * max(0, len(self.blocks) - 1)

    def add(self, values: Sequence[float], texts: Sequence[bytes]) -> None:
        """Append lines: their values, and the lines themselves."""
        start = 0
        while start < len(values):
            room = self.width - self.blocks[-1].lines if self.blocks else 0
            end = start + (room or self.width)
            block = self._block(values[start:end], texts[start:end])
            if room:
                self.blocks[-1] = self._merged(self.blocks[-1], block)
            else:
                self.blocks.append(block)
            start = end
            if len(self.blocks) > MOST_BLOCKS:
                pairs = zip(self.blocks[::2], self.blocks[1::2], strict=False)
                rest = self.blocks[len(self.blocks) // 2 * 2 :]
                self.blocks = [self._merged(*pair) for pair in pairs] + rest
                self.width *= 2

    def _block(self, values: Sequence[float], texts: Sequence[bytes]) -> Block:
        places = {0, len(values) - 1, values.index(min(values)), values.index(max(values))}
        points = [_decode(texts[place]) for place in sorted(places)]
        return Block(len(values), sum(values) / len(values), points)

    def _merged(self, first: Block, second: Block) -> Block:
        lines, points = first.lines + second.lines, first.points + second.points
        values = [getattr(point, self.name) for point in points]
        places = {0, len(points) - 1, values.index(min(values)), values.index(max(values))}
        mean = (first.mean * first.lines + second.mean * second.lines) / lines
        return Block(lines, mean, [points[place] for place in sorted(places)])

    def smoothed(self) -> Iterator[tuple[Metric, float]]:
        """(line, exponential moving average at its block), over about a thirtieth of the curve."""
        half_life = max(2.0, self.lines / 30)
        average = weight = 0.0
        for block in self.blocks:
            kept = 0.5 ** (block.lines / half_life)
            average = average * kept + block.mean * (1 - kept)
            weight = weight * kept + (1 - kept)
            for point in block.points:
                yield point, average / weight


class _Loss(msgspec.Struct, gc=False):
    """All that must be read of every line: a third of the time of decoding all of it."""

    step: Count = 0
    loss: float | None = None


class Index(msgspec.Struct):
    """What was read of a metrics.jsonl; kept as the file INDEX of the run directory."""

    schema: int = 1
    offset: int = 0
    """Bytes read, to the end of a line."""
    seal: str = ""
    loss: Series = msgspec.field(default_factory=lambda: Series("loss"))
    held_out: Series = msgspec.field(default_factory=lambda: Series("eval_loss"))


_METRIC, _LOSS = msgspec.json.Decoder(Metric), msgspec.json.Decoder(_Loss)


class Curves:
    """The curves of one run. `read` brings them up to date."""

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.file = metrics.with_name(run_files.CURVES)
        self.index = self._kept()
        self._saved = self.index.offset

    def _kept(self) -> Index:
        try:
            index = msgspec.json.decode(self.file.read_bytes(), type=Index)
        except (OSError, msgspec.MsgspecError):
            return Index()
        return index if index.schema == 1 else Index()

    def read(self) -> Index:
        """Read what is new. A file that was cut (a resume does that) is read from its start."""
        try:
            with self.metrics.open("rb") as file:
                if not self._still_holds(file):
                    self.index, self._saved = Index(), 0
                file.seek(self.index.offset)
                for chunk in _whole_lines(file):
                    self._add(chunk)
                    self.index.offset += len(chunk)
                self.index.seal = _seal(file, self.index.offset)
        except OSError:
            return self.index
        if self.index.offset - self._saved >= WORTH_KEEPING:
            with contextlib.suppress(OSError):  # a full or read-only disk
                files.write_atomic(self.file, msgspec.json.encode(self.index))
            self._saved = self.index.offset
        return self.index

    def _still_holds(self, file: BinaryIO) -> bool:
        return self.index.offset == 0 or _seal(file, self.index.offset) == self.index.seal

    def _add(self, chunk: bytes) -> None:
        lines = chunk.split(b"\n")[:-1]
        try:
            losses = [line.loss for line in _LOSS.decode_lines(chunk)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            losses = []
        if len(losses) != len(lines):  # empty or torn lines
            lines, losses = _readable(lines)
        if None not in losses:
            self.index.loss.add(losses, lines)  # type: ignore[arg-type]
            return
        places = [place for place, loss in enumerate(losses) if loss is not None]
        self.index.loss.add([losses[place] for place in places], [lines[place] for place in places])  # type: ignore[misc]
        others = [(line, _decode(line).eval_loss) for line, loss in zip(lines, losses, strict=True) if loss is None]
        known = [(line, value) for line, value in others if value is not None]
        self.index.held_out.add([value for _, value in known], [line for line, _ in known])


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The file from here on in pieces that end with a line; an incomplete last line is left out."""
    start, length = file.tell(), CHUNK
    while data := os.pread(file.fileno(), length, start):
        end = data.rfind(b"\n") + 1
        start += end
        if end:
            yield data[:end]
        elif len(data) < length:
            return
        length = CHUNK if end else 2 * length  # a line longer than a piece


def _seal(file: BinaryIO, offset: int) -> str:
    """The bytes before an offset, as text; shorter if the file is."""
    start = max(0, offset - SEAL)
    file.seek(start)
    return file.read(offset - start).decode("utf-8", "replace")


def _readable(lines: Sequence[bytes]) -> tuple[list[bytes], list[float | None]]:
    """The lines that are JSON objects, as a crash may have torn one, and their losses."""
    kept, losses = [], []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            losses.append(_LOSS.decode(line).loss)
            kept.append(line)
    return kept, losses


def _decode(line: bytes) -> Metric:
    try:
        return _METRIC.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # a value of another type or no text: commands report the line
        values = msgspec.json.decode(line.decode("utf-8", "replace"))
        return Metric(**{name: values[name] for name in Metric.__struct_fields__ if _is_number(values.get(name))})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


NEAR_END = 2048
"""Bytes at the end of metrics.jsonl that nearly always hold the last loss."""


class _End(msgspec.Struct, gc=False):
    """Whether a line has what every line has: a loss, or a held-out loss, which is null where it is no number."""

    step: Count
    loss: float | msgspec.UnsetType = msgspec.UNSET
    eval_loss: float | msgspec.UnsetType | None = msgspec.UNSET


_END = msgspec.json.Decoder(_End)


def last_metric(path: str | Path) -> tuple[Metric | None, bool]:
    """(the last line with a loss, whether a line after it is damaged), from the end of the file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return None, not isinstance(error, FileNotFoundError)
    try:
        return _last_metric(handle)
    except OSError:
        return None, True
    finally:
        os.close(handle)


def _last_metric(handle: int) -> tuple[Metric | None, bool]:
    damaged, size = False, os.fstat(handle).st_size
    for length in (NEAR_END, files.LOG_TAIL_BYTES):
        *lines, torn = os.pread(handle, length, max(0, size - length)).split(b"\n")
        damaged = bool(torn)
        for line in reversed(lines[size > length :]):
            try:
                end = _END.decode(line)
                if end.loss is not msgspec.UNSET:
                    return _decode(line), damaged
                damaged = damaged or end.eval_loss is msgspec.UNSET
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # a crash may have torn it
                damaged = damaged or bool(line.strip())
    return None, damaged
