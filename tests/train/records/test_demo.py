"""The demo records in templates/demo."""

from __future__ import annotations

from collections import Counter

from tests.beds.places import ROOT
from train.records.conversations import Record, each

DEMO = ROOT / "templates" / "demo"


def records(name: str) -> list[Record]:
    found = [record for record in each(str(DEMO / name)) if isinstance(record, Record)]
    assert len(found) == sum(1 for line in (DEMO / name).read_text(encoding="utf-8").splitlines() if line.strip())
    assert len({record.messages for record in found}) == len(found)
    return found


def test_no_held_out_record_is_among_the_training_records() -> None:
    train, held_out = records("train.jsonl"), records("eval.jsonl")
    assert {record.messages[:-1] for record in train}.isdisjoint(record.messages[:-1] for record in held_out)
    answers = {record.answer for record in train}
    assert [r for r in held_out if r.task != "sentiment" and r.answer in answers] == []


def test_the_readme_states_how_many_records_there_are() -> None:
    counted = [Counter(record.task for record in records(name)) for name in ("train.jsonl", "eval.jsonl")]
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    for task, chinese in (("sentiment", "情感"), ("translation", "翻译"), ("qa", "问答"), ("summarization", "摘要")):
        assert f"{task} {chinese} {counted[0][task]} / {counted[1][task]}" in readme
    assert f"合计 {counted[0].total()} / {counted[1].total()}" in readme
