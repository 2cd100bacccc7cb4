"""The chat template: conversations as text, and where in that text the assistant's answers are.

A template is a program, so it is asked rather than assumed. The range of an answer is found

1. from `{% generation %}` marks, if the template has them;
2. else from the layout of the conversation's roles (turn_layout.py): what the template writes around contents, found
   once for all conversations of these roles. Conversations whose contents the template searches
   (`'</think>' in content`), with tools or with reasoning are rendered one by one;
3. else, for an answer that the template rewrites, as what follows the template's own prompt for it;
4. else the record is refused with the reason.

An answer must follow the text that the model will see before it has given that answer: the rendering of the beginning
of the conversation. Where the template writes past turns otherwise than the present one (Qwen3 shows thoughts only in
the present answer), a conversation becomes one sequence per answer, unless `turns` says otherwise.

An answer's range begins where the template's own prompt for it ends (`add_generation_prompt`), also before a blank
that the template writes in front of the content. So the prompt is the same text in training and in every use. For
templates that ask otherwise than their answers begin, generation_prompt.py makes a form that asks as in training.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from train.errors import UserError
from train.records.conversation import Details
from train.sandbox import bounded, reason_of
from train.templating import thinking
from train.templating.jinja_environment import CLOSE, OPEN, all_constants, environment, searched_texts
from train.templating.turn_layout import LayoutFinder, Rendered, TurnLayout, Turns

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Question:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Answer:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Answer:\n' }}{% endif %}"
)
"""For models without a chat template; it is saved with the adapter's tokenizer."""

SENTINEL = "\u2063\u2064\u2062\u2063\u2064\u2062\u2063"
"""Characters without case or width that no record holds and no template changes."""
_TOOL_ROLES = ("tool", "observation", "ipython", "function")


class TemplateRefusal(UserError):
    """The template cannot show this conversation, or not so that its answers can be told from the rest."""

    code = "ZL-MODEL-05"


