"""Read a sentencepiece BPE model without sentencepiece, and rebuild it as a fast tokenizer with the same tokens.

transformers guesses the normalizer of a bare `tokenizer.model` and gets some strings wrong. Here everything comes from
the file: scores order the merges, and the file defines normalizer, dummy prefix and byte fallback. Format:
`sentencepiece_model.proto` (ModelProto) of sentencepiece, of which only the few fields below matter.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
SPACE = "\u2581"


class NotSentencePiece(ValueError):
    """The file is not a sentencepiece BPE model that can be rebuilt exactly; the message says why."""


@dataclass(frozen=True)
class SentencePiece:
    """The content of a sentencepiece model file. `pieces` are (text, score, type); the index of a piece is its id."""

    pieces: tuple[tuple[str, float, int], ...]
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    def piece(self, token_id: int) -> str:
        return self.pieces[token_id][0]


def read(path: str | os.PathLike[str]) -> SentencePiece:
    """Parse a `tokenizer.model`. Raises OSError, or NotSentencePiece for a file of another kind or a cut one."""
    data = Path(path).read_bytes()
    try:
        return _model(data)
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise NotSentencePiece(f"{path}: not a complete sentencepiece model ({error})") from error


def _model(data: bytes) -> SentencePiece:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(_bytes(value)))
            (score,) = struct.unpack("<f", _bytes(piece.get(2, bytes(4))))
            pieces.append((_bytes(piece.get(1, b"")).decode("utf-8"), score, _signed(piece.get(3, NORMAL))))
        elif field == 2:
            trainer = dict(_fields(_bytes(value)))
        elif field == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise NotSentencePiece("not a sentencepiece model: it holds no pieces")
    if _signed(trainer.get(3, 1)) != BPE:
        raise NotSentencePiece("a sentencepiece model, but not of type BPE")
    if any(kind == UNUSED for _, _, kind in pieces):
        raise NotSentencePiece("the sentencepiece model has UNUSED pieces, which a fast tokenizer cannot reproduce")
    if trainer.get(24, 0):
        raise NotSentencePiece("the sentencepiece model treats white space as a suffix, which is not supported")
    return SentencePiece(
        pieces=tuple(pieces),
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        pad_id=_signed(trainer.get(43, -1)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message: varints as int, all others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(data, at)
        if size is None:
            raise NotSentencePiece("not a sentencepiece model: it is not a protobuf message")
        if at + size > len(data):
            raise NotSentencePiece("the sentencepiece model is cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _signed(value: int | bytes) -> int:
    """An int32 field: negative numbers (pad_id -1) travel as 64-bit two's complement."""
    if isinstance(value, bytes):
        raise TypeError("a number was expected")
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("bytes were expected")
    return value


def merges(pieces: tuple[tuple[str, float, int], ...]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first.

    At each step, sentencepiece joins the pair whose union scores highest, and a fast tokenizer joins the pair that is
    first in its list. Ways to make the same piece are ordered by the ids of their parts.
    """
    score = {text: value for text, value, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    rank = {text: place for place, (text, _, _) in enumerate(pieces)}
    found: list[tuple[float, int, int, int, str, str]] = []
    for text, value, kind in pieces:
        if kind != NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in score and right in score:
                found.append((-value, rank[text], rank[left], rank[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def tokenizer(model: SentencePiece) -> Tokenizer:
    """Build a fast tokenizer with the ids of sentencepiece. It adds no special tokens of its own."""
    vocab = {text: place for place, (text, _, _) in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise NotSentencePiece("the sentencepiece model lists a piece twice")
    made = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges(model.pieces),
            unk_token=model.piece(model.unk_id),
            fuse_unk=True,  # sentencepiece joins a run of unknown characters too
            byte_fallback=model.byte_fallback,
        )
    )
    made.normalizer = normalizers.Sequence(_normalizers(model))
    made.decoder = decoders.Sequence(_decoders(model))
    # Control pieces never come from text, but decoding must know them as special to skip them. User-defined pieces are
    # found in the text before anything else.
    made.add_special_tokens([AddedToken(t, special=True) for t, _, k in model.pieces if k in (CONTROL, UNKNOWN)])
    made.add_tokens([AddedToken(t, normalized=False) for t, _, k in model.pieces if k == USER_DEFINED])
    return made


def _normalizers(model: SentencePiece) -> list[normalizers.Normalizer]:
    """The order of sentencepiece: character map, cleaned white space, dummy prefix, spaces as U+2581."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    space = SPACE if model.escape_whitespaces else " "
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(space))
    return steps


def _decoders(model: SentencePiece) -> list[decoders.Decoder]:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")] if model.escape_whitespaces else []
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return steps
