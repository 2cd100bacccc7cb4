"""Templates of somebody else: whatever they do, it is a refusal, within seconds and within a gigabyte."""

from __future__ import annotations

import resource
import time

import pytest

from train.templating.chat_template import ChatTemplate, TemplateRefusal

TURNS = [("user", "hi"), ("assistant", "yo")]
LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3

HOSTILE = {
    "loop": (LOOP, "it takes more than 4 s"),
    "lorem": ("{{ lipsum(n=100000, min=1000, max=1001) }}", "it takes more than 4 s"),
    "repeat": ("{{ 'a' * 10 ** 11 }}", "1 GiB"),
    "double": (
        "{% set ns = namespace(a='aa') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "1 GiB",
    ),
    "list": ("{{ ([1] * 10 ** 6) * 10 ** 6 }}", "1 GiB"),
    "center": ("{{ 'a' | center(10 ** 11) }}", "1 GiB"),
    "width": ("{{ '%100000000000d' % 1 }}", ""),
    "format": ("{{ '{:100000000000}'.format(1) }}", ""),
    "macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself too deeply"),
    "parentheses": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nests"),
    "zero": ("a\nb {{ 1 / 0 }}", "division by zero (line 2 of the template)"),
    "overflow": ("{{ 10.0 ** 1000 }}", "OverflowError"),
    "range": ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    "digits": ("{{ 10 ** 5000 }}", "4300 digits"),
    "codec": ("{{ 'x'.encode('nope') }}", "unknown encoding"),
    "slice": ("{{ messages[::0] }}", "slice step"),
    "class": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
    "globals": ("{{ cycler.__init__.__globals__ }}", "access to attribute '__init__'"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "escape": ("{{ raise_exception('\x1b]0;title\x07') }}", " ]0;title "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_misbehaves_is_refused(name: str) -> None:
    text, reason = HOSTILE[name]
    limit, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    with pytest.raises(TemplateRefusal) as refused:
        ChatTemplate(text, {"bos_token": "<s>"}).render(TURNS)
    assert reason in str(refused.value)
    assert str(refused.value).isprintable()
    assert time.process_time() - start < 20
    assert resource.getrlimit(resource.RLIMIT_AS) == limit
