"""Check a job's records before anything is queued:

    python -m train.datacheck --config train.json [--json] [--all | --show N|FILE:LINE]

It reads every record, checks it and renders it with the chat template. It tokenizes a sample, chosen by hash (`--all`:
every record, and keeps the tokens for a run on this machine). Prints one JSON object. Exit status 2: a run would stop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.config import Source, TrainConfig, load, records_of
from train.data import cache, schedule, split
from train.data.cache import Entry
from train.data.dataset import NOTHING_AT_WEIGHT, NOTHING_TO_EVALUATE, Data, nothing_to_train, with_thoughts
from train.data.preview import preview
from train.data.prompts import set_template
from train.data.recipe import Recipe
from train.data.schedule import Sampler
from train.data.tokens import Tokens, select
from train.errors import EXIT_USER, DataError, TrainError, UserError, account, advise
from train.hub import reachable
from train.model.tokenizer_files import tokenizer_files
from train.rundir import bytecode
from train.rundir.counter import Counted, Lines, doing
from train.rundir.run_files import RunDir

SAMPLE = 20_000
"""Records tokenized of a larger number: the mean length is then known to about half a percent."""
_STEPS = 50
"""Optimizer steps that are dealt out to measure padding."""
_BINS = 24


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.datacheck", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, help="train.json of a run directory")
    parser.add_argument("--json", action="store_true", help="on one line")
    parser.add_argument("--all", action="store_true", help="tokenize every record, and keep the tokens for the run")
    parser.add_argument("--show", metavar="N|FILE:LINE", help="show the first N records or one record instead")
    parser.add_argument("--lines-to", type=int, metavar="FD", help="write how far it is to this open file")
    options = parser.parse_args(arguments)
    bytecode.keep()
    offline = None
    with contextlib.ExitStack() as stack:
        if options.lines_to is not None:
            stack.enter_context(Lines(stack.enter_context(os.fdopen(options.lines_to, "w"))))
        try:
            config = load(options.config)
            offline = _offline(config)
            found = show(config, options.show) if options.show else check(config, everything=options.all)
        except TrainError as error:
            print(account(error).shown, file=sys.stderr)
            advise([*([offline] if offline else []), *error.advice])
            return error.exit_code
    print(json.dumps(found, ensure_ascii=False, indent=None if options.json else 2), flush=True)
    return EXIT_USER if found.get("errors") else 0


def _offline(config: TrainConfig) -> str | None:
    """Why the hub cannot be asked for what the job names of it, if so. Raises UserError for what is not here either."""
    model, sources = config.model, (*config.data.train_sources, *config.data.eval_sources)
    of_hub = model.source == "huggingface" and not Path(model.path).expanduser().is_dir()
    named = [source.path.removeprefix("hub:").partition(":")[0] for source in sources if source.path.startswith("hub:")]
    names = ["/".join(name.split("/")[:2]) if not Path(name).exists() else name for name in named]
    doing("asking the hub")
    return reachable.stay_offline_unless_reachable(
        [model.path] if of_hub else [], [name for name in names if not Path(name).exists()]
    )


def show(config: TrainConfig, chosen: str, tokenizer: Any = None) -> dict[str, Any]:
    """The first records (`chosen` is a number) or one record (FILE:LINE) as training sees them."""
    tokenizer = tokenizer or load_tokenizer(config)
    set_template(tokenizer, config.data.chat_template, config.model.thinking)
    paths = [source.path for source in config.data.train_sources]
    read = doing("reading data.train", "records")
    with_thoughts(
        config,
        tokenizer,
        lambda: cache.entry(paths, Recipe.of_job(tokenizer, config.data), share=_share(paths), read=read),
    )
    chosen_one = {"first": int(chosen)} if chosen.isdecimal() else {"place": chosen, "first": 1}
    return preview(Recipe.of_job(tokenizer, config.data), paths, **chosen_one)


def check(config: TrainConfig, *, everything: bool = False, tokenizer: Any = None) -> dict[str, Any]:
    """Make the report. Raises UserError for sources that cannot be opened and tokenizers that cannot be loaded."""
    started = time.perf_counter()
    parts = [("train", config.data.train_sources), ("eval", config.data.eval_sources)]
    tokenizer = tokenizer or load_tokenizer(config)
    set_template(tokenizer, config.data.chat_template, config.model.thinking)
    data = config.data
    report: dict[str, Any] = {
        "errors": [],
        "train": None,
        "eval": None,
        "eval_in_train": None,
        "held_out": None,
        "packing": None,
    }
    entries: dict[str, Entry] = {}
    for name, sources in parts:
        if not sources:
            continue
        paths = [source.path for source in sources]
        read = doing(f"reading data.{name}", "records")  # before the files of a hub are fetched
        share = 1.0 if everything else _share(paths)

        def made(paths: list[str] = paths, share: float = share, read: Counted = read) -> Entry:
            return cache.entry(paths, Recipe.of_job(tokenizer, data), share=share, tokenizer=tokenizer, read=read)

        entry = entries[name] = with_thoughts(config, tokenizer, made) if name == "train" else made()
        report[name] = {"sources": _sources(sources, entry), **_described(entry, data.max_length)}
        try:
            cache.refuse_problems(entry.meta, f"data.{name}", data.on_error)
        except DataError as error:
            report["errors"].append(str(error))
    parted = split.parts(entries["train"], data) if "train" in entries else None
    if parted is not None:
        report["held_out"] = _held_out(entries["train"], parted)
    if "train" not in entries or not len(_trained(entries["train"], config)):
        report["errors"].append(nothing_to_train(data, parted))
    elif not _sampler(config, entries["train"]).epoch_size:
        report["errors"].append(NOTHING_AT_WEIGHT)
    else:
        report["packing"] = padding(config, entries["train"])
        for source, quota in zip(report["train"]["sources"], _sampler(config, entries["train"]).quotas, strict=True):
            source["per_epoch"] = quota
    if (parted is not None and not parted.held.any()) or ("eval" in entries and not len(entries["eval"].tokens)):
        report["errors"].append(NOTHING_TO_EVALUATE)
    if len(entries) == 2:
        seen = [split.whole_hashes(entries[name]) for name in ("train", "eval")]
        report["eval_in_train"] = int(np.isin(seen[1], seen[0]).sum())
    report["seconds"] = round(time.perf_counter() - started, 2)
    return report


def _share(paths: list[str]) -> float:
    """The share of the records that gives about SAMPLE of them, by the size of the files; 1 for small files."""
    size = cache.bytes_of(paths)
    return min(1.0, round(SAMPLE / max(1, size / _BYTES_A_RECORD), 6)) if size > _SMALL else 1.0


_BYTES_A_RECORD = 300
_SMALL = 8 << 20


def _sources(sources: tuple[Source, ...], entry: Entry) -> list[dict[str, Any]]:
    return [
        {"path": source.path, "weight": source.weight, "first": source.first, "records": records}
        for source, records in zip(sources, entry.meta.records, strict=True)
    ]


def _described(entry: Entry, max_length: int) -> dict[str, Any]:
    meta, lengths = entry.meta, entry.tokens.lengths
    sampled = len(np.unique(entry.tokens.kept)) + meta.too_long
    scale = sum(meta.records) / sampled if meta.share < 1.0 and sampled else 1.0
    return {
        "records": sum(meta.records),
        "unreadable": meta.unreadable,
        "empty": meta.empty,
        "problems": [str(problem) for problem in meta.problems],
        "duplicates": meta.duplicates,
        "conflicts": meta.conflicts,
        "warnings": [str(warning) for warning in meta.warnings],
        "notes": cache.notes(meta),
        "ignored_keys": {one.kind: one.records for one in meta.ignored},
        "left_out": {one.kind: one.records for one in meta.lost},
        "special_tokens": {one.kind: one.records for one in meta.special},
        "unanswered": meta.unanswered,
        "untrained": meta.untrained,
        "unlike_use": meta.unlike_use,
        "thoughts": meta.thoughts,
        "sampled": None if meta.share == 1.0 else sampled,
        "sequences": round(meta.sequences * scale),
        "turns": turn_cost(entry),
        "over_long": {
            "cut": round(meta.cut * scale),
            "dropped": round(meta.too_long * scale),
            "max_length": max_length,
            "exact": meta.share == 1.0,
        },
        "tokens": {"total": round(meta.tokens * scale), **_distribution(lengths)},
        "loss_share": round(meta.loss_tokens / meta.tokens, 4) if meta.tokens else None,
    }


def turn_cost(entry: Entry) -> dict[str, float] | None:
    """Sequences per record and times the tokens of one sequence per conversation; None if every record is one."""
    kept, lengths = np.asarray(entry.tokens.kept), entry.tokens.lengths
    records = np.unique(kept, return_inverse=True)[1]
    if not len(kept) or len(kept) == records.max() + 1:
        return None
    longest = np.zeros(int(records.max()) + 1, np.int64)  # the last answer's sequence is the whole conversation
    np.maximum.at(longest, records, lengths)
    return {
        "sequences_per_record": round(len(kept) / len(longest), 2),
        "times_the_tokens": round(float(lengths.sum() / longest.sum()), 2),
    }


def _distribution(lengths: npt.NDArray[np.int64]) -> dict[str, Any]:
    if not len(lengths):
        return {}
    counts, edges = np.histogram(lengths, bins=_BINS, range=(0, float(lengths.max()) + 1))
    quantiles = np.quantile(lengths, [0.5, 0.9, 0.99])
    return {
        "mean": round(float(lengths.mean()), 1),
        **{name: round(float(value)) for name, value in zip(("median", "p90", "p99"), quantiles, strict=True)},
        "max": int(lengths.max()),
        "histogram": [[round(float(edge), 1), int(count)] for edge, count in zip(edges, counts, strict=False)],
    }


def _trained(entry: Entry, config: TrainConfig) -> Tokens:
    """The sequences that are not held out."""
    parted = split.parts(entry, config.data)
    return entry.tokens if parted is None else select(entry.tokens, np.flatnonzero(parted.trained[entry.tokens.kept]))


def _held_out(entry: Entry, parted: split.Parts) -> dict[str, int]:
    """What the part of data.train that is held out comes to."""
    asked = np.asarray(entry.array("asked"))
    shared = np.isin(asked[parted.held], asked[parted.trained])
    return {"records": int(parted.held.sum()), "asked_in_training": int(shared.sum())}


def _sampler(config: TrainConfig, entry: Entry) -> Sampler:
    tokens = _trained(entry, config)
    used = entry.used(tokens.kept, [source.first for source in config.data.train_sources])
    return Sampler.of(config.data, entry.counts(tokens.kept), used, config.train.seed, tokens.lengths)


def padding(config: TrainConfig, entry: Entry) -> dict[str, Any]:
    """Share of padding among the tokens of the first planned batches, by packing mode."""
    from train.data import packing

    train, world = config.train, config.world_size
    lengths = _trained(entry, config).lengths
    sampler = _sampler(config, entry)
    size, multiple = train.micro_batch_size, 16 if config.device == "cuda" else 1
    batch = records_of(train.batch_tokens, float(lengths.mean()) if len(lengths) else 0, train.global_batch_size)
    steps = min(_STEPS, sampler.steps(train.epochs, batch))
    real = 0
    padded = {"none": 0, "bucket": 0, "pack": 0}
    for step in range(steps):
        chosen = sampler.step(step, batch)
        sizes = lengths[chosen]
        real += int(sizes.sum())
        for mode in ("none", "bucket"):
            shares = schedule.deal(
                chosen,
                sizes,
                world_size=world,
                micro_batch_size=size,
                order=mode,
            )
            padded[mode] += sum(
                schedule.padded_tokens(lengths[batch].tolist(), multiple) for share in shares for batch in share
            )
        rows = packing.deal(chosen, sizes, world_size=world, capacity=size * config.data.max_length)
        whole = packing.MULTIPLE if config.device == "cuda" else 1
        padded["pack"] += sum(-(-int(lengths[row].sum()) // whole) * whole for share in rows for row in share)
    return {
        "planned": train.packing,
        "global_batch_size": batch,
        "micro_batch_size": size,
        "waste": {mode: round(1 - real / total, 4) for mode, total in padded.items()},
    }


def load_tokenizer(config: TrainConfig) -> Any:
    """Load the job's tokenizer as the run will. Raises UserError."""
    fetched = doing("loading the tokenizer", "bytes")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as made:
        texts = Data(config, RunDir(Path(made))).texts
        place, options = tokenizer_files(config, Path(made), texts, fetched)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                place, trust_remote_code=config.model.trust_remote_code, **options
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.path: no tokenizer could be loaded from {place}: {str(error).partition(chr(10))[0]}",
                "give a hub id (owner/name) or a local directory",
                code="ZL-MODEL-04",
            ) from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {config.model.path} is not a fast one, or has no end-of-sequence token",
            code="ZL-MODEL-04",
        )
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
