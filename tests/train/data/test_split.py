"""data.eval as a share or a number of data.train, data.max_samples and FILE#N."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train


def record(number: int) -> dict[str, str]:
    return {"instruction": f"What is {number}?", "output": f"It is {number % 7} and {number}"}


def write(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from tests.beds import bpe
    from tests.train.templating.test_chat_template import SMOLLM2

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe.backend()), eos_token="<|im_end|>", chat_template=SMOLLM2
    )


@pytest.fixture
def parted(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """parted(train=..., eval=..., ...) -> (the answers trained on, the held-out ones, the summary)."""
    import msgspec

    from train.config import TrainConfig
    from train.data.dataset import Data
    from train.rundir.run_files import RunDir

    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))

    def make(max_records: int | None = None, **data: Any) -> tuple[list[str], list[str], dict[str, Any]]:
        config = msgspec.convert(
            {"run_id": "x", "device": "cpu", "model": {}, "lora": {}, "data": data, "train": {
                "global_batch_size": 4, "micro_batch_size": 4, "gradient_accumulation_steps": 1},
             "eval": {"max_records": max_records}}, TrainConfig)  # fmt: skip
        made = Data(config, RunDir(tmp_path))
        trained, held = made.train(tokenizer), made.eval(tokenizer)
        assert held is not None
        used = [int(index) for index in sorted(trained.sampler(1).epoch(0).tolist())]
        for part, indices in ((trained, used), (held, range(len(held.tokens)))):
            for index in indices:  # tokens and records of a sequence belong together
                text = tokenizer.decode(part.tokens.sequence(index)[0])
                assert part.records[index].answer in text
                assert part.records[index].question in text
                assert part.lengths[index] == len(part.tokens.sequence(index)[0])
                assert part.loss_tokens[index] == part.tokens.sequence(index)[1].sum()
        answers = [trained.records[index].answer for index in used]
        return answers, [one.answer for one in held.records], made.summary

    return make


def test_a_share_is_held_out_and_everything_is_on_one_side(parted: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [record(number) for number in range(800)])
    trained, held, summary = parted(train=file, eval="10%")
    assert sorted([*trained, *held]) == sorted(record(number)["output"] for number in range(800))
    assert 50 < len(held) < 110  # four standard deviations of a binomial with 800 x 0.1
    assert (summary["train"]["records"], summary["eval"]["records"]) == (len(trained), len(held))
    assert (summary["eval"]["measured"], summary["eval"]["in_training"]) == (len(held), 0)
    assert parted(train=file, eval="10%")[1] == held


def test_an_added_record_moves_no_other(parted: Any, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [record(number) for number in range(300)])
    many = write(tmp_path / "many.jsonl", [record(number) for number in reversed(range(500))])
    before, after = set(parted(train=few, eval="20%")[1]), set(parted(train=[many], eval="20%")[1])
    old = {record(number)["output"] for number in range(300)}
    assert before == after & old
    assert after - old


def test_equal_records_stay_together_whatever_source_they_are_in(parted: Any, tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.jsonl", [record(number) for number in range(start, start + 200)])
               for name, start in (("a", 0), ("b", 100))]  # fmt: skip
    trained, held, summary = parted(train=[sources[0], {"path": sources[1], "weight": 2.0}], eval="25%")
    assert not set(trained) & set(held)
    assert max(Counter(held).values()) == 2
    assert summary["eval"]["in_training"] == 0


@pytest.mark.parametrize("number", [1, 40, 299])
def test_a_number_counts_different_records(parted: Any, tmp_path: Path, number: int) -> None:
    file = write(tmp_path / "a.jsonl", [record(index % 300) for index in range(400)])
    trained, held, _ = parted(train=file, eval=number)
    assert len(set(held)) == number
    assert len(trained) + len(held) == 400
    assert not set(trained) & set(held)
    assert parted(train=file, eval=str(number))[1] == held


def test_held_out_records_are_of_the_first_ones_of_each_source(parted: Any, tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.jsonl", [record(number) for number in range(start, start + 100)])
               for name, start in (("a", 0), ("b", 100))]  # fmt: skip
    trained, held, _ = parted(train=[sources[0], {"path": sources[1], "first": 30}], eval=20, max_samples=50)
    allowed = {record(number)["output"] for number in [*range(50), *range(100, 130)]}
    assert sorted([*trained, *held]) == sorted(allowed)
    assert len(held) == 20


def test_only_some_of_the_held_out_records_may_be_measured(parted: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [record(index % 100) for index in range(200)])
    whole, some = parted(train=file, eval="50%"), parted(train=file, eval="50%", max_records=7)
    assert some[1] == whole[1][:7]
    assert some[0] == whole[0]
    assert (some[2]["eval"]["measured"], some[2]["eval"]["in_training"]) == (7, 0)


@pytest.mark.parametrize("wanted", [5, 6, "99.999%"])
def test_nothing_left_to_train_on_is_refused(parted: Any, tmp_path: Path, wanted: Any) -> None:
    from train.errors import DataError

    file = write(tmp_path / "a.jsonl", [record(number) for number in range(5)])
    with pytest.raises(DataError, match="holds out every record"):
        parted(train=file, eval=wanted)


def test_a_share_of_few_records_may_be_none_and_is_refused(parted: Any, tmp_path: Path) -> None:
    from train.errors import DataError

    file = write(tmp_path / "a.jsonl", [record(number) for number in range(5)])
    with pytest.raises(DataError, match="no record that can be evaluated"):
        parted(train=file, eval="0.001%")


@pytest.mark.parametrize("limit", [{"first": 30}, {"max_samples": 30}, {"held": "20%", "first": 30}])
def test_the_summary_counts_what_is_trained_on_and_what_each_source_came_to(
    parted: Any, tmp_path: Path, limit: dict[str, Any]
) -> None:
    first, held = {"first": limit["first"]} if "first" in limit else {}, limit.get("held")
    many = write(tmp_path / "many.jsonl", [record(number) for number in range(100)])
    few = write(tmp_path / "few.jsonl", [record(number) for number in range(100, 110)])
    apart = write(tmp_path / "eval.jsonl", [record(number) for number in range(900, 905)])
    wanted = {name: value for name, value in limit.items() if name == "max_samples"}
    used, held_out, summary = parted(
        train=[{"path": many, "weight": 2.0, **first}, {"path": few, "weight": 0.5}], eval=held or apart, **wanted
    )
    told = summary["train"]
    kept = [one["used"] for one in told["sources"]]
    assert told["records"] == sum(kept)
    assert told["tokens"] / told["records"] == pytest.approx(summary["eval"]["tokens"] / len(held_out), rel=0.1)
    assert [one["path"] for one in told["sources"]] == [many, few]
    assert [one["per_epoch"] for one in told["sources"]] == [2 * kept[0], round(kept[1] / 2)]
    assert len(used) == sum(one["per_epoch"] for one in told["sources"])
    assert kept == ([30, 10] if held is None else [40 - len(held_out) - kept[1], kept[1]])
