"""`make bench-multi`: several GPUs of one host, through `zlaunch local --gpus N` itself.

    python -m tests.bench.multi [correctness] [rounding] [faults] [speed] [large] [--gpus N] [--device cuda|cpu]

correctness   1, 2, ... N ranks, ZeRO 0, 2 and 3, every engine, bf16 and nf4: 50 steps of a small model. The mean
              difference of its losses from those of one rank is at most 1e-2.
rounding      The same settings at a learning rate of 2e-4, beside one rank in float32: how much the first updates lower
              the loss. bfloat16 must not swallow them.
faults        A killed rank, Ctrl-C, and a checkpoint of N ranks resumed on N/2. Nothing is left on the GPUs.
speed         A random checkpoint of a named shape (--shape): tokens per second and scaling efficiency on 1, 2, ... N
              GPUs, for DDP, ZeRO-2 and ZeRO-3, on instruction records and dense rows; measured and predicted memory.
large         A 70B model: nf4 on two GPUs, bf16 under ZeRO-3 on four or more.

Runs of `correctness` and `rounding` share the GPUs; those of `speed` and `large` do not. `--device cpu` tries the first
three parts with CPU ranks over gloo. Exit status 1: a loss differs too much, or a fault left something behind. --out
receives one line of JSON per result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 50
TOLERANCE = 1e-2
USUAL_RATE = 2e-4
UPDATES = 4
"""Of `rounding`. Later, updates have grown beyond the last bit of what they are added to."""
LOST = {"fused": 0.05, "unsloth": 0.5, "peft": 0.5}
"""Share of the fall of the loss that an engine may lose to rounding. PEFT and Unsloth add LoRA's part to an output that
is rounded already (26% lost after one update of a 1B model on an H100); the fused layers round their sum."""
SETTLED = 3
"""Steps that do not count for speed, because the first ones compile."""
SPEED_STEPS = 11
LARGE_STEPS = 6
WORKLOADS = {"records, median 150 tokens": (96, None), "dense 4 x 2,048": (4, 2048)}
"""Name -> (records per step and GPU, tokens of each; None: lognormal)."""
LARGE = "llama3-70b"
ABREAST = 8
"""Runs of a small model that share a GPU; most of their time is spent on imports."""


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    ranks: int
    zero: int = 0
    engine: str = "unsloth"
    quantization: str = "none"

    @property
    def words(self) -> list[str]:
        sets = {
            "train.zero_stage": self.zero,
            "train.engine": self.engine,
            "model.quantization": self.quantization,
        }
        return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.quantization.replace('none', 'bf16')} ZeRO-{self.zero} on {self.ranks}"


@dataclass
class Bench:
    device: str
    gpus: int
    engines: list[str]
    place: Path
    out: Path
    abreast: int = 1
    """Runs that may share a GPU."""
    failed: list[str] = field(default_factory=list)
    _writer: subprocess.Popen[bytes] | None = None
    _runs_on: Counter[int] = field(default_factory=Counter)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def devices(self, count: int) -> Iterator[dict[str, str]]:
        """An environment with the `count` GPUs that have the fewest of our runs. Waits until they have room."""

        def idlest() -> list[int]:
            return sorted(range(self.gpus), key=lambda gpu: self._runs_on[gpu])[:count]

        with self._changed:
            self._changed.wait_for(lambda: all(self._runs_on[gpu] < self.abreast for gpu in idlest()))
            mine = idlest()
            self._runs_on.update(mine)
        try:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(map(str, sorted(mine)))} if self.device == "cuda" else {}
        finally:
            with self._changed:
                self._runs_on.subtract(mine)
                self._changed.notify_all()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "launcher", *words]

    def environ(self, more: dict[str, str]) -> dict[str, str]:
        ours = {"ZLAUNCH_RUNS": str(self.place / "runs"), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        return {**os.environ, **ours, "ZLAUNCH_CACHE": str(self.place / "cache"), **more}

    @staticmethod
    def job(model: Path, data: Path, steps: int, batch: int, length: int) -> list[str]:
        """Arguments that train `model` on `data` and do nothing else."""
        sets = {
            "model.source": "huggingface", "model.path": model, "data.train": data, "data.max_length": length,
            "train.global_batch_size": batch, "train.checkpoint_every": 0, "data.eval": "null",
            "train.warmup_ratio": 0,  # the first step must train: the losses after it are compared
        }  # fmt: skip
        words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        return ["--max-steps", str(steps), *words]

    def local(self, setting: Setting, *words: str) -> list[str]:
        count = ["--gpus", str(setting.ranks)] if self.device == "cuda" else ["--procs", str(setting.ranks)]
        return self.command("local", "--device", self.device, *count, *setting.words, *words)

    def run(self, setting: Setting, *words: str) -> Path:
        """Run to the end and return the run directory. Raises RuntimeError with the last output."""
        with self.devices(setting.ranks) as more:
            return _ended(self.local(setting, *words, "--json"), self.environ(more))

    def write_checkpoints(self, *wanted: tuple[str, str]) -> None:
        """Write random models (shape, quantization) in a separate process, which frees the GPU at its end."""
        code = "import sys; from pathlib import Path; from tests.bench.gpu.models import checkpoint\n"
        code += "for words in sys.argv[2:]: checkpoint(words.split()[0], Path(sys.argv[1]), words.split()[1])"
        words = [" ".join(one) for one in wanted]
        self._writer = subprocess.Popen([sys.executable, "-c", code, str(self.place), *words], env=self.environ({}))

    def wait_for_checkpoints(self) -> None:
        if self._writer is not None and self._writer.wait():
            raise RuntimeError("the random models could not be written; see above")

    def checkpoint(self, shape: str, quantization: str) -> Path:
        self.wait_for_checkpoints()
        from tests.bench.gpu.cases import checkpoint_place

        return checkpoint_place(shape, self.place, quantization)

    def tell(self, **line: Any) -> None:
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def expect(self, good: bool, what: str) -> None:
        print(f"{'ok  ' if good else 'FAIL'}  {what}", flush=True)
        if not good:
            self.failed.append(what)


def _ended(command: list[str], environ: dict[str, str]) -> Path:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-3000:])
    return Path(json.loads(done.stdout.splitlines()[-1])["directory"])


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


# ------------------------------------------------------------------------------------------------------ correctness


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... most"""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def comparisons(most: int, engines: list[str]) -> Iterator[tuple[Setting, list[Setting]]]:
    """(one rank without ZeRO, the settings that must give the same losses)"""
    for engine in engines:
        for quantization, stages in (("none", (0, 2, 3)), ("nf4", (0, 2))):
            first = Setting(1, 0, engine, quantization)
            every = [Setting(n, zero, engine, quantization) for n in sizes(most) for zero in stages]
            yield first, [setting for setting in every if setting != first]


