"""What the page of one run shows, as a plain dict: its picture, and what the picture leaves to the files.

Those are the answers, the job as asked for, the reasons of the plan and the counts of the data.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.machine.language.bilingual import both, in_chinese
from launcher.rundir import reading
from launcher.rundir.directory import RunDir
from launcher.rundir.picture import Picture, Score
from launcher.rundir.state import RunState
from launcher.rundir.verdict import over_same_records
from launcher.show.page import answers, history, words
from launcher.show.page.uncertainty import wilson

OUTPUT_LINES = 200
"""Lines of rank 0's log on the page of a program of the user, which reports nothing else."""
SERIES = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "peak_memory_bytes")
SHARES = ("accuracy", "exact_match")
"""Metrics that are a share of right answers, for which there is an interval."""
UP_TO_ONE = (*SHARES, "macro_f1", "rouge_1", "rouge_2", "rouge_l")
PROBLEMS = (
    "too_long", "cut", "unreadable", "duplicates", "conflicts", "unanswered", "untrained", "unlike_use", "ignored_keys",
    "left_out", "special_tokens",
)  # fmt: skip
_HIDDEN = ("schema", "run_id", "run_dir", "resume", "init_from", "predicted_peak_bytes", "verify_adapter")


def run_page(run: RunDir, state: RunState) -> dict[str, Any]:
    """Everything that the page of a run shows. Raises RunNotFound if a file of the run is damaged."""
    seen = reading.read(run, state)
    plan, result = run.read_plan(), run.read_json(run.result_json) or {}
    train = plan.get("train") or run.read_json(run.train_json) or {}
    launch = plan.get("launch") or {}
    page = {
        "id": seen.run,
        "name": seen.name or seen.run,
        "title": seen.name or seen.run,
        "state": seen.state,
        "backend": seen.backend,
        "version": run.record.zlaunch,
        "started": seen.started,
        "seconds": seen.seconds,
        "world_size": seen.world_size,
        "nodes": len(launch.get("nodes") or ()),
        "device": seen.device,
        "model": model(train),
        "steps": seen.step,
        "best": msgspec.to_builtins(seen.best),
        "loss_first": seen.loss_first,
        "loss_last": seen.loss_last,
        "curves": curves(seen),
        "scores": scores(seen.scores),
        "answers": answers.sets(run),
        "data": data(seen, result),
        "settings": settings(run, plan, train),
        "memory": memory(seen, result),
        "history": history.history(seen),
        "output": run.rank_log_end(0, 0, OUTPUT_LINES) if seen.is_program else [],
        "use": use(run, seen, train),
    }
    return {**page, "verdict": verdict(seen), "figures": figures(page)}


def verdict(seen: Picture) -> dict[str, Any]:
    """{"en", "zh", "why_en", "why_zh", "next"}: headline, its reason, and commands that lead on."""
    if seen.verdict is None:
        ended = "PROGRAM" if seen.is_program and seen.state == "SUCCEEDED" else seen.state
        en, zh = words.HEADLINES.get(ended, (ended, ended))
        return {"en": en, "zh": zh, "why_en": "", "why_zh": "", "next": list(seen.next_steps)}
    line, reason = seen.verdict.line, seen.verdict.reason
    return {
        "en": line[:1].upper() + line[1:],
        "zh": in_chinese(line),
        "why_en": reason[:1].upper() + reason[1:],
        "why_zh": in_chinese(reason),
        "next": list(seen.next_steps),
    }


def curves(seen: Picture) -> dict[str, Any]:
    """{series: {"step": [...], "value": [...]}} of the series that have values."""
    found = {}
    for name in SERIES:
        points = [(point.step, getattr(point, name)) for point in seen.curve]
        found[name] = _series(points)
    found["eval_loss"] = _series([(point.step, point.loss) for point in over_same_records(seen.held_out)])
    return {name: series for name, series in found.items() if any(value is not None for value in series["value"])}


def _series(points: Sequence[tuple[int, float | None]]) -> dict[str, Any]:
    """Steps that rise. A resumed run may have taken some of them twice: the later time counts."""
    rising: dict[int, float | None] = {}
    for step, value in points:
        rising[step] = float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
    steps = sorted(rising)
    return {"step": steps, "value": [rising[step] for step in steps]}


def figures(page: dict[str, Any]) -> list[dict[str, Any]]:
    """{"en", "zh", "value", "note"} of the numbers at the top of the page; `note` is in no language."""
    overall = {row["metric"]: row for row in page["scores"] if row["task"] is None}
    found: list[dict[str, Any]] = []

    def add(en: str, zh: str, value: Any, unit: str | None = None, note: str | None = None) -> None:
        if value is not None:
            found.append({"en": en, "zh": zh, "value": value, "unit": unit, "note": note})

    for metric, en, zh in (("loss", "Held-out loss", "留出集损失"), ("accuracy", "Accuracy", "准确率")):
        if metric in overall:
            row = overall[metric]
            interval = f"95%: {row['interval'][0]:.2f}–{row['interval'][1]:.2f}" if row["interval"] else None
            add(en, zh, _change(row["before"], row["after"]), note=interval)
    if page["loss_last"] is not None:
        add("Training loss", "训练损失", _change(page["loss_first"], page["loss_last"]))
    if page["best"]:
        note = f"{page['best']['metric']} {page['best']['value']:.4g}"
        add("Best step", "最佳步", f"{page['best']['step']:,}", note=note)
    add("Steps", "步数", f"{page['steps']:,}" if page["steps"] else None)
    add("Time", "用时", page["seconds"], unit="seconds")
    add("Peak memory", "峰值内存", page["memory"]["measured"], unit="bytes")
    return found


