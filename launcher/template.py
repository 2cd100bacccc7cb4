"""The only Jinja environment of the project, and the templates in it.

Undefined names are errors, and a value reaches a shell script only through the `sh` filter (shlex.quote).
"""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2

from launcher import assets


def template(name: str, file: Path | None = None) -> jinja2.Template:
    """The template `name` of the project, or a site's own `file`."""
    if file is not None:
        return environment().from_string(file.read_text(encoding="utf-8"))
    return environment().get_template(name)


@functools.cache
def environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([assets.path("templates"), assets.path("slurm")]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the outputs are shell and JSON; `sh` and `tojson` quote for these
    )
    env.filters["sh"] = _sh
    env.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    return env


def _sh(value: Any) -> str:
    """A value, or a sequence of them, quoted for a POSIX shell."""
    if isinstance(value, (list, tuple)):
        return " ".join(shlex.quote(str(item)) for item in value)
    return shlex.quote(str(value))
