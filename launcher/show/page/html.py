"""From the dict of a page to its text: Jinja with autoescape, the scripts' hashes in a policy, the data as JSON.

A text of the run gets into the page in two ways only, and is inert in both: escaped by Jinja, or inside a JSON block
without `<`, which scripts put into the page as text. The policy forbids every request, and every script but the page's.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from launcher.machine import installation
from launcher.show.page import words

if TYPE_CHECKING:
    import jinja2


def render(
    template: str, page: dict[str, Any], data: dict[str, Any], *, live: bool = False, more: Sequence[str] = ()
) -> str:
    """The text of a page. `page` is for the template, `data` for the scripts.

    `live`: the page is served by `zlaunch ui` and may ask that server for news; `more` are its own scripts and style
    sheets.
    """
    own = ("page.js", *(("live.js",) if live else ()), *(name for name in more if name.endswith(".js")))
    sources = [_licensed("uPlot"), _licensed("jsdiff"), *map(_source, own)]
    scripts = [Markup(source) for source in sources]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    text = (
        _environment()
        .get_template(template)
        .render(
            page=page,
            data=Markup(for_script(data)),
            scripts=scripts,
            styles=Markup(
                "".join(map(_source, ("uPlot.min.css", "page.css", *(name for name in more if name.endswith(".css")))))
            ),
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
            f"script-src {hashes}; {_LIVE if live else _ALONE}",
            live=live,
            written=time.time(),
        )
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair in a record


_ALONE = "form-action 'none'"
_LIVE = "connect-src 'self'; form-action 'self'"


def for_script(value: Any) -> str:
    """JSON that no HTML parser reads as anything but the text of its script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def t(en: str, zh: str, **values: Any) -> Markup:
    """A text of ours in both languages; the style sheet shows one. Values are escaped."""
    return pair(Markup(escape(en)).format(**values), Markup(escape(zh)).format(**values))


def pair(en: str, zh: str) -> Markup:
    """The same for texts of the run, where a brace means nothing."""
    return Markup('<span lang="en">{}</span><span lang="zh">{}</span>').format(en, zh)


def word(name: Any, kind: str = "") -> Markup:
    return pair(*words.both(str(name), kind))


def attribute(name: str, en: str, zh: str) -> Markup:
    """An attribute in both languages; page.js sets it when the language changes."""
    return Markup('{0}="{1}" data-{0}-en="{1}" data-{0}-zh="{2}"').format(name, en, zh)


def seconds(value: float | None) -> Markup:
    """A duration, in the two largest units that it has."""
    if value is None:
        return Markup("–")
    if value < 9.95:
        return t("{n} s", "{n} 秒", n=f"{value:.1f}")
    left, parts = round(value), []
    for size, en, zh in ((86400, "d", "天"), (3600, "h", "小时"), (60, "min", "分"), (1, "s", "秒")):
        count, left = divmod(left, size)
        if count:
            parts.append((count, en, zh))
    parts = parts[:2]
    return t(" ".join(f"{n} {en}" for n, en, _ in parts), " ".join(f"{n} {zh}" for n, _, zh in parts))


def number(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits; anything else as JSON would write it."""
    if isinstance(value, bool) or value is None or not isinstance(value, (int, float)):
        return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def gib(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.1f} GiB"


def moment(value: float | None) -> str:
    return "–" if value is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(value))


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # slow, and `zlaunch status` only looks whether a page is due

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_folder()),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(t=t, pair=pair, word=word, attribute=attribute)
    env.filters.update(seconds=seconds, number=number, gib=gib, moment=moment)
    return env


def _folder() -> Path:
    return installation.path("templates") / "page"


@functools.cache
def _source(name: str) -> str:
    return (_folder() / name).read_text(encoding="utf-8")


def _licensed(library: str) -> str:
    """A vendored script below its licence, which every copy must carry."""
    file = {"uPlot": "uPlot.iife.min.js", "jsdiff": "diff.min.js"}[library]
    return f"/*!\n{_source(f'LICENSE.{library}')}\n*/\n{_source(file)}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