class ChatTemplate:
    """A template and the special tokens it names (`bos_token`, `eos_token`, ...).

    `turns`: which answers of a conversation become sequences. `joined`: all in one, as the template shows the whole
    conversation. `each`: one sequence per answer. `last`: only the last answer. `auto`: joined, unless the template
    writes past turns otherwise than the present one; then each.
    """

    def __init__(self, source: str, specials: Mapping[str, Any], turns: str = "auto") -> None:
        self.source, self.specials, self.turns = source, dict(specials), turns
        self.marked = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._environment = environment()
        try:
            with bounded():
                self._template = self._environment.from_string(source)
                tree = self._environment.parse(source)
        except Exception as error:  # Jinja's compiler evaluates constants, and recurses
            raise TemplateRefusal(f"the chat template is not valid Jinja: {reason_of(error)}") from None
        self.searched = tuple(sorted(searched_texts(tree)))
        constants = all_constants(tree)
        self.thinking = thinking.mode_of(source)
        self.tags = thinking.tags(self.searched)
        self._tool_role = next((role for role in _TOOL_ROLES if role in constants), None)
        self._finder = LayoutFinder(self.render)
        self._layouts: dict[tuple[str, ...], TurnLayout | None] = {}
        self._joins: dict[tuple[str, ...], bool] = {}
        self._leads: dict[tuple[str, ...], int | None] = {}
        self._distrusted: set[tuple[str, ...]] = set()
        self._seen: set[tuple[str, ...]] = set()

    def render(self, messages: Turns, *, prompt: bool = False, details: Details | None = None) -> str:
        """A conversation's text; with `prompt`, also what invites the next answer. Raises TemplateRefusal."""
        turns: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in messages]
        tools = None
        if details is not None:
            tools = list(details.tools) or None
            for place, fields in details.fields.items():
                if place < len(turns):
                    turns[place] |= _as_templates_name_them(fields)
        for turn in turns:
            if turn["role"] == "tool":
                turn["role"] = self._tool_role or "tool"
        try:
            with bounded():
                return self._template.render(
                    messages=turns, tools=tools, documents=None, add_generation_prompt=prompt, **self.specials
                )
        except Exception as error:  # whatever a template of somebody else does
            raise TemplateRefusal(f"the chat template refuses this conversation: {reason_of(error)}") from None

    @property
    def ending(self) -> str:
        """What the template writes after the last answer: the end of the turn, usually with a line break."""
        return self.render([("user", "?"), ("assistant", SENTINEL)]).rpartition(SENTINEL)[2]

    @property
    def following(self) -> str:
        """What the template writes between an answer and a next question; "" if it takes one question only."""
        try:
            text = self.render([("user", "?"), ("assistant", SENTINEL), ("user", SENTINEL)])
        except TemplateRefusal:
            return ""
        return text.split(SENTINEL)[1] if text.count(SENTINEL) == 2 else ""

    def prompt_text(self, messages: Turns) -> str:
        """The text before the next answer to `messages`, exactly as in training."""
        asked = self.render(messages, prompt=True)
        if self.thinking is not None:
            return asked
        answered = [*messages, ("assistant", SENTINEL)]
        if self.marked:
            whole = self._by_marks(answered, None, lambda place: self.render(answered[:place], prompt=True))
            return whole.text[: whole.spans[-1][0]]
        before = self.render(answered).partition(SENTINEL)[0]
        return before[: len(before) - (self._lead(asked, before) or 0)]

    def _lead(self, asked: str, before: str) -> int | None:
        """Characters between the prompt `asked` and a content that follows `before`; None: it does not follow it.

        They belong to the answer if they are blanks, or if the model was trained to think: it is then asked with an
        open prompt, and writes an empty thought itself.
        """
        if not before.startswith(asked):
            return None if self.thinking == "on" else 0
        gap = before[len(asked) :]
        return len(gap) if self.thinking == "on" or not gap.strip() else 0

    # The fast way: layouts --------------------------------------------------------------------------------------------

    def sequences(self, messages: Turns, details: Details | None = None) -> list[Rendered]:
        """The conversation as sequences to train on. Raises TemplateRefusal."""
        found = self._by_layout(messages, details)
        return self.sequences_slowly(messages, details) if found is None else found

    def _by_layout(self, messages: Turns, details: Details | None) -> list[Rendered] | None:
        """The sequences by the layout of the conversation's roles; None where the template must be asked.

        To find the layout of a long conversation costs more than to ask about it once, and hardly two have the same.
        """
        roles = tuple([role for role, _ in messages])
        if roles in self._distrusted or (details is not None and details.shape_the_text) or self._searches(messages):
            return None
        if len(roles) > _LONG and roles not in self._layouts and roles not in self._seen:
            self._seen.add(roles)
            return None
        layout = self.layout(roles)
        if layout is None:
            return None
        if self.turns == "joined" or (self.turns == "auto" and self.joins(roles)):
            return self._led(replace(layout.render(messages), as_used=self.joins(roles)), layout, roles)
        if self.turns == "last":
            return self._led(_only_last(layout.render(messages)), layout, roles)
        return self._each_answer(messages, layout)

    def layout(self, roles: tuple[str, ...], longer: TurnLayout | None = None) -> TurnLayout | None:
        """None where the template must be asked record by record."""
        if roles not in self._layouts:
            found = None
            if not self.marked and "tool" not in roles:
                try:
                    found = self._finder.find(roles, longer)
                except TemplateRefusal:
                    pass
            self._layouts[roles] = found
        return self._layouts[roles]

    def joins(self, roles: tuple[str, ...]) -> bool:
        """Whether every answer of such a conversation follows the rendering of the conversation's beginning."""
        if roles not in self._joins:
            layout = self.layout(roles)
            try:
                self._joins[roles] = layout is not None and all(
                    self._finder.begins(layout, roles[: place + 1]) for place in layout.answers
                )
            except TemplateRefusal:
                self._joins[roles] = False
        return self._joins[roles]

    def _each_answer(self, messages: Turns, layout: TurnLayout) -> list[Rendered] | None:
        """One sequence per answer, by the layouts of the conversation's beginnings; None if one of these has none."""
        found: list[Rendered] = []
        roles = tuple(role for role, _ in messages)
        for place in layout.answers:
            shorter = self.layout(roles[: place + 1], layout)
            if shorter is None:
                return None
            shown = shorter.render(messages[: place + 1])
            led = self._led(Rendered(shown.text, shown.spans[-1:], len(found) + 1), shorter, roles[: place + 1])
            if led is None:
                return None
            found += led
        return found

    def _led(self, rendered: Rendered, layout: TurnLayout, roles: tuple[str, ...]) -> list[Rendered] | None:
        """The sequence with answers that begin where the prompts end; None if the template must be asked."""
        spans = []
        for place, (start, end) in zip(layout.answers[-len(rendered.spans) :], rendered.spans, strict=True):
            lead = self._lead_in(layout, roles[: place + 1])
            if lead is None:
                return None
            spans.append((start - lead, end))
        return [replace(rendered, spans=tuple(spans))]

    def _lead_in(self, layout: TurnLayout, roles: tuple[str, ...]) -> int | None:
        """`_lead` of the last answer of these roles, in a layout that may be longer."""
        if roles not in self._leads:
            before = layout.before_last(roles)
            try:
                asked = self.render(self._finder.marked_turns(roles[:-1]), prompt=True)
                self._leads[roles] = None if before is None else self._lead(asked, before)
            except TemplateRefusal:
                self._leads[roles] = None
        return self._leads[roles]

    def _searches(self, messages: Turns) -> bool:
        """Whether a content is empty or holds thoughts or a text that the template searches for."""
        for _, text in messages:
            if not text or text.isspace() or (self.thinking is not None and self.tags[1] in text):
                return True
            for wanted in self.searched:
                if wanted in text:
                    return True
        return False

    def agrees(self, messages: Turns) -> bool:
        """Whether the fast way and the slow way give the same sequences."""
        found = self._by_layout(messages, None)
        return found is None or found == self.sequences_slowly(messages)

    def distrust(self, messages: Turns) -> None:
        """Render conversations of these roles the slow way until `trust`."""
        self._distrusted.add(tuple(role for role, _ in messages))

    def trust(self) -> None:
        self._distrusted.clear()

    # The slow way: this very conversation -----------------------------------------------------------------------------

    def sequences_slowly(self, messages: Turns, details: Details | None = None) -> list[Rendered]:
        """The same by asking the template about this very conversation."""
        has_results = any(role == "tool" for role, _ in messages)
        if has_results or (details is not None and details.tools):
            text = self.render(messages, details=details)
            if details is not None and details.tools:
                self._check_tools(messages, details, text)
            if has_results:
                self._check_tool_turns(messages, details, text)
        dropped: list[str] = []
        if self.thinking == "off":
            messages, details, dropped = thinking.without_thoughts(messages, details, self.tags)
        answers = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
        if self.marked:
            found = self._marked_sequences(messages, details, answers)
        else:
            found = self._unmarked_sequences(messages, details, answers)
        lost = tuple((_THOUGHTS, text) for text in dropped)
        return [replace(found[0], lost=(*found[0].lost, *lost)), *found[1:]] if lost else found

    def _unmarked_sequences(self, messages: Turns, details: Details | None, answers: list[int]) -> list[Rendered]:
        text = self.render(messages, details=details)
        around: set[tuple[str, str]] = set()

        def prefix(number: int) -> Rendered:
            """The sequence of an answer, as it is used."""
            beginning = messages[: answers[number] + 1]
            shown = text if len(beginning) == len(messages) else self.render(beginning, details=details)
            return self._prefix(beginning, shown, details, number + 1, around)

        if self.turns == "joined":
            spans = tuple(self._locate(messages, text, place, details) for place in answers)
            lost = self._all_lost(messages, details, text, spans, answers)
            return [Rendered(text, spans, len(answers), lost, _as_used(text, map(prefix, range(len(answers)))))]
        wanted = range(len(answers) - 1, len(answers)) if self.turns == "last" else range(len(answers))
        prefixes = [prefix(number) for number in wanted]
        if self.turns == "auto" and _as_used(text, prefixes):
            lost = tuple(loss for each in prefixes for loss in each.lost)
            return [Rendered(text, tuple(each.spans[0] for each in prefixes), len(answers), lost)]
        return [
            replace(each, lost=each.lost + self._earlier_lost(messages[: answers[number]], each.text))
            for number, each in zip(wanted, prefixes, strict=True)
        ]

    def _prefix(
        self, messages: Turns, text: str, details: Details | None, count: int, around: set[tuple[str, str]]
    ) -> Rendered:
        """The sequence of a conversation's last answer; `text` is its rendering, `count` the answer's number.

        `around` collects what stands around the answers of this conversation, so that most need no rendering more.
        """
        place = len(messages) - 1
        if self.thinking == "on":
            continued = self._continued(messages, text, details)
            if continued is not None:
                return replace(continued, answers=count)
        shaped = details is not None and details.shape_the_text
        span = None if shaped else self._locate_alike(messages, text, around)
        if span is None:
            span = self._locate(messages, text, place, details)
            question = messages[place - 1][1].strip() if place else ""
            if question and (at := text.rfind(question, 0, span[0])) >= 0:
                around.add((text[at + len(question) : span[0]], text[span[1] :]))
        return Rendered(text, (span,), count, self._lost(messages, details, text, span, place))

    def _locate_alike(self, messages: Turns, text: str, around: set[tuple[str, str]]) -> tuple[int, int] | None:
        """The range of the last answer if it is all that stands where an earlier answer stood; else None."""
        (_, question), (_, content) = messages[-2:] if len(messages) > 1 else (("", ""), messages[-1])
        for before, after in around:
            lead, end = question.strip() + before, len(text) - len(after)
            at = text.rfind(lead, 0, end)
            found = text[at + len(lead) : end]
            if at >= 0 and text.endswith(after) and "".join(found.split()) == "".join(content.split()):
                return at + len(lead), end
        return None

    def _continued(self, messages: Turns, text: str, details: Details | None) -> Rendered | None:
        """The last answer as what continues a prompt that opens its thoughts, if the template writes it otherwise.

        DeepSeek-R1's template asks with `<think>` and shows past answers without thoughts: its own last answer too.
        """
        place = len(messages) - 1
        fields = details.fields.get(place, {}) if details is not None else {}
        content, thoughts = messages[place][1], str(fields.get("reasoning_content", ""))
        if not thoughts:
            found = thinking.split(content, self.tags)
            thoughts, content = found if found is not None else ("", content)
        prompt = self.render(messages[:place], prompt=True, details=details)
        _, tag, blank = prompt.rpartition(self.tags[0])
        if not tag or blank.strip() or fields.get("tool_calls"):
            return None
        if text.startswith(prompt) and _shows(text[len(prompt) :], thoughts):
            return None
        body = f"{thoughts.strip()}\n{self.tags[1]}\n\n{content.strip()}"
        hollow = [*messages[:place], ("assistant", SENTINEL)]
        after = self.render(hollow, details=_without(details, place)).partition(SENTINEL)[2]
        shown = f"{prompt}{body}{after}"
        span = (len(prompt), len(prompt) + len(body))
        rewritten = [*messages[:place], ("assistant", body)]
        return Rendered(shown, (span,), 1, self._lost(rewritten, _without(details, place), shown, span, place))

    def _locate(self, messages: Turns, text: str, place: int, details: Details | None) -> tuple[int, int]:
        """The range of the answer `place` in `text`, the rendering of `messages`."""
        content = messages[place][1]
        hollow = [*messages[:place], ("assistant", SENTINEL), *messages[place + 1 :]]
        before, found, after = self.render(hollow, details=_without(details, place)).partition(SENTINEL)
        fits = found and len(text) - len(after) > 0 and text.endswith(after)
        end = len(text) - len(after)
        prompt = self.render(messages[:place], prompt=True, details=details)
        has_fields = details is not None and not details.fields.get(place, {}).keys().isdisjoint(_ANSWER_FIELDS)
        if not has_fields and fits and text.startswith(before) and text[len(before) : end].strip() == content.strip():
            return len(before) - (self._lead(prompt, before) or 0), end
        for beginning in (prompt, before):
            if fits and text.startswith(beginning) and end > len(beginning):
                return len(beginning), end
        raise TemplateRefusal("the chat template neither shows this answer nor continues its own prompt with it")

    def _marked_sequences(self, messages: Turns, details: Details | None, answers: list[int]) -> list[Rendered]:
        @functools.cache
        def prompt(place: int) -> str:
            """What asks for the answer `place`, in the conversation and in each beginning of it."""
            return self.render(messages[:place], prompt=True, details=details)

        whole = self._by_marks(messages, details, prompt)

        def prefix(count: int, place: int) -> Rendered:
            """The sequence of an answer, as it is used."""
            beginning = messages[: place + 1]
            shown = whole if place == len(messages) - 1 else self._by_marks(beginning, details, prompt)
            continued = self._continued(beginning, shown.text, details) if self.thinking == "on" else None
            lost = self._lost(beginning, details, shown.text, shown.spans[-1], place)
            found = continued or Rendered(shown.text, shown.spans[-1:], count, lost)
            return replace(found, answers=count)

        if self.turns == "joined":
            return [replace(whole, as_used=_as_used(whole.text, map(prefix, range(1, len(answers) + 1), answers)))]
        prefixes = [prefix(count, place) for count, place in enumerate(answers, 1)]
        if self.turns == "last":
            return prefixes[-1:]
        same = all(one.spans[0] == span for one, span in zip(prefixes, whole.spans, strict=True))
        return [whole] if self.turns == "auto" and same and _as_used(whole.text, prefixes) else prefixes

    def _by_marks(self, messages: Turns, details: Details | None, prompt: Callable[[int], str]) -> Rendered:
        """The conversation with the answers that the template marks. `prompt(place)`: what asks for that answer."""
        self._environment.globals["zlaunch_generation"] = True
        try:
            raw = self.render(messages, details=details)
        finally:
            self._environment.globals["zlaunch_generation"] = False
        parts, spans, at = [], [], 0
        for number, piece in enumerate(re.split(f"{re.escape(OPEN)}|{re.escape(CLOSE)}", raw)):
            if number % 2:
                spans.append((at, at + len(piece)))
            parts.append(piece)
            at += len(piece)
        places = [place for place, (role, _) in enumerate(messages) if role == "assistant"]
        if len(spans) != len(places):
            raise TemplateRefusal(
                f"the chat template marks {len(spans)} generations in a conversation of {len(places)} answers"
            )
        text = "".join(parts)
        spans = [self._from_prompt(text, span, prompt(place)) for span, place in zip(spans, places, strict=True)]
        lost = self._all_lost(messages, details, text, spans, places) if SENTINEL not in text else ()
        return Rendered(text, tuple(spans), len(places), lost)

    def _from_prompt(self, text: str, span: tuple[int, int], prompt: str) -> tuple[int, int]:
        """A marked range, begun where the template's prompt for it ends."""
        start, end = span
        if text.startswith(prompt) and start < len(prompt) <= end:
            return len(prompt), end
        return start - (self._lead(prompt, text[:start]) or 0), end

    # What a template leaves out ---------------------------------------------------------------------------------------

    def _all_lost(
        self, messages: Turns, details: Details | None, text: str, spans: Sequence[tuple[int, int]], places: list[int]
    ) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        for span, place in zip(spans, places, strict=True):
            found += self._lost(messages[: place + 1], details, text, span, place)
        return tuple(found)

    def _lost(
        self, messages: Turns, details: Details | None, text: str, span: tuple[int, int], place: int
    ) -> tuple[tuple[str, str], ...]:
        """What a rendering leaves out of the answer `place` and of the turns between it and the answer before it.

        Raises TemplateRefusal for a question, the result of a tool or a call that is left out.
        """
        found: list[tuple[str, str]] = []
        answer = text[span[0] : span[1]]
        first = place
        while first and messages[first - 1][0] != "assistant":
            first -= 1
        for role, content in messages[first:place]:
            if not _shows(text[: span[0]], content):
                if role != "system":
                    raise TemplateRefusal(f"the chat template leaves out a turn of the {role}: {_head(content)}")
                found.append((role, content.strip()))
            elif content.strip() not in text:
                found.append((f"blanks in a turn of the {role}", content.strip()))
        content = messages[place][1].strip().removeprefix(self.tags[0])  # the prompt may have opened the thoughts
        if not _shows(answer, content):
            found.append(("assistant", _difference(content, answer)))
        elif content.strip() not in answer:
            found.append(("blanks in a turn of the assistant", content.strip()))
        fields = details.fields.get(place, {}) if details is not None else {}
        if not _shows(answer, str(fields.get("reasoning_content", ""))):
            found.append(("reasoning_content", str(fields["reasoning_content"]).strip()))
        for call in fields.get("tool_calls", ()):
            if call["function"]["name"] not in answer:
                raise TemplateRefusal("the chat template does not show the record's tool_calls")
        return tuple(found)

    def _earlier_lost(self, messages: Turns, text: str) -> tuple[tuple[str, str], ...]:
        """The turns before the last answer of `messages` that a sequence leaves out, thoughts aside.

        Thoughts end with a text that the template searches for; they were trained in a sequence of their own.
        """
        count = max((place for place, (role, _) in enumerate(messages) if role == "assistant"), default=-1) + 1
        found: list[tuple[str, str]] = []
        at, squeezed = 0, ""
        for role, content in messages[:count]:
            wanted = content
            for mark in self.searched if role == "assistant" else ():
                wanted = wanted.rpartition(mark)[2]
            wanted = wanted.strip()
            place = text.find(wanted, at)
            if place >= 0:  # contents stand in their order, so that a long conversation is searched once
                at = place + len(wanted)
                continue
            squeezed = squeezed or "".join(text.split())
            if "".join(wanted.split()) not in squeezed:
                found.append((f"an earlier turn of the {role}", content.strip()))
        return tuple(found)

    def _check_tools(self, messages: Turns, details: Details, text: str) -> None:
        try:
            bare = self.render(messages, details=Details((), details.fields, details.untrained))
        except TemplateRefusal:  # calls without declarations
            return
        if text == bare:
            raise TemplateRefusal("the chat template does not show the record's tools")

    def _check_tool_turns(self, messages: Turns, details: Details | None, text: str) -> None:
        as_answers = [("assistant" if role == "tool" else role, content) for role, content in messages]
        if text == self.render(as_answers, details=details):
            raise TemplateRefusal("the chat template writes the result of a tool as if it were an answer")


