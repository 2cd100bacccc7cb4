"""Data larger than memory: memory and time of tokenizing, and of the records of a hundred steps, by number of records.

    python -m tests.bench.streaming [--records 1000000,10000000]

Each size is a process of its own with children. `memory` is the largest sum of their private memory (USS), sampled ten
times a second: pages of mapped files do not count, as the kernel takes them back. Files are made in $TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

TRAIN = """
import json, sys, time
import msgspec, numpy as np
from train.config import TrainConfig
from train.data.dataset import Data
from train.rundir.run_files import RunDir
from transformers import AutoTokenizer

file, place, model = sys.argv[1:]
config = msgspec.convert({"run_id": "x", "device": "cpu", "model": {}, "lora": {}, "data": {"train": file},
    "train": {"global_batch_size": 64, "micro_batch_size": 64, "gradient_accumulation_steps": 1}}, TrainConfig)
begun = time.perf_counter()
part = Data(config, RunDir(place)).train(AutoTokenizer.from_pretrained(model))
made = time.perf_counter()
sampler = part.sampler(1)
for step in range(100):
    for record in sampler.step(step, 64):
        part.tokens.sequence(int(record))
print(json.dumps({"tokenizing": made - begun, "hundred_steps": time.perf_counter() - made,
    "sequences": len(part.tokens), "tokens": int(part.lengths.sum())}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", default="1000000,10000000")
    chosen, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tokenizer(Path(folder))
        print("     records   file MB  tokenizing s  records/s  100 steps s  memory MB")
        for count in map(int, chosen.records.split(",")):
            file = Path(folder) / f"{count}.jsonl"
            size = write_records(file, count)
            found, memory = measured(file, Path(folder) / f"run-{count}", model)
            file.unlink()
            print(
                f"{count:>12,} {size / 1e6:>9,.0f} {found['tokenizing']:>13.1f} {count / found['tokenizing']:>10,.0f} "
                f"{found['hundred_steps']:>12.2f} {memory / 1e6:>10,.0f}",
                flush=True,
            )


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of 512 tokens with a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from tests.beds import bpe
    from tests.train.templating.test_chat_template import SMOLLM2

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe.backend()), eos_token="<|im_end|>", chat_template=SMOLLM2
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def write_records(file: Path, count: int) -> int:
    """Records of about 100 bytes, all different; returns the bytes of the file."""
    with file.open("w", encoding="utf-8") as out:
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            out.writelines(
                f'{{"instruction": "What is {n} times {n % 97}?", "output": "It is {n * (n % 97)}, as {n} says."}}\n'
                for n in numbers
            )
    return file.stat().st_size


def measured(file: Path, place: Path, model: Path) -> tuple[dict[str, float], int]:
    """What TRAIN printed, and the most private memory of it and its children, in bytes."""
    place.mkdir()
    env = {**os.environ, "ZLAUNCH_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(file), str(place), str(model)], env=env, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        most = 0
        while process.poll() is None:
            most = max(most, sum(map(private_bytes, family(process.pid))))
            time.sleep(0.1)
        assert process.stdout is not None
        found: dict[str, float] = json.loads(process.stdout.read().splitlines()[-1])
    return found, most


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                queue += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def private_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    wanted = ("Private_Dirty:", "Anonymous:")
    values = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted)}
    return min(values.values(), default=0)


if __name__ == "__main__":
    main()
