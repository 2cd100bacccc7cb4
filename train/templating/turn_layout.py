"""What a chat template writes around the contents of conversations with certain roles."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from train.templating.jinja_environment import CLOSE, OPEN

Turns = Sequence[tuple[str, str]]
Trim = Callable[[str], str]


@dataclass(frozen=True)
class Rendered:
    """One sequence: a text, and the character ranges in it of the answers that carry loss."""

    text: str
    spans: tuple[tuple[int, int], ...]
    answers: int
    """How many of the conversation's answers the text holds; the last of these is the last of `spans`."""
    lost: tuple[tuple[str, str], ...] = ()
    """(role or key, text) pairs that the template leaves out."""
    as_used: bool = True
    """Whether the model sees the same text before each answer in use."""


@dataclass(frozen=True)
class TurnLayout:
    """`pieces[0] content pieces[1] content ... pieces[n]`, each content first changed by its trim."""

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    """The message whose content is between pieces[i] and pieces[i + 1]."""
    trims: tuple[Trim, ...]
    """By message."""
    answers: tuple[int, ...]
    """Messages that are answers."""

    @cached_property
    def _is_answer(self) -> frozenset[int]:
        return frozenset(self.answers)

    def render(self, messages: Turns) -> Rendered:
        text, spans, _ = self._joined([content for _, content in messages])
        return Rendered(text, tuple(spans), len(self.answers))

    def beginning(self, contents: Sequence[str], count: int) -> str | None:
        """The text up to the end of message `count - 1`, or None if the messages before it are out of order."""
        if self.order[:count] != tuple(range(count)):
            return None
        text, _, ends = self._joined(contents)
        return text[: ends[count - 1]]

    def before_last(self, roles: tuple[str, ...]) -> str | None:
        """What stands before the content of the last of `roles`, with marks as the contents before it."""
        count = len(roles)
        if self.order[:count] != tuple(range(count)):
            return None
        text, _, ends = self._joined([*_marks(count - 1), ""])
        return text[: ends[count - 1]]

    def _joined(self, contents: Sequence[str]) -> tuple[str, list[tuple[int, int]], list[int]]:
        """(text, ranges of the answers, end of each content in the order of the text)"""
        parts = [self.pieces[0]]
        spans, ends = [], []
        is_answer = self._is_answer
        at = len(parts[0])
        for place, piece in zip(self.order, self.pieces[1:], strict=True):
            trim, content = self.trims[place], contents[place] if place < len(contents) else ""
            if trim is not as_it_is:
                content = trim(content)
            end = at + len(content)
            if place in is_answer:
                spans.append((at, end))
            ends.append(end)
            parts.append(content)
            parts.append(piece)
            at = end + len(piece)
        return "".join(parts), spans, ends


def as_it_is(text: str) -> str:
    return text


def strip_lines(text: str) -> str:
    return text.strip("\n")


def lstrip_lines(text: str) -> str:
    return text.lstrip("\n")


def rstrip_lines(text: str) -> str:
    return text.rstrip("\n")


TRIMS: tuple[Trim, ...] = (as_it_is, str.strip, str.lstrip, str.rstrip, strip_lines, lstrip_lines, rstrip_lines)
"""What templates do to blanks around contents. Conversations whose contents are changed otherwise have no layout."""
_PADDINGS = ("  \n", "\n \t", "\n\n")
_TELLING_PADDING = "\n "
"""Each of TRIMS does something else to it."""
_MARKED = re.compile(f"{re.escape(OPEN)}[0-9]+{re.escape(CLOSE)}")


_REWRITABLE = "a  <b>&amp;\t\"É\"\n\n{{ c }} '#1' \\n D" + "." * 300
"""A text that templates change which escape, fold, cut or evaluate contents."""


def _marks(count: int) -> list[str]:
    return [f"{OPEN}{place}{CLOSE}" for place in range(count)]


def _padded(mark: str, padding: str) -> str:
    return f"{padding}{mark}{padding[::-1]}"


