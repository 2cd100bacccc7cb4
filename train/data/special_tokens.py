"""Read special tokens in the contents of records as plain text.

A tokenizer finds its added tokens anywhere in a text. In a content, `<|im_end|>` would end the answer early, and
`<|im_start|>assistant` would forge a turn. So the tokens that structure a conversation are hidden:

    Guard.protect    puts placeholders into contents before the template renders them
    Guard.encode     encodes with a second tokenizer, whose structural tokens have private names. In the rendered text
                     the template's own tokens get these names, and placeholders become what the content said

Both cost nothing for records without such texts, which is nearly all of them.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from train.records.conversation import Details
from train.templating.turn_layout import Rendered, Turns

_NAME = "\ue000zl{}\ue001"
_PLACEHOLDER = "\ue002zl{}\ue003"
_ESCAPED = r"\ue002zl"
_PLACEHOLDERS = re.compile(_PLACEHOLDER.format("([0-9]+)"))


class Guard:
    """The structural tokens of one tokenizer: special ones, those that end an answer, and those around contents."""

    def __init__(
        self, tokenizer: str, ends: Iterable[int], around: str, searched: Sequence[str], thoughts: Sequence[str] = ()
    ) -> None:
        """`tokenizer`: the text of tokenizer.json. `around`: what the template writes around contents.

        `searched`: texts that the template searches for in contents, as in `'</think>' in content`. These belong there,
        and so do the tags around `thoughts`.
        """
        from tokenizers import Tokenizer

        self._json = tokenizer
        added = json.loads(tokenizer).get("added_tokens") or []
        ends = set(ends)
        self.tokens: dict[str, int] = {
            token["content"]: token["id"]
            for token in added
            if token["content"] not in thoughts
            and (
                token["special"]
                or token["id"] in ends
                or (token["content"] in around and token["content"] not in searched)
            )
        }
        # A token that is found in the normalized text may be spelled in other ways.
        normalizes = any(token["normalized"] for token in added if token["content"] in self.tokens)
        self._normalizer = Tokenizer.from_str(tokenizer).normalizer if normalizes else None
        self._names = list(self.tokens)
        self._begins = sorted({name[:2] for name in self._names})
        longest_first = sorted(map(re.escape, self._names), key=len, reverse=True)
        self._found = re.compile("|".join(longest_first) or r"(?!)")
        self._backend: Any = None
        self._ids: dict[int, int] = {}

    def texts_in(self, messages: Turns, details: Details | None = None) -> set[str]:
        """The structural tokens that contents hold as text."""
        found: set[str] = set()
        for _, text in messages:
            found |= self._in(text)
        if details is not None and details.shape_the_text:
            for text in _strings([list(details.tools), dict(details.fields)]):
                found |= self._in(text)
        return found

    def _in(self, text: str) -> set[str]:
        found: set[str] = set()
        if any(begin in text for begin in self._begins):
            found.update(self._found.findall(text))
        if self._normalizer is not None and not text.isascii():
            normalized = self._normalizer.normalize_str(text)
            found |= {token for token in self._found.findall(normalized) if token not in found}
        return found

    def protect(self, messages: Turns, details: Details | None) -> tuple[Turns, Details | None]:
        """The conversation with placeholders for structural tokens."""
        if details is not None and details.shape_the_text:
            tools, fields = self._replaced(list(details.tools)), self._replaced(dict(details.fields))
            details = Details(tuple(tools), fields, details.untrained)
        return [(role, self._replaced(text)) for role, text in messages], details

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._found.sub(lambda match: _PLACEHOLDER.format(self._names.index(match[0])), value)
        if isinstance(value, Mapping):
            return {key: self._replaced(item) for key, item in value.items()}
        return [self._replaced(item) for item in value] if isinstance(value, list) else value

    def restored(self, text: str) -> str:
        return _PLACEHOLDERS.sub(lambda match: self._names[int(match[1])], text)

    def encode(self, rendered: Rendered) -> tuple[list[int], Any, Rendered]:
        """(token ids, encoding, the text that was encoded) of a rendering of protected contents.

        Raises ValueError for a tokenizer whose tokens cannot be renamed.
        """
        if _ESCAPED in rendered.text:
            raise ValueError("the chat template escapes the placeholder of a token")
        text, spans = self._private(rendered)
        ids, encoding = self.encode_one(text)
        return ids, encoding, replace(rendered, text=text, spans=spans)

    def encode_one(self, text: str) -> tuple[list[int], Any]:
        """(token ids, encoding) of a text in which the template's tokens have their private names."""
        encoding = self._private_backend().encode(text, add_special_tokens=False)
        return [self._ids.get(token, token) for token in encoding.ids], encoding

    def _private(self, rendered: Rendered) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text with private names for the template's tokens and without placeholders; the spans in it."""
        both = re.compile(f"{_PLACEHOLDERS.pattern}|{self._found.pattern}")
        parts: list[str] = []
        places, shifts = [0], [0]
        """Where the difference between places of the old and the new text changes, and to what."""
        at = 0
        for match in both.finditer(rendered.text):
            new = self._names[int(match[1])] if match[1] else _NAME.format(self._names.index(match[0]))
            parts += [rendered.text[at : match.start()], new]
            at = match.end()
            places.append(at)
            shifts.append(shifts[-1] + len(new) - (match.end() - match.start()))
        parts.append(rendered.text[at:])
        spans = tuple(
            (start + shifts[bisect.bisect_right(places, start) - 1], end + shifts[bisect.bisect_right(places, end) - 1])
            for start, end in rendered.spans
        )
        return "".join(parts), spans

    def _private_backend(self) -> Any:
        if self._backend is None:
            from tokenizers import Tokenizer

            try:
                self._backend = Tokenizer.from_str(json.dumps(self._renamed(), ensure_ascii=False))
            except Exception as error:  # the library raises no narrower type
                raise ValueError(str(error)) from None
            self._backend.post_processor = None
            for number, token in enumerate(self.tokens.values()):
                ids = self._backend.encode(_NAME.format(number), add_special_tokens=False).ids
                if len(ids) != 1:
                    raise ValueError(f"{self._names[number]!r} cannot be renamed")
                if ids[0] != token:
                    self._ids[ids[0]] = token
        return self._backend

    def _renamed(self) -> dict[str, Any]:
        """tokenizer.json with private names for the structural tokens."""
        content: dict[str, Any] = json.loads(self._json)
        names = {token: _NAME.format(number) for number, token in enumerate(self._names)}
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = content["model"]
        vocab = model.get("vocab")
        if isinstance(vocab, dict):
            model["vocab"] = {names.get(piece, piece): place for piece, place in vocab.items()}
        elif isinstance(vocab, list):
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        content["post_processor"] = None
        return content


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
