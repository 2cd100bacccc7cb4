"""One more optimizer step under torch's profiler: time per kernel, and how long the GPU computes and waits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Span = tuple[float, float]
"""(begin, end) in microseconds."""


def profile(loop: Any, file: Path) -> None:
    """Run and describe one step of a train.training.loop.Loop. With several ranks, all call it."""
    import torch

    work = loop.work(loop.data.sampler(0), 0)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        loop.forward_backward(0, work)
        loop.strategy.step(1e-5)
        torch.cuda.synchronize()
    table = profiled.key_averages().table(sort_by="self_device_time_total", row_limit=45, max_name_column_width=90)
    with tempfile.TemporaryDirectory() as place:
        trace = Path(place) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    file.write_text(f"{described(events)}\n{table}", encoding="utf-8")


def described(events: Iterable[dict[str, Any]]) -> str:
    """Shares of the time from the first kernel to the last: computing, communicating, waiting."""
    spans: dict[bool, list[Span]] = {True: [], False: []}
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            spans["nccl" in event["name"].lower()].append((event["ts"], event["ts"] + event["dur"]))
    talk, compute = merged(spans[True]), merged(spans[False])
    both = merged([*talk, *compute])
    if not both:
        return "no kernel was seen"
    whole = both[-1][1] - both[0][0]
    busy, computed, talked = length(both), length(compute), length(talk)
    waited, only_talked = 1 - busy / whole, (busy - computed) / whole
    lines = [
        f"{whole / 1000:.1f} ms from the first kernel to the last one",
        f"{computed / whole:.1%} computing, {waited:.1%} waiting, {only_talked:.1%} only communicating",
        f"{talked / 1000:.1f} ms of NCCL, {(computed + talked - busy) / 1000:.1f} of them hidden behind computation",
    ]
    return "\n".join(lines)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that do not overlap, in order."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)
