"""data.train_on_prompt: transformers' own loss over all tokens of the records; held out, only answers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.beds.ranks import events, metrics, train

pytestmark = pytest.mark.train

SHORT = {"train.max_steps": 2, "train.checkpoint_every": 1, "eval.after": False, "eval.every": 1, "lora.dropout": 0.0}


def test_every_token_but_the_first_carries_loss(configure: Any, records: dict[str, str], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = Path(records["train"]).read_text(encoding="utf-8").splitlines()[:8]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines) + "\n", encoding="utf-8")
    over = {**SHORT, "data.train": str(few), "data.train_on_prompt": True}
    run = configure("whole", **over)
    packed = configure("packed", **over, **{"train.packing": "pack"})
    again = configure("again", **over, init_from=str(run / "checkpoints/step-1"))
    answers = configure("answers", **{**over, "data.train_on_prompt": False})
    train(run, packed, again, answers)

    model = AutoModelForCausalLM.from_pretrained(run / "base_model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "base_model")
    total = count = 0.0
    for line in map(json.loads, lines):
        turns = [{"role": "user", "content": f"{line['instruction']}\n{line['input']}"}]
        turns.append({"role": "assistant", "content": line["output"]})
        text = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert metrics(run)[0] == pytest.approx(total / count, rel=1e-4)
    assert metrics(packed) == pytest.approx(metrics(run), rel=1e-4)
    assert metrics(again) == metrics(run)[1:]
    assert metrics(answers)[0] != pytest.approx(metrics(run)[0], rel=1e-3)
    held = [events(each, "data")[1]["loss_tokens"] for each in (run, answers)]
    assert held[0] == held[1] > 0
