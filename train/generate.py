"""Answer one prompt with a run's adapter, printing the answer as it comes.

python -m train.generate --run-dir RUN --prompt "..."
"""

from __future__ import annotations

import argparse
import sys

from train.answers.session import Session, add_options, run_session


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.generate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompt", required=True)
    add_options(parser, max_new_tokens=256)
    options = parser.parse_args(arguments)

    def answer(session: Session) -> None:
        system = [("system", session.system)] if session.system else []
        for piece in session.answer([*system, ("user", options.prompt)]):
            print(piece, end="", flush=True)
        print()

    return run_session(options, answer)


if __name__ == "__main__":
    sys.exit(main())