def correctness(bench: Bench) -> None:
    """Compare the losses of every setting with those of one rank: the mean relative difference over all steps."""
    pairs = list(comparisons(bench.gpus, bench.engines))
    words = _smoke(bench, STEPS, "--set", "verify_adapter=true")
    found = _losses(bench, [(setting, words) for first, others in pairs for setting in (first, *others)])
    for first, others in pairs:
        expected = found[first]
        bench.expect(isinstance(expected, list), f"{first.name} trains" if isinstance(expected, list) else expected)
        for setting in others:
            seen = found[setting]
            if isinstance(seen, str) or isinstance(expected, str):
                bench.expect(False, f"{setting.name}: {seen if isinstance(seen, str) else 'nothing to compare with'}")
                continue
            off = [abs(a - b) / b for a, b in zip(seen, expected, strict=True)]
            bench.tell(part="correctness", setting=setting.name, mean=statistics.fmean(off), worst=max(off))
            text = f"{setting.name}: mean difference {statistics.fmean(off):.2%}, worst step {max(off):.2%}"
            bench.expect(statistics.fmean(off) <= TOLERANCE, text)


def rounding(bench: Bench) -> None:
    """Compare how far the first updates lower the loss with what they do in float32."""
    words = _smoke(bench, UPDATES + 1, "--set", f"train.learning_rate={USUAL_RATE}")
    wide = [*words, "--set", "model.dtype=float32"]
    exact = {quantization: Setting(1, 0, "peft", quantization) for quantization in ("none", "nf4")}
    settings = [setting for first, others in comparisons(bench.gpus, bench.engines) for setting in (first, *others)]
    wanted = _losses(bench, [(setting, wide) for setting in exact.values()])
    for setting, seen in _losses(bench, [(setting, words) for setting in settings]).items():
        expected = wanted[exact[setting.quantization]]
        if isinstance(seen, str) or isinstance(expected, str):
            bench.expect(False, f"{setting.name}: {seen if isinstance(seen, str) else expected}")
            continue
        kept = statistics.fmean(falls(seen)) / statistics.fmean(falls(expected))
        bench.tell(part="rounding", setting=setting.name, kept=kept, losses=seen, exact=expected)
        bench.expect(abs(1 - kept) <= LOST[setting.engine], f"{setting.name}: {kept:.1%} of the fall in float32")


