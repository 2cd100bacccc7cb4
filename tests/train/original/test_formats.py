"""Tokens and labels are those of the originals' own fine-tuning code (docs/original-formats.md).

expected.json was made by the rules of that code with the originals' tokenizer classes, under transformers 4.31, and the
small tokenizer.model beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds import original
from tests.beds.models import GLM4_CHAT, native
from tests.beds.places import ROOT

pytestmark = pytest.mark.train

PLACE = ROOT / "tests/fixtures/original-formats"
FROZEN = json.loads((PLACE / "expected.json").read_text(encoding="utf-8"))
FORMATS = ("chatglm2", "chatglm3", "baichuan2")
IGNORED = -100


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from train.original.conversion import convert

    place, vocabulary = tmp_path_factory.mktemp("formats"), (PLACE / "tokenizer.model").read_bytes()
    made = {}
    for name in FORMATS:
        if name == "baichuan2":
            config = original.baichuan_config(900, second=True)
            tensors = original.baichuan_tensors(config)
        else:
            config = original.chatglm_config(1000, _name_or_path=f"THUDM/{name}-6b")
            tensors = original.chatglm_tensors(config)
        convert(original.write(place / name, config, tensors, vocabulary), place / f"{name}-out", lambda _: None)
        made[name] = AutoTokenizer.from_pretrained(place / f"{name}-out")
    return made


def tokens_of(tokenizer: Any, conversation: list[list[str]]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each sequence; a label stands at the token that it is compared with, as in transformers."""
    from train.data.tokenizer import tokenize
    from train.records.conversations import Record

    record = Record(tuple((role, text) for role, text in conversation), "f", 1)
    made = tokenize(tokenizer, [record], max_length=4096, overlong="cut")
    return [(made.sequence(n)[0].tolist(), [IGNORED, *made.targets(n).tolist()]) for n in range(len(made))]


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_and_labels_are_those_of_the_original(tokenizers: dict[str, Any], name: str) -> None:
    compared = 0
    for conversation, frozen in zip(FROZEN["conversations"], FROZEN["expected"][name], strict=True):
        if frozen is None:  # the original's fine-tuning takes no system message
            continue
        ids, labels = frozen
        # The first label has no token before it. ChatGLM2 trains the last answer only: the last of our sequences.
        assert tokens_of(tokenizers[name], conversation)[-1] == (ids, [IGNORED, *labels[1:]]), conversation
        compared += 1
    assert compared >= 11


def test_chatglm2_makes_a_sequence_of_every_answer(tokenizers: dict[str, Any]) -> None:
    """Each is what the original makes of a record with that much history."""
    turns = [["user", "hello"], ["assistant", "world"], ["user", "people"], ["assistant", "language"]]
    first, second = tokens_of(tokenizers["chatglm2"], turns)
    assert first == tokens_of(tokenizers["chatglm2"], turns[:2])[0]
    answers = [
        tokenizers["chatglm2"].convert_ids_to_tokens([t for t in labels if t >= 0]) for _, labels in (first, second)
    ]
    assert [answer[0][0] for answer in answers] == ["▁", "▁"]
    assert [answer[-1] for answer in answers] == ["</s>", "</s>"]


@pytest.mark.parametrize("asks", ["<|assistant|>", "<|assistant|>\n"])
def test_glm4_predicts_the_next_turn_after_every_answer(tmp_path: Path, asks: str) -> None:
    """As process_batch of GLM-4's finetune.py: one message after the other, and `<|user|>` at the end.

    A template that asks with the line break, too, has it in the prompt and not in the answer.
    """
    from transformers import AutoTokenizer

    specials = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    template = GLM4_CHAT.replace("'<|assistant|>\n'", f"'{asks}'")
    tokenizer = AutoTokenizer.from_pretrained(native(tmp_path, "GlmConfig", specials, "<|endoftext|>", template))
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    for conversation in FROZEN["conversations"]:
        ids, trained = [1, 2], [False, False]
        for role, text in conversation:
            message = tokenizer(f"<|{role}|>\n{text}", add_special_tokens=False)["input_ids"]
            prompt = len(tokenizer(asks, add_special_tokens=False)["input_ids"])
            ids += message
            trained += [role == "assistant" and place >= prompt - 1 for place in range(len(message))]
        labels = [token if flag else IGNORED for token, flag in zip([*ids[1:], user], trained, strict=True)]
        assert tokens_of(tokenizer, conversation) == [([*ids, user], [IGNORED, *labels])], conversation


def test_a_batch_has_the_labels_of_baichuan(tokenizers: dict[str, Any]) -> None:
    """The model sees the token of the next turn and predicts the end of sequence, padded or packed."""
    from train.data import batches
    from train.data.tokenizer import tokenize
    from train.records.conversations import Record

    turns = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    made = tokenize(tokenizers["baichuan2"], [Record(turns, "f", 1)], max_length=64, overlong="cut")
    for collate in (batches.collate, batches.pack):
        batch = collate(made, [0], pad=0, multiple=1, device="cpu")
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        seam = ids.index(195, 1)
        assert labels[seam - 1] == 2
        assert labels[-2] == 2
        assert labels[seam] == IGNORED
