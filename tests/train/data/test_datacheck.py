"""`python -m train.datacheck` and what the launcher makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.cli import cli

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from tests.beds import bpe
    from tests.train.templating.test_chat_template import SMOLLM2

    place = tmp_path_factory.mktemp("model $(x)")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe.backend()), eos_token="<|im_end|>", chat_template=SMOLLM2
    ).save_pretrained(place)
    return place


def records(path: Path, *lines: Any) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


GOOD = [{"instruction": f"hello {i}", "output": "again " * (1 + i % 9)} for i in range(40)]


def config(model: Path, train: Any, **data: Any) -> Any:
    import msgspec

    from train.config import TrainConfig

    numbers = {"global_batch_size": 8, "micro_batch_size": 4, "gradient_accumulation_steps": 2}
    job = {"run_id": "x", "device": "cpu", "model": {"path": str(model)}, "lora": {}, "train": numbers}
    return msgspec.convert({**job, "data": {"train": train, "max_length": 400, **data}}, TrainConfig)


@pytest.fixture
def checked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from train import datacheck

    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    return lambda *lines, **options: datacheck.check(config(model, records(tmp_path / "a.jsonl", *lines), **options))


def test_the_report_counts_what_is_wrong_with_the_records(checked: Any, tmp_path: Path) -> None:
    bad = [
        GOOD[0],
        {**GOOD[1], "output": "no"},
        {"instruction": "q", "output": ""},
        {"instruction": "x" * 900, "output": "y"},
    ]
    evaluation = records(tmp_path / "eval.jsonl", GOOD[3], {"instruction": "unseen", "output": "y"})
    found = checked(*GOOD, *bad, eval=evaluation, on_error="skip")
    part = found["train"]
    assert (part["records"], part["unreadable"], part["empty"]) == (43, 1, 1)
    assert (part["duplicates"], part["conflicts"]) == (1, 1)
    assert part["over_long"] == {"cut": 0, "dropped": 1, "max_length": 400, "exact": True}
    assert found["eval_in_train"] == 1
    assert found["errors"] == []
    assert sum(count for _, count in part["tokens"]["histogram"]) == 42
    assert 0 < part["loss_share"] < 1


def test_padding_falls_from_none_to_bucket_to_pack(checked: Any) -> None:
    waste = checked(*GOOD)["packing"]["waste"]
    assert waste["none"] > waste["bucket"] > waste["pack"] == 0


def test_what_would_stop_a_run_is_an_error(checked: Any, tmp_path: Path) -> None:
    assert "a.jsonl:41: the key 'output' is missing" in checked(*GOOD, {"instruction": "q"})["errors"][0]
    nothing = checked({"instruction": "q"}, on_error="skip")["errors"]
    assert nothing == ["data.train holds no record that can be trained on"]
    empty = records(tmp_path / "empty.jsonl")
    assert checked(*GOOD, eval=empty)["errors"] == ["data.eval holds no record that can be evaluated"]


def test_a_large_file_is_measured_on_a_sample(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import datacheck

    monkeypatch.setattr(datacheck, "_SMALL", 0)
    monkeypatch.setattr(datacheck, "SAMPLE", 3)
    part = checked(*GOOD)["train"]
    assert part["records"] == part["sequences"] == 40
    assert 0 < part["sampled"] < 40


def test_the_command_prints_a_report_and_exits_as_a_run_would(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    job = tmp_path / "job.yaml"
    records(tmp_path / "a.jsonl", *GOOD, {"instruction": "q"})
    job.write_text(json.dumps({"device": "cpu", "model": {"path": str(model)}, "data": {"train": "a.jsonl"}}))
    stopped = CliRunner().invoke(cli, ["data", "check", str(job)], standalone_mode=False)
    assert stopped.return_value == 2
    for text in ("40 records", "with loss", "tokens per sequence", "a.jsonl:41: the key 'output' is missing"):
        assert text in stopped.output
    words = ["data", "check", str(job), "--set", "data.on_error=skip", "--json"]
    skipped = CliRunner().invoke(cli, words, standalone_mode=False)
    assert skipped.return_value == 0
    assert json.loads(skipped.output)["train"]["unreadable"] == 1


def test_a_record_is_shown_with_the_tokens_that_carry_loss_and_its_keys(tmp_path: Path) -> None:
    from launcher.commands import data_show
    from tests.beds import bpe
    from tests.train.templating.test_chat_template import SMOLLM2
    from train.data.preview import preview

    turns = [{"role": "user", "content": "你好 😀"}, {"role": "assistant", "content": "很好 😀<|im_end|>", "ts": 1}]
    path = records(tmp_path / "a.jsonl", {**GOOD[0], "id": 4}, {"messages": turns}, {"instruction": "q"})
    first, second, third = preview(bpe.recipe(SMOLLM2), [path])["records"]
    assert (first["line"], first["honoured"], first["ignored"]) == (1, ["instruction", "output"], ["id"])
    assert second["ignored"] == ["messages[].ts"]
    assert "".join(token["text"] for token in second["tokens"]) == second["text"]
    assert "".join(token["text"] for token in second["tokens"] if token["loss"]) == "很好 😀<|im_end|><|im_end|>"
    assert "the key 'output' is missing" in third["problem"]
    only = preview(bpe.recipe(SMOLLM2), [path], first=1, place="a.jsonl:2")
    assert [record["line"] for record in only["records"]] == [2]
    assert "messages[].role" in data_show.text(only)


def test_a_form_shows_the_records_that_the_command_shows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.web.new_run import form_answers

    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    records(tmp_path / "a.jsonl", GOOD[1], {"instruction": "q"})
    values = {"device": "cpu", "model.path": str(model), "data.train": "a.jsonl"}
    good, bad = form_answers.records(values, 3, tmp_path)["records"]
    learned = ["".join(span["texts"]) for span in good["spans"] if span["loss"]]
    assert learned == [f"{GOOD[1]['output']}<|im_end|>"]
    assert "the key 'output' is missing" in bad["problem"]["message"]


def test_the_cost_of_a_sequence_per_answer_is_reported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.commands.data import part_lines
    from tests.train.templating.test_chat_template import QWEN3
    from train import datacheck

    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    turns = [turn for _ in range(4) for turn in (GOOD[0]["instruction"], GOOD[0]["output"])]
    path = records(tmp_path / "a.jsonl", *({"history": [turns[:2]] * n, **GOOD[0]} for n in range(4)))
    report = datacheck.check(config(model, path, chat_template=QWEN3))
    assert report["train"]["turns"]["sequences_per_record"] == 2.5  # (1 + 2 + 3 + 4) / 4
    assert 1.5 < report["train"]["turns"]["times_the_tokens"] < 2.2  # (1 + 3 + 6 + 10) / (1 + 2 + 3 + 4) and headers
    assert "2.5 per record" in "\n".join(part_lines("train", report["train"]))
    joined = datacheck.check(config(model, path, chat_template=QWEN3, turns="joined"))
    assert joined["train"]["turns"] is None
    assert (report["train"]["unlike_use"], joined["train"]["unlike_use"]) == (0, 3)  # one record has a single answer
    share = joined["train"]["tokens"]["total"] / report["train"]["tokens"]["total"]
    assert share * report["train"]["turns"]["times_the_tokens"] == pytest.approx(1, abs=0.15)


def test_weights_that_leave_no_record_are_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import datacheck

    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    path = records(tmp_path / "a.jsonl", *GOOD)
    report = datacheck.check(config(model, [{"path": path, "weight": 0.001}]))
    assert report["errors"] == [datacheck.NOTHING_AT_WEIGHT]


def test_the_part_of_the_training_records_that_is_held_out_is_counted(checked: Any) -> None:
    found = checked(*GOOD, *({**one, "output": "another answer"} for one in GOOD), eval=20)
    assert found["errors"] == []
    assert found["held_out"]["records"] == 20
    assert 0 < found["held_out"]["asked_in_training"] <= 20
    assert found["packing"]["waste"]
    assert "eval holds out every record" in " ".join(checked(*GOOD, eval=40)["errors"]).replace("data.eval: 40", "eval")
    assert "no record that can be evaluated" in " ".join(checked(*GOOD, eval="0.0001%")["errors"])
