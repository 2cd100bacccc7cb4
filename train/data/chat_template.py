"""The chat template: conversations as text, and where in that text the assistant's answers stand.

A template is a program, so it is asked, not assumed. Where an answer stands is found

1. from `{% generation %}` marks, if the template has them;
2. else from the layout of the conversation's roles: the template is rendered once with marks for contents, and what
   stands between the marks is what it writes for every conversation of these roles. Records whose contents the template
   looks into (`'</think>' in content`) are rendered one by one;
3. else, for an answer that the template rewrites, as what follows the template's own prompt for it;
4. else the record is refused with the reason.

An answer must stand behind the same text that the model will see before it has given that answer: the rendering of the
conversation's beginning. Where the template writes past turns otherwise than the present one (Qwen3 shows its thoughts
for the present answer alone), the conversation becomes one sequence for each answer instead of one for all.

Of libraries only jinja2 is imported: the environment is transformers' own (utils/chat_template_utils.py), and `agrees`
compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from train.errors import UserError

Turns = Sequence[tuple[str, str]]

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Question:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Answer:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Answer:\n' }}{% endif %}"
)
"""For models that have no chat template of their own; it is saved with the adapter's tokenizer."""

SENTINEL = "\u2063\u2064\u2062\u2063\u2064\u2062\u2063"
"""Characters without case or width that no record holds and no template changes."""
_OPEN, _CLOSE = "\u2063zl(", ")zl\u2063"
_MARKED = re.compile(f"{re.escape(_OPEN)}.*?{re.escape(_CLOSE)}", re.DOTALL)


class TemplateRefusal(UserError):
    """The template cannot show this conversation, or not so that its answers can be told from the rest."""


@dataclass(frozen=True)
class Rendered:
    """One sequence: a text and where in it, in characters, each answer stands that carries loss."""

    text: str
    spans: tuple[tuple[int, int], ...]
    answers: int
    """How many of the conversation's answers the text holds; the last of them is the last of `spans`."""


@dataclass(frozen=True)
class TurnLayout:
    """What the template writes for conversations of certain roles, whatever their contents.

    `pieces[0] content pieces[1] content ... pieces[n]`, each content first changed as `trims` says.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    """Which message's content stands between pieces[i] and pieces[i + 1]."""
    trims: tuple[Callable[[str], str], ...]
    """By message."""
    answers: frozenset[int]
    """Messages that are answers."""
    whole: bool
    """Every answer stands behind the text that the conversation's beginning renders to."""

    def render(self, messages: Turns) -> Rendered:
        parts: list[str] = [self.pieces[0]]
        spans = []
        at = len(parts[0])
        for place, piece in zip(self.order, self.pieces[1:], strict=True):
            trim = self.trims[place]
            text = messages[place][1]
            if trim is not _as_it_is:
                text = trim(text)
            if place in self.answers:
                spans.append((at, at + len(text)))
            parts.append(text)
            parts.append(piece)
            at += len(text) + len(piece)
        return Rendered("".join(parts), tuple(spans), len(spans))


