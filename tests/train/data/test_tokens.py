"""Labels against the chat template, on a tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from train.data.prompts import end_ids, prompt_text, render, set_template
from train.data.tokenizer import tokenize
from train.data.tokens import Tokens, lengths
from train.exports import ollama
from train.families import CHAT_TEMPLATES
from train.records.conversations import Record
from train.templating import thinking
from train.templating.chat_template import PLAIN_TEMPLATE

pytestmark = pytest.mark.train

LLAMA3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
)
LAST_TURN_ONLY = (  # as Qwen3 does with its reasoning: an empty thought before the last answer alone
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"

SINGLE = (("user", "天气好吗？ 好"), ("assistant", " 好，很好! "))
TWICE = (("system", "s"), ("user", "好"), ("assistant", "好"), ("user", "好 again"), ("assistant", "好"))
TEXTS = ["天气好吗？好", "很好! again", "assistant: 好", "<think>"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    from train.model.random import make_random

    place = tmp_path_factory.mktemp("model")
    make_random(place, TEXTS, seed=1)
    return AutoTokenizer.from_pretrained(place)


def made(
    tokenizer: Any, template: str | None, *conversations: Any, max_length: int = 500, overlong: str = "cut"
) -> Tokens:
    tokenizer.chat_template = None
    set_template(tokenizer, template)
    records = [Record(messages, "f", 1) for messages in conversations]
    return tokenize(tokenizer, records, max_length=max_length, overlong=overlong)


def labelled_text(tokenizer: Any, data: Tokens, index: int = 0) -> str:
    tokens, labelled = data.sequence(index)
    return str(tokenizer.decode(tokens[labelled]))


@pytest.mark.parametrize("template", [LLAMA3, LAST_TURN_ONLY, PLAIN_TEMPLATE, NO_END])
def test_loss_sees_the_answer_and_the_end_token_only(tokenizer: Any, template: str) -> None:
    data = made(tokenizer, template, SINGLE)
    assert (
        labelled_text(tokenizer, data).strip() == "好，很好! <|im_end|>".replace(" <", "<")
        or labelled_text(tokenizer, data).replace(" ", "") == "好，很好!<|im_end|>"
    )
    tokens, _ = data.sequence(0)
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]).startswith(render(tokenizer, SINGLE)[:8])


@pytest.mark.parametrize("template", [LLAMA3, PLAIN_TEMPLATE])
def test_every_answer_of_a_conversation_carries_loss(tokenizer: Any, template: str) -> None:
    assert labelled_text(tokenizer, made(tokenizer, template, TWICE)) == "好<|im_end|>好<|im_end|>"


def test_a_template_that_shows_past_turns_otherwise_gives_one_sequence_an_answer(tokenizer: Any) -> None:
    data = made(tokenizer, LAST_TURN_ONLY, SINGLE, TWICE)
    assert data.kept.tolist() == [0, 1, 1]
    assert [labelled_text(tokenizer, data, index) for index in (1, 2)] == ["好<|im_end|>", "好<|im_end|>"]
    for index, turns in ((1, TWICE[:2]), (2, TWICE[:4])):
        assert tokenizer.decode(data.prompt(index)) == prompt_text(tokenizer, turns)


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (LAST_TURN_ONLY, SINGLE),
        *((template, m) for template in (LLAMA3, PLAIN_TEMPLATE, NO_END) for m in (SINGLE, TWICE)),
    ],
)
def test_the_sequence_is_one_tokenisation_of_the_rendered_conversation(
    tokenizer: Any, template: str, messages: Any
) -> None:
    tokens, _ = made(tokenizer, template, messages).sequence(0)
    whole = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    assert tokens[:-1].tolist() == whole[: len(tokens) - 1]


@pytest.mark.parametrize("template", [LLAMA3, LAST_TURN_ONLY, PLAIN_TEMPLATE])
def test_generation_is_given_what_training_saw_before_the_answer(tokenizer: Any, template: str) -> None:
    data = made(tokenizer, template, (("user", "好吗"), ("assistant", "好")))
    assert tokenizer.decode(data.prompt(0)) == prompt_text(tokenizer, [("user", "好吗")])
    assert end_ids(tokenizer) == [tokenizer.eos_token_id]


def test_long_records_are_cut_or_dropped_and_counted(tokenizer: Any) -> None:
    short, long_answer = (("user", "好"), ("assistant", "好")), (("user", "好"), ("assistant", "好 " * 50))
    long_prompt = (("user", "好 " * 50), ("assistant", "好"))
    cut = made(tokenizer, LLAMA3, short, long_answer, long_prompt, max_length=30)
    assert (cut.dropped.cut, cut.dropped.too_long, cut.kept.tolist()) == (1, 1, [0, 1])
    assert cut.lengths[1] == 30
    assert cut.sequence(1)[0][-1] != tokenizer.eos_token_id  # the model must not learn to end there
    dropped = made(tokenizer, LLAMA3, short, long_answer, long_prompt, max_length=30, overlong="drop")
    assert (dropped.dropped.cut, dropped.dropped.too_long, dropped.kept.tolist()) == (0, 2, [0])


def test_packed_records_keep_to_themselves_and_predict_their_own_next_token(tokenizer: Any) -> None:
    from train.data.batches import collate, pack
    from train.data.tokens import IGNORED

    data = made(tokenizer, LLAMA3, SINGLE, TWICE)
    padded = collate(data, [0, 1], pad=0, multiple=16, device="cpu")
    packed = pack(data, [0, 1], pad=0, multiple=16, device="cpu")
    assert padded["input_ids"].shape[1] % 16 == packed["input_ids"].shape[1] % 16 == 0
    assert packed["position_ids"][0, int(data.lengths[0])] == 0
    for batch in (padded, packed):
        assert int((batch["labels"] != IGNORED).sum()) == int(data.loss_tokens.sum())
    ids, labels = packed["input_ids"][0], packed["labels"][0]
    places = (labels != IGNORED).nonzero().flatten()
    assert bool((ids[places + 1] == labels[places]).all())


def test_a_conversation_is_cut_behind_its_last_answer_that_fits_and_evaluated_up_to_there(tokenizer: Any) -> None:
    from train.data.dataset import _up_to

    twice = (("user", "好"), ("assistant", "很好"), ("user", "好 " * 40), ("assistant", "好"))
    whole = made(tokenizer, LLAMA3, twice)
    cut = made(tokenizer, LLAMA3, twice, max_length=len(whole.sequence(0)[0]) - 20)
    assert (cut.dropped.cut, cut.answers.tolist()) == (1, [1])  # type: ignore[union-attr]
    assert labelled_text(tokenizer, cut) == "很好<|im_end|>"
    assert cut.sequence(0)[1][-1]  # no half of a question behind it
    assert tokenizer.decode(cut.prompt(0)) == prompt_text(tokenizer, twice[:1])
    assert _up_to(Record(twice, "f", 1), int(cut.answers[0])).answer == "很好"  # type: ignore[index]


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content }", "{{ raise_exception('no') }}"])
def test_a_template_that_is_none_is_the_users_mistake(tokenizer: Any, template: str) -> None:
    from train.errors import UserError

    with pytest.raises(UserError, match="the chat template"):
        made(tokenizer, template, SINGLE)
    with pytest.raises(UserError, match="the chat template"):
        prompt_text(tokenizer, [("user", "好")])


@pytest.mark.parametrize("before", [["<|endoftext|>"], ["<|im_start|>", "<|im_end|>"], []])
def test_a_model_without_a_template_begins_as_its_tokenizer_begins_every_text(
    tokenizer: Any, before: list[str], tmp_path: Path
) -> None:
    """As Llama's base models with <|begin_of_text|>, and GLM's with [gMASK]<sop>."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    if before:
        named = [(token, backend.token_to_id(token)) for token in before]
        backend.post_processor = processors.TemplateProcessing(single=[*before, "$A"], special_tokens=named)
    bos = {"bos_token": before[0]} if len(before) == 1 else {}
    own = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", **bos)
    expected = own.convert_tokens_to_ids(before)
    assert own("天气")["input_ids"][: len(before)] == expected

    trained = made(own, None, SINGLE, TWICE)
    bare = made(tokenizer, None, SINGLE, TWICE)
    for index in range(len(bare)):
        assert trained.sequence(index)[0].tolist() == [*expected, *bare.sequence(index)[0].tolist()]
    own.save_pretrained(tmp_path)  # as with the adapter: what generate, chat and every server load
    served = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    asked = served.apply_chat_template([{"role": "user", "content": SINGLE[0][1]}], add_generation_prompt=True)
    assert asked["input_ids"] == trained.prompt(0)
    assert served(prompt_text(served, SINGLE[:1]), add_special_tokens=False)["input_ids"] == trained.prompt(0)
    if len(before) == 1:
        template = ollama.measure(lambda turns, **options: render(served, turns, **options), before[0])
        assert before[0] + template.render(SINGLE[:1]) == prompt_text(served, SINGLE[:1])


