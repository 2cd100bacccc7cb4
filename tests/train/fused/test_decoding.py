"""Answers through the fused layers equal those of transformers' generate()."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.train.fused.test_model import CONFIGS, build  # noqa: E402

SIZES = (5, 1, 17, 9, 30, 2, 11)


def prompts(vocab: int = 97) -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(3, vocab, (size,)).tolist() for size in SIZES]


def generated(model: Any, prompt: list[int], room: int, stop: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=room,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_equal_those_of_generate(name: str) -> None:
    """Fewer slots than prompts, rooms of their own, and tokens that end an answer after a few of them."""
    from train.fused.decoding import Decoder
    from train.fused.model import fuse

    model = build(name).eval()
    rooms = [6, 1, 12, 20, 8, 15, 3]
    free = [generated(model, prompt, room, []) for prompt, room in zip(prompts(), rooms, strict=True)]
    held = [sum(token in answer for answer in free) for token in range(97)]
    stop = [next(token for answer in free for token in answer[2:] if held[token] < len(free))]
    wanted = [generated(model, prompt, room, stop) for prompt, room in zip(prompts(), rooms, strict=True)]
    decoder = Decoder(fuse(model), slots=3, capacity=64, stop=stop)
    found = {answer.place: answer for answer in decoder.answers(prompts(), rooms)}
    assert sorted(found) == list(range(len(SIZES)))
    for place, expected in enumerate(wanted):
        ended = bool(expected) and expected[-1] in stop
        assert found[place].ended == ended
        assert found[place].tokens == (expected[:-1] if ended else expected), place
    assert any(answer.ended for answer in found.values())
    assert not all(answer.ended for answer in found.values())


def test_slots_are_used_again_by_later_calls() -> None:
    from train.fused.decoding import Decoder
    from train.fused.model import fuse

    decoder = Decoder(fuse(build("llama")), slots=2, capacity=40, stop=[])
    rooms = [8] * len(SIZES)
    first = {answer.place: answer.tokens for answer in decoder.answers(prompts(), rooms)}
    again = {answer.place: answer.tokens for answer in decoder.answers(prompts(), rooms)}
    assert first == again


def test_a_temperature_draws_from_the_likely_tokens() -> None:
    """The shares of the first token over many draws are those of the softmax."""
    from train.fused.decoding import Decoder
    from train.fused.model import fuse

    model = build("llama").eval()
    prompt = prompts()[2]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    likely = logits.topk(50)
    wanted = torch.zeros(97, dtype=torch.float64).scatter(0, likely.indices, (likely.values / 2.0).softmax(-1))
    torch.manual_seed(0)
    decoder = Decoder(fuse(model), slots=500, capacity=40, stop=[], temperature=2.0)
    draws = [answer.tokens[0] for answer in decoder.answers([prompt] * 4000, [1] * 4000)]
    shares = torch.bincount(torch.tensor(draws), minlength=97) / len(draws)
    assert float((shares - wanted).abs().max()) < 0.03
    assert not shares[wanted == 0].any()
