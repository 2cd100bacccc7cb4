"""The dialects of the field: every key is read, refused by name, or named as ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from train.config import Data
from train.errors import DataError
from train.records.conversation import RecordOptions, Unreadable
from train.records.formats import check_columns, to_conversation

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
        {"conversation": [{"input": "q", "output": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]}, ANSWER]},
        {"prompt": [QUESTION], "completion": "a", "prompt_id": ""},
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
        ({"dialog": [{"speaker": "user", "text": "q"}]}, r"\{messages: dialog, role: speaker, content: text\}"),
        ({"messages": [{"role": "user", "text": "q"}]}, r"'content' is missing .*\{role: role, content: text\}"),
        ({"messages": [{"my_input": "q", "my_output": "a"}]}, r"\{instruction: my_input, output: my_output\}"),
        ({"data": [QUESTION, ANSWER]}, r"data\.columns could be \{messages: data\}"),
        ({"turns": ["a question", "another"]}, r"\(found: turns\)$"),
        ({f"key{i}": i for i in range(99)}, r"key11 and 87 more\)"),
        ({"response": "a"}, "a text alone does not say"),
        ({"query": "<img>a/b.jpg</img>what?", "response": "a"}, "<img>a/b.jpg</img>.*image data"),
        ({"instruction": "q", "output": ["a", "b"]}, "'output' holds a part that is not text"),
        ({"messages": [{"role": "客户", "content": "q"}, ANSWER]}, r"data\.roles names others"),
        (
            {"chosen_messages": [QUESTION, ANSWER], "rejected_messages": [QUESTION, ANSWER]},
            "rejected_messages: this is",
        ),
        ({"conversations": [QUESTION], "chosen": ANSWER, "rejected": ANSWER}, "needs one answer$"),
        ({"conversations": [QUESTION, ANSWER], "kto_tag": True}, "KTO"),
        ({"id": "s1", "instruction": "q", "instances": [{"input": "", "output": "a"}]}, "'output' is missing"),
        ({"prompt": [QUESTION], "reward_model": {"truth": "4"}}, "'completion' is missing"),
        ({"question": "q", "response_j": "a", "response_k": "b"}, r"\{instruction: question, output: response_j\}"),
        ({"question": "q", "std_answer": "a"}, r"\{instruction: question, output: std_answer\}"),
        ({"messages": [{"role": "pretrain", "content": "t"}]}, "unknown role 'pretrain'"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, ANSWER]}, "'video'"),
        ({"chat": {"turn_1": {"Human": "q", "MOSS": "a"}}, "num_turns": 1}, r"\(found: chat, num_turns\)$"),
        ({"input_ids": [1], "labels": [1]}, r"\(found: input_ids, labels\)$"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]}, "the answer is empty"),
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


def test_a_call_that_is_a_turn_of_its_own_belongs_to_the_answer_before_it() -> None:
    turn = {"role": "tool", "name": "f", "parameters": {"x": 1}, "observation": "2"}
    for turns in ([ANSWER, turn], [ANSWER, {"role": "tool_call", "content": json.dumps(CALL["function"])}]):
        found = to_conversation({"tools": [{"name": "f"}], "conversations": [QUESTION, *turns]})
        assert found.messages[:2] == QA
        assert found.details is not None
        assert found.details.fields[1]["tool_calls"] == [CALL]
    apart = to_conversation({"tools": [{"name": "f"}], "conversations": [QUESTION, {**ANSWER, "loss": False}, turn]})
    assert [role for role, _ in apart.messages] == ["user", "assistant", "assistant"]


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


def test_several_columns_for_one_key_are_its_lines() -> None:
    record = {"q_text": "q", "q_context": "", "hint": "h", "reply": "a"}
    with pytest.raises(Unreadable, match=r"\{instruction: q_context, output: reply\}"):
        to_conversation({"q_context": "c", "reply": "a", "n": 3})
    coig = {"box_instruction": "i", "box_context": "c", "box_question": "q", "box_answer": "a"}
    with pytest.raises(Unreadable, match=r"\{instruction: \[box_instruction, box_context, box_question\], output: box"):
        to_conversation(coig)
    data = Data(columns={"instruction": ("hint", "q_context", "q_text"), "output": "reply"})
    found = to_conversation(record, RecordOptions.of(data))
    assert (found.messages, found.ignored) == ([("user", "h\nq"), ("assistant", "a")], ())


def test_a_column_for_a_key_that_no_format_has_is_refused() -> None:
    check_columns(RecordOptions(columns=(("frage", "instruction"), ("speaker", "role"))))
    with pytest.raises(DataError, match="'frage' is mapped to 'instructio'"):
        check_columns(RecordOptions(columns=(("frage", "instructio"),)))


def test_columns_name_the_keys_of_turns_too() -> None:
    names = (("dialog", "messages"), ("speaker", "role"), ("text", "content"))
    options = RecordOptions(columns=names, roles=(("A", "user"), ("B", "assistant")))
    turns = [{"speaker": "A", "text": "q"}, {"speaker": "B", "text": "a"}]
    assert to_conversation({"dialog": turns}, options).messages == QA
    pair = RecordOptions(columns=(("toy_input", "input"), ("toy_output", "output"), ("toy_system", "system")))
    record = {"messages": [{"toy_system": "s", "toy_input": "q", "toy_output": "a"}]}
    assert to_conversation(record, pair).messages == [("system", "s"), *QA]
    other = RecordOptions(columns=(("content", "input"), ("reply", "output")))  # turns with a role stay
    found = to_conversation({"content": "q", "reply": "a", "history": [QUESTION, ANSWER]}, other)
    assert found.messages == [*QA, *QA]


def test_contents_in_parts_hold_texts_reasoning_and_calls() -> None:
    call = '{"name": "f", "arguments": {"x": 1}}'
    parts = [{"type": "reasoning", "value": "so"}, {"type": "text", "value": "a"}, {"type": "tool_call", "value": call}]
    turns = [{"role": "user", "content": [{"type": "text", "value": "q"}]}, {"role": "assistant", "content": parts}]
    found = to_conversation({"messages": turns})
    assert found.messages == QA
    assert found.details is not None
    assert found.details.fields == {1: {"reasoning_content": "so", "tool_calls": [CALL]}}


@pytest.mark.parametrize("completion", [[ANSWER], "a"])
def test_only_the_completion_of_a_prompt_of_turns_is_trained(completion: Any) -> None:
    prompt = [QUESTION, {"role": "assistant", "content": "first"}, QUESTION]
    found = to_conversation({"prompt": prompt, "completion": completion})
    assert found.messages == [("user", "q"), ("assistant", "first"), *QA]
    assert found.details is not None
    assert 1 in found.details.untrained
    assert 3 not in found.details.untrained


def test_a_job_may_take_the_chosen_answer_of_preference_data() -> None:
    record = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(Unreadable, match=r"preference data .*data\.columns: \{output: chosen\}"):
        to_conversation(record)
    found = to_conversation(record, RecordOptions(columns=(("chosen", "output"),)))
    assert (found.messages, found.ignored) == (QA, ("rejected",))


def test_the_key_that_fits_an_answer_best_is_the_question() -> None:
    assert to_conversation({"context": "q", "target": "a"}).messages == QA
    found = to_conversation({"prompt": "q", "input": "x", "output": "a"})
    assert (found.messages, found.ignored) == ([("user", "q\nx"), ("assistant", "a")], ())


def test_turns_after_the_last_answer_are_dropped_and_counted() -> None:
    found = to_conversation({"messages": [QUESTION, ANSWER, QUESTION, QUESTION]})
    assert (found.messages, found.dropped_turns) == (QA, 2)
