"""Positions and token ids that a model lacks are found before its weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.models import CHATML, native
from tests.beds.ranks import Ranks, events, tools
from train.families import max_positions

pytestmark = pytest.mark.train

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen2", "max_position_embeddings": 32768}, 32768),
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
        ({"model_type": "mpt", "max_seq_len": 2048, "attn_config": {"alibi": True}}, 2048),
        ({"model_type": "llama", "max_sequence_length": 2048}, 2048),
        ({"model_type": "chatglm", "seq_length": 8192}, 8192),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
        ({"model_type": "mamba"}, None),
        ({}, None),
        # Baichuan-13B names no positions, because ALiBi has none.
        ({"model_type": "baichuan", "model_max_length": 4096}, None),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}}, 131072),
        # scaled RoPE, in the forms of transformers 4 and 5
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 8192),
        (
            {"max_position_embeddings": 512, "rope_parameters": {"full": {"rope_type": "linear", "factor": 2.0}}},
            1024,
        ),
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 8192, "rope_scaling": {"type": "yarn", "factor": 2.0}}, 16384),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, 131072),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
    ],
)  # fmt: skip
def test_the_positions_of_a_model_are_read_from_its_config(config: dict[str, Any], expected: int | None) -> None:
    assert max_positions(config) == expected


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 64 learned positions, whose tokenizer got two tokens more than it has rows."""
    from transformers import AutoTokenizer

    place = tmp_path_factory.mktemp("gpt2")
    native(place, "GPT2Config", SPECIALS, "<|im_end|>", CHATML, max_position_embeddings=64)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool_start|>"], "pad_token": "[PAD]"})
    tokenizer.save_pretrained(place)
    return place


def data(place: Path, answer: str) -> str:
    records = [{"instruction": "a", "output": "b"}] * 7 + [{"instruction": "a", "output": answer}]
    place.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(place)


@pytest.mark.parametrize(
    ("answer", "over", "message"),
    [
        ("b", {"data.max_length": 65}, "data.max_length=65, but the model has 64 positions"),
        ("<tool>", {}, "d.jsonl:8 needs the token '<tool>', whose id is 70"),
        ("<|tool_start|>", {}, "d.jsonl:8 needs the token '<|tool_start|>', whose id is 70"),
        ("b", {"data.chat_template": "<tool>" + CHATML}, "d.jsonl:1 needs the token '<tool>'"),
    ],
)
def test_a_run_that_would_end_in_an_index_error_is_refused_before_the_model_is_loaded(
    configure: Any, gpt2: Path, tmp_path: Path, answer: str, over: dict[str, Any], message: str
) -> None:
    records = data(tmp_path / "d.jsonl", answer)
    settings = {"data.train": records, "data.eval": None, "data.max_length": 64, **over}
    run = configure("beyond", model={"path": str(gpt2)}, **settings)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")], ZLAUNCH_CACHE=str(tmp_path))
    assert ranks.wait() == [2], ranks.output[0]
    assert message in ranks.output[0]
    assert "Traceback" not in ranks.output[0]
    assert [event["name"] for event in events(run, "phase")] == ["model"]


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_may_be_used_without_them(
    configure: Any, gpt2: Path, tmp_path: Path
) -> None:
    """As Gemma 3's text models with their token for images; padding is another token that has no row here."""
    over = {"data.train": data(tmp_path / "d.jsonl", "b b b"), "data.eval": data(tmp_path / "e.jsonl", "b")}
    more = {"data.max_length": 64, "train.max_steps": 2, "eval.max_new_tokens": 200}
    more |= {"train.global_batch_size": 16, "train.gradient_accumulation_steps": 8}
    run = configure("within", model={"path": str(gpt2)}, **over, **more)
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")], ZLAUNCH_CACHE=str(tmp_path))
    assert ranks.wait() == [0], ranks.output[0]
    remark = "data.train: 2 steps; each record 4 times; set train.global_batch_size below 8"
    assert remark in [event["text"] for event in events(run, "warning")]
    assert f"warning: {remark}" in ranks.output[0]
    generate = ["--run-dir", str(run), "--device", "cpu", "--prompt"]
    asked = tools(tmp_path, *[("train.generate", [*generate, prompt]) for prompt in ("a", "a " * 80, "<tool>")])
    assert [status for status, _ in asked] == [0, 2, 2], asked
    assert "and the model only 64 positions" in asked[1][1]
    assert "needs the token id" in asked[2][1]
