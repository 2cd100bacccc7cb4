"""The dialects of the field: every key is read, refused by name, or named as ignored."""

from __future__ import annotations

from typing import Any

import pytest

from train.records.conversation import RecordOptions, Unreadable
from train.records.formats import to_conversation

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
QA = [("user", "q"), ("assistant", "a")]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "record",
    [
        {"query": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"content": "q", "summary": "a"},
        {"input": "q", "target": "a"},
        {"input": "q", "output": "a"},
        {"instruction": "q", "context": "", "response": "a"},
        {"conversation": [{"human": "q", "assistant": "a"}]},
        {"conversations": [QUESTION, ANSWER]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        [QUESTION, ANSWER],
        {"messages": [QUESTION, ANSWER, {"role": "user", "content": "bye"}]},
        {"instruction": "q", "output": "a", "images": [], "chosen": None, "label": None, "input": float("nan")},
    ],
    ids=lambda record: ",".join(record) if isinstance(record, dict) else "list",
)
def test_a_known_form_needs_no_setting(record: Any) -> None:
    found = to_conversation(record)
    assert (found.messages, found.ignored) == (QA, ())


@pytest.mark.parametrize(
    "history",
    [
        [["1", "2"]],
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}],
        [{"prompt": "1", "response": "2"}],
        '[["1", "2"]]',
    ],
)
def test_a_history_comes_before_the_question(history: Any) -> None:
    record = {"query": "q", "response": "a", "history": history, "system": "s"}
    assert to_conversation(record).messages == [("system", "s"), ("user", "1"), ("assistant", "2"), *QA]


@pytest.mark.parametrize(("value", "text"), [(2, "2"), (1.5, "1.5"), (True, "true")])
def test_a_number_is_an_answer(value: Any, text: str) -> None:
    assert to_conversation({"instruction": "q", "output": value}).messages[-1] == ("assistant", text)


@pytest.mark.parametrize(
    "flag",
    [{"weight": 0}, {"loss": False}, {"train": False}, {"training": False}, {"loss_weight": 0.0}, {"label": False}],
    ids=str,
)
def test_a_loss_flag_of_a_turn_takes_its_answer_out_of_the_loss(flag: dict[str, Any]) -> None:
    found = to_conversation({"messages": [QUESTION, {**ANSWER, **flag}, QUESTION, {**ANSWER, **dict.fromkeys(flag)}]})
    assert found.details is not None
    assert found.details.untrained == {1}
    assert found.ignored == ()


def test_a_flag_of_the_record_is_for_all_answers_and_a_weight_between_is_refused() -> None:
    found = to_conversation({"instruction": "q", "output": "a", "loss": False})
    assert found.details is not None
    assert found.details.untrained == {1}
    assert to_conversation({"instruction": "q", "output": "a", "weight": 1.0}).details is None
    with pytest.raises(Unreadable, match=r"weight is 0\.5"):
        to_conversation({"messages": [QUESTION, {**ANSWER, "weight": 0.5}]})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, "chosen: this is preference data"),
        ({"messages": [QUESTION, ANSWER], "rejected_response": "b"}, "rejected_response: this is preference data"),
        ({"messages": [QUESTION, ANSWER], "label": True}, "KTO"),
        ({"messages": [QUESTION, ANSWER], "images": ["a.jpg"]}, "images: this is image data"),
        ({"conversations": [QUESTION, ANSWER], "image": "a.jpg"}, "image: this is image data"),
        ({"messages": [QUESTION, ANSWER], "audios": ["a.wav"]}, "audios: this is audio data"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "image_url"),
        ({"text": "### Human: hi"}, "a text alone does not say"),
        ({"Instruction": "q", "Output": "a"}, r"data\.columns could be \{instruction: Instruction, output: Output\}"),
        ({"问题": "q", "答案": "a"}, r"data\.columns could be \{instruction: 问题, output: 答案\}"),
        ({"textbox_question": "q", "textbox_answer": "a"}, "instruction: textbox_question, output: textbox_answer"),
        ({"dialog": [QUESTION, ANSWER]}, r"data\.columns could be \{messages: dialog\}"),
        ({"instruction": "q", "output": ["a", "b"]}, "'output' holds a part that is not text"),
        ({"messages": [{"role": "客户", "content": "q"}, ANSWER]}, r"data\.roles names others"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(record: Any, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        to_conversation(record)


def test_every_other_key_is_named_unless_it_is_empty() -> None:
    turn = {**ANSWER, "ts": 3, "refusal": None}
    record = {"id": 7, "messages": [{**QUESTION, "name": "x"}, turn], "source": "web", "score": None, "tags": []}
    assert to_conversation(record).ignored == ("messages[].name", "messages[].ts", "id", "source")
    assert to_conversation({"instruction": "q", "output": "a", "text": "both"}).ignored == ("text",)


def test_the_system_key_beside_turns_is_the_system_message() -> None:
    turns = [QUESTION, {**ANSWER, "loss": False}, QUESTION, ANSWER]
    found = to_conversation({"messages": turns, "system": "s"}, RecordOptions("be brief"))
    assert found.messages[0] == ("system", "s")
    assert found.details is not None
    assert found.details.untrained == {2}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ["tool", "function", "observation"])
def test_tools_calls_and_results_are_read_in_every_dialect(turn: dict[str, Any], role: str) -> None:
    result = {"role": role, "content": "3"} if "role" in turn else {"from": role, "value": "3"}
    tools = '[{"name": "f"}]' if role == "observation" else [{"type": "function", "function": {"name": "f"}}]
    found = to_conversation({"tools": tools, "conversations": [QUESTION, turn, result, ANSWER]})
    assert [role for role, _ in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.details is not None
    assert found.details.fields[1]["tool_calls"] == [CALL]
    assert found.details.tools == ({"type": "function", "function": {"name": "f"}},)
    assert found.ignored == ()


def test_chatglm3_writes_a_call_and_its_result_as_one_turn() -> None:
    turn = {"role": "tool", "name": "f", "parameters": {"x": 1}, "observation": {"y": 2}}
    found = to_conversation({"tools": [{"name": "f"}], "conversations": [QUESTION, turn, ANSWER]})
    assert found.messages == [("user", "q"), ("assistant", ""), ("tool", '{"y": 2}'), ("assistant", "a")]
    assert found.details is not None
    assert found.details.fields[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_goes_to_the_template(key: str) -> None:
    for record in ({"messages": [QUESTION, {**ANSWER, key: "so"}]}, {"query": "q", "response": "a", key: "so"}):
        found = to_conversation(record)
        assert found.details is not None
        assert found.details.fields == {1: {"reasoning_content": "so"}}


def test_columns_and_roles_have_the_names_of_the_job() -> None:
    options = RecordOptions(columns=(("问题", "instruction"), ("答案", "output")), roles=(("客户", "user"),))
    found = to_conversation({"问题": "q", "答案": "a", "编号": 3}, options)
    assert (found.messages, found.ignored) == (QA, ("编号",))
    assert to_conversation({"messages": [{"role": "客户", "content": "q"}, ANSWER]}, options).messages == QA


def test_turns_after_the_last_answer_are_dropped_and_counted() -> None:
    found = to_conversation({"messages": [QUESTION, ANSWER, QUESTION, QUESTION]})
    assert (found.messages, found.dropped_turns) == (QA, 2)
