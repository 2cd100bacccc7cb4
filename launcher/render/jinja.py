"""The launcher's templates, and those of a site, which run in Jinja's sandbox.

Undefined names are errors. Values reach a shell script only through the filter `sh` (shlex.quote).
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from launcher.errors import SpecError
from launcher.machine import installation
from train import sandbox


def template(name: str, file: Path | None = None) -> jinja2.Template:
    """The project's template `name`, or a site's own `file`. Raises SpecError if the file cannot be read."""
    if file is None:
        return _environment().get_template(name)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        hint = "`zlaunch templates eject` writes the stock template for you to change"
        raise SpecError(f"cannot read the template {file}: {why}", hint=hint, code="ZL-JOB-08") from error
    return _environment(SandboxedEnvironment).from_string(text)


def rendered(name: str, own: str | None, key: str, context: Mapping[str, Any]) -> str:
    """The text of the project's template `name`, or of the user's `own`, which the key `key` of the job names.

    Raises SpecError if the user's template cannot be used.
    """
    if own is None:
        return template(name).render(**context)
    try:
        with sandbox.bounded():
            return template(name, Path(own)).render(**context)
    except SpecError:
        raise
    except Exception as error:  # whatever a user's template does
        raise SpecError(
            f"{key}: {own}: {sandbox.reason_of(error)}",
            hint="`zlaunch templates diff` shows how it differs from the stock one",
            code="ZL-JOB-08",
        ) from error


@functools.cache
def _environment(kind: type[jinja2.Environment] = jinja2.Environment) -> jinja2.Environment:
    env = kind(
        loader=jinja2.FileSystemLoader([installation.path("templates"), installation.path("slurm")]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the texts are shell and JSON, which `sh` and `tojson` quote for
    )
    env.filters["sh"] = _sh
    env.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    return env


def _sh(value: Any) -> str:
    """A value or a sequence of values, quoted for a POSIX shell."""
    if isinstance(value, (list, tuple)):
        return " ".join(shlex.quote(str(item)) for item in value)
    return shlex.quote(str(value))
