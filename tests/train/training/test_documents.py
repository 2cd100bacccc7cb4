"""Continued pretraining: tokens, losses and gradients of documents against a loop of this test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import Ranks, metrics, result, train

pytestmark = pytest.mark.train
pytest.importorskip("torch")

TEXTS = (
    "The lamp stands on the table. " * 9,
    "短文。",
    "A line\n\n# A heading\n\nand <|im_end|> as plain text, then more of it. " * 3,
    "Short.",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same documents as records and as a directory of files."""
    place = tmp_path_factory.mktemp("documents")
    lines = (json.dumps({"text": text, "url": "x"}, ensure_ascii=False) + "\n" for text in TEXTS)
    (place / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    folder = place / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.{'md' if number % 2 else 'txt'}").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("About these files.")
    return {"records": place / "texts.jsonl", "files": folder}


SETTINGS = {
    "data.eval": None, "data.documents": True, "data.max_length": 24, "train.max_steps": 1, "train.warmup_ratio": 0.0,
    "train.learning_rate": 1e-9, "eval.after": False,
}  # fmt: skip


def own_windows(tokenizer: Any, length: int, overlap: int) -> list[tuple[list[int], list[bool]]]:
    """(ids, whether each has loss) of every sequence: each token once, but for the first of a sequence."""
    found = []
    for text in TEXTS:
        ids = [tokenizer.convert_tokens_to_ids(token) for token in tokenizer.tokenize(text, split_special_tokens=True)]
        ids = [*ids, tokenizer.eos_token_id]
        start = 0
        while True:
            part = ids[start : start + length]
            fresh = overlap if start else 0
            found.append((part, [place >= max(1, fresh) for place in range(len(part))]))
            if start + length >= len(ids):
                break
            start += length - overlap
    return found


def own_loss(run: Path, length: int, overlap: int) -> tuple[float, int, int]:
    """(loss per token, tokens with loss, sequences) of all documents by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    model = AutoModelForCausalLM.from_pretrained(run / "base_model").eval()
    windows = own_windows(tokenizer, length, overlap)
    total, count = 0.0, 0
    for ids, wanted in windows:
        if not any(wanted):
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        chosen = losses[torch.tensor(wanted[1:])]
        total, count = total + float(chosen.sum()), count + len(chosen)
    return total / count, count, sum(any(wanted) for _, wanted in windows)


@pytest.mark.parametrize(
    ("kind", "overlap", "packing", "engine"),
    [
        ("records", 0, "bucket", "peft"),
        ("records", 7, "pack", "peft"),
        ("files", 7, "none", "peft"),
        ("records", 5, "pack", "fused"),
    ],
)
def test_the_loss_of_documents_is_that_of_a_plain_loop(
    configure: Any, sources: dict[str, Path], kind: str, overlap: int, packing: str, engine: str
) -> None:
    over = {
        **SETTINGS, "data.train": str(sources[kind]), "data.document_overlap": overlap, "train.packing": packing,
        "train.engine": engine,
    }  # fmt: skip
    first = configure(f"count-{kind}", **{**over, "train.global_batch_size": 8})
    train(first)
    expected, labelled, sequences = own_loss(first, 24, overlap)
    told = result(first)["data"]["train"]
    assert (told["records"], told["loss_tokens"]) == (sequences, labelled)
    run = configure(f"documents-{kind}-{overlap}", **{
        **over, "train.global_batch_size": sequences, "train.micro_batch_size": sequences,
        "train.gradient_accumulation_steps": 1})  # fmt: skip
    (run / "base_model").symlink_to(first / "base_model")
    train(run)
    assert metrics(run) == pytest.approx([expected], rel=1e-5)


def test_documents_and_instructions_are_trained_together_with_whole_modules(
    configure: Any, sources: dict[str, Path], records: dict[str, str]
) -> None:
    """Held-out documents have a loss and no answers; held-out instructions are answered."""
    both = [str(sources["records"]), records["train"]]
    settings = {
        **SETTINGS, "data.train": both, "data.max_length": 64, "data.order": "given", "eval.after": True,
        "train.max_steps": 3, "train.learning_rate": 1e-2, "lora.modules_to_save": ["lm_head"],
    }  # fmt: skip
    mixed = configure("mixed", **{**settings, "data.eval": [str(sources["records"]), records["eval"]]})
    alone = configure("documents-held-out", **{**settings, "data.eval": str(sources["files"])})
    train(mixed, alone)
    assert len((mixed / "predictions.jsonl").read_text().splitlines()) == 6
    assert result(mixed)["eval"]["after"]["records"] == 6
    assert result(mixed)["data"]["train"]["ignored_keys"] == {"url": 4}
    assert (alone / "predictions.jsonl").read_text() == ""
    assert result(alone)["eval"]["after"]["loss"] > 0
    assert "accuracy" not in result(alone)["eval"]["after"]
    assert (result(alone)["samples"], result(alone)["state"]) == ([], "succeeded")


def test_a_text_alone_is_refused_without_the_key(configure: Any, sources: dict[str, Path]) -> None:
    run = configure("refused", **{**SETTINGS, "data.train": str(sources["files"]), "data.documents": False})
    ranks = Ranks(1, ["-m", "train", "--config", str(run / "train.json")])
    assert ranks.wait() == [2]
    output = ranks.output[0]
    assert "does not say which part of it is the answer; data.documents: true trains on whole texts" in output
