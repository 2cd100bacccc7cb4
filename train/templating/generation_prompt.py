"""Find the form of a chat template that asks for an answer as training does.

What `add_generation_prompt` writes must be what stood before the answers in training. Many templates of thinking models
ask otherwise: Qwen3 asks for thoughts, and shows an answer without thoughts behind an empty thought. So a template has
up to two forms: one for answers without thoughts, one for answers with them. Each is tried on conversations, in this
order, and taken if it asks as training does:

1. the template as it is
2. with one of its own switches set (`enable_thinking`, `thinking`), which a request can still set otherwise
3. with a constant text in place of its own generation prompt
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2.meta

from train.records.conversation import Details
from train.templating import thinking
from train.templating.chat_template import SENTINEL, ChatTemplate, TemplateRefusal
from train.templating.jinja_environment import environment
from train.templating.turn_layout import Turns

SWITCHES = ("enable_thinking", "thinking")
PROBES: tuple[Turns, ...] = (
    (("user", "a"),),
    (("system", "s"), ("user", "a\nb")),
    (("user", "a"), ("assistant", "b"), ("user", "c")),
    (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
)
_THOUGHT = "1 + 1 = 2"


@dataclass(frozen=True)
class Forms:
    """The forms of one template."""

    off: str | None
    """For answers without thoughts; None if no form asks for these as in training."""
    on: str | None
    """For answers with thoughts; None if the template cannot show them."""
    stripped: str | None
    """`off`, and contents lose their thoughts also where the template would show them as any other text."""

    @property
    def depend_on_thoughts(self) -> bool:
        return self.on is not None and self.off != self.on


def forms(template: str, specials: Mapping[str, Any]) -> Forms:
    """The forms of a template, which may be a saved form itself. Raises TemplateRefusal."""
    named = tuple(sorted((name, str(value)) for name, value in specials.items() if isinstance(value, str)))
    return _forms(thinking.own_part(template), named)


@functools.lru_cache(maxsize=64)
def _forms(own: str, specials: tuple[tuple[str, str], ...]) -> Forms:
    known = dict(specials)
    _render_any(own, known)
    off = next((pieces for pieces in _candidates(own, known) if _asks_plainly(own, pieces, known)), None)
    open_ones = [pieces for pieces in (off, *_switched(own)) if pieces is not None]
    on = next((pieces for pieces in open_ones if _asks_for_thoughts(own, pieces, known)), None)
    stripped = None if off is None else thinking.form(own, "off", *off)
    if off is not None and (off == on or on is None):
        only = own if off == ("", "") else thinking.form(own, None, *off)
        return Forms(only, None if on is None else only, stripped)
    return Forms(stripped, None if on is None else thinking.form(own, "on", *on), stripped)


def _render_any(own: str, specials: Mapping[str, Any]) -> None:
    """Raise the first TemplateRefusal if the template refuses every probe."""
    template = ChatTemplate(own, specials)
    refusals = []
    for probe in PROBES:
        try:
            template.render(probe)
        except TemplateRefusal as error:
            refusals.append(error)
    if len(refusals) == len(PROBES):
        raise refusals[0]


Pieces = tuple[str, str]
"""Jinja before and after a template."""


def _candidates(own: str, specials: Mapping[str, Any]) -> Iterator[Pieces]:
    yield from _switched(own)
    constant = _constant_prompt(own, specials)
    if constant is not None:
        yield (
            "{% set zlaunch_asks = add_generation_prompt is defined and add_generation_prompt %}"
            "{% set add_generation_prompt = false %}",
            f"{{% if zlaunch_asks %}}{{{{ {json.dumps(constant, ensure_ascii=False)} }}}}{{% endif %}}",
        )


def _switched(own: str) -> Iterator[Pieces]:
    """The template as it is, and with each of its switches."""
    yield "", ""
    asked = jinja2.meta.find_undeclared_variables(environment().parse(own))
    for name in SWITCHES:
        if name in asked:
            for value in ("false", "true"):
                yield f"{{% if {name} is not defined %}}{{% set {name} = {value} %}}{{% endif %}}", ""


def _constant_prompt(own: str, specials: Mapping[str, Any]) -> str | None:
    """What the template writes between any conversation and the answer to it, if that is always the same."""
    template = ChatTemplate(own, specials)
    found = set()
    for probe in PROBES:
        try:
            bare, answered = template.render(probe), template.render([*probe, ("assistant", SENTINEL)])
        except TemplateRefusal:
            continue
        before, shown, _ = answered.partition(SENTINEL)
        if not shown or not before.startswith(bare):
            return None
        found.add(before[len(bare) :])
    # A blank at its end would be a token of its own, where the answer's first word has one that begins with a blank.
    return found.pop().rstrip(" ") if len(found) == 1 else None


def _asks_plainly(own: str, pieces: Pieces, specials: Mapping[str, Any]) -> bool:
    """Whether answers without thoughts follow what this form asks with, blanks aside, in every probe that it takes.

    A switch may change other texts too, in training as in use: GLM-4.5 adds `/nothink` to questions.
    """
    template = ChatTemplate(thinking.form(own, "off", *pieces), specials)
    plain = ChatTemplate(f"{pieces[0]}{own}" if not pieces[1] else own, specials)
    tried = 0
    for probe in PROBES:
        try:
            asked = template.render(probe, prompt=True)
            answered = plain.render([*probe, ("assistant", SENTINEL)])
            shown = template.render([*probe, ("assistant", SENTINEL)])
        except TemplateRefusal:
            continue
        tried += 1
        before, found, _ = answered.partition(SENTINEL)
        if not found or shown != answered or not before.startswith(asked) or before[len(asked) :].strip():
            return False
    return tried > 0


def _asks_for_thoughts(own: str, pieces: Pieces, specials: Mapping[str, Any]) -> bool:
    """Whether answers with thoughts follow what this form asks with, and show them."""
    template = ChatTemplate(thinking.form(own, "on", *pieces), specials)
    opening, closing = template.tags
    tried = 0
    for probe in PROBES:
        inline = [*probe, ("assistant", f"{opening}\n{_THOUGHT}\n{closing}\n\n2")]
        field = Details(fields={len(probe): {"reasoning_content": _THOUGHT}})
        try:
            asked = template.render(probe, prompt=True)
            found = [template.sequences_slowly(inline)[-1]]
            found.append(template.sequences_slowly([*probe, ("assistant", "2")], field)[-1])
        except TemplateRefusal:
            continue
        tried += 1
        start = found[0].spans[-1][0]
        if found[0].text[:start] != asked or not any(
            _THOUGHT in one.text[len(asked) :] and one.text.startswith(asked) for one in found
        ):
            return False
    return tried > 0
