"""Rich's console for text from elsewhere: its own sequences reach the terminal, and none of the text's."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich import console
from rich.segment import Segment
from rich.text import Text

from launcher.machine.output import Styled, printable


class Console(console.Console):
    """A console on a stream, by default standard output. Everything that is printed through it is text."""

    def __init__(self, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(file=cast(IO[str], Styled(file or sys.stdout)), **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)  # before lines are broken: it may become longer

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            plain = style.update_link(None) if style is not None and style.link else style
            yield Segment(text if control else printable(text), plain, control)
