"""`zlaunch explain`: what the code of an error means."""

from __future__ import annotations

import json

import click

from launcher.errors import UsageError
from launcher.machine.language import spoken
from launcher.machine.language.error_codes import AREAS, CODES, Text


class _Code(click.Choice[str]):
    """A code, also without `ZL-`, in lower case, or with the brackets around it."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        code = value.strip("[]").upper()
        code = code if code.startswith("ZL-") else f"ZL-{code}"
        if code not in CODES:
            hint = f"`zlaunch explain` lists all codes; areas: {', '.join(AREAS)}"
            raise UsageError(f"no error has the code {value}", hint=hint, code="ZL-OPT-03")
        return code


@click.command()
@click.argument("codes", nargs=-1, metavar="[CODE]...", type=_Code(CODES))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def explain(codes: tuple[str, ...], as_json: bool) -> None:
    """Explain the code of an error, such as ZL-DATA-02: what it means and what to do.

    Without CODE, list all codes.
    """
    chinese = spoken.is_chinese()
    for code in codes or CODES:
        english, ours = CODES[code]
        if as_json:
            click.echo(json.dumps({"code": code, **english._asdict()}))
        elif codes:
            click.echo(_paragraphs(code, ours if chinese else english))
        else:
            click.echo(f"{code:<14} {(ours if chinese else english).title}")


def _paragraphs(code: str, text: Text) -> str:
    return f"{code}: {text.title}\n  {text.means}\n  -> {text.do}"
