"""Talk to a run's adapter in the terminal.

python -m train.chat --run-dir RUN [--json]

/reset starts a new conversation; /exit or the end of input leaves. Ctrl-C cuts an answer short and keeps the
conversation; at the prompt it leaves.

With --json, for programs: each line of input is a conversation, {"turns": [["user", "hello"]]}, with "temperature" and
"max_new_tokens" if they differ from the options. The lines of output are {"ready": true} once, then {"piece": "text"}
for each piece of an answer, and {"end": "done" | "cut"} or {"error": "...", "advice": "..."} after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from train.answers.json_lines import converse_in_json, read_lines
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
    parser.add_argument("--json", action="store_true", help="for programs: JSON lines in and out")
    options = parser.parse_args(arguments)
    return run_session(options, _talk_in_json if options.json else _talk)


def _talk_in_json(session: Session) -> None:
    def answer(turns: Turns, **options: Any) -> Iterator[str]:
        return replace(session, options=argparse.Namespace(**{**vars(session.options), **options})).answer(turns)

    def write(value: dict[str, Any]) -> None:
        print(json.dumps(value), flush=True)

    converse_in_json(read_lines(), answer, write, session.system)


def _talk(session: Session) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # a Python built without readline has no line editing
            import readline  # noqa: F401 - gives `input` line editing, wide characters included
        print(HELP)
    converse(prompts(interactive), session.answer, lambda text: print(text, end="", flush=True), session.system)


if __name__ == "__main__":
    sys.exit(main())
