"""Read the first records of some files as a run would, before anything is queued or sent:

    python -m train.quickcheck [--on-error stop|skip] [--system TEXT] [--columns JSON] [--roles JSON] FILE...

It needs no tokenizer and no training environment, and takes a fraction of a second. Exit status 2: a run would stop at
these records; standard error says which.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys

from train.config import Data
from train.errors import EXIT_USER, DataError, advise
from train.records import conversations
from train.records.conversation import RecordOptions
from train.records.conversations import Problem

FIRST = 10_000
"""Records read of each file; `zlaunch data check` reads all of them."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.quickcheck")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop")
    parser.add_argument("--system")
    parser.add_argument("--columns", type=json.loads, default={}, help="data.columns as JSON")
    parser.add_argument("--roles", type=json.loads, default={}, help="data.roles as JSON")
    options = parser.parse_args(arguments)
    data = Data(system=options.system, columns=options.columns, roles=options.roles)
    try:
        for file in options.files:
            look(file, RecordOptions.of(data), on_error=options.on_error)
    except DataError as error:
        print(error, file=sys.stderr)
        advise(error.advice)
        return EXIT_USER
    return 0


def look(file: str, options: RecordOptions, *, on_error: str) -> None:
    """Raise DataError if a run would stop at the first records of `file`."""
    found = list(itertools.islice(conversations.each(file, options), FIRST))
    problems = [record for record in found if isinstance(record, Problem)]
    if problems and (on_error == "stop" or len(problems) == len(found)):
        raise conversations.unusable(file, problems, len(problems))
    if not found:
        raise DataError(f"{file} holds no record")


if __name__ == "__main__":
    sys.exit(main())
