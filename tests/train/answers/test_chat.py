"""A conversation: what the model is given at each turn."""

from __future__ import annotations

from collections.abc import Iterator

from train.chat import HELP, Turns, converse


def talk(*lines: str, system: str | None = None) -> tuple[list[Turns], str]:
    """(the turns of each question, all that was said); the model answers with the number of turns, in two pieces."""
    given: list[Turns] = []
    said: list[str] = []

    def answer(turns: Turns) -> Iterator[str]:
        given.append(list(turns))
        yield f" turn {len(turns)}"
        yield "."

    converse(lines, answer, said.append, system)
    return given, "".join(said)


def test_each_question_is_asked_in_the_light_of_those_before_it() -> None:
    given, said = talk("你好", "", "再见", system="简短")
    assert given == [
        [("system", "简短"), ("user", "你好")],
        [("system", "简短"), ("user", "你好"), ("assistant", "turn 2."), ("user", "再见")],
    ]
    assert said == " turn 2.\n turn 4.\n"


def test_reset_forgets_all_but_the_system_message_and_exit_ends() -> None:
    given, said = talk("a", "/reset", "b", "/exit", "c", system="s")
    assert given[1:] == [[("system", "s"), ("user", "b")]]
    assert "(new conversation)" in said


def test_other_commands_are_explained_and_not_asked() -> None:
    given, said = talk("/help")
    assert given == []
    assert HELP in said


def test_an_interrupted_answer_is_cut_and_the_conversation_goes_on() -> None:
    given: list[Turns] = []
    said: list[str] = []

    def answer(turns: Turns) -> Iterator[str]:
        given.append(list(turns))
        yield "从前"
        if len(turns) == 1:
            raise KeyboardInterrupt

    converse(["讲个故事", "再讲"], answer, said.append)
    assert given[1] == [("user", "讲个故事"), ("assistant", "从前"), ("user", "再讲")]
    assert "".join(said) == "从前 (cut)\n从前\n"
