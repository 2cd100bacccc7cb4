"""Answers to every record of a file: as transformers writes them one by one, after an interruption, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import Ranks, train

pytestmark = pytest.mark.train
pytest.importorskip("torch")

RECORDS: list[Any] = [
    {"instruction": "判断情感", "input": "很好"},
    {"instruction": "判断情感", "input": "天气", "output": "正面", "id": 7},
    {"messages": [{"role": "user", "content": "a b c"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                  {"role": "user", "content": "c"}]},
    {"conversations": [{"from": "human", "value": "hello there"}]},
    {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
    {"prompt": "What is it?", "system": "Be brief."},
    {"question": "Is <|im_end|> a token?"},
]  # fmt: skip
ASKED = [
    [("user", "判断情感\n很好")], [("user", "判断情感\n天气")], [("user", "a b c")],
    [("user", "a"), ("assistant", "b"), ("user", "c")], [("user", "hello there")], [("user", "x")],
    [("system", "Be brief."), ("user", "What is it?")], [("user", "Is <|im_end|> a token?")],
]  # fmt: skip


@pytest.fixture(scope="module")
def run(configure: Any) -> Path:
    place: Path = configure("predicting", **{"eval.after": False, "train.learning_rate": 0.05})
    train(place)
    return place


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("asked") / "asked.jsonl"
    place.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in RECORDS), encoding="utf-8")
    return place


def predict(run: Path, file: Path, out: Path, *more: str, world_size: int = 1, expect: int = 0) -> str:
    options = ["--run-dir", str(run), "--data", str(file), "--out", str(out), "--device", "cpu", "--max-new-tokens=6"]
    ranks = Ranks(world_size, ["-m", "train.answers.predict", *options, "--batch-size=3", *more])
    assert set(ranks.wait()) == {expect}, ranks.output
    return "".join(ranks.output)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def answered(run: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answers") / "out.jsonl"
    predict(run, file, out)
    return out


def test_answers_are_those_of_transformers_one_by_one_and_records_keep_their_fields(run: Path, answered: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run / "base_model"), run / "adapter").eval()
    found = lines(answered)
    assert [{key: value for key, value in one.items() if key != "prediction"} for one in found] == RECORDS
    for turns, one in list(zip(ASKED, found, strict=True))[:-1]:  # the last has a special token as plain text
        messages = [{"role": role, "content": text} for role, text in turns]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert one["prediction"] == tokenizer.decode(out, skip_special_tokens=True).strip()
    assert any(one["prediction"] for one in found)


def test_an_interrupted_call_goes_on_and_two_ranks_write_the_same(
    run: Path, file: Path, answered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    predict(run, file, out, world_size=2)
    assert out.read_bytes() == answered.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out]

    request = ["--temperature=0.7", "--answers=2", "--seed=3"]
    predict(run, file, tmp_path / "whole.jsonl", *request)
    whole = lines(tmp_path / "whole.jsonl")
    assert [len(one["predictions"]) for one in whole] == [2] * len(RECORDS)
    from train.answers import predict as module

    made = [{"number": number, **one} for number, one in enumerate(whole)]
    cut = tmp_path / "cut.jsonl"
    options = module._parser().parse_args(["--run-dir", str(run), "--data", str(file), "--out", str(cut), "--device",
                                           "cpu", "--max-new-tokens=6", "--batch-size=3", *request])  # fmt: skip
    from train.dist import from_environment

    module._check_request(options, cut, str(run / "adapter"), from_environment("cpu", {}))
    torn = "".join(json.dumps(one) + "\n" for one in made[:2]) + '{"number": 2'
    (tmp_path / "cut.jsonl.part-5").write_text(torn)
    refused = predict(run, file, cut, "--temperature=0.9", "--answers=2", expect=2)
    assert "are of an earlier call with other records or settings" in refused
    predict(run, file, cut, *request)
    assert lines(cut) == whole  # the batch of a torn line is written again


def test_what_cannot_be_asked_is_refused(run: Path, file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a"}\n{"picture": 1}\n')
    assert "bad.jsonl:2: none of the keys" in predict(run, bad, tmp_path / "out.jsonl", expect=2)
    assert "need a temperature" in predict(run, file, tmp_path / "out.jsonl", "--answers=2", expect=2)
    (tmp_path / "there.jsonl").write_text("")
    assert "exists already" in predict(run, file, tmp_path / "there.jsonl", expect=2)