class LayoutFinder:
    """Finds layouts by rendering conversations of marks: a few renderings per layout, however long it is."""

    def __init__(self, render: Callable[[Turns], str]) -> None:
        self._render = render

    def find(self, roles: tuple[str, ...], longer: TurnLayout | None = None) -> TurnLayout | None:
        """The layout of conversations of these roles, or None.

        `longer` is the layout of a conversation that goes on. The same pieces, with its last ones around the last
        content, are tried first.
        """
        count = len(roles)
        answers = tuple(place for place, role in enumerate(roles) if role == "assistant")
        if longer is not None and longer.order == tuple(range(len(longer.order))):
            pieces = (*longer.pieces[: count - 1], *longer.pieces[-2:])
            likely = TurnLayout(pieces, tuple(range(count)), (*longer.trims[: count - 1], longer.trims[-1]), answers)
            if self._shows(likely, roles, _TELLING_PADDING):
                return likely
        text = self._text(roles, _marks(count))
        order = tuple(int(mark[len(OPEN) : -len(CLOSE)]) for mark in _MARKED.findall(text))
        if sorted(order) != list(range(count)):  # a content that is left out or shown twice
            return None
        found = TurnLayout(tuple(_MARKED.split(text)), order, (as_it_is,) * count, answers)
        trims = self._trims(found, roles)
        layout = TurnLayout(found.pieces, order, trims, answers) if trims else None
        return layout if layout and self._shows(layout, roles, _PADDINGS[0]) else None

    def begins(self, layout: TurnLayout, roles: tuple[str, ...]) -> bool:
        """Whether a conversation of `roles` renders to the beginning of the longer one of `layout`, as far as the end
        of its last content."""
        contents = [_padded(mark, _TELLING_PADDING) for mark in _marks(len(roles))]
        expected = layout.beginning(contents, len(roles))
        return expected is not None and self._text(roles, contents).startswith(expected)

    @staticmethod
    def marked_turns(roles: Sequence[str]) -> Turns:
        """A conversation of marks, as `TurnLayout.before_last` has them."""
        return list(zip(roles, _marks(len(roles)), strict=True))

    def _text(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        return self._render(list(zip(roles, contents, strict=True)))

    def _shows(self, layout: TurnLayout, roles: tuple[str, ...], padding: str) -> bool:
        marks = [f"{mark}{_REWRITABLE}{mark}" for mark in _marks(len(roles))]
        turns = [(role, _padded(mark, padding)) for role, mark in zip(roles, marks, strict=True)]
        return layout.render(turns).text == self._render(turns)

    def _trims(self, layout: TurnLayout, roles: tuple[str, ...]) -> tuple[Trim, ...] | None:
        """The trim of each message, by what becomes of three kinds of blanks around its mark.

        Every second content has blanks, so that the text between two marks shows the blanks of one content.
        """
        marks = _marks(len(roles))
        fitting = [list(TRIMS) for _ in roles]
        for padding in _PADDINGS:
            for parity in (0, 1):
                chosen = {place for number, place in enumerate(layout.order) if number % 2 == parity}
                text = self._text(
                    roles, [_padded(mark, padding) if place in chosen else mark for place, mark in enumerate(marks)]
                )
                between = _MARKED.split(text)
                if _MARKED.findall(text) != [marks[place] for place in layout.order]:
                    return None
                for number, place in enumerate(layout.order):
                    if place not in chosen:
                        continue
                    pieces, shown = layout.pieces[number : number + 2], between[number : number + 2]
                    fitting[place] = [trim for trim in fitting[place] if _fits(trim, padding, pieces, shown)]
        return tuple(trims[0] for trims in fitting) if all(fitting) else None


def _fits(trim: Trim, padding: str, pieces: Sequence[str], shown: Sequence[str]) -> bool:
    """Whether a content with this trim explains what is shown on both of its sides."""
    before, _, after = trim(_padded("x", padding)).partition("x")
    return shown[0] == pieces[0] + before and shown[1] == after + pieces[1]