def test_a_template_of_the_model_or_the_job_is_taken_as_it_is(tokenizer: Any) -> None:
    chatml = CHAT_TEMPLATES["chatml"]
    for own, of_job, text in (
        (LLAMA3, None, LLAMA3),
        (None, NO_END, NO_END),
        (LLAMA3, NO_END, NO_END),
        (LLAMA3, "ChatML", chatml),
    ):
        tokenizer.chat_template = own
        set_template(tokenizer, of_job)
        assert thinking.own_part(tokenizer.chat_template) == text.removesuffix("\n")


def of_lengths(*found: int) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum(found)]).astype(np.int64)
    total = int(offsets[-1])
    return Tokens(np.zeros(total, np.int32), np.zeros(total, bool), offsets, np.arange(len(found)))


def test_lengths_are_counted_in_few_bars_that_hold_every_sequence() -> None:
    assert lengths(of_lengths()) == {}
    one = lengths(of_lengths(7))
    assert one == {"median": 7, "p95": 7, "most": 7, "from": 7, "width": 1, "counts": [1]}
    many = lengths(of_lengths(*range(10, 1010)))
    assert (many["median"], many["p95"], many["most"], many["from"]) == (510, 960, 1009, 10)
    assert len(many["counts"]) <= 24
    assert sum(many["counts"]) == 1000
    assert many["from"] + many["width"] * len(many["counts"]) > 1009
