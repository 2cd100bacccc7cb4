"""Answer one prompt with a run's adapter, printing the answer as it comes.

python -m train.generate --run-dir RUN --prompt "..." [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from train.answers.session import Session, Turns, add_options, run_session


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.generate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON object: the prompt's tokens and the answer")
    add_options(parser, max_new_tokens=256)
    options = parser.parse_args(arguments)

    def answer(session: Session) -> None:
        system = [("system", session.system)] if session.system else []
        turns = [*system, ("user", options.prompt)]
        if options.json:
            print(json.dumps(described(session, turns), ensure_ascii=False), flush=True)
            return
        for piece in session.answer(turns):
            print(piece, end="", flush=True)
        print()

    return run_session(options, answer)


def described(session: Session, turns: Turns) -> dict[str, Any]:
    """The answer, and the tokens that the model was given before it."""
    ids = session.rendering.prompt_ids(turns)
    return {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "prompt": session.tokenizer.decode(ids),
        "prompt_ids": ids,
        "stop_ids": session.stop,
        "answer": "".join(session.answer(turns)),
    }


if __name__ == "__main__":
    sys.exit(main())
