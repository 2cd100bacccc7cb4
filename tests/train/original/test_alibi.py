"""The ALiBi model by itself: slopes, masks, padding, packing, cached generation, gradients."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.beds import original  # noqa: E402  # needs torch
from train.original import alibi  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = alibi.AlibiLlamaConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=6,
        pad_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return alibi.AlibiLlamaForCausalLM(config).eval()


def ids(rows: int, length: int, seed: int = 1) -> Any:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 32, 40, 64])
def test_slopes_are_those_of_the_paper(heads: int) -> None:
    assert alibi.slopes(heads) == pytest.approx(original.published_slopes(heads), rel=1e-12)


def test_the_slopes_of_baichuan_13b_begin_and_end_where_they_should() -> None:
    forty = alibi.slopes(40)
    assert forty[0] == pytest.approx(2**-0.25)
    assert forty[31] == pytest.approx(2**-8)
    assert forty[32] == pytest.approx(2**-0.125)


def test_a_query_sees_only_what_stands_before_it_and_less_of_what_is_far() -> None:
    bias = alibi.attention_bias(2, 4, 4, torch.float32, "cpu")
    lowest = torch.finfo(torch.float32).min
    assert bias.shape == (1, 2, 4, 4)
    assert (bias[0, 0].triu(1)[torch.ones(4, 4).triu(1).bool()] == lowest).all()
    assert bias[0, 0, 3].tolist() == pytest.approx([-3 / 16, -2 / 16, -1 / 16, 0])


@torch.no_grad()
def test_word_order_matters_only_through_alibi(model: Any) -> None:
    """Without positions a causal model still sees order; with the slopes gone, nothing of ALiBi is left."""
    rows = ids(1, 12)
    assert model.model.rotary_emb(torch.zeros(1, 1, 8), torch.arange(5)[None])[0].eq(1).all()
    swapped = rows[:, [1, 0, *range(2, 12)]]
    one, other = model(rows).logits[0, -1], model(swapped).logits[0, -1]
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_records_in_a_packed_row_do_not_see_each_other(model: Any) -> None:
    lengths = [5, 1, 1, 9]
    records = [ids(1, length, seed) for seed, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(torch.cat(records, 1), position_ids=positions).logits
    for record, part in zip(records, packed.split(lengths, 1), strict=True):
        assert (model(record).logits - part).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: Any, side: str) -> None:
    row = ids(1, 8)
    padding = torch.zeros(1, 5, dtype=torch.long)
    padded = torch.cat([padding, row] if side == "left" else [row, padding], 1)
    logits = model(padded, attention_mask=(padded != 0).long()).logits
    assert torch.isfinite(logits).all()
    part = logits[:, 5:] if side == "left" else logits[:, :8]
    assert (part - model(row).logits).abs().max() <= 1e-5


@torch.no_grad()
def test_batched_generation_with_padding_equals_each_prompt_alone(model: Any) -> None:
    long, short = ids(1, 9), ids(1, 4, 2)
    batch = torch.cat([long, torch.nn.functional.pad(short, (5, 0))])
    made = model.generate(batch, attention_mask=(batch != 0).long(), max_new_tokens=6, do_sample=False)
    for row, prompt in zip(made, (long, short), strict=True):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
        assert torch.equal(row[-6:], alone[0, -6:])


def test_eager_and_sdpa_attention_agree(model: Any) -> None:
    with torch.no_grad():
        first = model(ids(2, 10)).logits
        model.set_attn_implementation("eager")
        second = model(ids(2, 10)).logits
        model.set_attn_implementation("sdpa")
    assert (first - second).abs().max() <= 1e-5


def test_gradient_checkpointing_gives_the_same_gradients(model: Any) -> None:
    def gradients() -> list[Any]:
        model.zero_grad()
        model(ids(2, 10), labels=ids(2, 10), use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    model.gradient_checkpointing_disable()
    model.eval()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))
    assert all(g.abs().max() > 0 for g in plain)


def test_a_ready_made_mask_is_refused_because_it_would_replace_alibi(model: Any) -> None:
    with pytest.raises(ValueError, match=r"\[batch, length\]"):
        model(ids(1, 4), attention_mask=torch.ones(1, 1, 4, 4))


def test_bfloat16_masks_stay_finite(model: Any) -> None:
    bias = alibi.attention_bias(40, 2048, 2048, torch.bfloat16, "cpu")
    assert torch.isfinite(bias).all()
    assert bias.dtype == torch.bfloat16
