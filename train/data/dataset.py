"""The job's data as this run sees it: tokens mapped from the node's cache, their counts, and warnings."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train import config
from train.config import Source, TrainConfig
from train.data import cache, split, workers
from train.data.cache import Entry
from train.data.prompts import expect_thoughts, set_template
from train.data.recipe import Recipe
from train.data.schedule import Sampler
from train.data.tokens import Tokens, first, lengths, select
from train.errors import DataError
from train.records import conversations
from train.records.conversation import PLAIN, RecordOptions
from train.records.conversations import Record
from train.rundir.counter import count_in, doing
from train.rundir.run_files import RunDir

NOTHING_AT_WEIGHT = "data.train: at these weights, no record of the sources is left"
NOTHING_TO_EVALUATE = "data.eval holds no record that can be evaluated"


@dataclass(frozen=True)
class Part:
    """data.train or data.eval as tokens, with the sources one after another."""

    sources: tuple[Source, ...]
    tokens: Tokens
    counts: tuple[int, ...]
    """Sequences of each source."""
    weights: tuple[float, ...]
    options: RecordOptions = PLAIN
    used: tuple[int, ...] | None = None
    """Sequences of each source that are trained on, its first ones; None: all."""
    data: config.Data | None = None
    """How sources are mixed and ordered; None: by their weights, shuffled."""

    def sampler(self, seed: int) -> Sampler:
        if self.data is None:
            return Sampler(self.counts, self.weights, seed, self.used)
        return Sampler.of(self.data, self.counts, self.used or self.counts, seed, self.lengths)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The conversation of every sequence up to its last answer, read again from the files."""
        wanted = self.tokens.kept.tolist()
        found: dict[int, Record] = {}
        for number, record in enumerate(self._readable()):
            if not wanted or number > wanted[-1]:
                break
            found[number] = record
        answers = [None] * len(wanted) if self.tokens.answers is None else self.tokens.answers.tolist()
        try:
            return tuple(_up_to(found[place], count) for place, count in zip(wanted, answers, strict=True))
        except KeyError:
            raise DataError("the records changed during the run", code="ZL-DATA-06") from None

    @cached_property
    def asked(self) -> list[int]:
        """The sequences that end with an answer: not those of documents."""
        answers = self.tokens.answers
        return list(range(len(self.tokens))) if answers is None else np.flatnonzero(answers).tolist()

    def record(self, sequence: int) -> Record:
        """The whole conversation of a sequence."""
        return next(itertools.islice(self._readable(), int(self.tokens.kept[sequence]), None))

    def _readable(self) -> Iterator[Record]:
        for source in self.sources:
            for record in conversations.each(source.path, self.options):
                if isinstance(record, Record):
                    yield record

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    @cached_property
    def loss_tokens(self) -> np.ndarray:
        return self.tokens.loss_tokens


def _up_to(record: Record, answers: int | None) -> Record:
    """A record with this many of its answers."""
    places = [place for place, (role, _) in enumerate(record.messages) if role == "assistant"]
    if answers is None or answers == len(places):
        return record
    return Record(record.messages[: places[answers - 1] + 1], record.file, record.line, record.task, record.details)


