"""Talk to a run's adapter in the terminal.

python -m train.chat --run-dir RUN

/reset starts a new conversation; /exit or the end of input leaves. Ctrl-C cuts an answer short and keeps the
conversation; at the prompt it leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator

from train.answers.session import Session, Turns, add_options, run_session

HELP = "/reset starts a new conversation, Ctrl-C cuts an answer short, /exit leaves"


def converse(
    lines: Iterable[str],
    answer: Callable[[Turns], Iterator[str]],
    write: Callable[[str], None],
    system: str | None = None,
) -> None:
    """Answer each line, given the conversation so far. `answer` streams the answer to a conversation."""
    start: Turns = [("system", system)] if system else []
    turns = list(start)
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            turns = list(start)
            write("(new conversation)\n")
        elif text.startswith("/"):
            write(f"{HELP}\n")
        elif text:
            turns.append(("user", text))
            turns.append(("assistant", _written(answer(turns), write)))


def _written(pieces: Iterator[str], write: Callable[[str], None]) -> str:
    """Write an answer as it comes, and return it; after a Ctrl-C, as much of it as was written."""
    written = []
    try:
        for piece in pieces:
            write(piece)
            written.append(piece)
    except KeyboardInterrupt:
        write(" (cut)")
    write("\n")
    return "".join(written).strip()


def prompts(show: bool) -> Iterator[str]:
    """The user's lines, until Ctrl-C or the end of input."""
    while True:
        try:
            yield input("> " if show else "")
        except (EOFError, KeyboardInterrupt):
            return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.chat", description=(__doc__ or "").partition("\n")[0])
    add_options(parser, max_new_tokens=512)
    return run_session(parser.parse_args(arguments), _talk)


def _talk(session: Session) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # a Python built without readline has no line editing
            import readline  # noqa: F401 - gives `input` line editing, wide characters included
        print(HELP)
    converse(prompts(interactive), session.answer, lambda text: print(text, end="", flush=True), session.system)


if __name__ == "__main__":
    sys.exit(main())
