"""A job that continues an adapter: what it takes from the adapter, and what it may not change."""

from __future__ import annotations

from typing import Any

import pytest

from train.compat import continued
from train.config import Lora

ADAPTER = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True,
    "target_modules": ["v_proj", "q_proj"], "modules_to_save": ["lm_head"], "bias": "none", "rank_pattern": {},
}  # fmt: skip
TAKEN = Lora(
    r=8, alpha=16, dropout=0.1, rslora=True, dora=True, target_modules=("q_proj", "v_proj"),
    modules_to_save=("lm_head",), adapter="a",
)  # fmt: skip


def test_settings_that_the_job_leaves_out_are_the_adapters() -> None:
    found = continued(Lora(adapter="a"), ADAPTER)
    assert (found.lora, found.refused, found.only_peft) == (TAKEN, (), "")
    assert set(found.taken) == {"r", "alpha", "dropout", "rslora", "dora", "target_modules", "modules_to_save"}


def test_nothing_is_to_say_about_settings_that_agree() -> None:
    asked = Lora(
        r=8, alpha=16.0, dropout=0.1, rslora=True, dora=True, target_modules=("v_proj", "q_proj"),
        modules_to_save=("lm_head",), adapter="a", plus_ratio=4.0,
    )  # fmt: skip
    found = continued(asked, ADAPTER)
    assert (found.lora, found.taken, found.refused) == (asked, (), ())


@pytest.mark.parametrize(
    ("asked", "recorded", "message"),
    [
        ({"r": 32}, {}, "lora.r is 32, but the adapter's is 8"),
        ({"alpha": 64}, {}, "lora.alpha is 64, but the adapter's is 16"),
        ({"rslora": True}, {"use_rslora": False}, "lora.rslora is true, but the adapter's is false"),
        ({"dora": True}, {"use_dora": None}, "lora.dora is true"),
        ({"target_modules": ("q_proj",)}, {}, "lora.target_modules is [q_proj], but the adapter's is [q_proj, v_proj]"),
        ({"modules_to_save": ("embed_tokens",)}, {}, "lora.modules_to_save is [embed_tokens]"),
        ({"modules_to_save": ("embed_tokens",)}, {"modules_to_save": None}, "but the adapter's is []"),
        ({"r": 32}, {"r": None}, "but the adapter's is 8"),  # PEFT's default
    ],
)
def test_other_settings_are_refused_by_name(asked: dict[str, Any], recorded: dict[str, Any], message: str) -> None:
    refused = continued(Lora(adapter="a", **asked), {**ADAPTER, **recorded}).refused
    assert len(refused) == 1
    assert message in refused[0]


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ("all-linear", ["q_proj"]),
        (r".*q_proj", ["q_proj"]),
        (("q_proj",), r".*q_proj"),
        (("self_attn.q_proj",), ["q_proj"]),
    ],
)
def test_whether_a_pattern_names_the_same_modules_is_left_to_the_model(asked: Any, held: Any) -> None:
    found = continued(Lora(adapter="a", target_modules=asked), {**ADAPTER, "target_modules": held})
    assert (found.lora.target_modules, found.refused) == (asked, ())


def test_dropout_may_change_because_it_is_no_part_of_the_weights() -> None:
    found = continued(Lora(adapter="a", dropout=0.3), ADAPTER)
    assert (found.lora.dropout, found.refused) == (0.3, ())


def test_ranks_of_their_own_and_chosen_layers_are_taken_or_must_be_the_same() -> None:
    own = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8.0}, "layers_to_transform": [10, 9]}
    found = continued(Lora(adapter="a"), {**ADAPTER, **own})
    assert (found.lora.rank_pattern, found.lora.alpha_pattern) == ({"q_proj": 4}, {"q_proj": 8.0})
    assert (found.lora.layers_to_transform, found.only_peft, found.refused) == ((9, 10), "", ())
    assert "lora.rank_pattern: {q_proj: 4}" in str(found)
    asked = Lora(adapter="a", rank_pattern={"q_proj": 8}, layers_to_transform=(10, 9))
    (refused,) = continued(asked, {**ADAPTER, **own}).refused
    assert refused == "lora.rank_pattern is {q_proj: 8}, but the adapter's is {q_proj: 4}"
    plain = continued(Lora(adapter="a", rank_pattern={"q_proj": 8}), ADAPTER)
    assert plain.refused == ("lora.rank_pattern is {q_proj: 8}, but the adapter's is {}",)


@pytest.mark.parametrize(
    "more", [{"bias": "all"}, {"layer_replication": [[0, 2]]}, {"exclude_modules": ["x"]}, {"lora_bias": True}]
)
def test_what_a_job_cannot_ask_for_is_continued_by_peft(more: dict[str, Any]) -> None:
    assert continued(Lora(adapter="a"), {**ADAPTER, **more}).only_peft == next(iter(more))