@dataclass(frozen=True)
class Data:
    """Rank 0 prints problems and warnings to stderr; their numbers become an event and part of `summary`."""

    config: TrainConfig
    rundir: RunDir
    summary: dict[str, Any] = field(default_factory=dict)
    """Counts of each part, for result.json."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """The tokens of each part, once it was asked for."""

    def texts(self) -> Iterator[str]:
        """Every text of the training records, for a tokenizer that is generated from them."""
        for source in self.config.data.train_sources:
            for record in conversations.each(source.path, RecordOptions.of(self.config.data)):
                if isinstance(record, Record):
                    yield from (text for _, text in record.messages)

    def prefetch(self, tokenizer: Callable[[], Any]) -> None:
        """Let child processes tokenize large data while this process loads the model.

        `tokenizer` loads one. An error here occurs again, and is reported, where the tokens are needed.
        """
        paths = [path for _, path in self.config.data.sources]
        if sum(Path(path).stat().st_size for path in paths if Path(path).is_file()) < workers.SMALL_BYTES:
            return

        def make() -> None:
            with suppress(Exception):
                loaded = tokenizer()
                set_template(loaded, self.config.data.chat_template, self.config.model.thinking)
                self._train_entry(loaded)
                if self.config.data.eval_sources:
                    self._entry(loaded, self.config.data.eval_sources)

        threading.Thread(target=make, name="tokens", daemon=True).start()

    def train(self, tokenizer: Any) -> Part:
        """Raises DataError if nothing is left to train on.

        Gives the tokenizer's chat template the form for answers with thoughts, if records have them.
        """
        entry = self._train_entry(tokenizer)
        parts = split.parts(entry, self.config.data)
        part = self._part("train", self.config.data.train_sources, entry, chosen=parts and parts.trained)
        part = replace(part, tokens=replace(part.tokens, whole=self.config.data.train_on_prompt))
        if not len(part.tokens):
            raise DataError(nothing_to_train(self.config.data, parts), code="ZL-DATA-03")
        if not part.sampler(self.config.train.seed).epoch_size:
            raise DataError(
                NOTHING_AT_WEIGHT,
                "a weight is how many times an epoch sees each record of its source",
                code="ZL-DATA-03",
            )
        return part

    def eval(self, tokenizer: Any) -> Part | None:
        """None without a data.eval. Raises DataError if nothing of it is left to evaluate on."""
        if not self.config.data.eval:
            return None
        sources, limit = self.config.data.eval_sources, self.config.eval.max_records
        if self.config.data.held_out:
            sources = self.config.data.train_sources
            entry = self.entries.get("train") or self._train_entry(tokenizer)
            parts = split.parts(entry, self.config.data)
            assert parts is not None
            part = self._part("eval", sources, entry, chosen=split.first(parts.held, limit), trained=parts.trained)
        else:
            part = self._part("eval", sources, self._entry(tokenizer, sources), limit)
        if not len(part.tokens):
            raise DataError(
                NOTHING_TO_EVALUATE, "`zlaunch data check` shows what becomes of its records", code="ZL-DATA-03"
            )
        return part

    def first_from(self, tokenizer: Any, least: int) -> tuple[str, int, int] | None:
        """(file, line, token id) of the first record that holds a token with an id of at least `least`.

        Also as text: training reads special tokens of contents as plain text, but a server would read the token.
        """
        set_template(tokenizer, self.config.data.chat_template, self.config.model.thinking)
        train = self.config.data.train_sources
        for sources in (train, self.config.data.eval_sources):
            if not sources:
                continue
            found = self._train_entry(tokenizer) if sources == train else self._entry(tokenizer, sources)
            for notice in found.meta.special:
                token = tokenizer.convert_tokens_to_ids(notice.kind)
                if token >= least and notice.examples:
                    return notice.examples[0].file, notice.examples[0].line, token
            tokens = found.tokens
            places = np.flatnonzero(tokens.tokens >= least)
            if len(places):
                sequence = int(np.searchsorted(tokens.offsets, places[0], side="right")) - 1
                record = Part(sources, tokens, (), (), RecordOptions.of(self.config.data)).record(sequence)
                return record.file, record.line, int(tokens.tokens[places[0]])
        return None

    def _part(
        self, name: str, sources: tuple[Source, ...], found: Entry, limit: int | None = None,
        chosen: split.Bools | None = None, trained: split.Bools | None = None,
    ) -> Part:  # fmt: skip
        """`chosen`: the records of this part, `trained`: those of the other one; None: all of the sources."""
        data = self.config.data
        self.entries[name] = found
        tokens = found.tokens
        if chosen is not None:
            tokens = select(tokens, np.flatnonzero(chosen[tokens.kept]))
        counts, used = found.counts(tokens.kept), found.used(tokens.kept, [source.first for source in sources])
        if self.rundir.rank == 0:
            if chosen is not None and trained is not None:  # all else was said of data.train
                self._report(name, {**_sizes(tokens), **_overlap(found, found, chosen, trained)}, reused=True)
            else:
                sizes = _sizes(tokens, counts, used) if chosen is not None or used != counts else {}
                self._tell(name, found, limit, {**sizes, **self._mixed(name, sources, counts, used)})
        shown = sources[0].path if len(sources) == 1 else f"data.{name}"
        cache.refuse_problems(found.meta, shown, data.on_error)
        tokens = tokens if limit is None else first(tokens, limit)
        weights = tuple(source.weight for source in sources)
        if limit is not None:
            return Part(sources, tokens, found.counts(tokens.kept), weights, RecordOptions.of(data))
        mixed = data if name == "train" else None
        return Part(sources, tokens, counts, weights, RecordOptions.of(data), used, mixed)

    def _mixed(
        self, name: str, sources: tuple[Source, ...], counts: Sequence[int], used: Sequence[int]
    ) -> dict[str, Any]:
        """What each source of data.train comes to, if there are several or not all of one is trained on."""
        taken = config.quotas(self.config.data, used) if name == "train" else []
        if name != "train" or (len(sources) == 1 and taken == list(counts)):
            return {}
        return {
            "sources": [
                {"path": source.path, "records": count, "used": limited, "per_epoch": quota}
                for source, count, limited, quota in zip(sources, counts, used, taken, strict=True)
            ]
        }

    def _train_entry(self, tokenizer: Any) -> Entry:
        sources = self.config.data.train_sources
        return with_thoughts(self.config, tokenizer, lambda: self._entry(tokenizer, sources))

    def _entry(self, tokenizer: Any, sources: tuple[Source, ...]) -> Entry:
        data = self.config.data
        count_in(self.rundir)
        recipe, read = Recipe.of_job(tokenizer, data), doing("reading the records", "records", "data")
        paths = [source.path for source in sources]
        return cache.entry(paths, recipe, cache_of(self.rundir), tokenizer=tokenizer, read=read)

    def _tell(self, name: str, found: Entry, limit: int | None, sizes: dict[str, Any]) -> None:
        """`sizes`: of this part, if its sources hold more."""
        meta = found.meta
        shown: list[Any] = [*(meta.problems if self.config.data.on_error == "skip" else ()), *meta.warnings]
        for problem in shown[: conversations.SHOWN_PROBLEMS]:
            print(f"warning: {problem}", file=sys.stderr)
        for note in cache.notes(meta):
            print(f"warning: data.{name}: {note}", file=sys.stderr)
        facts = {
            "records": meta.sequences,
            "tokens": meta.tokens,
            "loss_tokens": meta.loss_tokens,
            "too_long": meta.too_long,
            "cut": meta.cut,
            "unreadable": meta.unreadable,
            "duplicates": meta.duplicates,
            "conflicts": meta.conflicts,
            "unanswered": meta.unanswered,
            "untrained": meta.untrained,
            "unlike_use": meta.unlike_use,
            "thoughts": meta.thoughts,
            "ignored_keys": {one.kind: one.records for one in meta.ignored},
            "left_out": {one.kind: one.records for one in meta.lost},
            "special_tokens": {one.kind: one.records for one in meta.special},
            "lengths": lengths(found.tokens),
            **sizes,
        }
        if name == "eval" and "train" in self.entries:
            facts |= _overlap(found, self.entries["train"], slice(limit), slice(None))
        self._report(name, facts, reused=not found.made)

    def _report(self, name: str, facts: dict[str, Any], *, reused: bool) -> None:
        self.summary[name] = facts
        self.rundir.event("data", part=name, **facts, reused=reused)


def _sizes(tokens: Tokens, held: Sequence[int] = (), used: Sequence[int] = ()) -> dict[str, Any]:
    """What a part of the records comes to: of each source, which has `held`, its first `used` ones."""
    if held != used:
        starts = itertools.accumulate((0, *held))
        kept = [np.arange(start, start + count) for start, count in zip(starts, used, strict=False)]
        tokens = select(tokens, np.concatenate(kept))
    counts = {"tokens": int(tokens.lengths.sum()), "loss_tokens": int(tokens.loss_tokens.sum())}
    return {"records": len(tokens), **counts, "lengths": lengths(tokens)}


def nothing_to_train(data: config.Data, parts: split.Parts | None) -> str:
    """Why no record is left to train on."""
    if parts is not None and parts.held.any():
        return f"data.eval: {data.eval} holds out every record of data.train"
    return "data.train holds no record that can be trained on"


def _overlap(
    held_out: Entry, training: Entry, which: slice | split.Bools, trained: slice | split.Bools
) -> dict[str, int]:
    """How many of the held-out records are training records too, and how many share their question with one.

    `which`: the records of `held_out` that are measured; `trained`: those of `training` that are trained on.
    """
    asked, known = held_out.array("asked")[which], training.array("asked")[trained]
    both, known_both = (
        questions * np.uint64(31) + part.array("answered")[chosen]
        for part, questions, chosen in ((held_out, asked, which), (training, known, trained))
    )
    return {
        "measured": len(asked),
        "in_training": int(np.isin(both, known_both).sum()),
        "asked_in_training": int(np.isin(asked, known).sum()),
    }


def with_thoughts(config: TrainConfig, tokenizer: Any, make: Callable[[], Entry]) -> Entry:
    """The tokens of data.train. If `model.thinking` is auto and records have thoughts, the template asks for these."""
    entry = make()
    if config.model.thinking == "auto" and entry.meta.thoughts and expect_thoughts(tokenizer):
        entry = make()
    return entry


def cache_of(rundir: RunDir) -> Path:
    """The node's cache, or the run's own where the home directory cannot be written."""
    place = cache.directory()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return rundir.cache / "tokens"
    return place if os.access(place, os.W_OK) else rundir.cache / "tokens"
