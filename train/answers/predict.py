"""Answer every record of a file with a run's adapter, with labels or without.

    python -m train.answers.predict --run-dir RUN --data FILE --out OUT

writes one JSON object per record to OUT, in the order of the file: the record with `prediction`, or `predictions` for
several answers. Works on one rank or, by torchrun, on several. Until all are answered, each rank appends to
OUT.part-<rank>; a later call with the same settings goes on from these, on any number of ranks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from train import dist
from train.answers.fused_answers import FusedAnswers, fused_for_answers
from train.answers.generation import decode, generated, generation_config
from train.answers.trained import add_checkpoint_option, device_and_world, find_adapter, load_adapted, trained_stop_ids
from train.config import Data
from train.data.preview import Question, identity, questions, unusable_questions
from train.data.recipe import Recipe
from train.data.tokenizer import Tokenizer
from train.dist import World
from train.errors import UserError, report
from train.model import limits
from train.rundir import bytecode
from train.rundir.counter import Lines, doing
from train.rundir.run_files import write_atomic

WINDOW = 1024
"""Records that are sorted by length together: similar ones share a batch, and a file need not fit into memory."""
SHOWN = 20


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    bytecode.keep()
    try:
        _device, world = device_and_world(options.device)
        predict(options, world)
    except Exception as error:
        return report(error, None, None, int(os.environ.get("RANK", "0")))
    dist.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.answers.predict")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--system", default=None)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--answers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--base", action="store_true")
    add_checkpoint_option(parser)
    return parser


def predict(options: argparse.Namespace, world: World) -> None:
    """Answer what is not answered yet, and join the parts (a collective). Raises UserError."""
    if options.answers > 1 and not options.temperature:
        raise UserError(
            "several answers to a record need a temperature: greedy ones are all the same", code="ZL-OPT-01"
        )
    out, adapter = options.out.absolute(), find_adapter(options.run_dir.resolve(), options.checkpoint)
    if out.exists():
        raise UserError(f"{out} exists already", "name another file, or remove this one", code="ZL-FILE-02")
    _check_request(options, out, str(adapter.directory), world)
    dist.start(world, deepspeed=False)
    with Lines():
        model, tokenizer = load_adapted(adapter, device=world.device, bare=options.base)
        data: Data = adapter.config.data
        if options.system is not None:
            from msgspec.structs import replace

            data = replace(data, system=options.system)
        recipe = Recipe.of_job(tokenizer, replace_length(data))
        writing = Writing(model, tokenizer, trained_stop_ids(adapter, tokenizer, model.config), options)
        told = doing("answering", "records")
        done = _answered(out)
        dist.wait(world)  # all have read the parts before any of them grows
        total = 0
        with _part(out, world.rank).open("a", encoding="utf-8") as part:
            for number, batch in enumerate(batches(Tokenizer(recipe), options.data, options, data.on_error)):
                total = max(total, max(place for place, _ in batch) + 1)
                if number % world.world_size != world.rank or all(place in done for place, _ in batch):
                    continue
                for (place, question), answers in zip(batch, writing.answers(batch, number), strict=True):
                    part.write(json.dumps(line(place, question, answers), ensure_ascii=False) + "\n")
                part.flush()
                told(total, None)
    dist.wait(world)
    if world.first:
        print(f"{_join(out)} records: {out}", file=sys.stderr)


def replace_length(data: Data) -> Data:
    """Training cuts long records; here a prompt is whole, and one that is too long for the model is refused."""
    from msgspec.structs import replace

    return replace(data, max_length=1 << 30, overlong="cut")


def batches(
    tokenizer: Tokenizer, path: str, options: argparse.Namespace, on_error: str
) -> Iterator[list[tuple[int, Question]]]:
    """Batches of (number of the record, question): the same ones however far an earlier call came, on any ranks."""
    problems: list[Any] = []
    count = 0

    def readable() -> Iterator[tuple[int, Question]]:
        nonlocal count
        for found in questions(tokenizer, path):
            if isinstance(found, Question):
                yield count, found
                count += 1
                continue
            problems.append(found)
            if on_error == "stop" and len(problems) >= SHOWN:
                raise unusable_questions(path, problems, len(problems))

    records = readable()
    while window := list(itertools.islice(records, WINDOW)):
        window.sort(key=lambda item: (-len(item[1].prompt), item[0]))
        for start in range(0, len(window), options.batch_size):
            yield window[start : start + options.batch_size]
    if problems and (on_error == "stop" or not count):
        raise unusable_questions(path, problems, len(problems))


def line(place: int, question: Question, answers: Sequence[str]) -> dict[str, Any]:
    """The record, with what was answered."""
    value = question.value if isinstance(question.value, dict) else {"messages": question.value}
    given = {"prediction": answers[0]} if len(answers) == 1 else {"predictions": list(answers)}
    return {"number": place, **value, **given}


@dataclass
class Writing:
    """The model that writes, and how."""

    model: Any
    tokenizer: Any
    stop: list[int]
    options: argparse.Namespace
    writer: FusedAnswers | None = None
    """The last one of the fused layers: it holds keys, values and a CUDA graph."""
    longest: int = 0
    """Most tokens of a prompt that `writer` takes."""

    @cached_property
    def fused(self) -> Any:
        """The fused layers, which answer greedily; None without them."""
        return None if self.options.temperature else fused_for_answers(self.model)

    def answers(self, batch: Sequence[tuple[int, Question]], number: int) -> list[list[str]]:
        """The answers to each record of a batch. Sampled ones depend on the seed and the batch only."""
        prompts = [question.prompt for _, question in batch]
        for prompt in prompts:
            limits.check_prompt(self.model, prompt)
        if self.fused is not None:
            write = self._writer_for(max(map(len, prompts)))
            return [[text] for text, _ in write(prompts, lambda count: None)]
        return self._generated(prompts, number)

    def _writer_for(self, longest: int) -> FusedAnswers:
        """For prompts of up to this many tokens; mostly the one before, because the longest of a window come first."""
        if self.writer is None or self.longest < longest:
            self.writer, self.longest = None, longest  # frees its memory for the next one
            self.writer = FusedAnswers(
                self.fused, self.tokenizer, longest=longest, max_new_tokens=self.options.max_new_tokens,
                stop=self.stop, slots=None,
            )  # fmt: skip
        return self.writer

    def _generated(self, prompts: Sequence[Sequence[int]], number: int) -> list[list[str]]:
        import torch

        options = self.options
        room = limits.room_for(self.model, max(map(len, prompts)), options.max_new_tokens)
        settings = generation_config(self.tokenizer, room, self.stop, options.temperature)
        settings.num_return_sequences = each = options.answers
        if options.temperature:
            settings.top_p, settings.top_k = options.top_p, 0
        torch.manual_seed((options.seed << 32) + number)
        with torch.no_grad():
            found = generated(self.model, self.tokenizer, prompts, settings)
        texts = [decode(self.tokenizer, ids, self.stop) for ids in found]
        return [texts[start : start + each] for start in range(0, len(texts), each)]


def _part(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}.part-{rank}")


def _parts(out: Path) -> list[Path]:
    return sorted(path for path in out.parent.glob("*.part-*") if path.name.rpartition(".part-")[0] == out.name)


def _lines(out: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of all parts; a crash may have torn the last of one."""
    for path in _parts(out):
        with path.open(encoding="utf-8") as file:
            for text in file:
                try:
                    found = json.loads(text)
                except ValueError:
                    continue
                if isinstance(found, dict) and isinstance(found.get("number"), int):
                    yield found


