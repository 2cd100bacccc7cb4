"""Cost of `zlaunch data check` for a million records, and of data that a run has seen before.

A tokenizer made on the spot replaces that of a model, so no network is needed. ZLAUNCH_BENCH_TOKENIZER names a
directory with another tokenizer.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RECORDS = int(os.environ.get("ZLAUNCH_BENCH_RECORDS", "1000000"))
SEEN = 100_000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["ZLAUNCH_CACHE"] = str(place / "cache")
        model = Path(os.environ.get("ZLAUNCH_BENCH_TOKENIZER") or make_tokenizer(place / "model"))
        check(place, model)
        seen_before(place, model)


def write_records(path: Path, count: int) -> Path:
    """Half short Chinese questions, half English texts of 30 to 80 words; mostly different."""
    numbers = random.Random(1)
    words = [
        "model",
        "data",
        "the",
        "of",
        "a",
        "training",
        "records",
        "Each",
        "conversation",
        "is",
        "rendered,",
        "once.",
    ]
    words += [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}word{i}" for i in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            if i % 2:
                record = {
                    "instruction": "判断情感：正面或负面。",
                    "input": f"这家饭馆的菜很好吃，下次还来{i}",
                    "output": "正面",
                }
            else:
                text = " ".join(numbers.choices(words, k=numbers.randrange(30, 80)))
                record = {"instruction": "Continue.", "input": text[:100], "output": text[100:] or "."}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def make_tokenizer(place: Path) -> Path:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from tests.beds import bpe
    from tests.train.templating.test_chat_template import SMOLLM2

    backend = Tokenizer.from_str(bpe.backend())
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=SMOLLM2).save_pretrained(
        place
    )
    return place


def check(place: Path, model: Path) -> None:
    file = write_records(place / "million.jsonl", RECORDS)
    job = place / "job.yaml"
    job.write_text(json.dumps({"device": "cpu", "model": {"path": str(model)}, "data": {"train": str(file)}}))
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-m", "launcher", "data", "check", str(job), "--json"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=ROOT)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(done.stdout)["train"]
    print(f"{found['records']:,} records ({file.stat().st_size / 1e6:.0f} MB), tokens measured on {found['sampled']:,}")
    print(f"  {wall:.1f} s on {len(os.sched_getaffinity(0))} cores, {processor:.1f} s of processor time", end="")
    print(f", largest process {after.ru_maxrss / 1024:.0f} MB")


def seen_before(place: Path, model: Path) -> None:
    from transformers import AutoTokenizer

    from train.data import cache
    from train.data.recipe import Recipe

    file = write_records(place / "seen.jsonl", SEEN)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name in ("first", "again"):
        started = time.perf_counter()
        entry = cache.entry([str(file)], Recipe.of(tokenizer, max_length=2048), tokenizer=tokenizer)
        lengths, labelled = entry.tokens.lengths, entry.tokens.loss_tokens
        took = time.perf_counter() - started
        print(
            f"{SEEN:,} records, {name}: {took:.2f} s ({len(lengths):,} sequences, {int(labelled.sum()):,} loss tokens)"
        )


if __name__ == "__main__":
    main()
