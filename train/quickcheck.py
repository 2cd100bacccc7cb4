"""Read the first records of some files as a run would, and look at the model's files, before anything is started:

    python -m train.quickcheck --data JSON [--model DIR --lora JSON] [--turns] FILE...

It needs no tokenizer and no training environment, and takes a fraction of a second. Exit status 2: a run would stop at
these records or at this model; standard error says which. Standard output: how many records each file has, as JSON.
With --turns, it prints instead what it costs that the chat template makes one sequence per answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import msgspec

from train.config import Data, Lora
from train.errors import EXIT_USER, DataError, UserError, account, advise
from train.families import template_of
from train.model import targets
from train.records import conversations
from train.records.conversation import RecordOptions
from train.records.conversations import Problem
from train.records.formats import check_columns

MEASURED = 200
"""Records whose sequences are measured."""
FIRST = 10_000
"""Records read of each file; `zlaunch data check` reads all of them."""
_DATA, _LORA = msgspec.json.Decoder(Data), msgspec.json.Decoder(Lora)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.quickcheck")
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--data", type=_DATA.decode, default=Data(), help="the section `data` of train.json")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the model's files")
    parser.add_argument("--lora", type=_LORA.decode, default=Lora(), help="the section `lora` of train.json")
    parser.add_argument("--turns", action="store_true", help="print records, sequences and times of the text as JSON")
    options = parser.parse_args(arguments)
    record_options = RecordOptions.of(options.data)
    try:
        if options.turns:
            print(json.dumps(turn_cost_of(options.files, options.data, options.model)))
            return 0
        if options.model is not None:
            targets.check_names_of_files(options.lora, options.model)
        check_columns(record_options)
        counts = {file: look(file, record_options, on_error=options.data.on_error) for file in options.files}
    except UserError as error:
        print(account(error).shown, file=sys.stderr)
        advise(error.advice)
        return EXIT_USER
    print(json.dumps(counts))
    return 0


def turn_cost_of(files: list[str], data: Data, model: Path) -> dict[str, float] | None:
    """See turn_cost.TurnCost; measured on the first MEASURED records. None without a template or such records."""
    from train.templating import turn_cost  # Jinja is slow to import, and most calls only read records

    own = template_of(data.chat_template) if data.chat_template else None
    template = turn_cost.template_of_model(model, data.turns, own)
    if template is None:
        return None
    try:
        first = itertools.chain.from_iterable(conversations.each(file, RecordOptions.of(data)) for file in files)
        records = [record for record in itertools.islice(first, MEASURED) if not isinstance(record, Problem)]
    except ModuleNotFoundError:
        return None
    found = turn_cost.measure(template, records)
    return found._asdict() if found.records else None


def look(file: str, options: RecordOptions, *, on_error: str) -> int | None:
    """How many records `file` has; None if they were not all read. Raises DataError if a run would stop at them."""
    try:
        found = list(itertools.islice(conversations.each(file, options), FIRST))
    except ModuleNotFoundError:  # tables need a package of the training environment
        return None
    problems = [record for record in found if isinstance(record, Problem)]
    if problems and (on_error == "stop" or len(problems) == len(found)):
        raise conversations.unusable(file, problems, len(problems))
    if not found:
        raise DataError(f"{file} holds no record", code="ZL-DATA-03")
    return len(found) - len(problems) if len(found) < FIRST else None


if __name__ == "__main__":
    sys.exit(main())
