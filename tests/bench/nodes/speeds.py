"""smoke, losses and speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.multi import TOLERANCE
from tests.bench.nodes.hosts import Hosts
from tests.bench.nodes.runs import OutOfTimeError, RunFailedError, Runner, measured, tail

WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "ddp": ("DDP", {"train.zero_stage": 0}),
    "zero2": ("ZeRO-2", {"train.zero_stage": 2}),
    "zero3": ("ZeRO-3", {"train.zero_stage": 3}),
    "zero3-all": ("ZeRO-3, weights shared by all hosts", {"train.zero_stage": 3, "train.zero_group": "all"}),
}
"""Name of --ways -> (title, settings). The last one differs from `zero3` only on hosts with several ranks."""


HUGE_STEPS = 4
LARGE = ("fp8", "bf16", "fp8-one", "bf16-one")
"""Names of --large: the type of the products, on all hosts or on as many ranks of one host."""


def ways_on(hosts: Hosts, names: str) -> list[str]:
    return [name for name in names.split(",") if name != "zero3-all" or hosts.per_host > 1]


def smoke(runner: Runner) -> None:
    answer = runner.zlaunch(*runner.hosts.words(), "--smoke", *runner.extra)
    ok = answer["state"] == "SUCCEEDED" and answer["world_size"] == runner.hosts.ranks
    note = f"{answer['world_size']} ranks, loss {answer['loss_first']:.2f} to {answer['loss_last']:.2f}"
    runner.table.add("smoke", "zlaunch ssh --smoke", ok=ok, note=note)


def losses(runner: Runner, ways: str = ",".join(WAYS)) -> None:
    """The same records per step on one rank and on all: losses must agree, and the speed is one of strong scaling."""
    hosts, sizes = runner.hosts, runner.sizes
    batch = sizes.records * hosts.ranks

    def train(words: list[str], way: str) -> dict[str, Any]:
        return _trained(runner, words, runner.job(sizes.small, batch, sizes.steps, None, **WAYS[way][1]))

    alone = train(hosts.words(hosts.names[:1], 1), "ddp")
    runner.table.add("losses", f"{sizes.small}, {batch} records per step, one rank", **alone)
    for way in ways_on(hosts, ways):
        what = f"{WAYS[way][0]} on {len(hosts.names)} x {hosts.per_host}"
        _row(
            runner, "losses", what,
            lambda way=way: _beside(train(hosts.words(), way), alone, hosts.ranks),
        )  # fmt: skip


def _beside(found: dict[str, Any], alone: dict[str, Any], ranks: int) -> dict[str, Any]:
    off = [abs(a - b) / abs(b) for a, b in zip(found["losses"], alone["losses"], strict=True)]
    rate = found["tokens_per_second"] / alone["tokens_per_second"] / ranks
    ok = statistics.fmean(off) <= TOLERANCE
    return {**found, "of_one_rank": rate, "losses_mean": statistics.fmean(off), "losses_worst": max(off), "ok": ok}


def speed(runner: Runner, workloads: str = "records,dense", ways: str = ",".join(WAYS)) -> None:
    """The same records per step and rank. Simulated hosts are compared with as many ranks of the machine itself."""
    for workload in workloads.split(","):
        _workload(runner, workload, ways_on(runner.hosts, ways))


def _workload(runner: Runner, workload: str, ways: list[str]) -> None:
    hosts, sizes = runner.hosts, runner.sizes
    each, tokens = (sizes.records, None) if workload == "records" else sizes.dense
    title = f"{sizes.large}, {workload if workload == 'records' else f'dense {each} x {tokens:,}'}"

    def train(words: list[str], ranks: int, way: str) -> dict[str, Any]:
        job = runner.job(sizes.large, each * ranks, sizes.steps, tokens, **WAYS[way][1])
        return _trained(runner, words, job)

    def on_first(slots: int, names: list[str]) -> Callable[[], dict[str, Any]]:
        return lambda: train(hosts.words(names, slots), slots, "ddp")

    # The hosts are apart from each other, so two of them measure what one host does at the same time.
    asked = {f"{title}, one rank": on_first(1, hosts.names[:1])}
    if hosts.per_host > 1:
        asked[f"{title}, DDP on one host's {hosts.per_host}"] = on_first(hosts.per_host, hosts.names[1:2])
    with ThreadPoolExecutor(len(asked)) as pool:
        one_host = {what: pool.submit(_or_why, train) for what, train in asked.items()}
    rates: dict[str, float] = {}
    for what, future in one_host.items():
        found = future.result()
        rates.setdefault("one rank", found.get("tokens_per_second", 0))
        runner.table.add("speed", what, **found)
    for way in ways:
        places = [(f"{len(hosts.names)} x {hosts.per_host}", hosts.words())]
        if hosts.lab is not None and way != "zero3-all":
            count = "--gpus" if hosts.device == "cuda" else "--procs"
            local = ["local", "--device", hosts.device, count, str(hosts.ranks)]
            places.insert(0, (f"one host's {hosts.ranks}", local))
            rates.pop("one host", None)
        for place, words in places:
            found = _row(
                runner, "speed", f"{title}, {WAYS[way][0]} on {place}",
                lambda words=words, way=way: _compared(train(words, hosts.ranks, way), hosts.ranks, rates),
            )  # fmt: skip
            if place.startswith("one host"):
                rates["one host"] = found.get("tokens_per_second", 0)


def large(runner: Runner, ways: str = ",".join(LARGE)) -> None:
    """A model that one GPU cannot hold, under ZeRO-3: fp8 with the weights shared inside each host, and bfloat16."""
    hosts, sizes = runner.hosts, runner.sizes
    count = "--gpus" if hosts.device == "cuda" else "--procs"
    local = ["local", "--device", hosts.device, count, str(hosts.ranks)]
    for way in ways.split(","):
        quantization, _, place = way.partition("-")
        if (place and hosts.lab is None) or (hosts.device == "cpu" and quantization == "fp8"):
            continue
        sets = {"train.zero_stage": 3, "model.quantization": {"bf16": "none"}.get(quantization, quantization)}
        job = runner.job(sizes.huge, sizes.records * hosts.ranks, HUGE_STEPS, None, **sets)
        where = f"one host's {hosts.ranks}" if place else f"{len(hosts.names)} x {hosts.per_host}"
        words = local if place else hosts.words()
        _row(
            runner, "large", f"{sizes.huge}, {quantization}, on {where}",
            lambda words=words, job=job: _trained(runner, words, job, 2 * sizes.seconds),
        )  # fmt: skip


def network(runner: Runner) -> None:
    """`zlaunch doctor net` between the hosts, with what their training uses."""
    hosts = runner.hosts
    config = ["--ssh-config", str(hosts.ssh_config)] if hosts.ssh_config else []
    words = ["doctor", "net", "--hosts", ",".join(hosts.names), "--device", hosts.device, "--python", hosts.python]
    process, log = runner.start([*words, *config])
    code = runner.ended(process, 120)
    runner.table.add("network", "zlaunch doctor net", ok=code == 0, note=tail(log, 2000))


def unsloth(runner: Runner) -> None:
    """Unsloth on all hosts: what its start takes, by phase."""
    hosts, sizes = runner.hosts, runner.sizes
    sets = {"train.zero_stage": 2, "train.engine": "unsloth"}
    job = runner.job(sizes.small, sizes.records * hosts.ranks, sizes.steps, None, **sets)
    found: dict[str, Any] = {}

    def train() -> dict[str, Any]:
        answer = runner.zlaunch(*hosts.words(), *job)
        phases = [(phase["name"], phase["ended"] - phase["started"]) for phase in answer["phases"] if phase["ended"]]
        found["note"] = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases)
        return {**measured(Path(answer["directory"])), **found}

    _row(runner, "unsloth", f"{sizes.small}, Unsloth ZeRO-2 on {len(hosts.names)} x {hosts.per_host}", train)


def _compared(found: dict[str, Any], ranks: int, rates: dict[str, float]) -> dict[str, Any]:
    """Add the efficiency relative to one rank, and to as many ranks of one host under the same setting."""
    rate = found["tokens_per_second"]
    if rates.get("one rank"):
        found["of_one_rank"] = rate / rates["one rank"] / ranks
    if rates.get("one host"):
        found["of_one_host"] = rate / rates["one host"]
    return found


def _trained(runner: Runner, words: list[str], job: list[str], seconds: float | None = None) -> dict[str, Any]:
    return measured(Path(runner.zlaunch(*words, *job, seconds=seconds)["directory"]))


def _or_why(train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return train()
    except RunFailedError as error:
        return {"ok": False, "note": str(error)}


def _row(runner: Runner, part: str, what: str, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Add the row of a run, also of one that failed; a part goes on after it."""
    try:
        found = _or_why(train)
    except OutOfTimeError:
        found = {"note": "not run: no time was left"}
    runner.table.add(part, what, **found)
    return found
