from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from train.errors import DataError
from train.quickcheck import look
from train.records.conversation import PLAIN, RecordOptions
from train.records.conversations import Problem, Record, each, to_record

GOOD = {"instruction": "翻译", "input": "猫", "output": "cat"}


def write(path: Path, *lines: Any) -> str:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return str(path)


def load(path: str) -> tuple[list[Record], list[Problem]]:
    """The records of a file, and what cannot be read."""
    found = list(each(path))
    return [item for item in found if isinstance(item, Record)], [item for item in found if isinstance(item, Problem)]


def refuse(path: str) -> None:
    """Raise DataError if a run would stop at these records."""
    look(path, PLAIN, on_error="stop")


def test_instruction_and_input_become_one_question() -> None:
    record = to_record({**GOOD, "task": "translation"}, "f", 1)
    assert record.messages == (("user", "翻译\n猫"), ("assistant", "cat"))  # type: ignore[union-attr]
    assert record.task == "translation"  # type: ignore[union-attr]


def test_history_and_system_stand_before_the_question() -> None:
    record = to_record({**GOOD, "history": [["a", "b"]], "system": "s"}, "f", 1)
    assert [role for role, _ in record.messages] == ["system", "user", "assistant", "user", "assistant"]  # type: ignore[union-attr]


def test_messages_and_sharegpt_mean_the_same() -> None:
    openai = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    sharegpt = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert to_record(openai, "f", 1).messages == to_record(sharegpt, "f", 1).messages  # type: ignore[union-attr]


def test_the_jobs_system_message_is_for_records_without_their_own() -> None:
    assert to_record(GOOD, "f", 1, RecordOptions("be brief")).messages[0] == ("system", "be brief")  # type: ignore[union-attr]
    assert to_record({**GOOD, "system": "own"}, "f", 1, RecordOptions("be brief")).messages[0] == ("system", "own")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"instruction": \n', "bad JSON"),
        (b'{"instruction": "\xff\xfe"}\n', "not UTF-8"),
        ({"input": "x"}, "none of the keys 'messages', 'conversations', 'instruction'"),
        ({"instruction": "x"}, "the key 'output' is missing"),
        ({**GOOD, "output": "  "}, "the answer is empty"),
        ({**GOOD, "instruction": "", "input": ""}, "the question is empty"),
        ({**GOOD, "output": {"a": 3}}, "'output' must be a text, got dict"),
        ({**GOOD, "history": ["a"]}, "history: turn 1 is neither an object nor a [question, answer] pair"),
        ([1], "expected an object, got list"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no turn is the assistant's"),
        ({"messages": [{"role": "judge", "content": "q"}]}, "unknown role 'judge'"),
    ],
)
def test_what_cannot_be_used_is_reported_with_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "数据 $(x).jsonl", GOOD, b"\n", line, {**GOOD, "output": "Katze"})
    with pytest.raises(DataError) as caught:
        refuse(path)
    assert f"{path}:3: " in str(caught.value)
    assert message in str(caught.value)
    records, problems = load(path)
    assert [record.line for record in records] == [1, 4]
    assert [problem.line for problem in problems] == [3]


def test_three_problems_of_each_kind_are_listed_with_a_count(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30 records") as caught:
        refuse(
            write(
                tmp_path / "a.jsonl",
                *[{"input": str(i)} for i in range(28)],
                {**GOOD, "output": ""},
                {"instruction": "q"},
            )
        )
    assert str(caught.value).count("none of the keys") == 3
    assert str(caught.value).count("the answer is empty") == 1
    assert "... and 25 more" in str(caught.value)


def test_records_of_a_json_list_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps([GOOD, {"input": "x"}, GOOD], indent=1), encoding="utf-8")
    records, problems = load(str(path))
    assert [record.line for record in records] == [2, 10]
    assert problems[0].line == 7


def test_a_torn_json_list_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=1)[:-30], encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json:\d+: bad JSON"):
        refuse(str(path))


def test_an_absent_file_and_an_unknown_kind_are_mistakes_not_bugs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        refuse(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="unknown kind of file"):
        refuse(str(tmp_path / "a.docx"))


def test_of_two_replacements_the_first_is_for_records_with_chinese() -> None:
    from train.records.conversation import RecordOptions
    from train.records.formats import to_conversation

    options = RecordOptions(replace=(("{{NAME}}", ("小黄", "Xiao Huang")),))
    for question, answer, expected in (
        ("你是谁？", "I am {{NAME}}", "I am 小黄"),
        ("Who are you?", "{{NAME}}", "Xiao Huang"),
    ):
        found = to_conversation({"instruction": question, "output": answer}, options)
        assert found.messages[-1] == ("assistant", expected)


def test_texts_are_replaced_as_the_job_says() -> None:
    from train.records.conversation import RecordOptions
    from train.records.formats import to_conversation

    options = RecordOptions(replace=(("{{NAME}}", "Ada"), ("{{AUTHOR}}", "us")))
    found = to_conversation({"query": "Who are you, {{NAME}}?", "response": "{{NAME}}, by {{AUTHOR}}."}, options)
    assert found.messages == [("user", "Who are you, Ada?"), ("assistant", "Ada, by us.")]