def _change(before: float | None, after: float | None) -> str:
    def short(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}"

    return short(after) if before is None else f"{short(before)} → {short(after)}"


def model(train: dict[str, Any]) -> str:
    found = train.get("model") or {}
    return "random" if found.get("source") == "random" else str(found.get("path") or "")


def scores(found: Sequence[Score]) -> list[dict[str, Any]]:
    """Each score with the interval that its records leave open, the top of its scale, and whether it improved."""
    rows = []
    for score in found:
        records = score.records or 0
        share = records if score.metric in SHARES else 0
        changed = score.before is not None and score.before != score.after
        better = (score.after < (score.before or 0)) == (score.metric == "loss") if changed else None
        rows.append(
            {
                **msgspec.structs.asdict(score),
                "records": score.records or 0,
                "interval": wilson(round(score.after * score.records), score.records)
                if share and score.records
                else None,
                "top": 1 if score.metric in UP_TO_ONE else 100 if score.metric == "bleu" else None,
                "better": better,
            }
        )
    return rows


def data(seen: Picture, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of training and evaluation as the last start counted them."""
    parts = {str(event.fields.get("part")): event.fields for event in seen.events if event.event == "data"}
    parts |= {name: facts for name, facts in (result.get("data") or {}).items() if isinstance(facts, dict)}
    rows = []
    for part, facts in parts.items():
        tokens, loss_tokens = facts.get("tokens") or 0, facts.get("loss_tokens") or 0
        problems = [{"kind": kind, "found": facts[kind]} for kind in PROBLEMS if facts.get(kind)]
        rows.append(
            {
                "part": part,
                "records": facts.get("records") or 0,
                "tokens": tokens,
                "loss_tokens": loss_tokens,
                "share": loss_tokens / tokens if tokens else None,
                "lengths": facts.get("lengths") or None,
                "problems": problems,
            }
        )
    return rows


def settings(run: RunDir, plan: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """The job as asked for, what was decided and why, and every setting as it was used."""
    try:
        asked = run.job_yaml.read_text(encoding="utf-8", errors="replace")
    except OSError:
        asked = ""
    return {
        "asked": asked,
        "decided": [
            {**reason, "reason_zh": in_chinese(str(reason.get("reason")))}
            for reason in plan.get("reasons") or ()
            if isinstance(reason, dict)
        ],
        "notes": [both(str(note)) for note in plan.get("notes") or ()],
        "used": flat({key: value for key, value in train.items() if key not in _HIDDEN}),
    }


def flat(section: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return found


def memory(seen: Picture, result: dict[str, Any]) -> dict[str, Any]:
    """Bytes of the fullest rank as planned and as measured, and what its GPU has; null where unknown."""
    peak = result.get("peak_memory_bytes")
    measured = peak.get("measured") if isinstance(peak, dict) else None
    ranks = [(node, rank) for node in seen.nodes for rank in node.ranks if rank.peak_bytes]
    capacities = [rank.capacity_bytes for _, rank in ranks if rank.capacity_bytes]
    return {
        "ranks": [
            {"rank": rank.rank, "host": node.host or "", "peak": rank.peak_bytes, "capacity": rank.capacity_bytes}
            for node, rank in ranks
        ],
        "planned": seen.planned_bytes,
        "measured": seen.peak_bytes or measured,
        "capacity": min(capacities, default=None),
    }


def use(run: RunDir, seen: Picture, train: dict[str, Any]) -> dict[str, Any]:
    """Commands and snippets for what comes next."""
    base = train.get("model") or {}
    name = "" if base.get("source") in ("random", "package") else str(base.get("path") or "")
    quoted = shlex.quote(run.run_id)
    merged = f"zlaunch export {quoted} --to merged --out merged\nvllm serve ./merged"
    direct = (
        f"vllm serve {shlex.quote(name)} --enable-lora --lora-modules adapter={shlex.quote(str(run.adapter))} \\\n"
        f"    --chat-template {shlex.quote(str(run.adapter / 'chat_template.jinja'))}"
    )
    ollama = f"zlaunch export {quoted} --to ollama --out for-ollama"
    return {
        "adapter": seen.adapter,
        "chat": f"zlaunch chat {quoted}",
        "python": _python(name or "BASE_MODEL", str(run.adapter)),
        "serve": "\n\n".join([*([direct] if name else []), merged, ollama]),
        "resume": f"zlaunch resume {quoted}" if train and seen.state in _RESUMABLE else None,
        "reproduce": f"zlaunch {seen.backend} {shlex.quote(str(run.job_yaml))}",
    }


_RESUMABLE = ("CANCELLED", "FAILED", "LOST")


def _python(base: str, adapter: str) -> str:
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

base = {json.dumps(base, ensure_ascii=False)}
adapter = {json.dumps(adapter, ensure_ascii=False)}
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
settings = GenerationConfig.from_pretrained(adapter, max_new_tokens=256)
messages = [{{"role": "user", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
