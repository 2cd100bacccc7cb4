"""Chat templates as damaged or hostile models bring them: refused, or the text is the one that plain Jinja writes.

Whatever a template does stays within its sandbox: no object of Python in the text, no file read or written.
"""

from __future__ import annotations

import functools
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.beds.places import ROOT
from tests.torture.bounded import Outcome, Wrong, from_command_line, judge_all, outcome, source
from train.families import BAICHUAN_CHAT, CHATGLM2_CHAT, CHATGLM3_CHAT
from train.sandbox import bounded
from train.templating.chat_template import PLAIN_TEMPLATE, ChatTemplate, TemplateRefusal

NAME = "chat templates"
TRIED = "templates of eight families, damaged; injections, endless loops, texts of gigabytes, and mixtures of both"
_SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
_TURNS = (
    (("user", "hi"), ("assistant", "yo")),
    (("system", "be 好"), ("user", "hello"), ("assistant", "again 1"), ("user", "天气"), ("assistant", "很好 2")),
    (("user", "hello"), ("assistant", "<think>\n1 + 1\n</think>\n\n2")),
)
_TOUCHED = "touched-by-a-template"
HOSTILE = (
    *("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ raise_exception.__globals__ }}", "{{ joiner.__init__ }}"),
    *(
        "{{ strftime_now.__globals__['os'].system('touch touched-by-a-template')}}",
        "{{ self._TemplateReference__context }}",
    ),
    *("{{ lipsum.__globals__['os'].popen('touch touched-by-a-template').read()}}", "{{ ''|attr('__class__') }}"),
    *("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ '{0.__class__.__mro__}'.format('') }}"),
    *("{{ '{a.__class__}'.format_map({'a': 1}) }}", "{{ ['{0.__class__}']|map('format', 1)|list }}"),
    *("{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% set n = namespace() %}{{ n.__class__ }}"),
    *("{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}", "{{ messages.append(1) }}"),
    *("{{ messages|map(attribute='__class__')|list }}", "{{ messages|groupby('__class__') }}", "{{ [].pop() }}"),
    *("{{ raise_exception|tojson }}", "{{ 1/0 }}", "{{ none.x.y }}", "{{ 10.0**1000 }}", "{{ 10**10**8 }}"),
    *("{{ 'a'*10**10 }}", "{% set a='a'*10**6 %}{{ a*10**4 }}", "{% for i in range(10**9) %}x{% endfor %}"),
    *("{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3, "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    *("{{ 'a'|center(10**10) }}", "{{ '%10000000000d' % 1 }}", "{{ '{:10000000000}'.format(1) }}", "{{ 'x'|int(8) }}"),
    *("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ strftime_now('%'*1000000) }}", "{{ strftime_now('\ud800') }}"),
    *("{{ strftime_now(none) }}", "{{ '\ud800' }}", "{% for %}", "{{ 10**5000 }}", "{{ messages[::0] }}", ""),
    *("{{ raise_exception('\x1b[2J\x1b]0;title\x07') }}", "{{ {messages:1} }}", "{{ 'x'.encode('nope') }}"),
    *(
        "{% for m in messages %}{% break %}{% endfor %}",
        "{{ lipsum(n=100000,min=1000,max=1001) }}",
        "{{ {} | random }}",
    ),
    *("{{ messages|batch(0)|list }}", "{{ messages|slice(0)|list }}", "{{ dict(a=1)|dictsort(by='x') }}", "{{ x }}"),
    *("{{ messages|sort }}", "{{ messages|sum }}", "{{ ('a,'*10**7).split(',')|length }}", "{{ 'a'|wordwrap(0) }}"),
    *(
        "{{ messages|tojson(indent=10**9) }}",
        "{{ 'a'|truncate(-5) }}",
        "{{ range(10)|list|xmlattr }}",
        "{{ 1|round(9**9) }}",
    ),
    *(
        "{% generation %}{{ x }}",
        "{% endgeneration %}",
        "{% set messages = [] %}",
        "{{ ''.join(messages) }}",
        "{{ 'é'*9 }}",
    ),
)
_PIECES = (
    *("{%", "%}", "{{", "}}", "{#", "#}", "-%}", "{%-", "|", "(", ")", "[", "]", "'", '"', "\\", "loop", "messages"),
    *(
        "endif",
        "endfor",
        "{% endif %}",
        "{% endfor %}",
        "['role']",
        "['content']",
        "| trim",
        "+",
        "~",
        "\x00",
        "\ud800",
    ),
    *("{% generation %}", "{% endgeneration %}", "| upper", "[::-1]", "| replace('a', 'b')", "| tojson", "\u2063"),
)
_LEAKS = ("<class", "__globals__", "root:", "uid=", "<built-in", "<function", "<module", " object at 0x")


@functools.cache
def templates() -> tuple[str, ...]:
    """The undamaged templates."""
    folder = ROOT / "tests" / "train" / "templating" / "templates"
    texts = tuple(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja")))
    return (*texts, CHATGLM2_CHAT, CHATGLM3_CHAT, BAICHUAN_CHAT, PLAIN_TEMPLATE)


def a_template(rnd: random.Random) -> str:
    chance = rnd.random()
    if chance < 0.1:
        return rnd.choice(HOSTILE)
    text = rnd.choice(templates())
    if chance < 0.2:
        place = rnd.randrange(len(text) + 1)
        return text[:place] + rnd.choice(HOSTILE) + text[place:]
    if chance < 0.7:
        return _other_parts(rnd, text)
    for _ in range(rnd.randint(1, 4)):
        place = rnd.randrange(len(text) + 1)
        match rnd.randrange(4):
            case 0:
                text = text[:place] + text[place + rnd.randint(1, 30) :]
            case 1:
                text = text[:place] + rnd.choice(_PIECES) + text[place:]
            case 2:
                start = rnd.randrange(len(text) + 1)
                text = text[:place] + text[start : start + rnd.randint(1, 60)] + text[place:]
            case _:
                text = text[:place] + chr(rnd.randrange(1, 0x2FF)) + text[place + 1 :]
    return text


def _other_parts(rnd: random.Random, text: str) -> str:
    """Texts and words exchanged, expressions removed or doubled: often still a template, but another one."""
    pattern = rnd.choice(
        (r"'[^'\n]*'", r"\{\{.*?\}\}", r"\b(?:role|content|user|assistant|system|first|last|not|and|or)\b")
    )
    for _ in range(rnd.randint(1, 3)):
        parts = [found.span() for found in re.finditer(pattern, text)]
        if not parts:
            break
        (start, end), (other, stop) = rnd.choice(parts), rnd.choice(parts)
        text = text[:start] + rnd.choice((text[other:stop], text[start:end] * 2, "''")) + text[end:]
    return text


def _judge(seed: int, number: int) -> str:
    rnd = source(seed, NAME, number)
    text, turns = a_template(rnd), rnd.choice(_TURNS)
    try:
        template = ChatTemplate(text, _SPECIALS, rnd.choice(("auto", "joined", "each", "last")))
        whole = template.render(turns)
        sequences = template.sequences(turns)
        template.prompt_text(turns[:-1])
    except TemplateRefusal as refusal:
        if not str(refusal).isprintable():
            raise Wrong(f"control characters in a refusal: {refusal!r}") from None
        return "refused"
    finally:
        if os.path.exists(_TOUCHED):  # noqa: PTH110 - called for every case
            os.unlink(_TOUCHED)  # noqa: PTH108
            raise Wrong(f"a template ran a program: {text[:200]!r}")
    if leak := next((leak for leak in _LEAKS if leak in whole and leak not in text), None):
        raise Wrong(f"a template shows an object of Python: {leak}: {text[:200]!r}")
    if "{% generation" not in text and (plain := _plainly(text, turns)) is not None and plain != whole:
        raise Wrong(f"otherwise than Jinja writes it: {text[:200]!r}: {whole[:80]!r} instead of {plain[:80]!r}")
    answers = {content for role, content in turns if role == "assistant"}
    for sequence in sequences:
        for start, end in sequence.spans:
            if not 0 <= start <= end <= len(sequence.text):
                raise Wrong(f"a range outside of its text: {(start, end)} of {len(sequence.text)}: {text[:200]!r}")
            if answers and not sequence.text[start:end].strip():
                raise Wrong(f"an answer without text: {text[:200]!r}")
    return "rendered"


def _plainly(text: str, turns: Any) -> str | None:
    """The text by Jinja's own sandbox; None where it refuses, or where the text may depend on the time."""
    if "strftime_now" in text or "random" in text or "lipsum" in text:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        with bounded():
            made = environment.from_string(text)
            messages = [{"role": role, "content": content} for role, content in turns]
            return made.render(messages=messages, tools=None, documents=None, add_generation_prompt=False, **_SPECIALS)
    except (
        TemplateError,
        ArithmeticError,
        ValueError,
        TypeError,
        LookupError,
        MemoryError,
        TimeoutError,
        RecursionError,
    ):
        return None
    except AttributeError:
        return None


def main(count: int, seed: int) -> Outcome:
    """Judge `count` templates."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return outcome(NAME, TRIED, count, seed, judge_all(functools.partial(_judge, seed), range(count)))
        finally:
            os.chdir(before)


if __name__ == "__main__":
    from_command_line(main, 2500)