def falls(losses: list[float]) -> list[float]:
    """How far the loss lies below its start, after each update."""
    return [losses[0] - loss for loss in losses[1:]]


def _smoke(bench: Bench, steps: int, *more: str) -> list[str]:
    dtype = "bfloat16" if bench.device == "cuda" else "float32"
    words = ["--smoke", "--max-steps", str(steps), "--set", f"model.dtype={dtype}", "--set", "eval.after=false"]
    return [*words, "--set", "train.global_batch_size=16", *more]


def _losses(bench: Bench, asked: list[tuple[Setting, list[str]]]) -> dict[Setting, list[float] | str]:
    """The losses of each run, or what went wrong in it. Runs share the GPUs."""

    def losses(one: tuple[Setting, list[str]]) -> list[float] | str:
        try:
            return [line["loss"] for line in metrics(bench.run(one[0], *one[1]))]
        except RuntimeError as error:
            return str(error)

    bench.abreast = ABREAST
    with ThreadPoolExecutor(ABREAST * bench.gpus) as pool:
        found = dict(zip((setting for setting, _ in asked), pool.map(losses, asked), strict=True))
    bench.abreast = 1
    return found


# ----------------------------------------------------------------------------------------------------------- faults


def faults(bench: Bench) -> None:
    engine = "fused" if bench.device == "cuda" else "unsloth"
    all_ranks = Setting(bench.gpus, 2 if bench.gpus > 1 else 0, engine)
    if bench.device == "cuda":
        bench.wait_for_checkpoints()  # the process that writes the models uses a GPU
    half = max(1, bench.gpus // 2)
    long = ["--smoke", "--max-steps", "4000", "--set", "train.checkpoint_every=0"]
    with bench.devices(bench.gpus) as more:
        environ = bench.environ(more)
        for what, act, code in (
            ("a killed rank", _kill_last_rank, 1),
            ("Ctrl-C", lambda run, process: process.send_signal(signal.SIGINT), 130),
        ):
            before = set((bench.place / "runs").glob("*")) if (bench.place / "runs").is_dir() else set()
            process = subprocess.Popen(
                bench.local(all_ranks, *long), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            run = _when_it_trains(bench.place / "runs", before)
            started = time.monotonic()
            act(run, process)
            ended = process.wait(60)
            seconds = time.monotonic() - started
            bench.tell(part="faults", what=what, seconds=seconds, code=ended)
            bench.expect(ended == code and seconds < 30, f"{what}: exit {ended} after {seconds:.1f} s")
            bench.expect(not _left(run.name), f"{what}: no process of the run is left")
            if bench.device == "cuda":
                bench.expect(not _gpu_pids(), f"{what}: no process is left on the GPUs")
        saved = len(metrics(run))
        resumed = bench.command(
            "resume", run.name, "--gpus" if bench.device == "cuda" else "--procs", str(half), "--json",
            "--set", f"train.max_steps={saved + 10}",
        )  # fmt: skip
        _ended(resumed, environ)
        steps = [line["step"] for line in metrics(run)]
        bench.expect(
            steps == list(range(1, saved + 11)), f"{bench.gpus} ranks' checkpoint of step {saved} continues on {half}"
        )


def _when_it_trains(runs: Path, before: set[Path]) -> Path:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        for run in set(runs.glob("*")) - before:
            if (run / "metrics.jsonl").is_file() and len(metrics(run)) >= 3:
                return run
        time.sleep(0.1)
    raise RuntimeError("the run did not begin to train within 180 s")


def _kill_last_rank(run: Path, _: Any) -> None:
    record = json.loads((run / "nodes" / "node-0.json").read_text(encoding="utf-8"))
    os.kill(record["ranks"][-1]["pid"], signal.SIGKILL)


def _left(run_id: str) -> list[Any]:
    from launcher.node import processes

    return list(processes.find_run_processes(run_id))


def _gpu_pids() -> list[str]:
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()


# ------------------------------------------------------------------------------------------------------------ speed


def write_workload(place: Path, records: int, tokens: int | None) -> Path:
    """Records of random letters for a byte tokenizer. Every token carries loss, except the few of the prompt."""
    chosen = random.Random(7)
    lines = []
    for _ in range(records):
        length = tokens or min(512, max(24, round(150 * chosen.lognormvariate(0, 0.55))))
        text = "".join(chosen.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(length))
        lines.append(json.dumps({"instruction": "", "input": text[:4], "output": text[4:]}))
    file = place / f"{records}-{tokens or 'records'}.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def speed(bench: Bench, shape: str, quantization: str) -> None:
    model = bench.checkpoint(shape, "none")
    print("| workload | setting | GPUs | tokens/s | efficiency | peak GiB | predicted |\n|---|---|---|---|---|---|---|")
    alone: dict[str, float] = {}
    for ranks in sizes(bench.gpus):
        stages = ((0, 2, 3) if quantization == "none" else (0, 2)) if ranks > 1 else (0,)
        asked = [(name, Setting(ranks, zero, "auto", quantization)) for name in WORKLOADS for zero in stages]

        def train(one: tuple[str, Setting]) -> Path | str:
            records, tokens = WORKLOADS[one[0]]
            batch = records * one[1].ranks
            file = write_workload(bench.place, batch * (SPEED_STEPS + 1), tokens)
            try:
                return bench.run(one[1], *bench.job(model, file, SPEED_STEPS, batch, tokens or 512))
            except RuntimeError as error:
                return str(error)

        with ThreadPoolExecutor(bench.gpus // ranks) as pool:  # each with its own GPUs
            for (name, setting), run in zip(asked, pool.map(train, asked), strict=True):
                if isinstance(run, str):
                    bench.expect(False, f"{name} {setting.name}: {run}")
                else:
                    _tell_speed(bench, name, setting, run, alone)


def large_settings(gpus: int) -> list[Setting]:
    return [Setting(min(2, gpus), 0, "auto", "nf4"), *([Setting(gpus, 3, "auto")] if gpus >= 4 else [])]


def large(bench: Bench) -> None:
    """A 70B model on two GPUs (nf4, one copy each), and on four or more (bf16, shared)."""
    print("| workload | setting | GPUs | tokens/s | efficiency | peak GiB | predicted |\n|---|---|---|---|---|---|---|")
    for setting in large_settings(bench.gpus):
        model = bench.checkpoint(LARGE, setting.quantization)
        records = 2 * setting.ranks
        file = write_workload(bench.place, records * (LARGE_STEPS + 1), 2048)
        words = bench.job(model, file, LARGE_STEPS, records, 2048)
        try:
            run = bench.run(setting, *words)
        except RuntimeError as error:
            bench.expect(False, f"70B {setting.name}: {error}")
            continue
        kind = setting.quantization.replace("none", "bf16")
        _tell_speed(bench, f"70B {kind}, dense 2 x 2,048", setting, run, {})


def settled_rate(lines: list[dict[str, Any]]) -> float:
    """Tokens per second: the median of the steps after SETTLED.

    The first run of all compiles kernels in later steps too, where a row has another shape: a mean once made one GPU so
    slow that two had 113% of its rate.
    """
    settled = lines[SETTLED - 1 :]
    return statistics.median(
        (after["tokens"] - before["tokens"]) / (after["time"] - before["time"])
        for before, after in itertools.pairwise(settled)
    )


def _tell_speed(bench: Bench, workload: str, setting: Setting, run: Path, alone: dict[str, float]) -> None:
    """Print a row. `alone` keeps the rate of one GPU per workload."""
    rate = settled_rate(metrics(run))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    peak, predicted = ((result["peak_memory_bytes"][key] or 0) / 2**30 for key in ("measured", "predicted"))
    if setting.ranks == 1:
        alone[workload] = rate
    efficiency = rate / (alone[workload] * setting.ranks) if workload in alone else None
    bench.tell(
        part="speed", workload=workload, zero=setting.zero, gpus=setting.ranks, tokens_per_second=rate,
        efficiency=efficiency, quantization=setting.quantization, peak_gib=peak, predicted_gib=predicted,
    )  # fmt: skip
    way = f"ZeRO-{setting.zero}" if setting.zero else "DDP" if setting.ranks > 1 else "one GPU"
    share = "" if efficiency is None else f"{efficiency:.0%}"
    print(
        f"| {workload} | {way} | {setting.ranks} | {rate:,.0f} | {share} | {peak:.1f} | {predicted:.1f} |", flush=True
    )


def main(arguments: list[str] | None = None) -> int:
    parts: dict[str, Callable[..., None]] = {
        "correctness": correctness, "rounding": rounding, "faults": faults, "speed": speed, "large": large,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(parts), help=", ".join(parts))
    parser.add_argument("--gpus", type=int, help="default: all of this machine")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engines", default="fused,unsloth,peft", help="of `correctness` (default %(default)s)")
    parser.add_argument("--shape", default="llama3-8b", help="of `speed` (default %(default)s)")
    parser.add_argument("--quantization", choices=("none", "fp8"), default="none", help="of `speed`")
    parser.add_argument("--out", type=Path, default=Path("bench-multi.jsonl"))
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    from launcher.machine import facts

    gpus = options.gpus or (len(facts.local_gpus()) if options.device == "cuda" else 2)
    if not gpus:
        parser.error("no GPU found on this machine")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-multi-") as scratch:
        bench = Bench(options.device, gpus, options.engines.split(","), Path(scratch), options.out)
        if options.device == "cuda":
            models = [(options.shape, "none")] if "speed" in options.parts else []
            models += [(LARGE, s.quantization) for s in large_settings(gpus)] if "large" in options.parts else []
            if models:
                bench.write_checkpoints(*models)
        for part in options.parts:
            if part in ("speed", "large") and options.device == "cpu":
                continue
            print(f"== {part}, {gpus} ranks at most, {time.monotonic() - started:.0f} s", flush=True)
            parts[part](bench, *([options.shape, options.quantization] if part == "speed" else []))
    print(f"{time.monotonic() - started:.0f} s")
    print("all as expected" if not bench.failed else f"{len(bench.failed)} not as expected")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
