"""Large runs and many: seconds of processor, wall seconds and memory of `list`, `status` and `report`, and of dry runs.

    python -m tests.bench.large [--runs 10000] [--lines 1000000] [--nodes 4096]

Processor seconds are what another load on this machine changes least. Each command is a process of its own with warm
bytecode; the smallest of three rounds counts. `first` is a reading without the index that a reading leaves behind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=4096)
    chosen, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        bytecode, many, one = (Path(folder) / name for name in ("bytecode", "many", "one"))
        for number in range(chosen.runs):
            write_run(many, number, 200)
        long = write_run(one, 0, chosen.lines)
        print(f"{'command':<44} {'CPU s':>7} {'wall s':>7} {'MB':>5}")
        measure("zlaunch list, no runs", ["list"], Path(folder) / "none", bytecode)
        measure(f"zlaunch list, {chosen.runs:,} runs", ["list"], many, bytecode)
        measure(f"zlaunch status last, {chosen.runs:,} runs", ["status", "last"], many, bytecode)

        def forget() -> None:
            (long / ".curves.json").unlink(missing_ok=True)

        for command in ("status", "report"):
            name = f"zlaunch {command}, {chosen.lines:,} lines of metrics"
            measure(f"{name}, first", [command, "last"], one, bytecode, forget)
            measure(name, [command, "last"], one, bytecode)
        measure_dry_runs(Path(folder), chosen.nodes, bytecode)


def measure_dry_runs(folder: Path, nodes: int, bytecode: Path) -> None:
    """Render a training on many nodes of eight GPUs."""
    records, hostfile, model = folder / "records.jsonl", folder / "hostfile", folder / "model"
    records.write_text('{"instruction": "a", "input": "", "output": "b"}\n' * 50)
    hostfile.write_text("".join(f"node{number:04d} slots=8\n" for number in range(nodes)))
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    values = {"data.train": records, "model.path": model, "train.global_batch_size": 8 * nodes}
    words = ["--dry-run", *(word for key, value in values.items() for word in ("--set", f"{key}={value}"))]
    places = {"ssh": ["--hostfile", str(hostfile)], "slurm": ["--nodes", str(nodes), "--gpus-per-node", "8"]}
    for command, place in places.items():
        measure(f"zlaunch {command} --dry-run, {nodes:,} nodes", [command, *place, *words], folder / "dry", bytecode)


MODEL = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36,
    "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip
"""The config.json of Qwen3-8B, as far as the plan reads it."""


def write_run(root: Path, number: int, lines: int) -> Path:
    """A run that succeeded, with a line of metrics per step."""
    stamp = f"2026{1 + number // 86400 % 12:02d}01-{number // 3600 % 24:02d}{number // 60 % 60:02d}{number % 60:02d}"
    run = root / f"run-{stamp}-{number % 65536:04x}"
    run.mkdir(parents=True)
    record = {"run_id": run.name, "name": "run", "backend": "local", "ids": ["1"], "state": "SUCCEEDED"}
    (run / "run.json").write_text(json.dumps({**record, "schema": 1, "created": 1.79e9, "submitted": 1.79e9}))
    (run / "plan.json").write_text("{}")
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            file.write(
                f'{{"step": {step}, "epoch": 1.25, "loss": {1 + step * 7919 % 1000 / 1000}, "grad_norm": 0.5, '
                f'"learning_rate": 0.0001, "tokens": {step * 1000}, "tokens_per_second": 12345.6, '
                f'"peak_memory_bytes": 123456789, "time": {1790000000 + step}.5}}\n'
            )
    return run


def measure(name: str, words: list[str], runs: Path, bytecode: Path, before: Callable[[], None] = lambda: None) -> None:
    """Print the smallest of some rounds."""
    environ = {**os.environ, "ZLAUNCH_RUNS": str(runs), "PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONPATH": str(ROOT)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found = []
    for _ in range(ROUNDS + 1):
        before()
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *words],
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{name}: exit {process.returncode}")
        used = usage.ru_utime + usage.ru_stime
        found.append((used, time.perf_counter() - begin, usage.ru_maxrss >> 10))
    used, wall, memory = min(found[1:])  # the first round compiles and warms the file cache
    print(f"{name:<44} {used:>7.2f} {wall:>7.2f} {memory:>5}", flush=True)


if __name__ == "__main__":
    main()