def _answered(out: Path) -> set[int]:
    for path in _parts(out):  # a torn line must not run into the next one
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    return {found["number"] for found in _lines(out)}


def _join(out: Path) -> int:
    """Write `out` from the parts, in the order of the records, and remove them."""
    found = {line["number"]: line for line in _lines(out)}
    text = "".join(
        json.dumps({key: value for key, value in found[number].items() if key != "number"}, ensure_ascii=False) + "\n"
        for number in sorted(found)
    )
    write_atomic(out, text)
    for path in [*_parts(out), _request(out)]:
        path.unlink(missing_ok=True)
    return len(found)


def _request(out: Path) -> Path:
    return out.with_name(f".{out.name}.request.json")


def _check_request(options: argparse.Namespace, out: Path, adapter: str, world: World) -> None:
    """Parts of an earlier call are of the same records and settings, or a UserError."""
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "device", "run_dir")}
    settings |= {"adapter": adapter, "data": identity(options.data)}
    text = json.dumps(settings, sort_keys=True, default=str)
    try:
        if _parts(out) and _request(out).read_text(encoding="utf-8") != text:
            raise UserError(
                f"{out}.part-* are of an earlier call with other records or settings",
                "remove them, or name another file",
                code="ZL-FILE-02",
            )
        if world.first:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(_request(out), text)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}", code="ZL-FILE-02") from error


if __name__ == "__main__":
    dist.leave(main())