_THOUGHTS = "the thoughts (model.thinking is off)"
_LONG = 32
"""Turns of a long conversation."""
_ANSWER_FIELDS = frozenset({"tool_calls", "reasoning_content"})


def _as_templates_name_them(fields: Mapping[str, Any]) -> dict[str, Any]:
    """gpt-oss and Granite read `thinking` where the others read `reasoning_content`."""
    thought = fields.get("reasoning_content")
    return {**fields, "thinking": thought} if thought else dict(fields)


def _without(details: Details | None, place: int) -> Details | None:
    """The details without those of one turn."""
    if details is None or place not in details.fields:
        return details
    fields = {turn: value for turn, value in details.fields.items() if turn != place}
    return Details(details.tools, fields, details.untrained)


def _as_used(text: str, prefixes: Iterable[Rendered]) -> bool:
    """Whether every answer follows in `text`, a whole conversation, what stands before it in its own sequence."""
    try:
        return all(text.startswith(prefix.text[: prefix.spans[0][1]]) for prefix in prefixes)
    except TemplateRefusal:  # of a beginning of the conversation
        return False


def _only_last(rendered: Rendered) -> Rendered:
    return replace(rendered, spans=rendered.spans[-1:])


def _shows(text: str, content: str) -> bool:
    """Whether a text holds a content, blanks aside."""
    wanted = content.strip()
    return wanted in text or "".join(wanted.split()) in "".join(text.split())


def _difference(content: str, shown: str) -> str:
    """The part of a content that is not shown."""
    kept = shown.strip()
    return content.replace(kept, " ... ").strip() if kept and kept in content else content.strip()


def _head(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
