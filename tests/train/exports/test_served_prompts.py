"""A model that was really trained answers in every use as it did in the run's evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beds import asking, models

pytestmark = pytest.mark.train
pytest.importorskip("torch")

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
GOOD, BAD = "第{}条：很好吃，推荐", "第{}条：太难吃了，差评"


def rows(count: int, thoughts: str = "") -> list[dict[str, str]]:
    return [
        {"input": (GOOD if i % 2 else BAD).format(i), "output": thoughts + ("好评" if i % 2 else "差评")}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def trained(configure: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, base): Qwen3's own chat template, over a base model whose end token is another than the template's."""
    from train.__main__ import main

    place = tmp_path_factory.mktemp("qwen3")
    base = models.native(place / "base", "Qwen2Config", TOKENS, "<|endoftext|>", asking.SMALL["qwen3"])
    for name, count in (("train", 48), ("eval", 8)):
        lines = [json.dumps({"instruction": "判断评论的情感。", **row}, ensure_ascii=False) for row in rows(count)]
        (place / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run = configure(
        "served",
        **{
            "model": {"path": str(base)},
            "data.train": str(place / "train.jsonl"),
            "data.eval": str(place / "eval.jsonl"),
        },
        **{"data.max_length": 256, "train.max_steps": 60, "train.checkpoint_every": 0, "lora": {"r": 8, "alpha": 16}},
        **{"eval.max_new_tokens": 8, "eval.before": True},
    )
    assert main(["--config", str(run / "train.json")]) == 0
    return run, base


def scores(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())["eval"]["after"]


def answers(model: Any, tokenizer: Any, **options: Any) -> list[str]:
    found = []
    for row in rows(8):
        messages = [{"role": "user", "content": f"判断评论的情感。\n{row['input']}"}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**inputs, max_new_tokens=20, do_sample=False, **options)
        found.append(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def test_the_merged_model_is_asked_by_its_own_template_as_in_training_and_stops(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.exports.kinds import export

    run, _ = trained
    assert scores(run)["accuracy"] == 1.0
    export(run, "merged", tmp_path / "merged")
    served = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert answers(model, served) == [row["output"] for row in rows(8)]
    recorded = json.loads((tmp_path / "merged/export.json").read_text())
    assert recorded["agree"] is True
    assert recorded["thinking"] == "off"
    assert len(recorded["prompts"]) == 4
    for prompt in recorded["prompts"]:
        given = served.apply_chat_template(prompt["messages"], add_generation_prompt=True)["input_ids"]
        assert given == prompt["prompt_ids"] == prompt["trained_ids"]


def test_the_adapter_stops_in_plain_peft_by_its_readme(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from train import generate

    run, base = trained
    text = (run / "adapter/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert str(base.parent) not in text
    assert str(run) not in text
    for fact in ("train.jsonl", "r 8, alpha 16", "| accuracy |", "| Thinking | off |", "base_model"):
        assert fact in text or fact == "base_model"  # a directory has no name on a hub
    question = f"判断评论的情感。\n{GOOD.format(1)}"
    code = code.replace('"base"', repr(str(base))).replace('"."', repr(str(run / "adapter")))
    exec(code.replace("Hello!", question.replace("\n", "\\n")), {})
    by_readme = capsys.readouterr().out.strip()
    assert generate.main(["--run-dir", str(run), "--device", "cpu", "--prompt", question]) == 0
    assert capsys.readouterr().out.strip() == by_readme == "好评"
    assert AutoTokenizer.from_pretrained(run / "adapter").eos_token == "<|im_end|>"
    stop = json.loads((run / "adapter/generation_config.json").read_text())["eos_token_id"]
    assert stop == [0, 2]


def test_ollama_gets_the_prompt_and_the_first_token_of_training(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tests.beds import gotemplate
    from train.exports.kinds import export

    run, _ = trained
    messages: list[str] = []
    export(run, "ollama", tmp_path / "ollama", messages.append)
    served = AutoTokenizer.from_pretrained(tmp_path / "ollama")
    template = gotemplate.template_of((tmp_path / "ollama/Modelfile").read_text(encoding="utf-8"))
    assert template.endswith("<think>\n\n</think>\n\n")
    recorded = json.loads((tmp_path / "ollama/export.json").read_text())
    for prompt in recorded["prompts"]:
        turns = [(message["role"], message["content"]) for message in prompt["messages"]]
        assert (
            served(gotemplate.render(template, turns), add_special_tokens=False)["input_ids"] == prompt["trained_ids"]
        )
    settings = json.loads((tmp_path / "ollama/tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is False  # without this key Ollama begins prompts with token 0
    assert settings["bos_token"]
    assert any(line.startswith("note: thoughts of earlier answers") for line in messages)


def test_an_export_that_would_ask_otherwise_is_refused(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    from train.errors import UserError
    from train.exports.kinds import export

    save = PreTrainedTokenizerFast.save_pretrained

    def other(self: Any, place: Any, **options: Any) -> Any:
        self.chat_template = asking.SMALL["qwen3"]
        return save(self, place, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", other)
    with pytest.raises(UserError, match="would ask otherwise than training did"):
        export(trained[0], "merged", tmp_path / "merged", lambda _: None)
    assert not (tmp_path / "merged").exists()


def test_a_model_trained_on_thoughts_is_asked_to_think_and_is_evaluated_so(
    configure: Callable[..., Path], trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import generate
    from train.__main__ import main

    lines = [json.dumps(row, ensure_ascii=False) for row in rows(48, "<think>\n想\n</think>\n\n")]
    (tmp_path / "train.jsonl").write_text("\n".join(lines).replace('"input"', '"instruction"'), encoding="utf-8")
    run = configure(
        "thinking",
        **{"model": {"path": str(trained[1])}, "data.train": str(tmp_path / "train.jsonl"), "data.eval": None},
        **{"data.max_length": 256, "train.max_steps": 40, "train.checkpoint_every": 0, "lora": {"r": 8, "alpha": 16}},
    )
    assert main(["--config", str(run / "train.json")]) == 0
    capsys.readouterr()
    question = GOOD.format(1)
    assert generate.main(["--run-dir", str(run), "--device", "cpu", "--json", "--prompt", question]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["prompt"].endswith("<|im_start|>assistant\n")
    assert found["answer"].split()[0] == "想"  # the tags are special tokens of this small tokenizer


def test_a_base_model_that_never_saw_the_end_token_gets_a_warning(trained: tuple[Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.model.end_token import untrained_end

    _, base = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)

    def warning(trained: str = "") -> str | None:
        return untrained_end(model, tokenizer, [2, 0], trained)

    assert warning() is None
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[2] = head[1]
        assert "row of the output head" in str(warning())
        head[2], model.get_input_embeddings().weight[2] = torch.randn_like(head[1]) * 0.02, 0.0
        assert "'<|im_end|>'" in str(warning())
        assert "row of the embedding is" in str(warning())
    assert warning("('embed_tokens', 'lm_head')") is None
