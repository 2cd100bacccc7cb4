"""A conversation with a run's adapter in the terminal: /reset forgets what was said, /exit (or end of input) ends.

A Ctrl-C cuts the answer that is coming and keeps the conversation; at the prompt it ends it.

python -m train.chat --run-dir RUN
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Turns = list[tuple[str, str]]
Answer = Callable[[Turns], Iterator[str]]

HELP = "/reset starts a new conversation, Ctrl-C cuts an answer short, /exit ends"


def converse(lines: Iterable[str], answer: Answer, say: Callable[[str], None], system: str | None = None) -> None:
    """Answer each line in the light of those before it. `answer` streams the answer to a conversation."""
    start: Turns = [("system", system)] if system else []
    turns = list(start)
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            turns = list(start)
            say("(forgotten)\n")
        elif text.startswith("/"):
            say(f"{HELP}\n")
        elif text:
            turns.append(("user", text))
            pieces = []
            try:
                for piece in answer(turns):
                    say(piece)
                    pieces.append(piece)
            except KeyboardInterrupt:  # what was said of the answer stays said
                say(" (cut)")
            say("\n")
            turns.append(("assistant", "".join(pieces).strip()))


def prompts(show: bool) -> Iterator[str]:
    """Lines of the user; a Ctrl-C or the end of input ends."""
    while True:
        try:
            yield input("> " if show else "")
        except (EOFError, KeyboardInterrupt):
            return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.chat", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--system", default=None, help="default: the run's data.system")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--base", action="store_true", help="the base model without the adapter")
    options = parser.parse_args(arguments)

    from train import dist
    from train.answers.generation import stop_ids, stream
    from train.answers.trained import any_device, load_adapted, trained_system
    from train.errors import report

    device = options.device if options.device != "auto" else any_device()
    world = dist.from_environment(device, {})
    dist.prepare(world)
    try:
        dist.check_device(world)
        from train.data.prompts import prompt_text

        model, tokenizer = load_adapted(options.run_dir, device=device, bare=options.base)
        system = options.system if options.system is not None else trained_system(options.run_dir)
        stop = stop_ids(tokenizer, model.config)

        def answer(turns: Turns) -> Iterator[str]:
            return stream(
                model,
                tokenizer,
                prompt_text(tokenizer, turns),
                max_new_tokens=options.max_new_tokens,
                stop=stop,
                temperature=options.temperature,
            )

        person = sys.stdin.isatty()
        if person:
            with contextlib.suppress(ImportError):  # a Python without it has no line editing, and needs none
                import readline  # noqa: F401 - `input` edits lines, wide characters too, once it is there
            print(HELP)
        converse(prompts(person), answer, lambda text: print(text, end="", flush=True), system)
    except Exception as error:
        return report(error, None, None, 0)
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
