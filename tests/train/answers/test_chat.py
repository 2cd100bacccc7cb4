"""Conversations: what the model gets at each turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from train.answers.json_lines import converse_in_json
from train.chat import HELP, Turns, converse


def talk(*lines: str, system: str | None = None) -> tuple[list[Turns], str]:
    """(the turns that came with each question, all output); the answer is the number of turns, in two pieces."""
    given: list[Turns] = []
    output: list[str] = []

    def answer(turns: Turns) -> Iterator[str]:
        given.append(list(turns))
        yield f" turn {len(turns)}"
        yield "."

    converse(lines, answer, output.append, system)
    return given, "".join(output)


def test_each_question_comes_with_the_conversation_so_far() -> None:
    given, output = talk("你好", "", "再见", system="简短")
    assert given == [
        [("system", "简短"), ("user", "你好")],
        [("system", "简短"), ("user", "你好"), ("assistant", "turn 2."), ("user", "再见")],
    ]
    assert output == " turn 2.\n turn 4.\n"


def test_reset_keeps_only_the_system_message_and_exit_leaves() -> None:
    given, output = talk("a", "/reset", "b", "/exit", "c", system="s")
    assert given[1:] == [[("system", "s"), ("user", "b")]]
    assert "(new conversation)" in output


def test_an_unknown_command_prints_help_and_is_not_sent_to_the_model() -> None:
    given, output = talk("/help")
    assert given == []
    assert HELP in output


def test_an_interrupted_answer_is_cut_and_the_conversation_continues() -> None:
    given: list[Turns] = []
    output: list[str] = []

    def answer(turns: Turns) -> Iterator[str]:
        given.append(list(turns))
        yield "从前"
        if len(turns) == 1:
            raise KeyboardInterrupt

    converse(["讲个故事", "再讲"], answer, output.append)
    assert given[1] == [("user", "讲个故事"), ("assistant", "从前"), ("user", "再讲")]
    assert "".join(output) == "从前 (cut)\n从前\n"


def test_json_answers_each_line_by_itself_and_reports_what_it_does_not_understand() -> None:
    given: list[tuple[Turns, dict[str, Any]]] = []
    output: list[dict[str, Any]] = []

    def answer(turns: Turns, **options: Any) -> Iterator[str]:
        given.append((turns, options))
        if turns[-1][1] == "cut":
            raise KeyboardInterrupt
        yield from ("好", "", "<b>")

    lines = [
        '{"turns": [["user", "a"]]}',
        '{"turns": [["user", "a"], ["assistant", "b"], ["user", "c"]], "temperature": 1, "max_new_tokens": 4}',
        '{"turns": [["user", "cut"]]}',
    ]
    converse_in_json(lines, answer, output.append, "s")
    assert given[0] == ([("system", "s"), ("user", "a")], {})
    assert given[1][0][-1] == ("user", "c")
    assert given[1][1] == {"temperature": 1.0, "max_new_tokens": 4}
    answered = [{"piece": "好"}, {"piece": "<b>"}, {"end": "done"}]
    assert output == [{"ready": True}, *answered, *answered, {"end": "cut"}]


@pytest.mark.parametrize(
    "line",
    ["", "hello", "[]", '{"turns": []}', '{"turns": "ab"}', '{"turns": [["user"]]}', '{"turns": [["system", "a"]]}',
     '{"turns": [["user", "a"], ["assistant", "b"]]}', '{"turns": [["user", "a"]], "temperature": -1}',
     '{"turns": [["user", "a"]], "temperature": NaN}', '{"turns": [["user", "a"]], "temperature": 1e999}',
     '{"turns": [["user", "a"]], "max_new_tokens": 0}', '{"turns": [["user", "a"]], "max_new_tokens": "x"}',
     '{"turns": [["user", "a"]], "max_new_tokens": 1e999}'],
)  # fmt: skip
def test_a_line_that_is_no_conversation_is_an_error_and_the_next_is_answered(line: str) -> None:
    output: list[dict[str, Any]] = []
    converse_in_json([line, '{"turns": [["user", "a"]]}'], lambda turns, **_: iter("x"), output.append)
    assert [next(iter(value)) for value in output] == ["ready", "error", "piece", "end"]