class ChatTemplate:
    """A template and the special tokens it names (`bos_token`, `eos_token`, ...)."""

    def __init__(self, source: str, specials: Mapping[str, Any]) -> None:
        self.source, self.specials = source, dict(specials)
        self.marked = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._environment = _environment()
        self._environment.globals["zlaunch_generation"] = False
        try:
            self._template = self._environment.from_string(source)
            tree = self._environment.parse(source)
        except jinja2.TemplateError as error:
            raise TemplateRefusal(f"the chat template is no valid Jinja: {error}") from None
        self._looked_for = tuple(sorted(_looked_for(tree)))
        self._layouts: dict[tuple[str, ...], TurnLayout | None] = {}
        self._distrusted: set[tuple[str, ...]] = set()

    def render(self, messages: Turns, *, prompt: bool = False) -> str:
        """A conversation's text; with `prompt`, also what invites the next answer. Raises TemplateRefusal."""
        turns = [{"role": role, "content": text} for role, text in messages]
        try:
            return self._template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=prompt, **self.specials
            )
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, ValueError) as error:
            raise TemplateRefusal(f"the chat template refuses this conversation: {error}") from None

    @property
    def ending(self) -> str:
        """What the template writes after the last answer: the end of turn, usually with a line break."""
        return self.render([("user", "?"), ("assistant", SENTINEL)]).rpartition(SENTINEL)[2]

    def prompt_text(self, messages: Turns) -> str:
        """What stands before the next answer to `messages`, exactly as in training."""
        answered = [*messages, ("assistant", SENTINEL)]
        if self.marked:
            whole = self._by_marks(answered)
            return whole.text[: whole.spans[-1][0]]
        return self.render(answered).partition(SENTINEL)[0]

    def sequences(self, messages: Turns) -> list[Rendered]:
        """The conversation as sequences to train on. Raises TemplateRefusal."""
        roles = tuple([role for role, _ in messages])
        layout = None if roles in self._distrusted else self.layout(roles)
        if layout is not None and not self._looks_into(messages):
            if layout.whole:
                return [layout.render(messages)]
            found = self._each_answer(messages)
            if found is not None:
                return found
        return self.sequences_slowly(messages)

    def sequences_slowly(self, messages: Turns) -> list[Rendered]:
        """The same by asking the template about this very conversation."""
        if self.marked:
            return [self._by_marks(messages)]
        text = self.render(messages)
        answers = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
        prefixes = []
        for count, place in enumerate(answers, 1):
            shown = text if place == len(messages) - 1 else self.render(messages[: place + 1])
            prefixes.append(Rendered(shown, (self._locate(messages[: place + 1], shown),), count))
        if all(text.startswith(prefix.text[: prefix.spans[0][1]]) for prefix in prefixes):
            return [Rendered(text, tuple(prefix.spans[0] for prefix in prefixes), len(answers))]
        return prefixes

    def agrees(self, messages: Turns) -> bool:
        """Whether the fast way and the slow way say the same of this conversation."""
        return self.sequences(messages) == self.sequences_slowly(messages)

    def distrust(self, messages: Turns) -> None:
        """Render conversations of these roles the slow way until `trust`."""
        self._distrusted.add(tuple(role for role, _ in messages))

    def trust(self) -> None:
        self._distrusted.clear()

    def _each_answer(self, messages: Turns) -> list[Rendered] | None:
        """One sequence an answer, by the layouts of the conversation's beginnings; None if one of these has none."""
        found: list[Rendered] = []
        for place, (role, _) in enumerate(messages):
            if role == "assistant":
                layout = self.layout(tuple(role for role, _ in messages[: place + 1]))
                if layout is None:
                    return None
                shown = layout.render(messages[: place + 1])
                found.append(Rendered(shown.text, shown.spans[-1:], len(found) + 1))
        return found

    def _locate(self, messages: Turns, text: str) -> tuple[int, int]:
        """Where the last message, an answer, stands in its rendering `text`."""
        before, found, after = self.render([*messages[:-1], ("assistant", SENTINEL)]).partition(SENTINEL)
        inner = text[len(before) : len(text) - len(after)]
        if found and text.startswith(before) and text.endswith(after) and inner.strip() == messages[-1][1].strip():
            return len(before), len(text) - len(after)
        prompt = self.render(messages[:-1], prompt=True)
        if found and text.startswith(prompt) and text.endswith(after) and len(text) - len(after) > len(prompt):
            return len(prompt), len(text) - len(after)
        raise TemplateRefusal("the chat template neither shows this answer nor continues its own prompt with it")

    def _by_marks(self, messages: Turns) -> Rendered:
        self._environment.globals["zlaunch_generation"] = True
        try:
            raw = self.render(messages)
        finally:
            self._environment.globals["zlaunch_generation"] = False
        parts, spans, at = [], [], 0
        for number, piece in enumerate(re.split(f"{re.escape(_OPEN)}|{re.escape(_CLOSE)}", raw)):
            if number % 2:
                spans.append((at, at + len(piece)))
            parts.append(piece)
            at += len(piece)
        answers = sum(role == "assistant" for role, _ in messages)
        if len(spans) != answers:
            raise TemplateRefusal(
                f"the chat template marks {len(spans)} generations in a conversation of {answers} answers"
            )
        return Rendered("".join(parts), tuple(spans), answers)

    def layout(self, roles: tuple[str, ...]) -> TurnLayout | None:
        """None where the template must be asked record by record."""
        if roles not in self._layouts:
            self._layouts[roles] = None if self.marked else self._find_layout(roles)
        return self._layouts[roles]

    def _find_layout(self, roles: tuple[str, ...]) -> TurnLayout | None:
        marks = [_mark(place) for place in range(len(roles))]
        try:
            text = self._of(roles, marks)
            order = tuple(int(mark[len(_OPEN) : -len(_CLOSE)]) for mark in _MARKED.findall(text))
            if sorted(order) != list(range(len(roles))):  # a content that is dropped or shown twice
                return None
            answers = frozenset(place for place, role in enumerate(roles) if role == "assistant")
            found = TurnLayout(tuple(_MARKED.split(text)), order, (_as_it_is,) * len(roles), answers, whole=False)
            trims = [self._find_trim(roles, marks, place, found) for place in range(len(roles))]
        except TemplateRefusal:
            return None
        known = tuple(trim for trim in trims if trim is not None)
        if len(known) < len(roles):
            return None
        found = replace(found, trims=known)
        return replace(found, whole=all(self._begins(found, roles[: place + 1]) for place in answers))

    def _of(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        return self.render(list(zip(roles, contents, strict=True)))

    def _find_trim(
        self, roles: Sequence[str], marks: Sequence[str], place: int, layout: TurnLayout
    ) -> Callable[[str], str] | None:
        """What the template does to blanks around the content of one message; None if none of _TRIMS."""
        fitting = list(_TRIMS)
        for padding in ("  \n", "\n \t", "\n\n"):
            padded = f"{padding}{marks[place]}{padding[::-1]}"
            contents = [*marks[:place], padded, *marks[place + 1 :]]
            shown = self._of(roles, contents)
            fitting = [
                trim
                for trim in fitting
                if shown == layout.render([("", trim(text) if text is padded else text) for text in contents]).text
            ]
        return fitting[0] if fitting else None

    def _begins(self, layout: TurnLayout, roles: tuple[str, ...]) -> bool:
        """Whether a conversation of `roles` is rendered as the beginning of the longer one of `layout`."""
        size = len(roles)
        if size == len(layout.order):
            return True
        shorter = self.layout(roles)
        return (
            shorter is not None
            and shorter.order == layout.order[:size] == tuple(range(size))
            and shorter.pieces[:size] == layout.pieces[:size]
            and shorter.trims == layout.trims[:size]
        )

    def _looks_into(self, messages: Turns) -> bool:
        """Whether a content is empty or holds a text that the template looks for."""
        for _, text in messages:
            if not text or text.isspace():
                return True
            for wanted in self._looked_for:
                if wanted in text:
                    return True
        return False


def _mark(place: int) -> str:
    return f"{_OPEN}{place}{_CLOSE}"


def _as_it_is(text: str) -> str:
    return text


def _strip_lines(text: str) -> str:
    return text.strip("\n")


def _lstrip_lines(text: str) -> str:
    return text.lstrip("\n")


def _rstrip_lines(text: str) -> str:
    return text.rstrip("\n")


_TRIMS: tuple[Callable[[str], str], ...] = (
    _as_it_is,
    str.strip,
    str.lstrip,
    str.rstrip,
    _strip_lines,
    _lstrip_lines,
    _rstrip_lines,
)
"""What templates do to contents; those that do something else are rendered record by record."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: on request its text is put between marks."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{_OPEN}{text}{_CLOSE}" if self.environment.globals["zlaunch_generation"] else text


def _environment() -> ImmutableSandboxedEnvironment:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_LOOKING = frozenset(
    {"startswith", "endswith", "split", "rsplit", "partition", "rpartition", "replace", "find", "count"}
)


def _looked_for(tree: jinja2.nodes.Template) -> set[str]:
    """The texts that a template looks for in others: `'x' in y`, y.split('x'), y | replace('x', ...)."""
    found: set[str] = set()

    def texts(nodes: Any) -> None:
        found.update(node.value for node in nodes if isinstance(node, jinja2.nodes.Const) and _is_text(node.value))

    for compare in tree.find_all(jinja2.nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            texts([compare.expr])
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr) and call.node.attr in _LOOKING:
            texts(call.args)
    for used in tree.find_all(jinja2.nodes.Filter):
        if used.name == "replace":
            texts(used.args)
    return found - set(_KEYS_OF_MESSAGES)


_KEYS_OF_MESSAGES = ("role", "content", "name", "tool_calls", "reasoning_content", "thinking", "tools")
"""`'tool_calls' in message` asks for a key, not for a text."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
