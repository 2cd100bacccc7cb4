"""Where answers stand, against the chat template of every family, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds import bpe
from train.data.tokenizer import Tokenizer
from train.families import BAICHUAN_CHAT, CHAT_TEMPLATES, CHATGLM2_CHAT, CHATGLM3_CHAT, template_of
from train.records.conversations import Record
from train.templating.chat_template import PLAIN_TEMPLATE, ChatTemplate, TemplateRefusal

TEMPLATES = Path(__file__).with_name("templates")
QWEN3 = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
LLAMA3 = (TEMPLATES / "llama3.jinja").read_text(encoding="utf-8")
MISTRAL = (TEMPLATES / "mistral.jinja").read_text(encoding="utf-8").rstrip("\n")
GLM4 = (TEMPLATES / "glm4.jinja").read_text(encoding="utf-8").rstrip("\n")
SMOLLM2 = (TEMPLATES / "smollm2.jinja").read_text(encoding="utf-8").rstrip("\n")
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|user|>' + m['content'] + '\n' }}{% endif %}{% endfor %}"
)

SINGLE = (("user", "hello 你好?"), ("assistant", "很好 answer"))
MULTI = (("system", "be 好"), ("user", "hello"), ("assistant", "again 1"), ("user", "天气"), ("assistant", "很好 2"))
THOUGHT = (("user", "hello"), ("assistant", "<think>\n1 + 1\n</think>\n\n2"))

Family = tuple[str, dict[str, Any], str, str]
FAMILIES: dict[str, Family] = {  # template, how its tokens end, text that ends a past answer, the last one
    "smollm2": (SMOLLM2, {}, "<|im_end|>", "<|im_end|>"),
    "llama3": (LLAMA3, {"eos": "<|endoftext|>", "end": "<|eot_id|>"}, "<|eot_id|>", "<|eot_id|>"),
    "mistral": (MISTRAL, {"eos": "<|endoftext|>"}, "<|endoftext|>", "<|endoftext|>"),
    "glm4": (GLM4, {"eos": "<|endoftext|>"}, "", "<|endoftext|>"),
    "chatglm2": (CHATGLM2_CHAT, {"eos": "<|endoftext|>"}, "<|endoftext|>", "<|endoftext|>"),  # a sequence each
    "chatglm3": (CHATGLM3_CHAT, {"eos": "<|endoftext|>"}, "", "<|endoftext|>"),
    "baichuan": (BAICHUAN_CHAT, {"eos": "<|endoftext|>"}, "", "<|endoftext|>"),
    "plain": (PLAIN_TEMPLATE, {}, "<|im_end|>", "<|im_end|>"),
    "marked": (MARKED, {}, "<|im_end|>", "<|im_end|>"),
}


def rows(template: str, options: dict[str, Any], *conversations: Any) -> list[tuple[str, str]]:
    """(whole text, labelled text) of every sequence."""
    tokenizer = Tokenizer(bpe.recipe(template, **options))
    done = tokenizer.records([Record(messages, "f", 1) for messages in conversations])
    assert done.problems == []
    found, start = [], 0
    for size in done.lengths:
        ids, mask = done.tokens[start : start + size], done.labelled[start : start + size]
        start += size

        def text(chosen: Any) -> str:
            return str(tokenizer.backend.decode(chosen.tolist(), skip_special_tokens=False))

        found.append((text(ids), text(ids[mask])))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_stands_on_every_answer_and_what_ends_it(family: str) -> None:
    template, options, past_end, last_end = FAMILIES[family]
    single, *multi = rows(template, options, SINGLE, MULTI)
    assert single[1].lstrip() == f"很好 answer{last_end}"
    # Some write a blank between their prompt and an answer: it is the answer's, as the model will have to write it.
    labelled = "".join(text for _, text in multi)
    assert "".join(labelled.split()) == f"again1{past_end}很好2{last_end}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sequence_is_the_templates_own_rendering_up_to_the_last_end(family: str) -> None:
    template, options, _, last_end = FAMILIES[family]
    own = ChatTemplate(template, dict(bpe.recipe(template, **options).specials))
    single, *_, multi = rows(template, options, SINGLE, MULTI)
    for messages, (whole, _) in ((SINGLE, single), (MULTI, multi)):
        assert own.render(messages).startswith(whole.removesuffix(last_end))


NAMED = {  # the text of MULTI; <s> and </s> are the tokenizer's own
    "alpaca": "be 好\n\n### Instruction:\nhello\n\n### Response:\nagain 1</s>\n\n"
    "### Instruction:\n天气\n\n### Response:\n很好 2</s>\n\n",
    "chatml": "<|im_start|>system\nbe 好<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    "<|im_start|>assistant\nagain 1<|im_end|>\n<|im_start|>user\n天气<|im_end|>\n"
    "<|im_start|>assistant\n很好 2<|im_end|>\n",
    "gemma": "<s><start_of_turn>user\nbe 好\n\nhello<end_of_turn>\n<start_of_turn>model\nagain 1<end_of_turn>\n"
    "<start_of_turn>user\n天气<end_of_turn>\n<start_of_turn>model\n很好 2<end_of_turn>\n",
    "glm4": "[gMASK]<sop><|system|>\nbe 好<|user|>\nhello<|assistant|>\nagain 1<|user|>\n天气<|assistant|>\n很好 2",
    "llama2": "<s>[INST] <<SYS>>\nbe 好\n<</SYS>>\n\nhello [/INST] again 1 </s><s>[INST] 天气 [/INST] 很好 2 </s>",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nbe 好<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nagain 1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n天气<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n很好 2<|eot_id|>",
    "mistral": "<s>[INST] be 好\n\nhello [/INST] again 1</s>[INST] 天气 [/INST] 很好 2</s>",
    "phi3": "<|system|>\nbe 好<|end|>\n<|user|>\nhello<|end|>\n<|assistant|>\nagain 1<|end|>\n"
    "<|user|>\n天气<|end|>\n<|assistant|>\n很好 2<|end|>\n",
    "vicuna": "<s>be 好 USER: hello ASSISTANT: again 1</s>USER: 天气 ASSISTANT: 很好 2</s>",
    "zephyr": "<|system|>\nbe 好</s>\n<|user|>\nhello</s>\n<|assistant|>\nagain 1</s>\n"
    "<|user|>\n天气</s>\n<|assistant|>\n很好 2</s>\n",
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_named_template_loses_nothing_and_asks_as_it_shows(name: str) -> None:
    own = ChatTemplate(CHAT_TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert own.agrees(MULTI)
    *_, found = sequences = own.sequences(MULTI)  # ChatGLM2 has one per answer
    shown = [one.text[start:end].strip() for one in sequences for start, end in one.spans]
    assert shown == ["again 1", "很好 2"]
    assert all(one.lost == () for one in sequences)
    prompt = own.render(MULTI[:-1], prompt=True).rstrip()
    assert found.text[: found.spans[-1][0]].rstrip() == prompt
    if name in NAMED:
        assert found.text == NAMED[name]


def test_every_family_with_a_template_of_its_own_text_can_be_named() -> None:
    assert {"chatglm2", "chatglm3", "qwen"} | NAMED.keys() == CHAT_TEMPLATES.keys()
    with pytest.raises(ValueError, match=r"'lama3' is neither .* llama3"):
        template_of("lama3")
    assert template_of(" ChatML ") == CHAT_TEMPLATES["chatml"]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "marked"])
def test_an_answer_stands_behind_what_the_template_invites_it_with(family: str) -> None:
    template, options, _, _ = FAMILIES[family]
    own = ChatTemplate(template, dict(bpe.recipe(template, **options).specials))
    shown = [(one.text, start) for one in own.sequences(MULTI) for start, _ in one.spans]
    for place, (text, start) in zip((2, 4), shown, strict=True):
        assert text[:start].startswith(own.render(MULTI[:place], prompt=True))


def test_qwen3_shows_its_thoughts_for_the_present_answer_alone_so_each_answer_is_a_sequence() -> None:
    own = ChatTemplate(QWEN3, {})
    first, second = own.sequences(MULTI)
    assert first.text == own.render(MULTI[:3])
    assert second.text == own.render(MULTI)
    for shown, answer in ((first, "again 1"), (second, "很好 2")):
        ((start, end),) = shown.spans
        assert shown.text[start:end] == answer
        assert shown.text[:start].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert [labelled for _, labelled in rows(QWEN3, {}, MULTI)] == ["again 1<|im_end|>", "很好 2<|im_end|>"]


def test_thoughts_that_a_record_brings_along_carry_loss() -> None:
    assert rows(QWEN3, {}, THOUGHT)[0][1] == "<think>\n1 + 1\n</think>\n\n2<|im_end|>"


@pytest.mark.parametrize("template", [QWEN3, *(family[0] for family in FAMILIES.values())])
@pytest.mark.parametrize(
    "messages",
    [
        SINGLE,
        MULTI,
        THOUGHT,
        (("user", " \n hello\n"), ("assistant", "\n\nyes \t")),
        (("system", ""), ("user", "<tool_response>x</tool_response>"), ("assistant", "{{ no }}")),
        (("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")),
    ],
)
def test_the_fast_way_and_the_template_itself_say_the_same(template: str, messages: Any) -> None:
    for turns in ("auto", "joined"):
        own = ChatTemplate(template, {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}, turns)
        assert own.agrees(messages)


@pytest.mark.parametrize(
    ("change", "answer", "shown"),
    [
        ("(message['content'][:3] | upper + message['content'][3:])", "hello {}", "HELlo {}"),
        ("(message['content'][1:] if message['content'][0] == '#' else message['content'])", "#hello {}", "hello {}"),
    ],
)
def test_a_template_that_rewrites_answers_in_a_way_nobody_foresaw_is_asked_record_by_record(
    change: str, answer: str, shown: str
) -> None:
    sly = SMOLLM2.replace("message['content']", change)
    conversations = [(("user", "?"), ("assistant", answer.format(i))) for i in range(5)]
    labelled = [text for _, text in rows(sly, {}, *conversations)]
    assert labelled == [f"{shown.format(i)}<|im_end|>" for i in range(5)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
            "neither shows",
        ),
    ],
)
def test_what_a_template_cannot_show_is_a_problem_of_that_record(template: str, message: str) -> None:
    done = Tokenizer(bpe.recipe(template)).records([Record(SINGLE, "f", 7)])
    assert done.unreadable == 1
    assert done.problems[0].line == 7
    assert message in done.problems[0].text


def test_a_template_that_is_no_jinja_is_refused() -> None:
    with pytest.raises(TemplateRefusal, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})


@pytest.mark.train
def test_rendering_is_that_of_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    specials = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
    for template in (QWEN3, *(family[0] for family in FAMILIES.values())):
        for messages in (SINGLE, MULTI, THOUGHT):
            turns = [{"role": role, "content": text} for role, text in messages]
            theirs, _ = render_jinja_template([turns], chat_template=template, **specials)
            assert theirs == [ChatTemplate(template, specials).render(messages)], json.dumps(template)


GLM3_TOOLS = (  # as the original's PROMPT.md and its fine-tuning write it
    "[gMASK]<sop><|system|>\n Answer the following questions as best as you can. "
    'You have access to the following tools:\n[\n    {\n        "name": "天气",\n        "parameters": {}\n    }\n]'
    "<|user|>\n hello<|assistant|>\n 好<|assistant|>天气\n ```python\ntool_call(city='北京', days=2, exact=True)\n```"
    '<|observation|>\n {"C": 21}<|assistant|>\n 21 度'
)


def test_chatglm3_names_its_tools_calls_them_in_python_and_reads_observations() -> None:
    from train.records.formats import to_conversation

    arguments = {"city": "北京", "days": 2, "exact": True}
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "好"},
        {"role": "tool", "name": "天气", "parameters": arguments, "observation": {"C": 21}},
        {"role": "assistant", "content": "21 度"},
    ]
    record = to_conversation({"tools": [{"name": "天气", "parameters": {}}], "conversations": turns})
    own = ChatTemplate(CHATGLM3_CHAT, {})
    (found,) = own.sequences(record.messages, record.details)
    assert found.text == GLM3_TOOLS
    call = "\n 好<|assistant|>天气\n ```python\ntool_call(city='北京', days=2, exact=True)\n```"
    assert [found.text[start:end] for start, end in found.spans] == [call, "\n 21 度"]
    assert found.lost == ()
    with pytest.raises(TemplateRefusal, match="declares no tools"):
        own.sequences(*to_conversation({"conversations": turns})[:2])


@pytest.mark.parametrize("name", ["alpaca", "gemma", "llama2", "mistral", "vicuna", "chatglm2"])
def test_the_result_of_a_tool_is_never_written_as_an_answer(name: str) -> None:
    messages = [("user", "hello"), ("assistant", "again"), ("tool", "21"), ("assistant", "好")]
    own = ChatTemplate(CHAT_TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(TemplateRefusal, match="the result of a tool as if it were an answer"):
        own.sequences(messages)


LONG = [turn for i in range(100) for turn in (("user", f"question {i}"), ("assistant", f"answer {i}"))]


@pytest.mark.parametrize("template", [QWEN3, SMOLLM2, LLAMA3, GLM4])
def test_a_long_conversation_costs_no_more_than_the_plain_way(template: str) -> None:
    import time

    own = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "<|im_end|>"})
    begun = time.process_time()
    found = own.sequences(LONG)
    fast = time.process_time() - begun
    plain = own.sequences_slowly(LONG)
    slow = time.process_time() - begun - fast
    assert found == plain == own.sequences(LONG)  # the second time by its layout
    assert fast < 1.5 * slow + 0.05


@pytest.mark.parametrize("template", [QWEN3, SMOLLM2, LLAMA3, GLM4, PLAIN_TEMPLATE, CHAT_TEMPLATES["llama2"]])
def test_answers_of_a_long_conversation_stand_where_the_template_itself_puts_them(template: str) -> None:
    """Thoughts make a template be asked about each answer; most answers are found by what stood around earlier ones."""
    answers = ("<think>\nx\n</think>\n\nb", "<think>x</think>b", "b", " b\n", "a", "<think>\n\n</think>\n\nb", "a")
    own = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "<|im_end|>"}, "each")
    messages = [turn for answer in answers for turn in (("user", "a"), ("assistant", answer))]
    for place, found in zip(range(1, len(messages), 2), own.sequences_slowly(messages), strict=True):
        assert found.spans == (own._locate(messages[: place + 1], found.text, place, None),)


def test_a_long_conversation_with_thoughts_takes_few_renderings() -> None:
    own = ChatTemplate(QWEN3, {})
    turns = [turn for i in range(60) for turn in (("user", f"q{i}"), ("assistant", f"<think>\nx{i}\n</think>\n\nb{i}"))]
    renderings = 0
    render = own._template.render

    def counted(**values: Any) -> str:
        nonlocal renderings
        renderings += 1
        return str(render(**values))

    own._template.render = counted  # type: ignore[method-assign]
    assert len(own.sequences(turns)) == 60
    assert renderings < 80


def test_the_job_chooses_how_answers_become_sequences() -> None:
    for template in (QWEN3, SMOLLM2, MARKED):
        for turns, sizes in (("joined", [2]), ("each", [1, 1]), ("last", [1])):
            own = ChatTemplate(template, {}, turns)
            for found in (own.sequences(MULTI), own.sequences_slowly(MULTI)):
                assert [len(one.spans) for one in found] == sizes
                start, end = found[-1].spans[-1]
                assert "很好 2" in found[-1].text[start:end]


DROPS_THOUGHTS = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ c + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ c }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
COUNTS_TURNS = (
    "{% for m in messages %}{{ '[' + (messages | length | string) + ' ' + m['role'] + ']' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[' + (messages | length + 1) | string + ' assistant]' }}{% endif %}"
)
THOUGHTS = (*THOUGHT, *THOUGHT)


@pytest.mark.parametrize(
    ("template", "messages", "as_used"),
    [
        (QWEN3, SINGLE, True), (QWEN3, MULTI, False), (QWEN3, THOUGHT, True), (QWEN3, THOUGHTS, False),
        (SMOLLM2, MULTI, True), (SMOLLM2, THOUGHTS, True), (LLAMA3, MULTI, True), (MISTRAL, MULTI[1:], True),
        (MARKED, MULTI[1:], True), (DROPS_THOUGHTS, MULTI, True), (DROPS_THOUGHTS, THOUGHT, True),
        (DROPS_THOUGHTS, THOUGHTS, False), (COUNTS_TURNS, SINGLE, True), (COUNTS_TURNS, MULTI, False),
    ],
)  # fmt: skip
def test_a_joined_conversation_says_whether_its_answers_follow_what_they_follow_in_use(
    template: str, messages: Any, as_used: bool
) -> None:
    own = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "<|im_end|>"}, "joined")
    for found in (own.sequences(messages), own.sequences_slowly(messages)):
        assert [one.as_used for one in found] == [as_used]
    each = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "<|im_end|>"}, "each")
    assert all(one.as_used for one in each.sequences(messages))


def test_text_that_a_template_leaves_out_is_named_and_a_lost_question_is_refused() -> None:
    no_system = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.content }}>{% endif %}{% endfor %}"
    assert ChatTemplate(no_system, {}).sequences(MULTI)[0].lost == (("system", "be 好"),)
    r1 = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ((what, text),) = ChatTemplate(r1, {}).sequences(THOUGHT)[0].lost
    assert what == "assistant"
    assert "1 + 1" in text
    first_only = (
        "{% for m in messages %}{% if m.role != 'user' or loop.first %}<{{ m.content }}>{% endif %}{% endfor %}"
    )
    with pytest.raises(TemplateRefusal, match="leaves out a turn of the user: '天气'"):
        ChatTemplate(first_only, {}).sequences(MULTI[1:])


@pytest.mark.parametrize(
    ("shown", "last", "lost"),
    [
        ("messages[-2:]", 1, {"an earlier turn of the user": "hello", "an earlier turn of the assistant": "again 1"}),
        ("(messages[:1] + messages[1:][-2:])", 1, {"an earlier turn of the assistant": "again 1"}),
        ("messages", 0, {}),
    ],
)  # fmt: skip
def test_a_turn_that_only_later_sequences_leave_out_is_named(shown: str, last: int, lost: dict[str, str]) -> None:
    source = f"{{% for m in {shown} %}}<{{{{ m.role }}}}:{{{{ m.content }}}}>{{% endfor %}}"
    for turns in ("auto", "last"):
        found = ChatTemplate(source, {}, turns).sequences(MULTI[1:])
        assert dict(found[-1].lost) == lost
    assert len(ChatTemplate(source, {}).sequences(MULTI[1:])) == last + 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("| escape", "leaves out a turn of the user: 'a < b'"),
        ("| upper", "leaves out a turn of the user: 'a < b'"),
        ("[:4]", "neither shows this answer"),
        (".split() | join(' ')", {"blanks in a turn of the assistant": "x\n\n  y & z"}),
        (".replace('&', 'and')", {"assistant": "x\n\n  y & z"}),
        ("| trim", {}),
        ("", {}),
    ],
)
def test_a_content_that_is_rewritten_is_named_or_refused(change: str, expected: Any) -> None:
    """Found although contents of marks alone are not changed."""
    source = (
        f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.content {change} }}}}<|end|>{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [("user", "a < b"), ("assistant", "x\n\n  y & z")]
    own = ChatTemplate(source, {})
    if isinstance(expected, str):
        with pytest.raises(TemplateRefusal, match=expected):
            own.sequences(messages)
        return
    (found,) = own.sequences(messages)
    assert dict(found.lost) == expected
    assert own.agrees(messages)


def test_reasoning_tools_and_calls_are_shown_by_the_template_or_named() -> None:
    from train.records.conversation import Details

    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [("user", "hello"), ("assistant", ""), ("tool", "21"), ("assistant", "again")]
    details = Details(({"type": "function", "function": {"name": "weather"}},), {1: {"tool_calls": [call]}})
    first, second = ChatTemplate(QWEN3, {}).sequences(messages, details)
    assert '"name": "weather"' in first.text[first.spans[0][0] : first.spans[0][1]]
    assert "<tool_response>\n21\n</tool_response>" in second.text
    with pytest.raises(TemplateRefusal, match="does not show the record's tools"):
        ChatTemplate(SMOLLM2, {}).sequences(messages, details)
    thought = Details(fields={1: {"reasoning_content": "1 + 1"}})
    (shown,) = ChatTemplate(QWEN3, {}).sequences(SINGLE, thought)
    assert shown.text[shown.spans[0][0] : shown.spans[0][1]] == "<think>\n1 + 1\n</think>\n\n很好 answer"
    assert ChatTemplate(SMOLLM2, {}).sequences(SINGLE, thought)[0].lost == (("reasoning_content", "1 + 1"),)
