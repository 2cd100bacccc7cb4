"""Results as lines, and as Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.bench.gpu.cases import Case, setting_of
from train import memory
from train.memory import GIB, SHAPES, Shape


def result(
    case: Case, shape: Shape, rate: float, seconds: float, peak: int, first: float, losses: list[float]
) -> dict[str, Any]:
    predicted = memory.predict(shape, setting_of(case)).total
    return {
        "case": case.name,
        "tokens_per_second": round(rate),
        "records_per_second": round(case.records_a_step / seconds, 1),
        "peak_gib": round(peak / GIB, 2),
        "predicted_gib": round(predicted / GIB, 2),
        "error": round(predicted / peak - 1, 4),
        "first_step_seconds": round(first, 1),
        "losses": [round(loss, 5) for loss in losses],
    }


def with_share(case: Case, line: dict[str, Any]) -> dict[str, Any]:
    """The line with its share of the limit: the matrix rate of the device over the operations per token."""
    if "tokens_per_second" not in line:
        return line
    needed = memory.flops_per_token(SHAPES[case.shape], replace(setting_of(case), checkpointing=False))
    return {**line, "share_of_limit": round(line["tokens_per_second"] * needed / line["matrix_tflops"] / 1e12, 3)}


NAMES = {
    "fused": "**fused**",
    "peft": "transformers + PEFT",
    "liger": "transformers + PEFT + Liger",
    "torchao": "transformers + PEFT + torchao float8",
    "unsloth": "Unsloth",
    "trl": "Unsloth + TRL packing",
}


def markdown(name: str, lines: list[tuple[Case, dict[str, Any]]]) -> str:
    """A table of results: `memory` with the predictions, any other with our speedup over each alternative."""
    about = next((line for _, line in lines if "device" in line), {})
    top = f"{about.get('device', '?')}, torch {about.get('torch', '?')}"
    rows = _memory(lines) if name == "memory" else _speed(lines)
    return "\n".join([top, "", *rows])


def _speed(lines: list[tuple[Case, dict[str, Any]]]) -> list[str]:
    best = {_row(case): line["tokens_per_second"] for case, line in reversed(lines) if _leads(case, line)}
    rows = [
        "| workload | engine | tokens/s | records/s | speedup | peak GiB | predicted | of limit | first step, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, line in lines:
        start = f"| {_row(case)} | {NAMES[case.engine]}{', checkpointing' if case.checkpointing else ''} | "
        if "tokens_per_second" not in line:
            rows.append(start + ("out of memory" if line.get("out_of_memory") else "failed") + " | | | | | | |")
            continue
        ours, rate = best.get(_row(case)), line["tokens_per_second"]
        times = "" if ours in (None, rate) else f"{ours / rate:.2f} times"
        rows.append(
            f"{start}{rate:,} | {line['records_per_second']} | {times} | {line['peak_gib']} | "
            f"{line['predicted_gib']} | {line['share_of_limit']:.0%} | {line['first_step_seconds']} |"
        )
    return rows


def _leads(case: Case, line: dict[str, Any]) -> bool:
    """Whether the program would choose this case for its workload: fused layers, no activation computed twice."""
    return case.engine == "fused" and not case.checkpointing and "tokens_per_second" in line


def _row(case: Case) -> str:
    """The workload, with the shape if it is not that of the other rows."""
    return _workload(case) if case.shape == Case.shape else f"{case.shape}, {_workload(case)}"


def _workload(case: Case) -> str:
    text = case.workload.replace("dense:", "dense ").replace("x", " x ")
    text += "" if case.quantization == "none" else f", {case.quantization}"
    return text + (f", ZeRO-{case.zero}" if case.zero else "")


def _memory(lines: list[tuple[Case, dict[str, Any]]]) -> list[str]:
    rows = ["| configuration | predicted GiB | measured GiB | difference |", "|---|---|---|---|"]
    errors = []
    for case, line in lines:
        words = [case.shape, _workload(case)] + (["checkpointing"] if case.checkpointing else [])
        start = f"| {' '.join(words)}{', PEFT' if case.engine == 'peft' else ''} | "
        if "peak_gib" not in line:
            rows.append(start + ("out of memory" if line.get("out_of_memory") else "failed") + " | | |")
            continue
        errors.append(line["error"])
        rows.append(f"{start}{line['predicted_gib']} | {line['peak_gib']} | {line['error']:+.1%} |")
    if errors:
        rows += ["", f"Largest differences: {min(errors):+.1%} and {max(errors):+.1%}."]
    return rows
